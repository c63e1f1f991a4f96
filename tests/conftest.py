import os

import torch

# Triton's kernels run on a CPU so; it has to be said before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

"""Mixed precision of ``tools/train.py --amp``: on a GPU MMEngine's, on a CPU in bfloat16."""
from contextlib import contextmanager
from typing import Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..errors import UserError
from ..ops.emsa.chunked import cpu_has_bfloat16


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """OptimWrapper under PyTorch's autocast to bfloat16 on a CPU.

    MMEngine's AmpOptimWrapper refuses CPUs. The loss is not scaled, because bfloat16 has the
    range of float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def set_amp(cfg: Config) -> None:
    """Have a config train with mixed precision.

    Raises:
        UserError: There is no GPU, and the CPU has no instructions for bfloat16.
    """
    wrapper = cfg.optim_wrapper
    if get_device() != 'cpu':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif cpu_has_bfloat16():
        wrapper.type = 'CpuAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):  # of AmpOptimWrapper
            wrapper.pop(key, None)
    else:
        raise UserError('--amp would be slower here: this CPU has neither AVX-512-BF16 nor '
                        'AMX, and there is no GPU. Train without --amp')

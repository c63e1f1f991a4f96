"""What the backends share to stand in PyTorch's graphs as one operator each."""
from typing import Callable, Optional

import torch
from torch import Tensor


def opaque(name: str, fake: Callable) -> Callable:
    """Make a function one node of a compiled graph, whose loops are not unrolled.

    Args:
        name (str): Its name among ``torch.ops.mmrest``.
        fake (Callable): Takes the same arguments, returns empty tensors like the results.

    Before torch 2.4, which has no ``custom_op``, the function stays as it is.
    """

    def decorate(function: Callable) -> Callable:
        if not hasattr(torch.library, 'custom_op'):
            return function
        op = torch.library.custom_op(f'mmrest::{name}', function, mutates_args=())
        op.register_fake(fake)
        return op

    return decorate


def empty_heads(like: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """An empty (B, h, N, d) whose tokens lie as linear layers want them, (B, N, h d)."""
    B, h, N, d = like.shape
    return like.new_empty((B, N, h, d), dtype=dtype).transpose(1, 2)

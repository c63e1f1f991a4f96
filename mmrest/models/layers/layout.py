"""Between images (B, C, H, W) and tokens (B, N, C), N = H W, with safe strides.

A bare ``permute`` leaves strides that other operators misread without a word:
mmcv's RoIAlign takes any memory for contiguous (B, C, H, W), and PyTorch's BatchNorm
on a CPU returns a wrong gradient at batch 1 when its input and the incoming gradient
differ in layout. So both directions, and both their gradients, copy to contiguous
memory.
"""
from typing import Tuple

import torch
from torch import Tensor


class _Transpose(torch.autograd.Function):
    """(B, P, Q) -> (B, Q, P), result and gradient contiguous."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.transpose(1, 2).contiguous()


def image_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), contiguous, as is its gradient."""
    return _Transpose.apply(x.flatten(2))


def tokens_to_image(x: Tensor, hw: Tuple[int, int]) -> Tensor:
    """(B, H W, C) -> (B, C, H, W), contiguous, as is its gradient."""
    return _Transpose.apply(x).unflatten(2, hw)

"""Between images (B, C, H, W) and tokens (B, N, C), N = H W.

Inside the network an image is a view of its tokens, which is channels_last memory. Nothing is
copied, and depth-wise convolutions are many times faster on a CPU.

Two operators silently misread other memory. mmcv's RoIAlign assumes contiguous (B, C, H, W), so
the outputs of the network are contiguous. PyTorch's BatchNorm on a CPU returns a wrong gradient
at batch 1 if its input or the incoming gradient is a transposed view with an odd stride for the
batch, like ``x.transpose(1, 2).reshape(1, C, H, W)``. So both functions, and their gradients,
take a ``view`` of contiguous tokens.
"""
from typing import Tuple

import torch
from torch import Tensor


def _as_tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1, x.shape[1])


def _as_image(x: Tensor, hw: Tuple[int, int]) -> Tensor:
    return x.contiguous().view(x.shape[0], *hw, x.shape[2]).permute(0, 3, 1, 2)


class _ImageToTokens(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.hw = x.shape[-2:]
        return _as_tokens(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _as_image(grad, ctx.hw)


class _TokensToImage(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, H: int, W: int) -> Tensor:
        return _as_image(x, (H, W))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Tensor, None, None]:
        return _as_tokens(grad), None, None


def image_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), contiguous; the gradient is channels_last."""
    return _ImageToTokens.apply(x)


def tokens_to_image(x: Tensor, hw: Tuple[int, int]) -> Tensor:
    """(B, H W, C) -> (B, C, H, W), channels_last; the gradient is contiguous."""
    return _TokensToImage.apply(x, *hw)

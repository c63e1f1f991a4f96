"""Between images (B, C, H, W) and tokens (B, N, C), N = H W.

Inside the network an image is a view of its tokens, which is channels_last memory. Nothing is
copied, and depth-wise convolutions are many times faster on a CPU.

Two operators silently misread other memory. mmcv's RoIAlign assumes contiguous (B, C, H, W), so
the outputs of the network are contiguous. PyTorch's BatchNorm on a CPU returns a wrong gradient
at batch 1 if its input or the incoming gradient is channels_last with an odd stride for the
batch, like ``x.transpose(1, 2).reshape(1, C, H, W)``. So H and W are split and joined beside
the channels, which leaves the batch its stride, here and in backward.
"""
from typing import Tuple

from torch import Tensor


def image_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), contiguous."""
    B, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).contiguous().view(B, H * W, C)


def tokens_to_image(x: Tensor, hw: Tuple[int, int]) -> Tensor:
    """(B, H W, C) -> (B, C, H, W), channels_last."""
    H, W = hw
    return x.contiguous().view(x.shape[0], H, W, x.shape[2]).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels_last memory. ``torch.func.vmap`` takes it, too."""
    return tokens_to_image(image_to_tokens(x), x.shape[-2:])

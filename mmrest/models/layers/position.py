"""The position encodings of section 3.4 of the paper (table 7), on images (B, C, H, W)."""
from typing import Tuple

import torch
from torch import Tensor, nn


class PixelAttention(nn.Module):
    """PA, equation (8): ``x * sigmoid(DWConv(x))``."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.pa_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pa_conv(x).sigmoid_()


class GroupLinear(nn.Module):
    """GL, equation (7): ``x + DWConv(x)``."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.gl_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gl_conv(x)


class LearnedPosition(nn.Module):
    """LE, equation (6): ``x + theta``, for one size ``hw`` = (H, W) of feature maps."""

    def __init__(self, embed_dims: int, hw: Tuple[int, int]):
        super().__init__()
        self.theta = nn.Parameter(torch.empty(1, embed_dims, *hw))
        nn.init.trunc_normal_(self.theta, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.theta

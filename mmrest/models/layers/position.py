from torch import Tensor, nn


class PixelAttention(nn.Module):
    """PA, equation (8) of the paper: ``x * sigmoid(DWConv(x))`` on images (B, C, H, W)."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.pa_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pa_conv(x).sigmoid()

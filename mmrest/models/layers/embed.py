"""The stem and the patch embeddings of ResT (section 3.3, figure 4 of its paper) and ResTv2."""
from torch import Tensor, nn

from .layout import channels_last, image_to_tokens, tokens_to_image
from .position import PixelAttention


class Stem(nn.Module):
    """Three 3x3 convolutions, strides 2, 1 and 2, then the position encoding.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels of the output. The first two convolutions have half.
        pos (nn.Module): The position encoding.
    """

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        hidden = embed_dims // 2
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, embed_dims, 3, stride=2, padding=1, bias=False)
        self.act = nn.ReLU()
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.pos(channels_last(self.conv3(x)))


class PatchEmbed(nn.Module):
    """A 3x3 convolution with stride 2, BatchNorm, then the position encoding."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        return self.pos(self.norm(self.conv(x)))


class PatchEmbedV2(nn.Module):
    """A 3x3 convolution with stride 2, then PA and LayerNorm."""

    def __init__(self, in_channels: int, embed_dims: int, eps: float):
        super().__init__()
        self.proj = self._convolutions(in_channels, embed_dims)
        self.pos = PixelAttention(embed_dims)
        self.norm = nn.LayerNorm(embed_dims, eps)

    def _convolutions(self, in_channels: int, embed_dims: int) -> nn.Module:
        return nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos(channels_last(self.proj(x)))
        return tokens_to_image(self.norm(image_to_tokens(x)), x.shape[-2:])


class StemV2(PatchEmbedV2):
    """Two 3x3 convolutions, strides 2 and 2, and a 1x1 convolution, then PA and LayerNorm."""

    def _convolutions(self, in_channels: int, embed_dims: int) -> nn.Module:
        hidden = embed_dims // 2
        return nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, embed_dims, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(embed_dims),
            nn.ReLU(),
            nn.Conv2d(embed_dims, embed_dims, 1))

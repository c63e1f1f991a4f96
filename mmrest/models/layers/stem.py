"""The stems of table 5 of the paper; each shrinks the image 4 times a side."""
import torch
from torch import Tensor, nn


class Stem(nn.Module):
    """ResT's own (section 3.3): three 3x3 convolutions, strides 2, 1 and 2.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels of the result; the convolutions between have half.
        pos (nn.Module): The position encoding that closes it.
    """

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        hidden = embed_dims // 2
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, embed_dims, 3, stride=2, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.pos(self.conv3(x).contiguous(memory_format=torch.channels_last))


class ResNetStem(nn.Module):
    """ResNet's: a 7x7 convolution of stride 2, then a 3x3 max pool of stride 2."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.conv(x))))
        return self.pos(x.contiguous(memory_format=torch.channels_last))


class PVTStem(nn.Module):
    """PVT's first patch embedding: a 4x4 convolution of stride 4, without padding."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 4, stride=4)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 4:
            raise ValueError(f"stem='pvt' takes images of 4 pixels a side and more, "
                             f'not {tuple(x.shape[-2:])}')
        return self.pos(self.conv(x).contiguous(memory_format=torch.channels_last))

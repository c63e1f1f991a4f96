"""The variants of tables 5 (stems), 6 (attention) and 7 (position encodings) of the paper."""
from typing import Tuple, Union

import torch
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from .layers import EMSA, PatchEmbed, PixelAttention, Stem, channels_last
from .rest import ResT


class ResNetStem(nn.Module):
    """ResNet's stem: a 7x7 convolution with stride 2, then a 3x3 max pool with stride 2."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.conv(x))))
        return self.pos(channels_last(x))


class PVTStem(nn.Module):
    """PVT's first patch embedding: a 4x4 convolution with stride 4 and no padding."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 4, stride=4)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        return self.pos(channels_last(self.conv(x)))


class GroupLinear(nn.Module):
    """GL, equation (7): ``x + DWConv(x)``."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.gl_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gl_conv(x)


class LearnedPosition(nn.Module):
    """LE, equation (6): ``x + theta``, for feature maps of one size ``hw`` = (H, W).

    Raises:
        ValueError: The feature map has another size.
    """

    def __init__(self, embed_dims: int, hw: Tuple[int, int]):
        super().__init__()
        self.theta = nn.Parameter(torch.empty(1, embed_dims, *hw))
        nn.init.trunc_normal_(self.theta, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.theta.shape[2:]:  # a side of 1 would be broadcast
            raise ValueError(f"position='le' has {tuple(self.theta.shape[2:])} positions, the "
                             f'feature map {tuple(x.shape[2:])}: img_size must be the size of '
                             'every image')
        return x + self.theta


STEMS = {'rest': Stem, 'resnet': ResNetStem, 'pvt': PVTStem}
POSITIONS = {'pa': PixelAttention, 'gl': GroupLinear, 'le': LearnedPosition}
# Arguments of EMSA. Plain multi-head self-attention has no reduction either.
ATTENTIONS = {
    'emsa': {},
    'emsa_no_norm': dict(normalize=False),
    'emsa_plain': dict(mix_heads=False, normalize=False),
    'msa': dict(mix_heads=False, normalize=False, sr_ratio=1),
}


@MODELS.register_module()
class ResTAblation(ResT):
    """ResT with other stems, position encodings or attention.

    Arguments that are not below, and errors, are those of :class:`~mmrest.ResT`.

    Args:
        stem (str): 'rest', 'resnet' or 'pvt' (table 5). The map of 'pvt' has H / 4 and W / 4
            rounded down.
        position (str): 'pa', 'gl' or 'le' (table 7).
        attention (str): 'emsa', or, of table 6, 'emsa_no_norm' (no instance norm),
            'emsa_plain' (no 1x1 convolution either) or 'msa' (no reduction either).
        img_size (int | tuple[int, int]): Height and width of every image, for 'le' alone.
    """

    def __init__(self, *args, stem: str = 'rest', position: str = 'pa', attention: str = 'emsa',
                 img_size: Union[int, Tuple[int, int]] = 224, **kwargs):
        for name, value, table in (('stem', stem, STEMS), ('position', position, POSITIONS),
                                   ('attention', attention, ATTENTIONS)):
            if value not in table:
                raise ValueError(f'{name}={value!r} must be one of {sorted(table)}')
        if len(to_2tuple(img_size)) != 2:
            raise ValueError(f'{img_size=} must be one number, or height and width')
        # ResT's constructor builds with these.
        self.stem_type, self.position, self.attention = STEMS[stem], position, attention
        round_up = 0 if stem == 'pvt' else 3
        self.stem_hw = [(side + round_up) // 4 for side in to_2tuple(img_size)]
        super().__init__(*args, **kwargs)

    def _embed(self, i: int, in_channels: int, embed_dims: int) -> nn.Module:
        options = {}
        if self.position == 'le':
            options = dict(hw=tuple(-(-side // 2**i) for side in self.stem_hw))
        pos = POSITIONS[self.position](embed_dims, **options)
        return (PatchEmbed if i else self.stem_type)(in_channels, embed_dims, pos)

    def _attention(self, embed_dims: int, num_heads: int, sr_ratio: int) -> nn.Module:
        options = dict(num_heads=num_heads, sr_ratio=sr_ratio, backend=self.backend)
        return EMSA(embed_dims, **{**options, **ATTENTIONS[self.attention]})

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ...ops import check_backend, emsa_attention
from ...ops.arguments import check_bool, check_int
from .layout import image_to_tokens, tokens_to_image


class EMSA(nn.Module):
    """Efficient multi-head self-attention (section 3.2 and figure 3 of the paper).

    Keys and values come from an image that a depth-wise convolution has shrunk
    ``sr_ratio`` times a side. With more than one head a 1x1 convolution mixes the
    heads' scores and the attention map is instance-normalised; with one head both
    are left out, as in the published code.

    Args:
        embed_dims (int): Channels C, a multiple of ``num_heads``.
        num_heads (int): Heads h.
        sr_ratio (int): Stride s of the reduction, whose kernel is s + 1 and padding
            s // 2 (so that an odd s needs sides of 2 or more); 1 leaves it out.
        mix_heads (bool): Have the 1x1 convolution over heads (table 6 leaves it out).
        normalize (bool): Have the instance normalisation (likewise).
        backend (str): What computes it, see :func:`~mmrest.ops.emsa_attention`.

    Raises:
        TypeError, ValueError: An argument is not of the kind or in the range above.
        RuntimeError: The backend cannot run on this machine.
    """

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 sr_ratio: int = 1,
                 mix_heads: bool = True,
                 normalize: bool = True,
                 backend: str = 'auto'):
        super().__init__()
        for name, value in (('embed_dims', embed_dims), ('num_heads', num_heads),
                            ('sr_ratio', sr_ratio)):
            check_int(name, value, 1)
        check_bool('mix_heads', mix_heads)
        check_bool('normalize', normalize)
        check_backend(backend)
        self.backend = backend
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims={embed_dims} must be a multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv2d(
                embed_dims,
                embed_dims,
                kernel_size=sr_ratio + 1,
                stride=sr_ratio,
                padding=sr_ratio // 2,
                groups=embed_dims)
            self.sr_norm = nn.LayerNorm(embed_dims)
        self.normalize = normalize and num_heads > 1
        self.mix_heads = mix_heads and num_heads > 1
        if self.mix_heads:
            self.transform_conv = nn.Conv2d(num_heads, num_heads, kernel_size=1)

    def forward(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        """Attend over tokens (B, N, C) of an image of ``hw`` = (H, W), N = H W."""
        out = emsa_attention(  # (B, h, N, d)
            *self.project(x, hw), *self.mixing(), normalize=self.normalize,
            backend=self.backend)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor, hw: Tuple[int, int]) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, d), and keys and values (B, h, M, d) of the shrunk image."""
        if not torch.jit.is_tracing():  # which warns of every comparison of sizes
            self._check(x, hw)
        B, N, C = x.shape
        h = self.num_heads
        q = self.q(x).view(B, N, h, C // h).transpose(1, 2)  # (B, h, N, d)
        if self.sr_ratio > 1:
            x = image_to_tokens(self.sr(tokens_to_image(x, hw)))  # (B, M, C)
            x = self.sr_norm(x)
        kv = self.kv(x).view(B, -1, 2, h, C // h)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, M, d)
        return q, k, v

    def mixing(self) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Weight (h, h) and bias (h,) of the convolution over heads, if there is one."""
        if not self.mix_heads:
            return None, None
        h = self.num_heads
        return self.transform_conv.weight.view(h, h), self.transform_conv.bias

    def _check(self, x: Tensor, hw: Tuple[int, int]) -> None:
        channels = self.q.in_features
        if not isinstance(x, Tensor):
            raise TypeError(f'x={x!r} must be a tensor')
        if x.ndim != 3 or x.shape[2] != channels:
            raise ValueError(f'x of shape {tuple(x.shape)} must be (B, N, {channels})')
        if len(hw) != 2 or hw[0] * hw[1] != x.shape[1]:
            raise ValueError(f'hw={tuple(hw)} must be height and width of the '
                             f'{x.shape[1]} tokens in x')

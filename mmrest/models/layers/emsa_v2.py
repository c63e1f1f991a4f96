from typing import Optional, Tuple

from torch import Tensor, fx, nn

from ...ops import emsa_attention
from .emsa import EMSA
from .layout import image_to_tokens, tokens_to_image

fx.wrap('emsa_attention')  # one node in the graphs of torch.fx


class EMSAv2(EMSA):
    """Plain attention to the reduced image, plus the values up-sampled to the image (ResTv2).

    A depth-wise convolution and pixel shuffle restore what the reduction lost. There is no
    mixing of heads and no normalisation of the map.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads h, a divisor of ``embed_dims``.
        sr_ratio (int): Stride s of the reduction, as in :class:`EMSA`, and factor of the
            up-sampling: 1 or even.
        eps (float): Of the two LayerNorms.
        backend (str, optional): What computes the attention, see
            :func:`~mmrest.ops.choose_backend`.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, ``sr_ratio`` is odd and
            above 1, or there is no such backend.
        RuntimeError: The backend cannot run on this machine.
    """

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 sr_ratio: int = 1,
                 eps: float = 1e-6,
                 backend: Optional[str] = None):
        if sr_ratio > 1 and sr_ratio % 2:
            raise ValueError(f'{sr_ratio=} must be 1 or even: with an odd one, up-sampled '
                             'values do not cover images of many sizes')
        super().__init__(
            embed_dims, num_heads, sr_ratio, mix_heads=False, normalize=False, backend=backend)
        if sr_ratio > 1:
            self.sr_norm = nn.LayerNorm(embed_dims, eps)
        self.up = nn.Sequential(
            nn.Conv2d(embed_dims, sr_ratio**2 * embed_dims, 3, padding=1, groups=embed_dims),
            nn.PixelShuffle(sr_ratio))
        self.up_norm = nn.LayerNorm(embed_dims, eps)

    def forward(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        """Attend over the tokens (B, N, C) of an image of size ``hw`` = (H, W), N = H W."""
        q, k, v = self.project(x, hw)
        out = emsa_attention(  # (B, h, N, d)
            q, k, v, scale=self.scale, normalize=False, backend=self.backend)
        out = out.transpose(1, 2).flatten(2)  # (B, N, C)
        H, W = hw
        reduced = (H - 1) // self.sr_ratio + 1, (W - 1) // self.sr_ratio + 1
        values = tokens_to_image(v.transpose(1, 2).flatten(2), reduced)  # (B, C, H/s, W/s)
        # H and W need not be multiples of s. The top left corners of both images agree.
        up = self.up(values)[:, :, :H, :W]
        return self.proj(out + self.up_norm(image_to_tokens(up)))

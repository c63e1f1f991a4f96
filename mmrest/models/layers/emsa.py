from typing import Optional, Tuple

import torch
from torch import Tensor, fx, nn

from ...ops import choose_backend, emsa_attention
from .layout import image_to_tokens, tokens_to_image

fx.wrap('emsa_attention')  # one node in the graphs of torch.fx


class EMSA(nn.Module):
    """Efficient multi-head self-attention (section 3.2 and figure 3 of the paper).

    A depth-wise convolution reduces the image that keys and values come from by
    ``sr_ratio`` on each side. With more than one head, a 1x1 convolution mixes the scores of
    the heads, and the attention map is instance-normalised. With one head both are left
    out, as in the published code.

    Args:
        embed_dims (int): Channels C.
        num_heads (int): Heads h, a divisor of ``embed_dims``.
        sr_ratio (int): Stride s of the reduction, with kernel size s + 1 and padding s // 2.
            1 leaves it out.
        mix_heads (bool): Whether to have the 1x1 convolution (an ablation of table 6).
        normalize (bool): Whether to have the instance normalisation (likewise).
        backend (str, optional): What computes the attention, see
            :func:`~mmrest.ops.choose_backend`.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, or there is no such backend.
        RuntimeError: The backend cannot run on this machine.
    """

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 sr_ratio: int = 1,
                 mix_heads: bool = True,
                 normalize: bool = True,
                 backend: Optional[str] = None):
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'{embed_dims=} must be a multiple of {num_heads=}')
        self.num_heads = num_heads
        self.scale = (embed_dims // num_heads)**-0.5  # exact, where a traced size is float32
        self.backend = choose_backend(backend)
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
        """Attend over the tokens (B, N, C) of an image of size ``hw`` = (H, W), N = H W.

        A hook on ``transform_conv`` sees (1, h, h + 1, 1), see :meth:`mixing`, not scores.
        """
        q, k, v = self.project(x, hw)
        out = emsa_attention(  # (B, h, N, d)
            q, k, v, *self.mixing(q), scale=self.scale, normalize=self.normalize,
            backend=self.backend)
        return self.proj(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, hw: Tuple[int, int]) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, d), and keys and values (B, h, M, d) of the reduced image."""
        B, N, C = x.shape
        h = self.num_heads
        q = self.q(x).view(B, N, h, C // h).transpose(1, 2)  # (B, h, N, d)
        if self.sr_ratio > 1:
            x = image_to_tokens(self.reduce(tokens_to_image(x, hw)))  # (B, M, C)
            x = self.sr_norm(x)
        kv = self.kv(x).view(B, x.shape[1], 2, h, C // h)  # (B, M, 2, h, d)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, M, d)
        return q, k, v

    def reduce(self, image: Tensor) -> Tensor:
        """The depth-wise convolution, in its parameters' type under autocast on a CPU.

        There its backward takes ten times as long in bfloat16 (oneDNN 3.7), for few products.
        """
        if not torch.is_autocast_enabled('cpu'):
            return self.sr(image)
        with torch.autocast('cpu', enabled=False):
            return self.sr(image.to(next(self.sr.parameters()).dtype))

    def mixing(self, q: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Weight (h, h) and bias (h,) of ``transform_conv``, or None without it.

        The scores are never in memory as a whole. So the convolution is called on the h unit
        vectors, times 256, and on zero: its weight is the difference, its bias the output of
        zero. It is called, not read, so that hooks, LoRA and pruning work on it.
        """
        if not self.mix_heads:
            return None, None
        h = self.num_heads
        out = self.transform_conv(_units(h, q))[0, :, :, 0]  # (h, h + 1)
        return (out[:, :h] - out[:, h:]) / 256, out[:, h]


@fx.wrap
def _units(h: int, like: Tensor) -> Tensor:
    """The h unit vectors times 256, and zero, as an image (1, h, h + 1, 1)."""
    # Times 256, a weight keeps its digits beside a larger bias, in 16 bits too.
    units = 256 * torch.eye(h, h + 1, device=like.device).to(like.dtype)
    return units[None, :, :, None]

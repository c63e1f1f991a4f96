"""EMSA's attention as in equation (4) of the paper, with the whole map in memory."""
from typing import Optional

import torch
from torch import Tensor


def why_not(q: Tensor) -> Optional[str]:
    """None: PyTorch runs it on any device."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
              scale: float, normalize: bool, eps: float) -> Tensor:
    """See :func:`~mmrest.ops.emsa_attention`."""
    attn = attention_map(q, k, mix, bias, scale)  # (B, h, N, M)
    if normalize:
        # The mean, as rows sum to one. A traced size divides a tensor in the tensor's type.
        attn = attn - attn.new_ones(()) / k.shape[2]
        var = attn.square().mean(dim=(-2, -1), keepdim=True)  # (B, h, 1, 1)
        attn = attn * torch.rsqrt(var + eps)
    return (attn.to(v.dtype) @ v).to(v.dtype)  # autocast may make the product another type


def attention_map(q: Tensor, k: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
                  scale: float) -> Tensor:
    """softmax(Conv(scale * q k^T)), (B, h, N, M): the map before its norm, rows sum to one."""
    attn = scale * (q @ k.transpose(-2, -1))  # (B, h, N, M)
    if mix is not None:
        # The 1x1 convolution over heads, as a product: (h, h) with (B, h, N M).
        attn = (mix.to(attn.dtype) @ attn.flatten(2)).view(attn.shape)
        if bias is not None:
            attn = attn + bias.to(attn.dtype)[:, None, None]
    # The variance is about 1e-6, so that softmax needs at least float32.
    return attn.softmax(dim=-1, dtype=torch.promote_types(attn.dtype, torch.float32))

"""The attention function of EMSA, equation (4) of the ResT paper."""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def emsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mix: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    *,
    scale: Optional[float] = None,
    normalize: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """``IN(softmax(Conv(scale * q k^T))) v``, equation (4) of the paper.

    Args:
        q (Tensor): Queries, (B, h, N, d).
        k (Tensor): Keys, (B, h, M, d).
        v (Tensor): Values, (B, h, M, d).
        mix (Tensor, optional): Weight of the 1x1 convolution over heads, (h, h).
            ``None`` leaves the convolution out.
        bias (Tensor, optional): Its bias, (h,). A constant per row of scores, to
            which softmax is blind: it changes no output and its gradient is zero.
        scale (float, optional): Factor on the scores, ``d ** -0.5`` if ``None``.
        normalize (bool): Normalise each head's map to mean 0 and variance 1 over
            its N x M elements (instance normalisation without parameters).
        eps (float): Added to that variance. Where N M = 1 the result is zero.

    Returns:
        Tensor: (B, h, N, d).
    """
    if mix is None and not normalize:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    scale = q.shape[-1]**-0.5 if scale is None else scale
    scores = scale * (q @ k.transpose(-2, -1))  # (B, h, N, M)
    if mix is not None:
        scores = F.conv2d(scores, mix[:, :, None, None], bias)  # (B, h, N, M)
    # The variance is about 1e-6: no place for fewer bits than float32.
    dtype = torch.promote_types(scores.dtype, torch.float32)
    attn = scores.softmax(dim=-1, dtype=dtype)
    if normalize:
        # Rows sum to one, so the mean over N x M is 1 / M.
        attn = attn - 1 / attn.shape[-1]
        var = attn.square().mean(dim=(-2, -1), keepdim=True)  # (B, h, 1, 1)
        attn = attn * torch.rsqrt(var + eps)
    return attn.to(v.dtype) @ v

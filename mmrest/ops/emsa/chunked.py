"""EMSA's attention by blocks of queries: forward and backward keep no N x M map.

README.md in this folder derives what is computed here.
"""
from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .library import empty_heads, opaque

# Elements of the map in a block: few enough to stay in a core's cache between passes,
# enough to keep the cores busy.
BLOCK = 2**20


def _fake_forward(q, k, v, mix, scale, normalize, eps):
    dtype = torch.promote_types(q.dtype, torch.float32)
    return empty_heads(q, dtype), q.new_empty(q.shape[:2], dtype=dtype)


@opaque('emsa_chunked', _fake_forward)
def chunked_forward(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                    normalize: bool, eps: float) -> Tuple[Tensor, Tensor]:
    """O (B, h, N, d) and r (B, h), both in float32 or float64."""
    (B, h, N, _), M = q.shape, k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = empty_heads(q, dtype)
    squares = q.new_zeros((B, h), dtype=dtype)
    with torch.autocast(q.device.type, enabled=False):
        k, v = scale * k.to(dtype), v.to(dtype)
        mix = None if mix is None else mix.to(dtype)
        for b, n in _blocks(B, h, N, M):
            scores = q[b, :, n].to(dtype) @ k[b].transpose(-2, -1)  # (b, h, n, M)
            attn = _mix(mix, scores).softmax(-1)
            if normalize:
                attn.sub_(1 / M)
                # Rows first: one sum over all would lose a digit.
                squares[b] += torch.linalg.vector_norm(attn, dim=-1).square().sum(-1)
            out[b, :, n] = attn @ v[b]
        if not normalize:
            return out, torch.ones_like(squares)
        r = torch.rsqrt(squares / (N * M) + eps)
        return out.mul_(r[..., None, None]), r


def _fake_backward(grad, out, r, q, k, v, mix, scale, normalize):
    dmix = None if mix is None else torch.empty_like(mix)
    return (empty_heads(q), empty_heads(k), empty_heads(v),
            r.new_empty(0) if dmix is None else dmix)


@opaque('emsa_chunked_backward', _fake_backward)
def chunked_backward(grad: Tensor, out: Tensor, r: Tensor, q: Tensor, k: Tensor, v: Tensor,
                     mix: Optional[Tensor], scale: float,
                     normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and mix (of no elements where there is none)."""
    (B, h, N, _), M = q.shape, k.shape[2]
    dtype = r.dtype
    dq, dk, dv = (empty_heads(x, dtype) for x in (q, k, v))
    dk.zero_()
    dv.zero_()
    dmix = r.new_zeros((B, h, h))
    with torch.autocast(q.device.type, enabled=False):
        k, v = k.to(dtype), v.to(dtype)
        k_scaled = scale * k
        weight = None if mix is None else mix.to(dtype)
        if normalize:
            v = v - v.mean(-2, keepdim=True)
            slope = (grad.to(dtype) * out).sum((-2, -1)) * r.square() / -(N * M)  # (B, h)
        for b, n in _blocks(B, h, N, M):
            q_block = q[b, :, n].to(dtype)
            g = grad[b, :, n].to(dtype) * r[b][..., None, None]  # (b, h, n, d)
            scores = q_block @ k_scaled[b].transpose(-2, -1)  # (b, h, n, M)
            attn = _mix(weight, scores).softmax(-1)
            d_attn = g @ v[b].transpose(-2, -1)
            centred = attn
            if normalize:
                centred = attn - 1 / M
                d_attn.addcmul_(centred, slope[b][..., None, None])
            dv[b] += centred.transpose(-2, -1) @ g
            d_scores = torch._softmax_backward_data(d_attn, attn, -1, dtype)
            if weight is not None:
                dmix[b] += d_scores.flatten(2) @ scores.flatten(2).transpose(1, 2)
                d_scores = _mix(weight.t(), d_scores)
            dq[b, :, n] = d_scores @ k_scaled[b]
            dk[b] += d_scores.transpose(-2, -1) @ q_block
        dk *= scale
        dmix = r.new_empty(0) if mix is None else dmix.sum(0).to(mix.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dmix


def _blocks(B: int, h: int, N: int, M: int) -> Iterator[Tuple[slice, slice]]:
    """Images and queries of each block: some whole images, or some queries of one."""
    images = max(BLOCK // max(h * N * M, 1), 1)
    rows = max(BLOCK // (h * M), 1) if images == 1 else max(N, 1)
    for b in range(0, B, images):
        for n in range(0, N, rows):
            yield slice(b, b + images), slice(n, n + rows)


def _mix(mix: Optional[Tensor], scores: Tensor) -> Tensor:
    """The 1x1 convolution over heads of (b, h, n, M)."""
    if mix is None:
        return scores
    return torch.bmm(mix.expand(len(scores), -1, -1), scores.flatten(2)).view_as(scores)


class Chunked(torch.autograd.Function):
    """Takes what :func:`~mmrest.ops.emsa_attention` does, but no backend."""

    @staticmethod
    def forward(ctx, q, k, v, mix, bias, scale, normalize, eps):
        out, r = chunked_forward(q, k, v, mix, scale, normalize, eps)
        ctx.save_for_backward(out, r, q, k, v, mix, bias)
        ctx.scale, ctx.normalize = scale, normalize
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, mix, bias = ctx.saved_tensors
        dq, dk, dv, dmix = chunked_backward(grad, *tensors, mix, ctx.scale, ctx.normalize)
        # Softmax is blind to the bias, which still gets a gradient: DistributedDataParallel
        # stops at parameters without.
        dbias = None if bias is None else torch.zeros_like(bias)
        return dq, dk, dv, None if mix is None else dmix, dbias, None, None, None

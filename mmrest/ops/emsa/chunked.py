"""EMSA's attention by blocks of queries: forward and backward keep no N x M map.

README.md in this folder derives what is computed here.
"""
import math
from typing import Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .library import EMSAFunction, empty_heads, opaque

# BLOCK is the number of elements of one head's map in a block, for each CPU thread: few enough
# to stay in its cache between passes, enough to keep it busy. MOST is the limit over all heads
# and threads. The number of rows is a multiple of ROWS, the length of a vector register.
BLOCK = 2**18
MOST = 2**21
ROWS = 16


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
        for block, k_block, v_block, (scores, attn, mixed) in _blocks(out, k, v, maps=3):
            _product(block.rows(q).to(dtype), k_block.transpose(-2, -1), out=scores)
            torch.softmax(_mix(mix, scores, out=mixed), -1, out=attn)
            if normalize:
                attn.sub_(1 / M)
                # First over rows: a single sum over all elements would lose a digit.
                squared = torch.linalg.vector_norm(attn, dim=-1).square().sum(-1)
                squares[block.b] += block.sum(squared)
            block.rows(out).copy_(attn @ v_block)
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
    """Gradients of q, k, v and mix (empty without mix)."""
    (_, h, N, _), M = q.shape, k.shape[2]
    dtype = r.dtype
    dq, dk, dv = (empty_heads(x, dtype) for x in (q, k, v))
    dk.zero_()
    dv.zero_()
    dmix = r.new_zeros((h, h))
    with torch.autocast(q.device.type, enabled=False):
        k, v = k.to(dtype), v.to(dtype)
        weight = None if mix is None else mix.to(dtype)
        if normalize:
            v = v - v.mean(-2, keepdim=True)
            slope = (grad.to(dtype) * out).sum((-2, -1)) * r.square() / -(N * M)  # (B, h)
        for block, k_block, v_block, maps in _blocks(out, scale * k, v, maps=4):
            scores, attn, mixed, d_mixed = maps  # (b, h, n, M)
            q_block = block.rows(q).to(dtype)  # (b, h, n, d)
            g = block.rows(grad).to(dtype) * r[block.b][..., None, None]
            _product(q_block, k_block.transpose(-2, -1), out=scores)
            torch.softmax(_mix(weight, scores, out=mixed), -1, out=attn)
            d_attn = _product(g, v_block.transpose(-2, -1), out=mixed)
            centred = attn
            if normalize:
                centred = torch.sub(attn, 1 / M, out=d_mixed)
                d_attn.addcmul_(centred, slope[block.b][..., None, None])
            dv[block.b] += block.sum(centred.transpose(-2, -1) @ g)
            d_scores = torch._softmax_backward_data(d_attn, attn, -1, dtype,
                                                    grad_input=d_mixed)
            if weight is not None:
                dmix += (d_mixed.flatten(2) @ scores.flatten(2).transpose(1, 2)).sum(0)
                d_scores = _mix(weight.t(), d_mixed, out=attn)
            block.rows(dq).copy_(d_scores @ k_block)
            dk[block.b] += block.sum(d_scores.transpose(-2, -1) @ q_block)
        dk *= scale
        dmix = r.new_empty(0) if mix is None else dmix.to(mix.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dmix


class _Block(NamedTuple):
    """Some whole images, or queries ``n`` of one image in ``pieces`` of the same length.

    In both cases its tensors are (b, h, n, .). All operators divide them among CPU threads by
    the first dimension, so no core has to fetch what another core wrote.
    """
    b: slice
    n: slice
    pieces: int

    def rows(self, x: Tensor) -> Tensor:
        """The view (b, h, n, d) of a tensor (B, h, N, d)."""
        pieces = x[self.b, :, self.n].unflatten(2, (self.pieces, -1))  # (B, h, pieces, n, d)
        return pieces.transpose(1, 2).flatten(0, 1)

    def sum(self, x: Tensor) -> Tensor:
        """Add up the pieces of an image."""
        return x.sum(0, keepdim=True) if self.pieces > 1 else x


def _blocks(out: Tensor, k: Tensor, v: Tensor,
            maps: int) -> Iterator[Tuple[_Block, Tensor, Tensor, List[Tensor]]]:
    """Blocks of queries, their k and v (b, h, M, d), and memory for ``maps`` (b, h, n, M).

    All blocks share that memory: new pages cost more time than the computation in them.
    """
    (B, h, N, _), M = out.shape, k.shape[2]
    threads = 1 if out.is_cuda else torch.get_num_threads()
    elements = min(h * threads * BLOCK, MOST)
    images = max(min(elements // max(h * N * M, 1), B), 1)
    images = images - images % threads or images  # the same number for each thread
    rows = max(N, 1)
    if images == 1:
        fitting = max(elements // (h * M), 1)
        rows = min(fitting - fitting % (threads * ROWS) or fitting, rows)
    memory = out.new_empty((maps, images * h * rows * M))
    for b in range(0, B, images):
        count = min(images, B - b)
        most = threads if count == 1 and threads * ROWS <= N else 1
        k_block, v_block = (x[b:b + count].repeat(most, 1, 1, 1) for x in (k, v))
        for n in range(0, N, rows):
            length = min(rows, N - n)
            pieces = most if length % most == 0 else 1
            shape = (count * pieces, h, length // pieces, M)
            size = math.prod(shape)
            yield (_Block(slice(b, b + count), slice(n, n + length), pieces),
                   k_block[:shape[0]], v_block[:shape[0]],
                   [part[:size].view(shape) for part in memory])


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` of (b, h, n, d) and (b, h, d, M)."""
    torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=out.flatten(0, 1))
    return out


def _mix(mix: Optional[Tensor], scores: Tensor, out: Tensor) -> Tensor:
    """The 1x1 convolution over heads of (b, h, n, M); without one, the scores unchanged."""
    if mix is None:
        return scores
    torch.bmm(mix.expand(len(scores), -1, -1), scores.flatten(2), out=out.flatten(2))
    return out


def why_not(q: Tensor) -> Optional[str]:
    """None: PyTorch runs it on any device."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
              scale: float, normalize: bool, eps: float) -> Tensor:
    """See :func:`~mmrest.ops.emsa_attention`."""
    return EMSAFunction.apply(chunked_forward, chunked_backward, q, k, v, mix, bias, scale,
                              normalize, eps)

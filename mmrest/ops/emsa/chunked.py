"""EMSA's attention by blocks of queries: forward and backward keep no N x M map.

README.md in this folder derives what is computed here.
"""
import math
from typing import Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .custom_op import EMSAFunction, empty_heads, opaque

# BLOCK is the number of elements of one head's map in a block, for each CPU thread: few enough
# to stay in its cache between passes, enough to keep it busy. MOST is the limit over all heads
# and threads. The number of rows is a multiple of ROWS, the length of a vector register.
# Many keys would leave so few rows that fetching k and v for each block costs more than a block
# beyond the cache: there are LEAST rows for each thread at least, within 4 MOST elements.
# A GPU needs more to be busy: ON_GPU over all heads and images.
BLOCK = 2**18
MOST = 2**21
ROWS = 16
LEAST = 64
ON_GPU = 2**24


def _fake_forward(q, k, v, mix, scale, normalize, eps):
    dtype = torch.promote_types(q.dtype, torch.float32)
    return empty_heads(q, dtype), q.new_empty(q.shape[:2], dtype=dtype)


@opaque('emsa_chunked', _fake_forward)
def chunked_forward(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                    normalize: bool, eps: float) -> Tuple[Tensor, Tensor]:
    """O (B, h, N, d) and r (B, h), both in float32 or float64."""
    (B, h, N, _), M = q.shape, k.shape[2]
    dtype, low = _dtypes(q)
    out = empty_heads(q, dtype)
    squares = q.new_zeros((B, h), dtype=dtype)
    with torch.autocast(q.device.type, enabled=False):
        k, v = scale * k.to(low), v.to(low)
        mix = None if mix is None else mix.to(dtype)
        for block, k_block, v_block, maps in _blocks(out, k, v, maps=2):
            scores, mixed, rounded = maps  # (b, h, n, M)
            _product(block.rows(q).to(low), k_block.transpose(-2, -1), scores, rounded)
            attn = _mix(mix, scores, out=mixed)
            torch.softmax(attn, -1, out=attn)  # in place: a third map would crowd the cache
            if normalize:
                attn.sub_(1 / M)
                # First over rows: a single sum over all elements would lose a digit.
                squared = torch.linalg.vector_norm(attn, dim=-1).square().sum(-1)
                squares[block.b] += block.sum(squared)
            block.rows(out).copy_(_round(attn, rounded) @ v_block)
        if not normalize:
            return out, torch.ones_like(squares)
        r = torch.rsqrt(squares / (N * M) + eps)
        return out.mul_(r[..., None, None]), r


def _fake_backward(grad, out, r, q, k, v, mix, scale, normalize):
    dmix = None if mix is None else mix.new_empty(mix.shape)
    return (empty_heads(q), empty_heads(k), empty_heads(v),
            r.new_empty(0) if dmix is None else dmix)


@opaque('emsa_chunked_backward', _fake_backward)
def chunked_backward(grad: Tensor, out: Tensor, r: Tensor, q: Tensor, k: Tensor, v: Tensor,
                     mix: Optional[Tensor], scale: float,
                     normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and mix (empty without mix)."""
    (_, h, N, _), M = q.shape, k.shape[2]
    dtype, low = _dtypes(q)
    dq, dk, dv = empty_heads(q), empty_heads(k, dtype), empty_heads(v, dtype)
    dk.zero_()
    dv.zero_()
    dmix = r.new_zeros((h, h))
    with torch.autocast(q.device.type, enabled=False):
        weight = None if mix is None else mix.to(dtype)
        scaled, centred_v = scale * k.to(dtype), v.to(dtype)
        if normalize:
            centred_v = centred_v - centred_v.mean(-2, keepdim=True)
            slope = (grad.to(dtype) * out).sum((-2, -1)) * r.square() / -(N * M)  # (B, h)
        blocks = _blocks(out, scaled.to(low), centred_v.to(low), maps=4)
        for block, k_block, v_block, maps in blocks:
            scores, attn, mixed, d_mixed, rounded = maps  # (b, h, n, M)
            q_block = block.rows(q).to(low)  # (b, h, n, d)
            g = (block.rows(grad).to(dtype) * r[block.b][..., None, None]).to(low)
            _product(q_block, k_block.transpose(-2, -1), scores, rounded)
            torch.softmax(_mix(weight, scores, out=mixed), -1, out=attn)
            d_attn = _product(g, v_block.transpose(-2, -1), mixed, rounded)
            centred = attn
            if normalize:
                centred = torch.sub(attn, 1 / M, out=d_mixed)
                d_attn.addcmul_(centred, slope[block.b][..., None, None])
            centred = _round(centred, rounded)
            dv[block.b].add_(block.sum(centred.transpose(-2, -1) @ g))
            d_scores = _softmax_backward(d_attn, attn, out=d_mixed)
            if weight is not None:
                dmix += (d_mixed.flatten(2) @ scores.flatten(2).transpose(1, 2)).sum(0)
                d_scores = _mix(weight.t(), d_mixed, out=attn)
            d_scores = _round(d_scores, rounded)
            block.rows(dq).copy_(d_scores @ k_block)
            dk[block.b].add_(block.sum(d_scores.transpose(-2, -1) @ q_block))
        dk *= scale
        dmix = r.new_empty(0) if mix is None else dmix.to(mix.dtype)
    return dq, dk.to(k.dtype), dv.to(v.dtype), dmix


def _softmax_backward(grad: Tensor, softmax: Tensor, out: Tensor) -> Tensor:
    """The gradient of softmax's input over the last axis, in ``out``."""
    if hasattr(torch, '_softmax_backward_data'):  # private: one pass instead of four
        return torch._softmax_backward_data(grad, softmax, -1, grad.dtype, grad_input=out)
    mean = torch.linalg.vecdot(grad, softmax)[..., None]
    return torch.mul(torch.sub(grad, mean, out=out), softmax, out=out)


def _dtypes(q: Tensor) -> Tuple[torch.dtype, torch.dtype]:
    """The type of softmax, statistics and sums, and that of the factors of products."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    fast = q.dtype == torch.bfloat16 and q.device.type == 'cpu' and cpu_has_bfloat16()
    return dtype, q.dtype if fast else dtype


@torch.compiler.assume_constant_result
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which oneDNN uses."""
    supported = getattr(torch.cpu, '_is_avx512_bf16_supported', None)  # private: may go
    return supported is not None and torch.backends.mkldnn.is_available() and supported()


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


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
        """Add up the pieces of an image, in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.sum(0, keepdim=True, dtype=dtype) if self.pieces > 1 else x


def _blocks(out: Tensor, k: Tensor, v: Tensor,
            maps: int) -> Iterator[Tuple[_Block, Tensor, Tensor, List[Optional[Tensor]]]]:
    """Blocks of queries, their k and v (b, h, M, d), and memory for ``maps`` (b, h, n, M).

    One more map is for rounding to the type of k and v, or None if that is ``out``'s. All
    blocks share that memory: new pages cost more time than the computation in them.
    """
    (B, h, N, _), M = out.shape, k.shape[2]
    threads = 1 if out.is_cuda else _threads()
    elements = ON_GPU if out.is_cuda else max(
        min(h * threads * BLOCK, MOST), min(h * threads * LEAST * M, 4 * MOST))
    images = max(min(elements // max(h * N * M, 1), B), 1)
    images = images - images % threads or images  # the same number for each thread
    rows = max(N, 1)
    if images == 1:
        fitting = max(elements // (h * M), 1)
        rows = min(fitting - fitting % (threads * ROWS) or fitting, rows)
    memory = [*out.new_empty((maps, images * h * rows * M))]
    rounded = None if k.dtype == out.dtype else k.new_empty(images * h * rows * M)
    for b in range(0, B, images):
        count = min(images, B - b)
        most = threads if count == 1 and threads * ROWS <= N else 1
        k_block, v_block = (x[b:b + count].repeat(most, 1, 1, 1) for x in (k, v))
        if rounded is not None:  # oneDNN is faster with the M values of a channel in a row
            k_block, v_block = (x.mT.contiguous().mT for x in (k_block, v_block))
        for n in range(0, N, rows):
            length = min(rows, N - n)
            pieces = most if length % most == 0 else 1
            shape = (count * pieces, h, length // pieces, M)
            size = math.prod(shape)
            yield (_Block(slice(b, b + count), slice(n, n + length), pieces),
                   k_block[:shape[0]], v_block[:shape[0]],
                   [None if part is None else part[:size].view(shape)
                    for part in (*memory, rounded)])


def _product(a: Tensor, b: Tensor, out: Tensor, rounded: Optional[Tensor]) -> Tensor:
    """``a @ b`` of (b, h, n, d) and (b, h, d, M), rounded if that is given."""
    product = out if rounded is None else rounded
    torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=product.flatten(0, 1))
    return out if rounded is None else out.copy_(rounded)


def _round(x: Tensor, rounded: Optional[Tensor]) -> Tensor:
    """A map as a factor of a product: copied to ``rounded`` if that is given."""
    return x if rounded is None else rounded.copy_(x)


def _mix(mix: Optional[Tensor], scores: Tensor, out: Tensor) -> Tensor:
    """The 1x1 convolution over heads of (b, h, n, M); without one, the scores unchanged."""
    if mix is None:
        return scores
    torch.bmm(mix.expand(len(scores), -1, -1), scores.flatten(2), out=out.flatten(2))
    return out


def beats_plain(q: Tensor, k: Tensor) -> bool:
    """Whether plain attention on a CPU is faster here than PyTorch's.

    PyTorch's backward has a task for each image and head. Two threads with one task are still
    faster than blocks, but not in bfloat16.
    """
    (B, h, N, _), M = q.shape, k.shape[2]
    dtype, low = _dtypes(q)
    if low != dtype:
        return B * h < _threads() and N * M >= BLOCK
    return torch.is_grad_enabled() and q.requires_grad and 2 * B * h < _threads()


def why_not(q: Tensor) -> Optional[str]:
    """None: PyTorch runs it on any device."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
              scale: float, normalize: bool, eps: float) -> Tensor:
    """See :func:`~mmrest.ops.emsa_attention`."""
    return EMSAFunction.apply(chunked_forward, chunked_backward, q, k, v, mix, bias, scale,
                              normalize, eps)

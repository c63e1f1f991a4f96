"""EMSA's attention as fused CUDA kernels, forward and backward. README.md derives them."""
import math
from typing import Optional, Tuple

import torch
import triton
from torch import Tensor

from . import kernels
from .custom_op import EMSAFunction, empty_heads, opaque
from .tiles import HEADS, takes_wide, tile

# Bytes of the two maps of a chunk in backward, and a number of programs that keeps every
# multiprocessor busy.
CHUNK = 2**27
PROGRAMS = 512
LOG2_E = math.log2(math.e)


def why_not(q: Tensor) -> Optional[str]:
    """Why the kernels cannot take such a q, or None if they can."""
    h, d = q.shape[1], q.shape[3]
    if not interpreted():
        if not q.is_cuda or torch.version.hip:
            return f"it needs tensors on an NVIDIA GPU, not on '{q.device}'"
        if _capability(q.device) < 80:
            return f"it needs a GPU of compute capability 8.0 or more, unlike '{q.device}'"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f'it takes float32, bfloat16 and float16, not {q.dtype}'
    if h not in HEADS or d > 128:
        return f'it takes 2, 4 or 8 heads of up to 128 channels, not {h} of {d}'
    if q.dtype == torch.float32 and not takes_wide(h, d) and not interpreted():
        return ('in float32 it takes 2 heads of up to 128 channels, 4 of up to 96, or 8 of up '
                f'to 64, not {h} of {d}')
    return None


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, for tests."""
    return not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> int:
    """A GPU's compute capability, 90 for 9.0. The interpreter has 0."""
    if interpreted():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _ceil(a: int, b: int) -> int:
    """a / b, rounded up. ``triton.cdiv`` is slow outside of kernels."""
    return -(-a // b)


def _power_of_2(d: int) -> int:
    """The least from d up that a product can have."""
    return max(1 << (d - 1).bit_length(), 16)


def _tokens(x: Tensor) -> Tensor:
    """The same (B, h, N, d), with one stride from token to token through all images."""
    if interpreted() and x.dtype == torch.bfloat16:  # NumPy has no bfloat16
        x = x.float()
    (B, _, N, d), stride = x.shape, x.stride(2)
    fits = x.stride()[1:] == (d, stride, 1) and (B == 1 or x.stride(0) == N * stride)
    return x if fits else empty_heads(x).copy_(x)


def _mean(v: Tensor) -> Tensor:
    return v.mean(2, dtype=torch.float32)  # (B, h, d)


def _weight(q: Tensor, mix: Optional[Tensor], scale: float) -> Tensor:
    """What scores are multiplied by, (h, h) in float32, so that P is 2^T."""
    if mix is None:
        mix = torch.eye(q.shape[1], device=q.device)
    return (scale * LOG2_E * mix.float()).contiguous()


def _settings(kernel: str, q: Tensor, mix: Optional[Tensor]) -> dict:
    """What a kernel is compiled for. 96 channels are pieces of 64 and 32, and not of 128."""
    h, d = q.shape[1], q.shape[3]
    D = _power_of_2(d)
    D, D2 = (D // 2, D // 4) if D >= 64 and d <= D * 3 // 4 else (D, 0)
    wide = q.element_size() == 4
    return dict(
        h=h, d=d, D=D, D2=D2,
        PRECISION='tf32' if not wide or _tf32() else 'tf32x3',
        **tile(kernel, _capability(q.device), h if mix is not None else 1, d, wide))


def _tf32() -> bool:
    """Whether the user allows products of float32 in TF32."""
    matmul = torch.backends.cuda.matmul
    # From torch 2.9 on, the old name raises an error after a use of the new one.
    precision = getattr(matmul, 'fp32_precision', None)
    return matmul.allow_tf32 if precision is None else precision == 'tf32'


def _span(size: int, block: int, programs: int) -> int:
    """How many of ``size`` keys or queries a program takes, a multiple of ``block``.

    All of them, unless there are fewer than PROGRAMS programs.
    """
    spans = _ceil(PROGRAMS, programs)
    return _ceil(_ceil(size, spans), block) * block


def _fake_forward(q, k, v, mix, scale, normalize, eps):
    rows = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    return (empty_heads(q), empty_heads(q, torch.float32), *rows,
            q.new_empty(q.shape[:2], dtype=torch.float32))


@opaque('emsa_triton', _fake_forward)
def triton_forward(
        q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float, normalize: bool,
        eps: float) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """O and O / r (B, h, N, d), sum_m C^2 and log2 sum_m 2^T (B, h, N), and r (B, h).

    All but O are float32: backward computes the row sums of P dP from them.
    """
    (B, h, N, _), M = q.shape, k.shape[2]
    out, raw = empty_heads(q), empty_heads(q, torch.float32)
    squares, lse = (q.new_empty((B, h, N), dtype=torch.float32) for _ in range(2))
    weight = _weight(q, mix, scale)
    q, k, v = (_tokens(x) for x in (q, k, v))
    settings = _settings('forward', q, mix)
    with torch.cuda.device_of(q):
        kernels.forward_kernel[_ceil(N, settings['ROWS']), h // settings['G'], B](
            q, k, v, _mean(v), weight, raw, squares, lse, N, M, q.stride(2), k.stride(2),
            v.stride(2), MIX=mix is not None, NORMALIZE=normalize, **settings)
    r = torch.rsqrt(squares.sum(-1) / (N * M) + eps) if normalize else squares.new_ones((B, h))
    torch.mul(raw, r[..., None, None], out=out)
    return out, raw, squares, lse, r


def _fake_backward(grad, out, raw, squares, lse, r, q, k, v, mix, scale, normalize):
    return (empty_heads(q), empty_heads(k), empty_heads(v),
            r.new_empty(0) if mix is None else mix.new_empty(mix.shape))


@opaque('emsa_triton_backward', _fake_backward)
def triton_backward(grad: Tensor, out: Tensor, raw: Tensor, squares: Tensor, lse: Tensor,
                    r: Tensor, q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor],
                    scale: float, normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and mix (empty without mix)."""
    (B, h, N, d), M, dtype = q.shape, k.shape[2], q.dtype
    if M == 1 or q.numel() == 0:
        return _trivial_gradients(grad, q, k, v, mix, normalize)
    weight, mixed = _weight(q, mix, scale), mix is not None
    q, k, v, grad = (_tokens(x) for x in (q, k, v, grad))
    L = _ceil(M, 16) * 16  # aligned rows of the maps
    images, rows = _chunk(B, N, h * L * q.element_size())
    maps = q.new_empty((2, images * h * rows * L))
    dq, dk, dv = empty_heads(q), empty_heads(k), empty_heads(v)
    for_map, for_query, for_key = (_settings(name, q, mix) for name in ('map', 'query', 'key'))
    query_blocks, key_blocks = _ceil(rows, for_query['ROWS']), _ceil(M, for_key['ROWS'])
    dmixes = r.new_zeros((images * query_blocks if mixed else 0, h, h))
    with torch.cuda.device_of(q):
        delta, slope = _row_sums(grad, raw, squares, r, v, M, normalize)
        for first in range(0, B, images):
            b = slice(first, min(first + images, B))
            heads = (b.stop - first) * h
            queries = _span(rows, for_key['COLS'], key_blocks * heads)
            sums = r.new_zeros((2, _ceil(rows, queries), heads // h, M, h, d))  # of dv and dk
            key_grid = key_blocks, sums.shape[1], heads
            for begin in range(0, N, rows):
                end = min(begin + rows, N)
                chunk = N, M, first, begin, end, L
                c, dt = maps[:, :heads * (end - begin) * L]
                blocks, groups = _ceil(end - begin, for_map['ROWS']), heads // for_map['G']
                keys = _span(M, for_map['COLS'], blocks * groups)
                kernels.map_kernel[blocks, _ceil(M, keys), groups](
                    q, k, v, grad, weight, lse, delta, r, slope, c, dt, *chunk, keys,
                    q.stride(2), k.stride(2), v.stride(2), grad.stride(2), MIX=mixed,
                    NORMALIZE=normalize, **for_map)
                kernels.key_kernel[key_grid](
                    c, grad, sums[0], *chunk, queries, grad.stride(2), **for_key)
                ds = c  # its memory
                kernels.query_kernel[query_blocks, heads](
                    q, k, weight, dt, ds, dq, dmixes, *chunk, q.stride(2), k.stride(2),
                    MIX=mixed, **for_query)
                kernels.key_kernel[key_grid](
                    ds, q, sums[1], *chunk, queries, q.stride(2), **for_key)
            dv_sum, dk_sum = sums.sum(1).transpose(2, 3)  # (b, h, M, d)
            torch.mul(dv_sum, 1 if normalize else 1 / M, out=dv[b])
            dk[b].copy_(dk_sum)
    dmix = r.new_empty(0) if mix is None else (scale * LOG2_E * dmixes.sum(0)).to(mix.dtype)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), dmix


def _trivial_gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor],
                       normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients if there are no queries, or one key, so that P is 1 for any scores.

    They are exact zeros, and not rounding errors.
    """
    dq, dk, dv = (empty_heads(x).zero_() for x in (q, k, v))
    if not normalize:
        dv += grad.sum(2, keepdim=True)
    dmix = q.new_empty(0, dtype=torch.float32) if mix is None else mix.new_zeros(mix.shape)
    return dq, dk, dv, dmix


def _row_sums(grad: Tensor, raw: Tensor, squares: Tensor, r: Tensor, v: Tensor, M: int,
              normalize: bool) -> Tuple[Tensor, Tensor]:
    """Row sums of P dP (B, h, N), and e / r (B, h), where dP = r (dO v^T + e / r C)."""
    (B, h, N, d), rows = grad.shape, 32
    along, delta = (torch.empty_like(squares) for _ in range(2))
    kernels.rows_kernel[_ceil(N, rows), h, B](
        grad, raw, _mean(v), along, delta, N, grad.stride(2), h=h, d=d,
        D=_power_of_2(d), NORMALIZE=normalize, ROWS=rows)
    if not normalize:
        return along, r
    slope = along.sum(-1) * r.square() / -(N * M)
    return r[..., None] * torch.addcmul(delta, slope[..., None], squares), slope


def _chunk(B: int, N: int, row: int) -> Tuple[int, int]:
    """How many images, and queries of each, if a query takes ``row`` bytes of a map."""
    queries = max(CHUNK // (2 * row), 1)
    if queries < N:
        return 1, _ceil(_ceil(N, _ceil(N, queries)), 128) * 128
    return min(queries // N, B, 2**12), N  # a grid has up to 2**16 groups of heads


def attention(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
              scale: float, normalize: bool, eps: float) -> Tensor:
    """See :func:`~mmrest.ops.emsa_attention`."""
    return EMSAFunction.apply(triton_forward, triton_backward, q, k, v, mix, bias, scale,
                              normalize, eps)

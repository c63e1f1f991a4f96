"""EMSA's attention as fused CUDA kernels, forward and backward: README.md derives them.

The kernels see every tensor as tokens, (B, N, h, d) contiguous, C = h d, and these symbols:

    T   mixed scores of head i       P   softmax of T       C   P - 1/M
    vc  values less their mean       r   1 / sqrt(var + eps), one per image and head
"""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .library import opaque

MAX_WIDTH = 1024  # of h d, and 128 of d: what fits a multiprocessor's registers


@triton.jit
def load_tokens(x, n, N, c, C, stride):
    """Columns c of tokens n: (n, c), zeros outside."""
    inside = (n[:, None] < N) & (c[None, :] < C)
    return tl.load(x + n[:, None] * stride + c[None, :], mask=inside, other=0.)


@triton.jit
def mixed_scores(q, k, mix, i, n, m, N, M, scale, h: tl.constexpr, d: tl.constexpr,
                 D: tl.constexpr, MIX: tl.constexpr, PRECISION: tl.constexpr):
    """T (n, m) of head i in float32, -inf outside."""
    e = tl.arange(0, D)
    if MIX:
        scores = tl.zeros((n.shape[0], m.shape[0]), tl.float32)
        for g in range(h):
            q_g = load_tokens(q + g * d, n, N, e, d, h * d)  # (n, D)
            k_g = load_tokens(k + g * d, m, M, e, d, h * d)  # (m, D)
            product = tl.dot(q_g, tl.trans(k_g), input_precision=PRECISION)
            scores += tl.load(mix + i * h + g) * product
    else:
        q_i = load_tokens(q + i * d, n, N, e, d, h * d)
        k_i = load_tokens(k + i * d, m, M, e, d, h * d)
        scores = tl.dot(q_i, tl.trans(k_i), input_precision=PRECISION)
    inside = (n[:, None] < N) & (m[None, :] < M)
    return tl.where(inside, scores * scale, float('-inf'))


@triton.jit
def forward_kernel(q, k, vc, mix, out, squares, lse, scale, N, M,
                   h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, MIX: tl.constexpr,
                   PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                   ONE_BLOCK: tl.constexpr):
    """P vc, sum_j C^2 and the logarithm of softmax's denominator, of a block of queries."""
    i = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, D)
    q += b * N * h * d
    k += b * M * h * d
    vc += b * M * h * d + i * d
    if ONE_BLOCK:  # where M is small, the sum of p^2 less 1/M would cancel
        m = tl.arange(0, COLS)
        t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
        top = tl.maximum(tl.max(t, 1), -1e38)  # rows outside have -inf alone
        p = tl.exp(t - top[:, None])
        total = tl.sum(p, 1)
        centred = tl.where(m[None, :] < M, p / total[:, None] - 1 / M, 0.)
        square = tl.sum(centred * centred, 1)
        v_i = load_tokens(vc, m, M, e, d, h * d)  # (m, D)
        acc = tl.dot(p.to(v_i.dtype), v_i, input_precision=PRECISION)
    else:
        top = tl.full((ROWS, ), -1e38, tl.float32)
        total = tl.zeros((ROWS, ), tl.float32)
        square = tl.zeros((ROWS, ), tl.float32)
        acc = tl.zeros((ROWS, D), tl.float32)
        for start in range(0, M, COLS):
            m = start + tl.arange(0, COLS)
            t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
            new_top = tl.maximum(top, tl.max(t, 1))
            p = tl.exp(t - new_top[:, None])
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            square = square * shrink * shrink + tl.sum(p * p, 1)
            v_i = load_tokens(vc, m, M, e, d, h * d)  # (m, D)
            product = tl.dot(p.to(v_i.dtype), v_i, input_precision=PRECISION)
            acc = acc * shrink[:, None] + product
            top = new_top
        square = square / (total * total) - 1 / M
    row = (b * h + i) * N + n
    tl.store(lse + row, top + tl.log(total), mask=n < N)
    tl.store(squares + row, square, mask=n < N)
    inside = (n[:, None] < N) & (e[None, :] < d)
    out += b * N * h * d + i * d
    tl.store(out + n[:, None] * h * d + e[None, :], acc / total[:, None], mask=inside)


@triton.jit
def softmax_and_gradient(q, k, v_i, mix, g, lse, delta, r, slope, i, n, m, N, M, scale,
                         h: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
                         MIX: tl.constexpr, PRECISION: tl.constexpr):
    """P and dT (n, m) of head i."""
    t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
    p = tl.exp(t - lse[:, None])  # zeros outside
    dp = r * tl.dot(g, tl.trans(v_i), input_precision=PRECISION) + slope * (p - 1 / M)
    return p, p * (dp - delta[:, None])


@triton.jit
def mixing_weights(mix, i, c, h: tl.constexpr, d: tl.constexpr, MIX: tl.constexpr):
    """W[i, g] for each column c, which is one of head g."""
    if MIX:
        return tl.load(mix + i * h + c // d, mask=c < h * d, other=0.)
    else:
        return tl.where(c // d == i, 1., 0.)


@triton.jit
def key_value_kernel(q, k, vc, mix, grad, lse, delta, r, slope, dk, dv, scale, N, M,
                     h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
                     MIX: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
                     COLS: tl.constexpr):
    """dk_g = scale sum_i W[i,g] dT_i^T q_g and dv_i = r P_i^T dO_i of a block of keys."""
    b = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * COLS + tl.arange(0, COLS)
    e = tl.arange(0, D)
    c = tl.arange(0, C)
    q += b * N * h * d
    grad += b * N * h * d
    k += b * M * h * d
    dk_acc = tl.zeros((COLS, C), tl.float32)
    for i in range(h):
        v_i = load_tokens(vc + b * M * h * d + i * d, m, M, e, d, h * d)  # (m, D)
        w = mixing_weights(mix, i, c, h, d, MIX)
        r_i = tl.load(r + b * h + i)
        slope_i = tl.load(slope + b * h + i)
        dv_acc = tl.zeros((COLS, D), tl.float32)
        for start in range(0, N, ROWS):
            n = start + tl.arange(0, ROWS)
            row = (b * h + i) * N + n
            g = load_tokens(grad + i * d, n, N, e, d, h * d)  # (n, D)
            p, dt = softmax_and_gradient(
                q, k, v_i, mix, g, tl.load(lse + row, mask=n < N, other=0.),
                tl.load(delta + row, mask=n < N, other=0.), r_i, slope_i, i, n, m, N, M,
                scale, h, d, D, MIX, PRECISION)
            dv_acc += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision=PRECISION)
            wide = load_tokens(q, n, N, c, h * d, h * d)  # (n, C)
            wide = (wide * w[None, :]).to(wide.dtype)
            dk_acc += tl.dot(tl.trans(dt.to(wide.dtype)), wide, input_precision=PRECISION)
        inside = (m[:, None] < M) & (e[None, :] < d)
        place = (b * M + m[:, None]) * h * d + i * d + e[None, :]
        tl.store(dv + place, r_i * dv_acc, mask=inside)
    inside = (m[:, None] < M) & (c[None, :] < h * d)
    tl.store(dk + (b * M + m[:, None]) * h * d + c[None, :], scale * dk_acc, mask=inside)


@triton.jit
def query_kernel(q, k, vc, mix, grad, lse, delta, r, slope, dq, dmix, scale, N, M,
                 h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
                 MIX: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
                 COLS: tl.constexpr):
    """With X_ig = scale dT_i k_g: dq_g = sum_i W[i,g] X_ig of a block of queries, and by
    column its share of dW[i,g] = sum(q_g X_ig)."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, D)
    c = tl.arange(0, C)
    q += b * N * h * d
    k += b * M * h * d
    wide_q = load_tokens(q, n, N, c, h * d, h * d).to(tl.float32)  # (n, C)
    dq_acc = tl.zeros((ROWS, C), tl.float32)
    for i in range(h):
        row = (b * h + i) * N + n
        g = load_tokens(grad + b * N * h * d + i * d, n, N, e, d, h * d)  # (n, D)
        lse_i = tl.load(lse + row, mask=n < N, other=0.)
        delta_i = tl.load(delta + row, mask=n < N, other=0.)
        r_i = tl.load(r + b * h + i)
        slope_i = tl.load(slope + b * h + i)
        x = tl.zeros((ROWS, C), tl.float32)
        for start in range(0, M, COLS):
            m = start + tl.arange(0, COLS)
            v_i = load_tokens(vc + b * M * h * d + i * d, m, M, e, d, h * d)  # (m, D)
            _, dt = softmax_and_gradient(
                q, k, v_i, mix, g, lse_i, delta_i, r_i, slope_i, i, n, m, N, M, scale,
                h, d, D, MIX, PRECISION)
            wide_k = load_tokens(k, m, M, c, h * d, h * d)  # (m, C)
            x += tl.dot(dt.to(wide_k.dtype), wide_k, input_precision=PRECISION)
        x *= scale
        dq_acc += mixing_weights(mix, i, c, h, d, MIX)[None, :] * x
        if MIX:
            place = ((b * tl.num_programs(0) + tl.program_id(0)) * h + i) * h * d + c
            tl.store(dmix + place, tl.sum(wide_q * x, 0), mask=c < h * d)
    inside = (n[:, None] < N) & (c[None, :] < h * d)
    tl.store(dq + (b * N + n[:, None]) * h * d + c[None, :], dq_acc, mask=inside)


def why_not(q: Tensor) -> Optional[str]:
    """Why the kernels cannot take such a q, if they cannot."""
    h, d = q.shape[1], q.shape[3]
    if not q.is_cuda and not interpreted():
        return f"it needs tensors on CUDA, not on '{q.device}'"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f'it knows float32, bfloat16 and float16, not {q.dtype}'
    if d > 128 or h * d > MAX_WIDTH:
        return (f'heads may have 128 channels and all together {MAX_WIDTH}, '
                f'not {d} and {h * d}')
    return None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 makes the kernels run on a CPU, slowly, for tests."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def _as_tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()  # (B, h, N, d) -> (B, N, h, d)


def _settings(q: Tensor, mix: Optional[Tensor]) -> dict:
    h, d = q.shape[1], q.shape[3]
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return dict(
        h=h,
        d=d,
        D=max(triton.next_power_of_2(d), 16),
        MIX=mix is not None,
        PRECISION='tf32' if tf32 else 'ieee')


def _centred(v: Tensor, normalize: bool) -> Tensor:
    """Values as tokens, less their mean over them, to which the normalised map is blind."""
    v = _as_tokens(v)
    return (v.float() - v.float().mean(1, keepdim=True)).to(v.dtype) if normalize else v


def _fake_forward(q, k, v, mix, scale, normalize, eps):
    B, h, N, d = q.shape
    return (q.new_empty((B, N, h, d)).transpose(1, 2),
            *(q.new_empty((B, h, N), dtype=torch.float32) for _ in range(2)),
            q.new_empty((B, h), dtype=torch.float32))


@opaque('emsa_triton', _fake_forward)
def triton_forward(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                   normalize: bool, eps: float) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """O (B, h, N, d); sum_j C^2 and logsumexp_j T (B, h, N); r (B, h)."""
    (B, h, N, d), M = q.shape, k.shape[2]
    out = q.new_empty((B, N, h, d), dtype=torch.float32)
    squares, lse = (q.new_empty((B, h, N), dtype=torch.float32) for _ in range(2))
    rows, cols = 64, 64
    with torch.cuda.device_of(q):
        forward_kernel[triton.cdiv(N, rows), h, B](
            _as_tokens(q), _as_tokens(k), _centred(v, normalize),
            None if mix is None else mix.float().contiguous(), out, squares, lse, scale, N, M,
            ROWS=rows, COLS=cols, ONE_BLOCK=M <= cols, **_settings(q, mix))
    r = squares.new_ones((B, h))
    if normalize:
        r = torch.rsqrt(squares.sum(-1) / (N * M) + eps)
    out *= r[:, None, :, None]
    return out.to(q.dtype).transpose(1, 2), squares, lse, r


def _fake_backward(grad, out, squares, lse, r, q, k, v, mix, scale, normalize):
    dmix = r.new_empty(0) if mix is None else torch.empty_like(mix)
    return (*(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v)), dmix)


@opaque('emsa_triton_backward', _fake_backward)
def triton_backward(grad: Tensor, out: Tensor, squares: Tensor, lse: Tensor, r: Tensor,
                    q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                    normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and mix (of no elements where there is none)."""
    (B, h, N, d), M = q.shape, k.shape[2]
    # Row sums of P dP, where dP = r dO vc^T + slope C and r P vc = O.
    delta = torch.linalg.vecdot(grad.float(), out.float())  # (B, h, N)
    slope = torch.zeros_like(r)
    if normalize:
        slope = delta.sum(-1) * r.square() / -(N * M)
        delta += slope[..., None] * squares
    wide = triton.next_power_of_2(max(h * d, 16))
    rows = 32 if wide <= 512 else 16
    cols = 64 if wide <= 128 else 32 if wide <= 512 else 16
    tokens = (_as_tokens(q), _as_tokens(k), _centred(v, normalize),
              None if mix is None else mix.float().contiguous(), _as_tokens(grad.to(q.dtype)),
              lse, delta, r, slope)
    dq, dk = q.new_empty((B, N, h, d)), k.new_empty((B, M, h, d))
    dv = v.new_empty((B, M, h, d), dtype=torch.float32)
    blocks = triton.cdiv(N, rows)
    parts = r.new_empty((B, blocks, h, h, d) if mix is not None else 0)
    settings = dict(C=wide, ROWS=rows, COLS=cols, num_warps=8, **_settings(q, mix))
    with torch.cuda.device_of(q):
        key_value_kernel[triton.cdiv(M, cols), B](*tokens, dk, dv, scale, N, M, **settings)
        query_kernel[blocks, B](*tokens, dq, parts, scale, N, M, **settings)
    if normalize:
        dv -= dv.mean(1, keepdim=True)
    dmix = parts if mix is None else parts.sum((0, 1, 4)).to(mix.dtype)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.to(v.dtype).transpose(1, 2), dmix


class Triton(torch.autograd.Function):
    """Takes what :func:`~mmrest.ops.emsa_attention` does, but no backend."""

    @staticmethod
    def forward(ctx, q, k, v, mix, bias, scale, normalize, eps):
        out, squares, lse, r = triton_forward(q, k, v, mix, scale, normalize, eps)
        ctx.save_for_backward(out, squares, lse, r, q, k, v, mix, bias)
        ctx.scale, ctx.normalize = scale, normalize
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, mix, bias = ctx.saved_tensors
        dq, dk, dv, dmix = triton_backward(grad, *tensors, mix, ctx.scale, ctx.normalize)
        dbias = None if bias is None else torch.zeros_like(bias)
        return dq, dk, dv, None if mix is None else dmix, dbias, None, None, None

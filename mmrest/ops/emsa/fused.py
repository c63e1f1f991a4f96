"""EMSA's attention as fused CUDA kernels, forward and backward. README.md derives them.

The kernels take every tensor as contiguous tokens (B, N, h, d). Symbols:

    T   mixed scores of head i       P   softmax of T       C   P - 1/M, or the width h d
    r   1 / sqrt(var + eps), one for each image and head
"""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .library import EMSAFunction, opaque

MAX_WIDTH = 1024  # limit of h d, by a multiprocessor's registers; the limit of d is 128


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
def forward_kernel(q, k, v, mean, mix, out, squares, lse, scale, N, M,
                   h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, MIX: tl.constexpr,
                   NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
                   COLS: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """C v (P v unless NORMALIZE), sum_j C^2 and the logarithm of softmax's denominator, for a
    block of queries.

    P is often close to 1 / M, and 16 bits would leave only 1 / M and rounding errors. So P
    minus a level near 1 / M is multiplied by v, and the mean of v adds the level back:
    P v = (P - level) v + level M mean(v).
    """
    i = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, D)
    q += b * N * h * d
    k += b * M * h * d
    v += b * M * h * d + i * d
    if ONE_BLOCK:  # for small M, the sum of p^2 minus 1/M would cancel
        m = tl.arange(0, COLS)
        t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
        top = tl.maximum(tl.max(t, 1), -1e38)  # rows outside are all -inf
        p = tl.exp(t - top[:, None])
        total = tl.where(n < N, tl.sum(p, 1), 1.)
        level = total / M
        centred = tl.where(m[None, :] < M, p - level[:, None], 0.)
        square = tl.sum(centred * centred, 1) / (total * total)
        v_i = load_tokens(v, m, M, e, d, h * d)  # (m, D)
        acc = tl.dot(centred.to(v_i.dtype), v_i, input_precision=PRECISION)
    else:
        top = tl.full((ROWS, ), -1e38, tl.float32)
        total = tl.zeros((ROWS, ), tl.float32)
        level = tl.zeros((ROWS, ), tl.float32)
        square = tl.zeros((ROWS, ), tl.float32)
        acc = tl.zeros((ROWS, D), tl.float32)
        for start in range(0, M, COLS):
            m = start + tl.arange(0, COLS)
            t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
            new_top = tl.maximum(top, tl.max(t, 1))
            p = tl.exp(t - new_top[:, None])
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            level = tl.where(start == 0, total / COLS, level * shrink)
            square = square * shrink * shrink + tl.sum(p * p, 1)
            rest = tl.where(m[None, :] < M, p - level[:, None], 0.)
            v_i = load_tokens(v, m, M, e, d, h * d)  # (m, D)
            product = tl.dot(rest.to(v_i.dtype), v_i, input_precision=PRECISION)
            acc = acc * shrink[:, None] + product
            top = new_top
        total = tl.where(n < N, total, 1.)
        square = square / (total * total) - 1 / M
    row = (b * h + i) * N + n
    tl.store(lse + row, top + tl.log(total), mask=n < N)
    tl.store(squares + row, square, mask=n < N)
    excess = level * M / total
    if NORMALIZE:
        excess -= 1
    mean_i = tl.load(mean + (b * h + i) * d + e, mask=e < d, other=0.)
    acc = acc / total[:, None] + excess[:, None] * mean_i[None, :]
    out += b * N * h * d + i * d
    inside = (n[:, None] < N) & (e[None, :] < d)
    tl.store(out + n[:, None] * h * d + e[None, :], acc, mask=inside)


@triton.jit
def map_and_gradient(q, k, v_i, mix, g, lse, delta, r, slope, i, n, m, N, M, scale,
                     h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, MIX: tl.constexpr,
                     NORMALIZE: tl.constexpr, PRECISION: tl.constexpr):
    """C (P unless NORMALIZE) and dT (n, m) of head i.

    With one key P is 1 for any score. C and dT are then exact zeros, not rounding errors.
    """
    t = mixed_scores(q, k, mix, i, n, m, N, M, scale, h, d, D, MIX, PRECISION)
    p = tl.exp(t - lse[:, None])  # zeros outside
    dp = r * tl.dot(g, tl.trans(v_i), input_precision=PRECISION)
    centred = p
    if NORMALIZE:
        inside = (n[:, None] < N) & (m[None, :] < M) & (M > 1)
        centred = tl.where(inside, p - 1 / M, 0.)
        dp += slope * centred
    dt = tl.where(M > 1, p * (dp - delta[:, None]), 0.)
    return centred, dt


@triton.jit
def mixing_weights(mix, i, c, h: tl.constexpr, d: tl.constexpr, MIX: tl.constexpr):
    """W[i, g] for each column c, where g is the head of that column."""
    if MIX:
        return tl.load(mix + i * h + c // d, mask=c < h * d, other=0.)
    else:
        return tl.where(c // d == i, 1., 0.)


@triton.jit
def key_value_kernel(q, k, v, mix, grad, lse, delta, r, slope, dk, dv, scale, N, M,
                     h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
                     MIX: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
                     ROWS: tl.constexpr, COLS: tl.constexpr):
    """dk_g = scale sum_i W[i,g] dT_i^T q_g and dv_i = r C_i^T dO_i, for a block of keys."""
    b = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * COLS + tl.arange(0, COLS)
    e = tl.arange(0, D)
    c = tl.arange(0, C)
    q += b * N * h * d
    grad += b * N * h * d
    k += b * M * h * d
    dk_acc = tl.zeros((COLS, C), tl.float32)
    for i in range(h):
        v_i = load_tokens(v + b * M * h * d + i * d, m, M, e, d, h * d)  # (m, D)
        w = mixing_weights(mix, i, c, h, d, MIX)
        r_i = tl.load(r + b * h + i)
        slope_i = tl.load(slope + b * h + i)
        dv_acc = tl.zeros((COLS, D), tl.float32)
        for start in range(0, N, ROWS):
            n = start + tl.arange(0, ROWS)
            row = (b * h + i) * N + n
            g = load_tokens(grad + i * d, n, N, e, d, h * d)  # (n, D)
            centred, dt = map_and_gradient(
                q, k, v_i, mix, g, tl.load(lse + row, mask=n < N, other=0.),
                tl.load(delta + row, mask=n < N, other=0.), r_i, slope_i, i, n, m, N, M,
                scale, h, d, D, MIX, NORMALIZE, PRECISION)
            dv_acc += tl.dot(tl.trans(centred.to(g.dtype)), g, input_precision=PRECISION)
            wide = load_tokens(q, n, N, c, h * d, h * d)  # (n, C)
            wide = (wide * w[None, :]).to(wide.dtype)
            dk_acc += tl.dot(tl.trans(dt.to(wide.dtype)), wide, input_precision=PRECISION)
        inside = (m[:, None] < M) & (e[None, :] < d)
        place = (b * M + m[:, None]) * h * d + i * d + e[None, :]
        tl.store(dv + place, r_i * dv_acc, mask=inside)
    inside = (m[:, None] < M) & (c[None, :] < h * d)
    tl.store(dk + (b * M + m[:, None]) * h * d + c[None, :], scale * dk_acc, mask=inside)


@triton.jit
def query_kernel(q, k, v, mix, grad, lse, delta, r, slope, dq, dmix, scale, N, M,
                 h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
                 MIX: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
                 ROWS: tl.constexpr, COLS: tl.constexpr):
    """dq_g = sum_i W[i,g] X_ig and the block's part of dW[i,g] = sum(q_g X_ig) by column, for a
    block of queries, with X_ig = scale dT_i k_g."""
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
            v_i = load_tokens(v + b * M * h * d + i * d, m, M, e, d, h * d)  # (m, D)
            _, dt = map_and_gradient(
                q, k, v_i, mix, g, lse_i, delta_i, r_i, slope_i, i, n, m, N, M, scale,
                h, d, D, MIX, NORMALIZE, PRECISION)
            wide_k = load_tokens(k, m, M, c, h * d, h * d)  # (m, C)
            x += tl.dot(dt.to(wide_k.dtype), wide_k, input_precision=PRECISION)
        x *= scale
        dq_acc += mixing_weights(mix, i, c, h, d, MIX)[None, :] * x
        if MIX:
            place = ((b * tl.num_programs(0) + tl.program_id(0)) * h + i) * h * d + c
            tl.store(dmix + place, tl.sum(wide_q * x, 0), mask=c < h * d)
    inside = (n[:, None] < N) & (c[None, :] < h * d)
    tl.store(dq + (b * N + n[:, None]) * h * d + c[None, :], dq_acc, mask=inside)


def forward_blocks(d: int, element_size: int) -> dict:
    """Number of queries and keys in a block, for 100 KB of shared memory."""
    size = 64 if triton.next_power_of_2(d) * element_size <= 256 else 32
    return dict(ROWS=size, COLS=size)


def backward_blocks(C: int) -> dict:
    """Number of queries and keys in a block, and the padded width C.

    Two tensors (rows, C) stay in registers.
    """
    C = max(triton.next_power_of_2(C), 16)
    rows, cols = (32, 64) if C <= 128 else (32, 32) if C <= 512 else (16, 16)
    return dict(C=C, ROWS=rows, COLS=cols)


def why_not(q: Tensor) -> Optional[str]:
    """Why the kernels cannot take such a q, or None if they can."""
    h, d = q.shape[1], q.shape[3]
    if not q.is_cuda and not interpreted():
        return f"it needs tensors on CUDA, not on '{q.device}'"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f'it takes float32, bfloat16 and float16, not {q.dtype}'
    if d > 128 or h * d > MAX_WIDTH:
        return (f'a head can have up to 128 channels and all heads up to {MAX_WIDTH}, '
                f'not {d} and {h * d}')
    return None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, for tests."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def _as_tokens(x: Tensor) -> Tensor:
    if interpreted() and x.dtype == torch.bfloat16:  # NumPy has no bfloat16
        x = x.float()
    return x.transpose(1, 2).contiguous()  # (B, h, N, d) -> (B, N, h, d)


def _mean(v: Tensor) -> Tensor:
    return v.float().mean(2)  # (B, h, d)


def _settings(q: Tensor, mix: Optional[Tensor], normalize: bool) -> dict:
    h, d = q.shape[1], q.shape[3]
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return dict(
        h=h,
        d=d,
        D=max(triton.next_power_of_2(d), 16),
        MIX=mix is not None,
        NORMALIZE=normalize,
        PRECISION='tf32' if tf32 else 'ieee')


def _fake_forward(q, k, v, mix, scale, normalize, eps):
    B, h, N, d = q.shape
    return (q.new_empty((B, N, h, d), dtype=torch.float32).transpose(1, 2),
            *(q.new_empty((B, h, N), dtype=torch.float32) for _ in range(2)),
            q.new_empty((B, h), dtype=torch.float32))


@opaque('emsa_triton', _fake_forward)
def triton_forward(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                   normalize: bool, eps: float) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """O (B, h, N, d), sum_j C^2 and logsumexp_j T (B, h, N), and r (B, h).

    All are float32: backward computes the row sums of P dP from O and needs that precision.
    """
    (B, h, N, d), M = q.shape, k.shape[2]
    out = q.new_empty((B, N, h, d), dtype=torch.float32)
    squares, lse = (q.new_empty((B, h, N), dtype=torch.float32) for _ in range(2))
    blocks = forward_blocks(d, q.element_size())
    with torch.cuda.device_of(q):
        forward_kernel[triton.cdiv(N, blocks['ROWS']), h, B](
            _as_tokens(q), _as_tokens(k), _as_tokens(v), _mean(v),
            None if mix is None else mix.float().contiguous(), out, squares, lse, scale, N, M,
            ONE_BLOCK=blocks['COLS'] >= M, **blocks, **_settings(q, mix, normalize))
    r = squares.new_ones((B, h))
    if normalize:
        r = torch.rsqrt(squares.sum(-1) / (N * M) + eps)
    out *= r[:, None, :, None]
    return out.transpose(1, 2), squares, lse, r


def _fake_backward(grad, out, squares, lse, r, q, k, v, mix, scale, normalize):
    dmix = r.new_empty(0) if mix is None else torch.empty_like(mix)
    return (*(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v)), dmix)


@opaque('emsa_triton_backward', _fake_backward)
def triton_backward(grad: Tensor, out: Tensor, squares: Tensor, lse: Tensor, r: Tensor,
                    q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], scale: float,
                    normalize: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and mix (empty without mix)."""
    (B, h, N, d), M = q.shape, k.shape[2]
    # Row sums of P dP, where dP = r dO v^T + slope C and O = r C v (P unless normalize).
    delta = torch.linalg.vecdot(grad.float(), out)  # (B, h, N)
    slope = torch.zeros_like(r)
    if normalize:
        slope = delta.sum(-1) * r.square() / -(N * M)
        of_mean = (grad.float() @ _mean(v)[..., None]).squeeze(-1)  # (B, h, N)
        delta += slope[..., None] * squares + r[..., None] * of_mean
    blocks = backward_blocks(h * d)
    tokens = (_as_tokens(q), _as_tokens(k), _as_tokens(v),
              None if mix is None else mix.float().contiguous(), _as_tokens(grad),
              lse, delta, r, slope)
    dq, dk, dv = (torch.empty_like(x) for x in tokens[:3])
    rows, cols = triton.cdiv(N, blocks['ROWS']), triton.cdiv(M, blocks['COLS'])
    dmix_parts = r.new_empty((B, rows, h, h, d) if mix is not None else 0)
    settings = dict(blocks, num_warps=8, **_settings(q, mix, normalize))
    with torch.cuda.device_of(q):
        key_value_kernel[cols, B](*tokens, dk, dv, scale, N, M, **settings)
        query_kernel[rows, B](*tokens, dq, dmix_parts, scale, N, M, **settings)
    dmix = dmix_parts if mix is None else dmix_parts.sum((0, 1, 4)).to(mix.dtype)
    return (*(x.to(q.dtype).transpose(1, 2) for x in (dq, dk, dv)), dmix)


def attention(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor], bias: Optional[Tensor],
              scale: float, normalize: bool, eps: float) -> Tensor:
    """See :func:`~mmrest.ops.emsa_attention`."""
    return EMSAFunction.apply(triton_forward, triton_backward, q, k, v, mix, bias, scale,
                              normalize, eps)

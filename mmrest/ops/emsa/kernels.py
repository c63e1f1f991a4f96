"""The CUDA kernels of EMSA's attention, in Triton. README.md in this folder derives them.

A program takes n queries and m keys. It holds the tiles (n, m) of G heads as a tuple, so that
the 1x1 convolution over heads is h multiply-adds in registers, and no product is wider than a
head. Without the convolution (MIX=False), G is 1.

Tensors are tokens (B, N, h, d) with a stride from token to token. ``weight`` is
scale log2(e) W, (h, h), so that P is 2^T. A chunk is the queries from ``begin`` to ``end`` of
each image from ``image`` on. Its maps have rows of L elements. Symbols:

    T   mixed scores of head i    P   softmax of T    C   P - 1/M    dX  the gradient of X
    r   1 / sqrt(var + eps), one for each image and head
"""
import triton
import triton.language as tl

# Kernels that differ in these would be compiled anew for many sizes of images.
SIZES = ('N', 'M', 'image', 'begin', 'end')
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def channels(x, n, end, stride, first: tl.constexpr, last: tl.constexpr, D: tl.constexpr):
    """D channels from ``first`` on of tokens n, (n, D). Zeros from ``end`` and ``last`` on."""
    c = first + tl.arange(0, D)
    inside = (n[:, None] < end) & (c[None, :] < last)
    return tl.load(x + n[:, None] * stride + c[None, :], mask=inside, other=0.)


@triton.jit
def load_head(x, n, end, stride, d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr):
    """A head's d channels of tokens n, as one piece (n, D) or two, (n, D) and (n, D2)."""
    pieces = (channels(x, n, end, stride, 0, d, D), )
    if D2 > 0:
        pieces = pieces + (channels(x, n, end, stride, D, d, D2), )
    return pieces


@triton.jit
def load_heads(x, n, end, stride, COUNT: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
               D2: tl.constexpr):
    heads = ()
    for g in tl.static_range(COUNT):
        heads = heads + (load_head(x + g * d, n, end, stride, d, D, D2), )
    return heads


@triton.jit
def product(a, b, D2: tl.constexpr, PRECISION: tl.constexpr):
    """a b^T of two heads, (n, m)."""
    out = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    if D2 > 0:
        out = tl.dot(a[1], tl.trans(b[1]), acc=out, input_precision=PRECISION)
    return out


@triton.jit
def empty_sums(ROWS: tl.constexpr, D: tl.constexpr, D2: tl.constexpr):
    """Zeros for d channels of tokens, (n, D), or (n, D) and (n, D2)."""
    sums = (tl.zeros((ROWS, D), tl.float32), )
    if D2 > 0:
        sums = sums + (tl.zeros((ROWS, D2), tl.float32), )
    return sums


@triton.jit
def add_product(sums, a, b, D2: tl.constexpr, PRECISION: tl.constexpr):
    """sums + a b of (n, m) and a head of m tokens."""
    out = (tl.dot(a, b[0], acc=sums[0], input_precision=PRECISION), )
    if D2 > 0:
        out = out + (tl.dot(a, b[1], acc=sums[1], input_precision=PRECISION), )
    return out


@triton.jit
def store_head(x, sums, n, end, h: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
               D2: tl.constexpr):
    """Write the d channels of tokens n of contiguous (N, h, d)."""
    for part in tl.static_range(2 if D2 > 0 else 1):
        c = part * D + tl.arange(0, D2 if part > 0 else D)
        inside = (n[:, None] < end) & (c[None, :] < d)
        tl.store(x + n[:, None] * h * d + c[None, :], sums[part].to(x.dtype.element_ty),
                 mask=inside)


@triton.jit
def mixed_scores(t, qs, k, weight, m, M, k_stride, SOURCES: tl.constexpr, h: tl.constexpr,
                 d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, G: tl.constexpr,
                 PRECISION: tl.constexpr, AGAIN: tl.constexpr):
    """t_j + sum_g weight[j, g] q_g k_g^T for G heads j: a tuple of (n, m).

    AGAIN: read the weights for each tile, where a register for each would be too many.
    """
    for g in tl.static_range(SOURCES):
        scores = product(qs[g], load_head(k + g * d, m, M, k_stride, d, D, D2), D2, PRECISION)
        mixed = ()
        for j in tl.static_range(G):
            mixed = mixed + (t[j] + tl.load(weight + j * h + g, volatile=AGAIN) * scores, )
        t = mixed
    return t


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(q, k, v, mean, weight, raw, squares, lse, N, M, q_stride, k_stride, v_stride,
                   h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr,
                   MIX: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
                   ROWS: tl.constexpr, COLS: tl.constexpr, G: tl.constexpr):
    """C v (P v unless NORMALIZE), sum_m C^2 and log2 of softmax's denominator, of G heads.

    P is often close to 1 / M, and 16 bits would leave only 1 / M and rounding errors. So a
    level near 1 / M is taken from P before the product with v, and the mean of v gives it back.
    """
    SOURCES: tl.constexpr = h if MIX else 1
    i = tl.program_id(1) * G  # the first head
    g = 0 if MIX else i
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    qs = load_heads(q + b * N * q_stride + g * d, n, N, q_stride, SOURCES, d, D, D2)
    k += b * M * k_stride + g * d
    v += b * M * v_stride + i * d
    weight += i * h + g
    tops = ()
    totals = ()
    levels = ()
    sums = ()
    accs = ()
    for _ in tl.static_range(G):
        tops = tops + (tl.full((ROWS, ), float('-inf'), tl.float32), )
        totals = totals + (tl.zeros((ROWS, ), tl.float32), )
        levels = levels + (tl.zeros((ROWS, ), tl.float32), )
        sums = sums + (tl.zeros((ROWS, ), tl.float32), )
        accs = accs + (empty_sums(ROWS, D, D2), )
    share = 1. / tl.minimum(M, COLS)
    for start in range(0, M, COLS):
        m = start + tl.arange(0, COLS)
        valid = (m < M).to(tl.float32)
        outside = tl.where(m < M, 0., float('-inf'))
        t = ()
        for _ in tl.static_range(G):
            t = t + (tl.zeros((ROWS, COLS), tl.float32) + outside[None, :], )
        t = mixed_scores(t, qs, k, weight, m, M, k_stride, SOURCES, h, d, D, D2, G, PRECISION,
                         h > 4)
        new_tops = ()
        new_totals = ()
        new_levels = ()
        new_sums = ()
        new_accs = ()
        for j in tl.static_range(G):
            top = tl.maximum(tops[j], tl.max(t[j], 1))
            p = tl.exp2(t[j] - top[:, None])
            shrink = tl.exp2(tops[j] - top)
            total = totals[j] * shrink + tl.sum(p, 1)
            level = tl.where(start == 0, total * share, levels[j] * shrink)
            rest = p - level[:, None] * valid[None, :]
            v_j = load_head(v + j * d, m, M, v_stride, d, D, D2)
            small = rest.to(v_j[0].dtype)
            acc = (accs[j][0] * shrink[:, None], )
            if D2 > 0:
                acc = acc + (accs[j][1] * shrink[:, None], )
            new_tops = new_tops + (top, )
            new_totals = new_totals + (total, )
            new_levels = new_levels + (level, )
            new_sums = new_sums + (sums[j] * shrink * shrink + tl.sum(rest * rest, 1), )
            new_accs = new_accs + (add_product(acc, small, v_j, D2, PRECISION), )
        tops = new_tops
        totals = new_totals
        levels = new_levels
        sums = new_sums
        accs = new_accs
    for j in tl.static_range(G):
        head = b * h + i + j
        off = totals[j] - M * levels[j]
        inverse = 1 / totals[j]
        tl.store(lse + head * N + n, tops[j] + tl.log2(totals[j]), mask=n < N)
        tl.store(squares + head * N + n, (sums[j] - off * off / M) * inverse * inverse,
                 mask=n < N)
        out = raw + b * N * h * d + (i + j) * d
        given_back = M * levels[j] * inverse
        if NORMALIZE:
            given_back -= 1
        for part in tl.static_range(2 if D2 > 0 else 1):
            c = part * D + tl.arange(0, D2 if part > 0 else D)
            inside = (n[:, None] < N) & (c[None, :] < d)
            mean_j = tl.load(mean + head * d + c, mask=c < d, other=0.)
            tl.store(out + n[:, None] * h * d + c[None, :],
                     accs[j][part] * inverse[:, None] + given_back[:, None] * mean_j[None, :],
                     mask=inside)


@triton.jit(do_not_specialize=SIZES)
def rows_kernel(grad, raw, mean, along, delta, N, grad_stride, h: tl.constexpr, d: tl.constexpr,
                D: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr):
    """Row sums of each head: dO . raw, and with NORMALIZE dO . P v besides."""
    i = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (b * h + i) * N + n
    g = channels(grad + b * N * grad_stride + i * d, n, N, grad_stride, 0, d, D).to(tl.float32)
    x = channels(raw + b * N * h * d + i * d, n, N, h * d, 0, d, D)
    tl.store(along + row, tl.sum(g * x, 1), mask=n < N)
    if NORMALIZE:
        c = tl.arange(0, D)
        x += tl.load(mean + (b * h + i) * d + c, mask=c < d, other=0.)[None, :]
        tl.store(delta + row, tl.sum(g * x, 1), mask=n < N)


@triton.jit(do_not_specialize=SIZES)
def map_kernel(q, k, v, grad, weight, lse, delta, r, slope, c, dt, N, M, image, begin, end, L,
               SPAN, q_stride, k_stride, v_stride, grad_stride, h: tl.constexpr,
               d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, MIX: tl.constexpr,
               NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
               COLS: tl.constexpr, G: tl.constexpr):
    """r C_i (M P_i unless NORMALIZE) and dT_i of G heads and SPAN columns.

    These factors bring C, which float16 could not tell from zero, to the order of one. dT comes
    times log(2), because weight is times log2(e).
    """
    SOURCES: tl.constexpr = h if MIX else 1
    groups: tl.constexpr = h // G
    of_chunk = (tl.program_id(2) // groups).to(tl.int64)
    b = image + of_chunk
    i = tl.program_id(2) % groups * G
    g = 0 if MIX else i
    n = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    qs = load_heads(q + b * N * q_stride + g * d, n, end, q_stride, SOURCES, d, D, D2)
    grads = load_heads(grad + b * N * grad_stride + i * d, n, end, grad_stride, G, d, D, D2)
    k += b * M * k_stride + g * d
    v += b * M * v_stride + i * d
    weight += i * h + g
    size = (end - begin).to(tl.int64) * L
    span = tl.program_id(1) * SPAN
    for start in range(span, tl.minimum(span + SPAN, M), COLS):
        m = start + tl.arange(0, COLS)
        inside = (n[:, None] < end) & (m[None, :] < L)
        place = (n[:, None] - begin) * L + m[None, :]
        outside = tl.where(m < M, 0., float('-inf'))
        t = ()
        for j in tl.static_range(G):
            lse_j = tl.load(lse + (b * h + i + j) * N + n, mask=n < end, other=0.)
            t = t + (outside[None, :] - lse_j[:, None], )
        t = mixed_scores(t, qs, k, weight, m, M, k_stride, SOURCES, h, d, D, D2, G, PRECISION,
                         False)
        for j in tl.static_range(G):
            head = b * h + i + j
            v_j = load_head(v + j * d, m, M, v_stride, d, D, D2)
            r_j = tl.load(r + head)
            delta_j = tl.load(delta + head * N + n, mask=n < end, other=0.) * LOG_2
            p = tl.exp2(t[j])
            dp = product(grads[j], v_j, D2, PRECISION) * (r_j * LOG_2) - delta_j[:, None]
            if NORMALIZE:
                scaled = p * r_j - r_j / M
                dp += tl.load(slope + head) * LOG_2 * scaled
            else:
                scaled = p * M
            skip = (of_chunk * h + i + j) * size
            tl.store(c + skip + place, scaled.to(c.dtype.element_ty), mask=inside)
            tl.store(dt + skip + place, (p * dp).to(dt.dtype.element_ty), mask=inside)


@triton.jit
def fold(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of (ROWS, COLS) over what a thread holds of a tensor core's result.

    That is rows n and n + 8, columns m and m + 1, m + 8 and so on. Elsewhere the sums need
    messages between threads, but are the same.
    """
    x = tl.reshape(x, (ROWS // 16, 2, 8, COLS // 8, 4, 2))
    return tl.sum(tl.sum(tl.sum(x, 5), 3), 1)


@triton.jit(do_not_specialize=SIZES)
def query_kernel(q, k, weight, dt, ds, dq, dmix, N, M, image, begin, end, L, q_stride, k_stride,
                 h: tl.constexpr, d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr,
                 MIX: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
                 COLS: tl.constexpr):
    """dS_g = sum_i W[i,g] dT_i of a head, dq_g, and what is added to sum(dT_i q_g k_g^T).

    Each program has a dmix (h, h) of its own image and queries, without scale log2(e).
    """
    SOURCES: tl.constexpr = h if MIX else 1
    of_chunk = (tl.program_id(1) // h).to(tl.int64)
    b = image + of_chunk
    g = tl.program_id(1) % h
    first = 0 if MIX else g
    n = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_g = load_head(q + b * N * q_stride + g * d, n, end, q_stride, d, D, D2)
    k += b * M * k_stride + g * d
    weight += first * h + g
    size = (end - begin).to(tl.int64) * L
    dt += (of_chunk * h + first) * size
    ds += (of_chunk * h + g) * size
    acc = empty_sums(ROWS, D, D2)
    sums = ()
    for _ in tl.static_range(SOURCES):
        sums = sums + (tl.zeros((ROWS // 16, 8, 4), tl.float32), )
    for start in range(0, M, COLS):
        m = start + tl.arange(0, COLS)
        inside = (n[:, None] < end) & (m[None, :] < L)
        place = (n[:, None] - begin) * L + m[None, :]
        k_g = load_head(k, m, M, k_stride, d, D, D2)
        if MIX:
            scores = product(q_g, k_g, D2, PRECISION)
        ds_g = tl.zeros((ROWS, COLS), tl.float32)
        new_sums = ()
        for i in tl.static_range(SOURCES):
            dt_i = tl.load(dt + i * size + place, mask=inside, other=0.).to(tl.float32)
            ds_g += tl.load(weight + i * h) * dt_i
            if MIX:
                new_sums = new_sums + (sums[i] + fold(dt_i * scores, ROWS, COLS), )
        small = ds_g.to(ds.dtype.element_ty)
        tl.store(ds + place, small, mask=inside)
        acc = add_product(acc, small, k_g, D2, PRECISION)
        if MIX:
            sums = new_sums
    store_head(dq + b * N * h * d + g * d, acc, n, end, h, d, D, D2)
    if MIX:
        dmix += (of_chunk * tl.num_programs(0) + tl.program_id(0)) * h * h + g
        for i in tl.static_range(h):
            before = tl.load(dmix + i * h)
            tl.store(dmix + i * h, before + tl.sum(tl.ravel(sums[i]), 0))


@triton.jit(do_not_specialize=SIZES)
def key_kernel(maps, x, out, N, M, image, begin, end, L, SPAN, x_stride, h: tl.constexpr,
               d: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, PRECISION: tl.constexpr,
               ROWS: tl.constexpr, COLS: tl.constexpr):
    """Adds map^T x of a head, over SPAN queries, where map is r C or dS, and x is dO or q.

    ROWS are keys here. out has (M, h, d) for each span and image of the chunk.
    """
    of_chunk = (tl.program_id(2) // h).to(tl.int64)
    i = tl.program_id(2) % h
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    maps += (of_chunk * h + i) * (end - begin) * L
    x += (image + of_chunk) * N * x_stride + i * d
    images = tl.num_programs(2) // h
    out += (tl.program_id(1) * images + of_chunk) * M * h * d + i * d
    acc = load_head(out, m, M, h * d, d, D, D2)
    span = begin + tl.program_id(1) * SPAN
    for start in range(span, tl.minimum(span + SPAN, end), COLS):
        n = start + tl.arange(0, COLS)
        inside = (n[:, None] < end) & (m[None, :] < L)
        p = tl.load(maps + (n[:, None] - begin) * L + m[None, :], mask=inside, other=0.)
        x_i = load_head(x, n, end, x_stride, d, D, D2)
        acc = add_product(acc, tl.trans(p), x_i, D2, PRECISION)
    store_head(out, acc, m, M, h, d, D, D2)

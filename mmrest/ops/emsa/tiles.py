"""The block sizes of the kernels.

They were chosen by what Triton 3.6 says for compute capability 8.0, 8.9 and 9.0: the largest
with two stages whose registers do not spill (up to 64 bytes of stack), and whose buffers fit in
shared memory. No GPU has measured them. The table is static, so that sums have one order.
"""
HEADS = (2, 4, 8)
WIDE_UP_TO = 256  # h d in 32 bits
# Of the forward, map and unmix kernel: ROWS queries, COLS keys, G heads and stages, by the
# number of heads that are mixed (1 without mixing) and the largest d. TILES are for 16 bits,
# WIDE for 32 bits on any GPU.
ONE_HEAD = {(1, 128): ((128, 64, 1, 2), (128, 32, 1, 2))}
WIDE = {
    (1, 64): ((64, 16, 1, 2), (64, 16, 1, 2)),
    (1, 128): ((32, 16, 1, 2), (32, 16, 1, 2)),
    (2, 64): ((64, 16, 2, 2), (32, 16, 2, 2), (64, 16, 2, 2)),
    (2, 128): ((32, 16, 1, 2), (16, 16, 2, 2), (64, 16, 1, 2)),
    (4, 64): ((32, 16, 2, 2), (32, 16, 2, 1), (64, 16, 2, 2)),
    (8, 32): ((32, 16, 4, 2), (32, 16, 4, 1), (64, 16, 4, 2)),
}
TILES = {
    80: {
        (2, 64): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (2, 96): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (2, 128): ((128, 32, 2, 2), (64, 32, 2, 2), (128, 32, 2, 2)),
        (4, 64): ((128, 32, 2, 2), (64, 32, 4, 2), (128, 32, 4, 2)),
        (4, 96): ((128, 32, 2, 2), (64, 32, 4, 2), (128, 32, 4, 2)),
        (4, 128): ((128, 32, 2, 1), (64, 16, 4, 2), (64, 32, 4, 2)),
        (8, 64): ((64, 32, 2, 2), (64, 16, 4, 2), (64, 16, 4, 2)),
        (8, 96): ((64, 32, 2, 2), (64, 16, 2, 2), (64, 16, 4, 2)),
        (8, 128): ((32, 32, 2, 2), (64, 16, 2, 1), (64, 16, 4, 2)),
    },
    89: {
        (2, 64): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (2, 96): ((128, 64, 2, 2), (64, 32, 2, 2), (128, 32, 2, 2)),
        (2, 128): ((128, 32, 2, 2), (64, 16, 2, 2), (128, 32, 2, 2)),
        (4, 64): ((128, 32, 2, 2), (64, 16, 4, 2), (128, 32, 4, 2)),
        (4, 96): ((64, 32, 2, 2), (64, 16, 2, 2), (64, 32, 4, 2)),
        (4, 128): ((32, 32, 2, 2), (64, 16, 2, 1), (64, 16, 4, 2)),
        (8, 64): ((64, 16, 2, 2), (64, 16, 4, 1), (64, 16, 4, 2)),
        (8, 96): ((64, 16, 2, 1), (32, 16, 2, 2), (64, 16, 4, 2)),
        (8, 128): ((32, 16, 2, 1), (16, 16, 2, 2), (64, 16, 4, 2)),
    },
    90: {
        (2, 64): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (2, 96): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (2, 128): ((128, 64, 2, 2), (128, 32, 2, 2), (128, 32, 2, 2)),
        (4, 64): ((128, 32, 4, 2), (128, 32, 4, 2), (128, 32, 4, 2)),
        (4, 96): ((128, 32, 2, 2), (64, 32, 4, 2), (128, 32, 4, 2)),
        (4, 128): ((128, 32, 2, 2), (64, 16, 4, 2), (128, 32, 4, 2)),
        (8, 64): ((128, 32, 4, 2), (64, 16, 4, 2), (64, 16, 4, 2)),
        (8, 96): ((64, 32, 1, 2), (64, 16, 2, 2), (64, 16, 4, 2)),
        (8, 128): ((32, 16, 2, 2), (64, 16, 2, 1), (64, 16, 4, 2)),
    },
}


def tile(kernel: str, capability: int, h: int, d: int, wide: bool) -> dict:
    """ROWS, COLS, G, num_warps and num_stages of a kernel.

    Args:
        kernel (str): 'forward', 'map' or 'unmix'.
        capability (int): Compute capability, 90 for 9.0. Others than 8.0 and 9.0 are taken for
            8.9, which has the least shared memory. 0 is the interpreter, whose time is that of
            its operations, whatever their sizes.
        h (int): Heads that are mixed, 1 without mixing.
        d (int): Channels of a head.
        wide (bool): Whether they have 32 bits; h d is then at most ``WIDE_UP_TO``.
    """
    if capability == 0:
        rows, cols, groups, stages = 512, 64, h, 1
    else:
        tiles = WIDE if wide else {**ONE_HEAD, **TILES.get(capability, TILES[89])}
        most = min(most for heads, most in tiles if heads == h and most >= d)
        rows, cols, groups, stages = tiles[h, most][('forward', 'map', 'unmix').index(kernel)]
    # A warp of 16 queries keeps its part of a product in registers as the operand of the next.
    return dict(ROWS=rows, COLS=cols, G=groups, num_warps=rows // 16, num_stages=stages)

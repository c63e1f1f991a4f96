"""The block sizes of the kernels.

None spills registers (up to 64 bytes of stack), and their buffers fit in shared memory, by
Triton 3.6. For compute capability 9.0 and up to 96 channels, an H100 and an H200 measured the
fastest. The others are the largest with two stages, and were not measured. The table is static,
so that sums have one order.
"""
HEADS = (2, 4, 8)
# Of the forward and the map kernel: ROWS queries, COLS keys, G heads and stages, by the number
# of heads that are mixed (1 without mixing) and the largest d. TILES are for 16 bits, WIDE for
# 32 bits on any GPU.
ONE_HEAD = {(1, 128): ((128, 64, 1, 2), (128, 32, 1, 2))}
WIDE = {
    (1, 64): ((64, 16, 1, 2), (64, 16, 1, 2)),
    (1, 128): ((32, 16, 1, 2), (32, 16, 1, 2)),
    (2, 64): ((64, 16, 2, 2), (32, 16, 2, 2)),
    (2, 128): ((32, 16, 1, 2), (16, 16, 1, 2)),
    (4, 64): ((32, 16, 2, 2), (32, 16, 2, 1)),
    (4, 96): ((16, 16, 1, 2), (16, 16, 1, 2)),
    (8, 32): ((32, 16, 4, 2), (32, 16, 4, 1)),
    (8, 64): ((16, 16, 1, 1), (16, 16, 1, 1)),
}
TILES = {
    80: {
        (2, 64): ((128, 64, 2, 2), (128, 32, 2, 2)),
        (2, 96): ((128, 64, 2, 2), (128, 32, 2, 2)),
        (2, 128): ((128, 32, 2, 2), (64, 32, 2, 2)),
        (4, 64): ((128, 32, 2, 2), (64, 32, 4, 2)),
        (4, 96): ((128, 32, 2, 2), (64, 32, 4, 2)),
        (4, 128): ((128, 32, 2, 1), (64, 16, 4, 2)),
        (8, 64): ((64, 32, 2, 2), (64, 16, 4, 2)),
        (8, 96): ((64, 32, 2, 2), (64, 16, 2, 2)),
        (8, 128): ((32, 32, 2, 2), (64, 16, 2, 1)),
    },
    89: {
        (2, 64): ((128, 64, 2, 2), (128, 32, 2, 2)),
        (2, 96): ((128, 32, 2, 2), (64, 32, 2, 2)),
        (2, 128): ((128, 32, 2, 2), (64, 16, 2, 2)),
        (4, 64): ((128, 32, 2, 2), (64, 16, 4, 2)),
        (4, 96): ((64, 32, 2, 2), (64, 16, 2, 2)),
        (4, 128): ((32, 32, 2, 2), (64, 16, 2, 1)),
        (8, 64): ((64, 16, 2, 2), (64, 16, 4, 1)),
        (8, 96): ((64, 16, 2, 1), (32, 16, 2, 2)),
        (8, 128): ((32, 16, 2, 1), (16, 16, 2, 2)),
    },
    90: {
        (2, 64): ((64, 64, 2, 3), (64, 64, 2, 2)),
        (2, 96): ((128, 64, 2, 3), (64, 32, 2, 2)),
        (2, 128): ((128, 64, 2, 2), (128, 32, 2, 2)),
        (4, 64): ((128, 32, 4, 3), (64, 32, 2, 2)),
        (4, 96): ((128, 32, 2, 3), (128, 32, 2, 2)),
        (4, 128): ((128, 32, 2, 2), (64, 16, 4, 2)),
        (8, 64): ((64, 32, 2, 3), (64, 32, 2, 3)),
        (8, 96): ((64, 16, 2, 3), (64, 16, 2, 3)),
        (8, 128): ((32, 16, 2, 2), (64, 16, 2, 1)),
    },
}


def takes_wide(h: int, d: int) -> bool:
    """Whether there is a tile for ``h`` heads of ``d`` channels in 32 bits."""
    return any(h == heads and d <= most for heads, most in WIDE)


def tile(kernel: str, capability: int, h: int, d: int, wide: bool) -> dict:
    """ROWS, COLS, num_warps and num_stages of a kernel, and G of 'forward' and 'map'.

    Args:
        kernel (str): 'forward', 'map', 'query' or 'key'.
        capability (int): Compute capability, 90 for 9.0. Others than 8.0 and 9.0 are taken for
            8.9, which has the least shared memory. 0 is the interpreter, whose time is that of
            its operations, whatever their sizes.
        h (int): Heads that are mixed, 1 without mixing.
        d (int): Channels of a head.
        wide (bool): Whether they have 32 bits.
    """
    G, stages = h, 3 if capability == 90 else 2
    if capability == 0:
        rows, cols, stages = 512, 64, 1
    elif kernel == 'query':
        rows, cols, stages = (32 if d <= 64 else 16, 16, 2) if wide else (64, 32, stages)
    elif kernel == 'key':
        rows, cols, stages = (64, 16, 2) if wide else (64, 64, stages)
    else:
        tiles = WIDE if wide else {**ONE_HEAD, **TILES.get(capability, TILES[89])}
        most = min(most for heads, most in tiles if heads == h and most >= d)
        rows, cols, G, stages = tiles[h, most][kernel == 'map']
    # A warp of 16 queries keeps its part of a product in registers as the operand of the next.
    found = dict(ROWS=rows, COLS=cols, num_warps=max(rows // 16, 2), num_stages=stages)
    return dict(found, G=G) if kernel in ('forward', 'map') else found

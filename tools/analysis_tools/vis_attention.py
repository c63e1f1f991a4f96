"""Where a point of an image looks: EMSA's attention of one query, head by head.

    python tools/analysis_tools/vis_attention.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT photo.jpg attention.png --point 240 310 --stages 3 4

A row of the picture is the last block of a stage, a column one of its heads. Shown is the map
before the instance norm (which only subtracts a constant and scales a head) times the number
of keys M: 1 is what a query that attends to everything alike gives each key.
"""
from typing import List, Optional, Tuple

import torch
from pictures import picture_parser, save_rows
from torch import Tensor

from mmrest import ResT
from mmrest.apis import build_model, find_rest, read_config, read_image
from mmrest.ops.emsa import attention_map


@torch.no_grad()
def attention_of_point(rest: ResT, inputs: Tensor, point: Tuple[int, int], stage: int,
                       block: int = -1) -> Tensor:
    """Attention of one query over the shrunk image that keys come from.

    Args:
        rest (ResT): The backbone, in eval mode.
        inputs (Tensor): (1, 3, H, W).
        point (tuple[int, int]): Row and column of a pixel of ``inputs``.
        stage (int): From 1.
        block (int): Of that stage.

    Returns:
        Tensor: (h, H', W'), each head's rows of softmax: sums of 1.

    Raises:
        ValueError: The point lies outside, or the backbone has no such stage.
    """
    height, width = inputs.shape[-2:]
    if not (0 <= point[0] < height and 0 <= point[1] < width):
        raise ValueError(f'point={tuple(point)} must lie in the image of {height} x {width}')
    if not 1 <= stage <= len(rest.depths):
        raise ValueError(f'stage={stage} must be from 1 to {len(rest.depths)}')
    attn = getattr(rest, f'stage{stage}')[block].attn
    seen = []
    hook = attn.register_forward_hook(lambda _, args, out: seen.append(args))
    rest(inputs)
    hook.remove()
    (x, (H, W)), = seen
    q, k, _ = attn.project(x, (H, W))
    query = point[0] * H // height * W + point[1] * W // width
    scale = q.shape[-1]**-0.5
    row = attention_map(q[:, :, query:query + 1], k, *attn.mixing(), scale)  # (1, h, 1, M)
    # Kernel s + 1, stride s, padding s // 2: the sides of the keys' image.
    s = attn.sr_ratio
    keys = [(side + 2 * (s // 2) - s - 1) // s + 1 if s > 1 else side for side in (H, W)]
    return row[0, :, 0].unflatten(1, keys)  # (h, M) -> (h, H', W')


def main(args: Optional[List[str]] = None) -> None:
    parser = picture_parser(__doc__)
    parser.add_argument(
        '--point', type=int, nargs=2, metavar=('ROW', 'COLUMN'),
        help='pixel of the image as the network gets it (default: its middle)')
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--block', type=int, default=-1, help='of the stage; default: its last')
    args = parser.parse_args(args)
    try:
        cfg = read_config(args.config)
        model = build_model(cfg, args.checkpoint)
        picture, inputs = read_image(cfg, model, args.image)
        point = args.point or [side // 2 for side in picture.shape[:2]]
        rest = find_rest(model)
        maps = [attention_of_point(rest, inputs, point, s, args.block) for s in args.stages]
    except (ValueError, FileNotFoundError, IndexError) as error:
        raise SystemExit(str(error)) from None
    rows = [[(f'stage {stage}', picture)] +
            [(f'head {i + 1}', (head * head.numel()).numpy()) for i, head in enumerate(heads)]
            for stage, heads in zip(args.stages, maps)]
    save_rows(args.out, rows, point)


if __name__ == '__main__':
    main()

"""What a point of an image attends to: EMSA's attention of one query, head by head.

    python tools/analysis_tools/vis_attention.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT photo.jpg attention.png --point 240 310 --stages 3 4

Each row of the picture shows the last block of a stage, each column one of its heads. The
values are the attention before the instance norm, which only subtracts a constant and scales
each head, times the number of keys M: uniform attention is 1 everywhere.
"""
from typing import List, Optional, Tuple

import torch
from pictures import picture_parser, save_rows
from torch import Tensor

from mmrest import ResT
from mmrest.apis import build_model, exit_on_user_error, find_rest, read_config, read_image
from mmrest.errors import UserError
from mmrest.ops.emsa import attention_map


@torch.no_grad()
def attention_of_point(rest: ResT, inputs: Tensor, point: Tuple[int, int], stage: int,
                       block: int = -1) -> Tensor:
    """Attention of one query over the reduced image that keys come from.

    Args:
        rest (ResT): The backbone, in eval mode.
        inputs (Tensor): (1, 3, H, W).
        point (tuple[int, int]): Row and column of a pixel of ``inputs``.
        stage (int): From 1.
        block (int): Index of a block in that stage.

    Returns:
        Tensor: (h, H', W'), the query's row of softmax in each head. Each sums to 1.

    Raises:
        ValueError: The point is outside the image, or there is no such stage or block.
    """
    height, width = inputs.shape[-2:]
    if not (0 <= point[0] < height and 0 <= point[1] < width):
        raise UserError(f'point={tuple(point)} must be in the image of {height} x {width}')
    if not 1 <= stage <= len(rest.depths):
        raise UserError(f'{stage=} must be from 1 to {len(rest.depths)}')
    depth = rest.depths[stage - 1]
    if not -depth <= block < depth:
        raise UserError(f'{block=} must be from {-depth} to {depth - 1} in stage {stage}')
    attn = getattr(rest, f'stage{stage}')[block].attn
    seen = []
    hook = attn.register_forward_hook(lambda _, args, out: seen.append(args))
    rest(inputs)
    hook.remove()
    (x, (H, W)), = seen
    q, k, _ = attn.project(x, (H, W))
    query = point[0] * H // height * W + point[1] * W // width
    scale = q.shape[-1]**-0.5
    row = attention_map(q[:, :, query:query + 1], k, *attn.mixing(q), scale)  # (1, h, 1, M)
    # The keys' image comes from a convolution of kernel s + 1, stride s and padding s // 2.
    s = attn.sr_ratio
    keys = [(side + 2 * (s // 2) - s - 1) // s + 1 if s > 1 else side for side in (H, W)]
    return row[0, :, 0].unflatten(1, keys)  # (h, M) -> (h, H', W')


@exit_on_user_error
def main(args: Optional[List[str]] = None) -> None:
    parser = picture_parser(__doc__)
    parser.add_argument(
        '--point', type=int, nargs=2, metavar=('ROW', 'COLUMN'),
        help="pixel of the network's input (default: the image's middle)")
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--block', type=int, default=-1, help='of a stage (default: the last)')
    args = parser.parse_args(args)
    cfg = read_config(args.config)
    model = build_model(cfg, args.checkpoint)
    picture, inputs = read_image(cfg, model, args.image)
    point = args.point or [side // 2 for side in picture.shape[:2]]
    rest = find_rest(model)
    maps = [attention_of_point(rest, inputs, point, s, args.block) for s in args.stages]
    rows = [[(f'stage {stage}', picture)] +
            [(f'head {i + 1}', (head * head.numel()).numpy()) for i, head in enumerate(heads)]
            for stage, heads in zip(args.stages, maps)]
    save_rows(args.out, rows, point)


if __name__ == '__main__':
    main()

"""Pictures of the feature pyramid: the outputs of ResT's stages and of the neck.

    python tools/analysis_tools/vis_features.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT photo.jpg features.png

Each map is the mean over channels (with --reduce max: the channel of the largest mean), drawn
over the image by MMEngine's visualizer.
"""
from typing import List, Optional

import torch
from mmengine.visualization import Visualizer
from pictures import picture_parser, save_rows

from mmrest.apis import (
    build_model,
    exit_on_user_error,
    find_rest,
    package_of,
    read_config,
    read_image,
)

REDUCTIONS = dict(mean='squeeze_mean', max='select_max')


@exit_on_user_error
def main(args: Optional[List[str]] = None) -> None:
    parser = picture_parser(__doc__)
    parser.add_argument('--reduce', choices=sorted(REDUCTIONS), default='mean')
    args = parser.parse_args(args)
    cfg = read_config(args.config)
    model = build_model(cfg, args.checkpoint)
    picture, inputs = read_image(cfg, model, args.image)
    rest = find_rest(model)
    with torch.no_grad():
        levels = {'backbone': rest(inputs)}
        if cfg.model.get('neck') and package_of(cfg) != 'mmpretrain':
            levels['neck'] = model.neck(levels['backbone'])
    height, width = picture.shape[:2]
    rows = []
    for name, features in levels.items():
        rows.append([(name, picture)])
        for i, feature in enumerate(features):
            stride = inputs.shape[2] // feature.shape[2]
            cut = feature[0, :, :-(-height // stride), :-(-width // stride)]  # no padding
            drawn = Visualizer.draw_featmap(
                cut, picture, channel_reduction=REDUCTIONS[args.reduce])
            title = f'{tuple(feature.shape[1:])}, stride {stride}'
            if name == 'backbone':
                title = f'stage {rest.out_indices[i] + 1}: {title}'
            rows[-1].append((title, drawn))
    save_rows(args.out, rows)


if __name__ == '__main__':
    main()

"""Which places of an image speak for a class: Grad-CAM of any stages of ResT.

    python tools/analysis_tools/vis_cam.py configs/classification/rest_small_8xb256_in1k.py \
        CHECKPOINT photo.jpg cam.png --stages 3 4

The library pytorch-grad-cam computes it, on the tokens that leave a stage. For classifiers.
"""
from typing import List, Optional

import cv2
import numpy as np
import torch
from pictures import picture_parser, save_rows
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from mmrest.apis import Logits, build_model, find_rest, read_config, read_image


def cam_of_stage(model: nn.Module, inputs: Tensor, stage: int,
                 category: Optional[int] = None) -> np.ndarray:
    """Grad-CAM of the tokens that leave a stage.

    Args:
        model (nn.Module): A classifier with ResT in it.
        inputs (Tensor): (1, 3, H, W).
        stage (int): From 1.
        category (int, optional): The class; ``None`` takes the best one.

    Returns:
        np.ndarray: (H, W), from 0 to 1.

    Raises:
        ValueError: The model has no such stage.
    """
    rest = find_rest(model)
    if not 1 <= stage <= len(rest.depths):
        raise ValueError(f'stage={stage} must be from 1 to {len(rest.depths)}')
    block = getattr(rest, f'stage{stage}')[-1]
    sizes = []
    hook = block.register_forward_hook(lambda _, args, out: sizes.append(args[1]))

    def to_image(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, sizes[-1])  # (B, N, C) -> (B, C, H, W)

    targets = None if category is None else [ClassifierOutputTarget(category)]
    with GradCAM(Logits(model), [block], reshape_transform=to_image) as cam:
        found = cam(inputs.requires_grad_(), targets)[0]
    hook.remove()
    return found


def main(args: Optional[List[str]] = None) -> None:
    parser = picture_parser(__doc__)
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--category', type=int, help='class (default: the best one)')
    args = parser.parse_args(args)
    try:
        cfg = read_config(args.config)
        if cfg.get('default_scope') != 'mmpretrain':
            raise ValueError(f'config={args.config!r} must be of a classifier of MMPretrain')
        model = build_model(cfg, args.checkpoint)
        picture, inputs = read_image(cfg, model, args.image)
        cams = [cam_of_stage(model, inputs, stage, args.category) for stage in args.stages]
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    with torch.no_grad():
        scores = model(inputs, mode='tensor')[0].softmax(0)
    best = int(scores.argmax()) if args.category is None else args.category
    height, width = picture.shape[:2]
    panels = [(f'class {best}, score {scores[best]:.2f}', picture)]
    for stage, cam in zip(args.stages, cams):
        cam = cv2.resize(cam, (inputs.shape[3], inputs.shape[2]))[:height, :width]
        overlay = show_cam_on_image(picture / np.float32(255), cam, use_rgb=True)
        panels.append((f'stage {stage}', overlay))
    save_rows(args.out, [panels])


if __name__ == '__main__':
    main()

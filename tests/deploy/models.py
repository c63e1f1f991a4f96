"""Small untrained models of every family that is exported."""
from pathlib import Path

import torch

from mmrest.apis import build_model, read_config
from mmrest.models.layers import EMSA

ROOT = Path(__file__).parents[2]
ARCH = dict(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2),
            sr_ratios=(8, 4, 2, 1))
CONFIGS = dict(
    classifier='classification/rest_lite_digits.py',
    retinanet='retinanet/rest_lite_retinanet_digits.py',
    mask_rcnn='mask_rcnn/rest_lite_fpn_digits.py',
    semantic_fpn='semantic_fpn/rest_lite_semantic_fpn_digits.py',
    upernet='upernet/rest_small_8xb2_160k_ade20k.py')
FAMILIES = ('faster_rcnn', *CONFIGS)


def config(family, backbone='ResT'):
    """A digits config, made small; Faster R-CNN is Mask R-CNN without masks.

    Mask R-CNN has boxes and masks for each class, as on COCO, and Faster R-CNN for all.
    """
    cfg = read_config(str(ROOT / 'configs' / CONFIGS[family.replace('faster', 'mask')]))
    model = cfg.model
    model.backbone.update(type=backbone, arch=ARCH, init_cfg=None)
    if family == 'classifier':
        model.head.in_channels = 16
    elif family == 'upernet':
        model.decode_head.update(in_channels=[8, 16, 16, 16], channels=8, num_classes=7)
        model.auxiliary_head = None
    else:
        model.neck.in_channels = [8, 16, 16, 16][4 - len(model.neck.in_channels):]
    if family == 'mask_rcnn':
        model.roi_head.bbox_head.reg_class_agnostic = False
        model.roi_head.mask_head.class_agnostic = False
    if family == 'faster_rcnn':
        model.type = 'FasterRCNN'
        for name in ('mask_roi_extractor', 'mask_head'):
            model.roi_head[name] = None
    return cfg


def build(family, backbone='ResT'):
    """Such a model, with weights that :func:`sharpen` made."""
    torch.manual_seed(0)
    return sharpen(build_model(config(family, backbone)))


def sharpen(model):
    """Make an untrained model look at places that differ, and sure of something.

    In nearly uniform maps of attention, instance norm amplifies float32's rounding.
    """
    for module in model.modules():
        if isinstance(module, EMSA):
            for linear in (module.q, module.kv):
                torch.nn.init.normal_(linear.weight, std=3 * linear.in_features**-0.5)
    if hasattr(model, 'decode_head'):
        torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    elif hasattr(model, 'roi_head'):
        torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.1)
        torch.nn.init.normal_(model.roi_head.bbox_head.fc_reg.weight, std=0.1)
    elif hasattr(model, 'bbox_head'):
        torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.1)
    return model

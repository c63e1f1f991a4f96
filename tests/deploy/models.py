"""Small untrained models of every family that is exported."""
import re
from pathlib import Path

import torch
from mmengine.hub import get_config

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
# The last layers of a head of boxes, without RetinaNet's boxes.
LAST = re.compile(
    r'\bbbox_head\..*(fc_cls|fc_reg|retina_cls|(atss|gfl|rtm|conv)_(cls|reg|cent))')
DENSE = dict(  # mmdet's configs
    atss='atss/atss_r50_fpn_1x_coco', fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    gfl='gfl/gfl_r50_fpn_1x_coco', rtmdet='rtmdet/rtmdet_l_8xb32-300e_coco')
CASCADES = ('cascade_rcnn', 'cascade_mask_rcnn')
FAMILIES = ('faster_rcnn', *CONFIGS, *DENSE, *CASCADES)
STRIDES = [8, 16, 32, 64]


def config(family, backbone='ResT'):
    """A digits config, made small.

    Mask R-CNN has boxes and masks for each class, as on COCO, and Faster R-CNN for all.
    """
    cfg = digits_config(family)
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
    if family in CASCADES:
        model.test_cfg.rcnn.max_per_img = 30  # masks take their time
        for head in model.roi_head.bbox_head:
            head.reg_class_agnostic = family == 'cascade_rcnn'
    return cfg


def digits_config(family):
    """A config as it is, or one of RetinaNet or Mask R-CNN with other heads."""
    base = 'retinanet' if family in DENSE else 'mask_rcnn' if 'rcnn' in family else family
    cfg = read_config(str(ROOT / 'configs' / CONFIGS[base]))
    model = cfg.model
    if family in ('faster_rcnn', 'cascade_rcnn'):
        model.type = 'FasterRCNN'
        for name in ('mask_roi_extractor', 'mask_head'):
            model.roi_head[name] = None
    if family in CASCADES:
        make_cascade(model)
    if family in DENSE:
        make_dense(model, family)
    return cfg


def make_cascade(model):
    """Three stages, of which every one knows boxes better."""
    other = get_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py').model
    roi = model.roi_head
    roi.update(
        type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[dict(roi.bbox_head, bbox_coder=head.bbox_coder)
                   for head in other.roi_head.bbox_head])
    model.type, model.train_cfg.rcnn = other.type, [model.train_cfg.rcnn] * 3


def make_dense(model, family):
    """mmdet's own head in RetinaNet's place, made small."""
    other = get_config(f'mmdet::{DENSE[family]}.py').model
    head = other.bbox_head
    head.update(num_classes=10, in_channels=64, feat_channels=64, stacked_convs=1)
    if family == 'fcos':
        head.update(strides=STRIDES, norm_on_bbox=True, centerness_on_reg=True,
                    regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)))
    else:
        head.anchor_generator.strides = STRIDES[:3 if family == 'rtmdet' else 4]
    if family == 'rtmdet':
        head.norm_cfg = other.neck.norm_cfg = dict(type='BN')
        model.neck = dict(other.neck, in_channels=model.neck.in_channels, out_channels=64,
                          num_csp_blocks=1)
    model.type, model.bbox_head = other.type, head
    model.train_cfg, model.test_cfg = other.get('train_cfg'), other.test_cfg
    model.test_cfg.score_thr = 0.02


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
    elif hasattr(model, 'roi_head') or hasattr(model, 'bbox_head'):
        for name, p in getattr(model, 'roi_head', model).named_parameters():
            if name.endswith('weight') and LAST.search(name):
                torch.nn.init.normal_(p, std=0.1)
    return model

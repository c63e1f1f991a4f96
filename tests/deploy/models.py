"""Small untrained models of every family that is exported."""
import re
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
# The last layers of a head of boxes, without RetinaNet's boxes.
LAST = re.compile(
    r'\bbbox_head\..*(fc_cls|fc_reg|retina_cls|(atss|gfl|rtm|conv)_(cls|reg|cent))')
DENSE = ('atss', 'fcos', 'gfl', 'rtmdet')
CASCADES = ('cascade_rcnn', 'cascade_mask_rcnn')
FAMILIES = ('faster_rcnn', *CONFIGS, *DENSE, *CASCADES)
STRIDES = [8, 16, 32, 64]
SQUARES = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
               strides=STRIDES)
CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4)


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
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.metric = 'bbox'
    if family in CASCADES:
        make_cascade(model)
    if family in DENSE:
        make_dense(model, family)
        # RTMDet shares convolutions, and would take masks for its own kind.
        cfg.optim_wrapper.paramwise_cfg.bypass_duplicate = True
        cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    return cfg


def make_cascade(model):
    """Three stages, of which every one knows boxes better."""
    model.type = 'CascadeRCNN'
    roi = model.roi_head
    roi.update(type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25])
    roi.bbox_head = [dict(roi.bbox_head, bbox_coder=dict(
        CODER, target_stds=[x / stage for x in (0.1, 0.1, 0.2, 0.2)])) for stage in (1, 2, 3)]
    model.train_cfg.rcnn = [model.train_cfg.rcnn] * 3


def make_dense(model, family):
    """Another dense head in RetinaNet's place."""
    head = dict(num_classes=10, in_channels=64, feat_channels=64, stacked_convs=1)
    giou = dict(type='GIoULoss', loss_weight=2.0)
    quality = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0)
    model.test_cfg.score_thr = 0.02
    model.train_cfg = dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1,
                           pos_weight=-1)
    if family == 'atss':
        head.update(type='ATSSHead', anchor_generator=SQUARES, loss_bbox=giou,
                    bbox_coder=dict(CODER, target_stds=[0.1, 0.1, 0.2, 0.2]))
    elif family == 'fcos':
        head.update(type='FCOSHead', strides=STRIDES, norm_on_bbox=True, centerness_on_reg=True,
                    regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)))
    elif family == 'gfl':
        head.update(type='GFLHead', anchor_generator=SQUARES, reg_max=16, loss_bbox=giou,
                    loss_cls=quality)
    else:
        act = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU', inplace=True))
        head.update(
            type='RTMDetSepBNHead', with_objectness=False, exp_on_reg=True, **act,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=STRIDES[:3]),
            bbox_coder=dict(type='DistancePointBBoxCoder'), loss_cls=quality, loss_bbox=giou)
        model.neck = dict(type='CSPNeXtPAFPN', in_channels=model.neck.in_channels,
                          out_channels=64, num_csp_blocks=1, expand_ratio=0.5, **act)
        model.train_cfg.assigner = dict(type='DynamicSoftLabelAssigner', topk=13)
        model.test_cfg.update(nms_pre=30000, max_per_img=300)
    model.type = dict(rtmdet='RTMDet').get(family, family.upper())
    model.bbox_head = head


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

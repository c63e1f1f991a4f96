"""ResT-Lite in mmdet's detectors, with the operators of ``mmcv_ops/mmcv/_ext.py``."""
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmcv.ops import multi_scale_deform_attn
from mmdet.models.losses import focal_loss
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub

from ..configs.step import build
from . import test_ops

ours, operators = test_ops.ours, test_ops.operators

# The functions that each operator needs for a training step.
NMS = {'nms'}
ALIGN = {'roi_align_forward', 'roi_align_backward'}
DCN = {'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'}
DCN_V2 = {'modulated_deform_conv_forward', 'modulated_deform_conv_backward'}
FOCAL = {'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'}
ATTENTION = {'ms_deform_attn_forward', 'ms_deform_attn_backward'}

# Config of mmdet, first stage that its neck takes, what it calls: no less, no more.
DETECTORS = {
    'Mask R-CNN': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Cascade Mask R-CNN': ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Mask Scoring R-CNN': ('ms_rcnn/ms-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Sparse R-CNN': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', 0, ALIGN | FOCAL),
    'HTC': ('htc/htc_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'RetinaNet': ('retinanet/retinanet_r50_fpn_1x_coco', 1, NMS | FOCAL),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 1, NMS | FOCAL),
    'GFL': ('gfl/gfl_r50_fpn_1x_coco', 1, NMS),
    'VFNet': ('vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco', 1, NMS | DCN | DCN_V2),
    'TOOD': ('tood/tood_r50_fpn_1x_coco', 1,
             NMS | DCN - {'deform_conv_backward_parameters'}),  # its weights are ones
    'PAA': ('paa/paa_r50_fpn_1x_coco', 1, NMS | FOCAL),
    'DDOD': ('ddod/ddod_r50_fpn_1x_coco', 1, NMS | DCN | FOCAL),
    'Deformable DETR': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco', 1, ATTENTION | FOCAL),
    'DINO': ('dino/dino-4scale_r50_8xb2-12e_coco', 1, ATTENTION | FOCAL),
    'SOLOv2': ('solov2/solov2_r50_fpn_1x_coco', 0, FOCAL),
    'CondInst': ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance', 1, NMS | FOCAL),
    'Mask2Former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', 0, ATTENTION),
}
SHORT = ['Mask Scoring R-CNN', 'VFNet', 'PAA', 'Deformable DETR']
# mmdet does not clip their boxes to the image.
NOT_CLIPPED = ['Sparse R-CNN', 'TOOD']
# An untrained model scores below every threshold, and small images have few places.
SMALL = dict(score_thr=0., filter_thr=0., nms_pre=100, max_per_img=20, num_queries=20,
             num_grids=[10, 9, 6, 4, 3])


def shrink(node):
    """Put the values of SMALL wherever a config has their names."""
    if isinstance(node, dict):
        node.update({key: SMALL[key] for key in SMALL.keys() & node.keys()})
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            shrink(child)


def detector(name):
    """mmdet's model of that name with ResT-Lite as backbone, untrained."""
    path, first, _ = DETECTORS[name]
    cfg = Config.fromstring(f"_base_ = 'mmdet::{path}.py'", '.py')
    cfg.model.backbone = dict(
        type='ResT', arch='lite', drop_path_rate=0., out_indices=tuple(range(first, 4)))
    neck = cfg.model.get('neck', cfg.model.get('panoptic_head'))
    neck.in_channels = [64, 128, 256, 512][first:]
    if neck.get('start_level'):  # the backbone starts there
        neck.start_level = 0
    if name == 'Mask2Former':
        cfg.model.data_preprocessor.batch_augments = None
    shrink(cfg.model)
    # One head asks the Runner for it, which is not here.
    MessageHub.get_current_instance().update_info('epoch', 0)
    return build(cfg)


def batch():
    """Two images of different odd sizes with boxes, masks and, for HTC, classes of pixels."""
    np.random.seed(1)
    return demo_mm_inputs(2, [(3, 96, 127), (3, 83, 109)], [2, 1], num_classes=80,
                          with_mask=True, with_semantic=True)


def compute_losses(model):
    """The same samplers, dropout and noise at every call."""
    data = model.train().data_preprocessor(batch(), True)
    torch.manual_seed(1)
    np.random.seed(1)
    return model.parse_losses(model(**data, mode='loss'))


def attention(value, shapes, locations, weights):
    sizes = shapes.prod(1)
    return multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
        value, shapes, sizes.cumsum(0) - sizes, locations, weights, 64)


def sigmoid_focal_loss(pred, one_hot, *args, **kwargs):
    target = torch.where(one_hot.any(1), one_hot.argmax(1), one_hot.shape[1])
    return focal_loss.sigmoid_focal_loss(pred, target, *args, **kwargs)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in DETECTORS])
def test_training_step_and_prediction(name, ours, monkeypatch):
    # mmcv and mmdet call these two on CUDA alone.
    monkeypatch.setattr(
        multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', attention)
    monkeypatch.setattr(focal_loss, 'py_sigmoid_focal_loss', sigmoid_focal_loss)
    ext = Mock(wraps=ours)
    with operators(ext):
        model = detector(name)
        loss, log = compute_losses(model)
        loss.backward()
        check_gradients(model.backbone)
        fall = step(model, loss.item())
        with torch.no_grad():
            samples = model.eval().test_step(batch())
    assert all(np.isfinite(value.item()) for value in log.values())
    # Untrained, Sparse R-CNN has boxes of 10000 pixels: any step matches them anew.
    assert fall != 0 if name == 'Sparse R-CNN' else 0.3 < fall < 3
    check_predictions(samples, clipped=name not in NOT_CLIPPED)
    assert {call for call, _, _ in ext.method_calls} == DETECTORS[name][2]


def check_gradients(backbone):
    for name, p in backbone.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        if not name.endswith('transform_conv.bias'):  # softmax cancels it: its gradient is 0
            assert p.grad.any(), name


def step(model, loss):
    """Step down the gradient; returns by how much the loss falls, over what it should.

    That is 1 for a smooth loss. It is not where targets depend on the weights.
    """
    slope = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
    torch.optim.SGD(model.parameters(), lr=0.01 * loss / slope.item()).step()
    return (loss - compute_losses(model)[0].item()) / (0.01 * loss)


def check_predictions(samples, clipped):
    for sample, image in zip(samples, batch()['inputs'], strict=True):
        found = sample.pred_instances
        height, width = image.shape[1:]
        assert len(found) > 0 and torch.isfinite(found.scores).all()
        if clipped:
            low, high = -1e-3, torch.tensor([width, height] * 2) + 1e-3
            assert (found.bboxes >= low).all() and (found.bboxes <= high).all()
        if 'masks' in found:
            assert found.masks.shape == (len(found), height, width)

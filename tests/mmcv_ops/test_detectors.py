"""ResT-Lite in mmdet's detectors, with the operators of ``mmcv_ops/mmcv/_ext.py``."""
import contextlib
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmcv.ops import multi_scale_deform_attn
from mmdet.models.losses import focal_loss
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData, PixelData
from torch.testing import assert_close

from ..configs.step import build
from . import test_ops

ours, compiled, operators = test_ops.ours, test_ops.compiled, test_ops.operators

# The functions that each operator needs for a training step.
NMS = {'nms'}
ALIGN = {'roi_align_forward', 'roi_align_backward'}
DCN = {'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'}
DCN_V2 = {'modulated_deform_conv_forward', 'modulated_deform_conv_backward'}
FOCAL = {'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'}
ATTENTION = {'ms_deform_attn_forward', 'ms_deform_attn_backward'}

# Config of mmdet, first stage that its neck takes, what it calls: no less, no more.
DETECTORS = {
    'Faster R-CNN': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Mask R-CNN': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Cascade Mask R-CNN': ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Dynamic R-CNN': ('dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Mask Scoring R-CNN': ('ms_rcnn/ms-rcnn_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'Sparse R-CNN': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', 0, ALIGN | FOCAL),
    'HTC': ('htc/htc_r50_fpn_1x_coco', 0, NMS | ALIGN),
    'RetinaNet': ('retinanet/retinanet_r50_fpn_1x_coco', 1, NMS | FOCAL),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 1, NMS | FOCAL),
    'ATSS': ('atss/atss_r50_fpn_1x_coco', 1, NMS | FOCAL),
    'GFL': ('gfl/gfl_r50_fpn_1x_coco', 1, NMS),
    'VFNet': ('vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco', 1, NMS | DCN | DCN_V2),
    'TOOD': ('tood/tood_r50_fpn_1x_coco', 1,
             NMS | DCN - {'deform_conv_backward_parameters'}),  # its weights are ones
    'PAA': ('paa/paa_r50_fpn_1x_coco', 1, NMS | FOCAL),
    'DDOD': ('ddod/ddod_r50_fpn_1x_coco', 1, NMS | DCN | FOCAL),
    'AutoAssign': ('autoassign/autoassign_r50-caffe_fpn_1x_coco', 1, NMS),
    'DETR': ('detr/detr_r50_8xb2-150e_coco', 3, set()),
    'Deformable DETR': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco', 1, ATTENTION | FOCAL),
    'DINO': ('dino/dino-4scale_r50_8xb2-12e_coco', 1, ATTENTION | FOCAL),
    'SOLOv2': ('solov2/solov2_r50_fpn_1x_coco', 0, FOCAL),
    'CondInst': ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance', 1, NMS | FOCAL),
    'Mask2Former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', 0, ATTENTION),
}
SHORT = ['Mask Scoring R-CNN', 'VFNet', 'PAA', 'Deformable DETR']
COMPARED = ['Mask R-CNN', 'RetinaNet', 'Cascade Mask R-CNN', 'VFNet', 'Deformable DETR', 'DINO']
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
    draw = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[5., 7., 50., 60.], [30., 20., 90., 80.], [60., 10., 100., 50.]])
    labels = torch.tensor([1, 17, 1])
    inputs, samples = [], []
    for number, (height, width) in ((3, (96, 127)), (2, (83, 109))):
        inputs.append(torch.randint(
            0, 256, (3, height, width), generator=draw, dtype=torch.uint8))
        masks = np.zeros((number, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        samples.append(DetDataSample(
            metainfo=dict(img_shape=(height, width), ori_shape=(height, width),
                          scale_factor=(1., 1.), img_id=number),
            gt_instances=InstanceData(
                bboxes=boxes[:number], labels=labels[:number],
                masks=BitmapMasks(masks, height, width)),
            gt_sem_seg=PixelData(
                sem_seg=torch.randint(0, 183, (1, height, width), generator=draw))))
    return dict(inputs=inputs, data_samples=samples)


def compute_losses(model):
    """The same samplers, dropout and noise at every call."""
    torch.manual_seed(1)
    np.random.seed(1)
    data = model.train().data_preprocessor(batch(), True)
    return model.parse_losses(model(**data, mode='loss'))


def predict(model):
    with torch.no_grad():
        return [sample.pred_instances for sample in model.eval().test_step(batch())]


def attention(value, shapes, locations, weights):
    sizes = shapes.prod(1)
    return multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
        value, shapes, sizes.cumsum(0) - sizes, locations, weights, 64)


def sigmoid_focal_loss(pred, one_hot, *args, **kwargs):
    target = torch.where(one_hot.any(1), one_hot.argmax(1), one_hot.shape[1])
    return focal_loss.sigmoid_focal_loss(pred, target, *args, **kwargs)


@contextlib.contextmanager
def operators_of_cuda(ext):
    """mmcv.ops calls ``ext``, also where mmcv and mmdet call it on CUDA alone."""
    with operators(ext), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', attention)
        patch.setattr(focal_loss, 'py_sigmoid_focal_loss', sigmoid_focal_loss)
        yield


class Recorder:
    """Operators, and the names of those that were called."""

    def __init__(self, ext):
        self.ext, self.called = ext, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.ext, name)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in DETECTORS])
def test_training_step_and_prediction(name, ours):
    ext = Recorder(ours)
    with operators_of_cuda(ext):
        model = detector(name)
        loss, log = compute_losses(model)
        loss.backward()
        check_gradients(model.backbone)
        fall = step(model, loss.item())
        predictions = predict(model)
    assert all(np.isfinite(value.item()) for value in log.values())
    # Untrained, Sparse R-CNN has boxes of 10000 pixels: any step matches them anew.
    assert fall != 0 if name == 'Sparse R-CNN' else 0.3 < fall < 3
    check_predictions(predictions, clipped=name not in NOT_CLIPPED)
    assert ext.called == DETECTORS[name][2]


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


def check_predictions(predictions, clipped):
    for found, image in zip(predictions, batch()['inputs'], strict=True):
        height, width = image.shape[1:]
        assert len(found) > 0 and torch.isfinite(found.scores).all()
        if clipped:
            low, high = -1e-3, torch.tensor([width, height] * 2) + 1e-3
            assert (found.bboxes >= low).all() and (found.bboxes <= high).all()
        if 'masks' in found:
            assert found.masks.shape == (len(found), height, width)


@pytest.mark.slow
@pytest.mark.parametrize('name', COMPARED)
def test_same_as_with_compiled_operators(name, compiled, ours):
    model = detector(name)
    with operators(compiled):
        losses, gradients, predictions = run(deepcopy(model))
    ext = Recorder(ours)
    with operators_of_cuda(ext):
        found = run(model)
    assert ext.called == DETECTORS[name][2]
    assert_close(found[0], losses, rtol=1e-5, atol=1e-6)
    check_same_gradients(found[1], gradients)
    assert_close(found[2], predictions, rtol=1e-5, atol=1e-4)


def run(model):
    """Losses, gradients and detections."""
    loss, log = compute_losses(model)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return dict(log), gradients, [dict(found.items()) for found in predict(model)]


def check_same_gradients(found, gradients):
    """To 1e-5, or 2e-3 where rounding takes a ReLU or a sample to the other side of a kink."""
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # Some gradients are 0 but for rounding, where a norm follows.
        scale = max(gradient.norm(), 0.01 * total)
        assert (found[name] - gradient).norm() < 5e-3 * scale, name

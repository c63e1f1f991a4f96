"""What is refused before anything is exported, and that what is known is exported rightly."""
import copy
from functools import lru_cache, reduce

import mmdet.models  # noqa: F401
import pytest
import torch
from mmcv.ops import DeformConv2d, RoIPool
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config, ConfigDict
from mmpretrain.datasets import CenterCrop
from torch import nn

from mmrest import ResT
from mmrest.apis import build_model
from mmrest.deploy import describe, export, known, verify
from mmrest.deploy.export import FAMILIES, find_test_size
from mmrest.errors import UserError

from . import models
from .models import ARCH, ROOT, config

built = lru_cache(models.build)


def build(family):
    return copy.deepcopy(built(family))


@pytest.fixture
def no_trace(monkeypatch):
    """Whatever is exported comes too late."""
    monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: pytest.fail('exported'))


def bare(name):
    """A module, or a coder, of a class of mm that was never initialised."""
    kind = MODELS.get(name) or TASK_UTILS.get(name)
    module = kind.__new__(kind)
    if isinstance(module, nn.Module):
        nn.Module.__init__(module)
    return module


SLIDE = dict(mode='slide', crop_size=(64, 64), stride=(32, 48))
LOSS = MODELS.build(dict(type='SeesawLoss', num_classes=10))


@pytest.mark.parametrize('family, place, value, words', [
    # Options that change the prediction
    ('retinanet', 'test_cfg.nms.type', 'soft_nms', "test_cfg.nms.type='soft_nms' cannot be"),
    ('retinanet', 'test_cfg.nms.max_num', 5, r"nms.max_num=5 cannot be .*; known: -1"),
    ('retinanet', 'test_cfg.nms.fancy', 7, 'nms.fancy=7 .* that option is not known; known: t'),
    ('retinanet', 'test_cfg.nms', None, 'nms=None cannot be exported, it must be a dict'),
    ('retinanet', 'test_cfg.nms_pre', -1, 'nms_pre=-1 cannot be exported; known: 1 or more'),
    ('mask_rcnn', 'test_cfg.rpn.score_thr', 0.1, 'test_cfg.rpn.score_thr=0.1 .* not known'),
    ('mask_rcnn', 'roi_head.bbox_head.with_reg', False, 'bbox_head.with_reg=False cannot be'),
    ('mask_rcnn', 'roi_head.bbox_head.loss_cls', LOSS, 'loss_cls=.SeesawLoss. cannot be'),
    ('semantic_fpn', 'data_preprocessor.test_cfg', dict(size=(64, 64)), r'size=\(64, 64\) can'),
    ('semantic_fpn', 'test_cfg', ConfigDict(SLIDE, crop_size=64),
     'test_cfg.crop_size=64 cannot be exported; known: two numbers'),
    ('semantic_fpn', 'test_cfg', ConfigDict(SLIDE, stride=None),
     'test_cfg.stride=None cannot be exported; known: two numbers'),
    ('semantic_fpn', 'test_cfg', ConfigDict(SLIDE, stride=(9, 70)),
     r'test_cfg.stride=\(9, 70\) cannot .*: 1 to crop_size, \(64, 64\)'),
    ('classifier', 'backbone.in_channels', 4, 'backbone.in_channels=4 cannot be'),
    # Parts of another kind
    ('classifier', 'head', None, 'head.type=None cannot be exported, only ClsHead, Linear'),
    ('retinanet', 'bbox_head', bare('SABLRetinaHead'), "^bbox_head.type='SABLRetinaHead' ca"),
    ('mask_rcnn', 'rpn_head', bare('GARPNHead'), "^rpn_head.type='GARPNHead' cannot be"),
    ('mask_rcnn', 'roi_head.bbox_head.bbox_coder', bare('LegacyDeltaXYWHBBoxCoder'),
     "^roi_head.bbox_head.bbox_coder.type='LegacyDeltaXYWHBBoxCoder' cannot be .*only Delta"),
    ('mask_rcnn', 'roi_head.mask_head', bare('CoarseMaskHead'), "mask_head.type='CoarseMaskH"),
    ('mask_rcnn', 'roi_head.bbox_roi_extractor.roi_layers.1', RoIPool(7, 1.),
     r"roi_layers\[1\].type='RoIPool' cannot be exported"),
    ('mask_rcnn', 'neck.lateral', DeformConv2d(4, 4, 3),
     'neck.lateral: DeformConv2d of mmcv.ops cannot be'),
])
def test_what_is_not_known_is_refused(family, place, value, words, no_trace, tmp_path):
    model = build(family)
    *path, last = place.split('.')
    setattr(reduce(getattr, path, model), last, value)
    with pytest.raises(UserError, match=words):
        export(model, tmp_path / 'x.onnx')


def test_padding_with_slides_is_refused():
    model = build('semantic_fpn')
    model.test_cfg = ConfigDict(SLIDE)
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    with pytest.raises(UserError, match="size_divisor=32 cannot be exported with test_cfg"):
        known.check_slide(model)


def test_a_backbone_of_other_channels(no_trace, tmp_path):
    rest = ResT(ARCH, in_channels=4)
    with pytest.raises(UserError, match='in_channels=4 cannot be exported; known: 3'):
        export(rest, tmp_path / 'x.onnx', backbone=True)


def test_channels_of_other_backbones_are_their_own():
    model = build('classifier')
    model.backbone = MODELS.build(dict(type='mmpretrain.MobileNetV2', out_indices=(7, )))
    assert model.backbone.in_channels == 320  # of a layer inside
    known.check(model)


@pytest.mark.parametrize('steps, words', [
    ([dict(type='RandomFlip')], "a step of type='RandomFlip' cannot be exported, only Load"),
    ([dict(type='Pad', pad_to_square=True)], 'Pad.size=None cannot be .*; known: two num'),
    ([dict(type='mmdet.Resize', scale_factor=2.)], 'Resize.scale_factor=2.0 cannot'),
    ([dict(type='Resize', scale=9, interpolation='bicubic')], "but with backend='pillow'"),
    ([dict(type='CenterCrop', crop_size=9, fancy=1)], 'CenterCrop.fancy=1 cannot be exported'),
    ([dict(type='CenterCrop', crop_size=9), dict(type='Pad', size=(9, 9))], 'Pad after ano'),
    ([dict(type='Resize', scale=9), dict(type='Resize', scale=9)], 'Resize after ano'),
])
def test_steps_that_change_the_image(steps, words):
    cfg = config('classifier')
    cfg.test_dataloader.dataset.pipeline[1:2] = map(ConfigDict, steps)
    with pytest.raises(UserError, match=words):
        describe(cfg)


@pytest.mark.parametrize('steps, size', [
    ([dict(type='mmpretrain.ResizeEdge', scale=256, backend='pillow'),
      dict(type=CenterCrop, crop_size=224)],
     dict(edge=256, crop=[224, 224], interpolation='bilinear', antialias=True)),
    # of RTMDet
    ([dict(type='Resize', scale=(64, 48), keep_ratio=True),
      dict(type='Pad', size=(64, 64), pad_val=dict(img=(1, 2, 3)))],
     dict(scale=[64, 48], keep_ratio=True, interpolation='bilinear', antialias=False,
          pad=[64, 64], pad_value=[3, 2, 1]))])
def test_sizes_of_steps(steps, size):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=steps))))
    assert find_test_size(cfg) == size


CLASSES = dict(num_classes=5, in_channels=16)
HEADS = dict(
    LinearClsHead=CLASSES, StackedLinearClsHead=dict(CLASSES, mid_channels=[8]),
    ArcFaceClsHead=CLASSES, MultiLabelLinearClsHead=CLASSES, ClsHead={}, MultiLabelClsHead={},
    CSRAClsHead=dict(CLASSES, num_heads=2, lam=0.1))


@lru_cache
def classifier(head):
    """A small one with a head that is known, sure of something."""
    cfg = config('classifier', 'ResTV2')
    cfg.model.head = dict(type=head, **HEADS[head])
    if head == 'CSRAClsHead':
        cfg.model.neck = None
    torch.manual_seed(0)
    model = build_model(cfg)
    for p in model.head.parameters():
        nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize('head', known.ACTIVATIONS)
def test_heads_of_classifiers(head):
    model = classifier(head)
    wrapper, check = FAMILIES['ImageClassifier']
    network = wrapper(model).eval()
    images = verify.pictures((2, 75, 130))
    with torch.no_grad():
        logits = network(images)
    assert network.metadata == dict(activation=known.ACTIVATIONS[head])
    assert check(model, images, [logits.numpy()])['logits'] <= 1e-5
    with pytest.raises(UserError, match='logits: .* off'):
        check(model, images, [logits.numpy() + 0.01 * logits.abs().max().item()])


def test_scores_are_what_the_metadata_says(monkeypatch):
    model = classifier('MultiLabelLinearClsHead')
    monkeypatch.setitem(known.ACTIVATIONS, 'MultiLabelLinearClsHead', 'softmax')
    with pytest.raises(UserError, match='scores: .* off'):
        verify.check_logits(model, verify.pictures((1, 64, 64)), [])


DECODE = dict(in_channels=16, in_index=3)
PYRAMID = dict(in_channels=[8, 16, 16, 16], in_index=[0, 1, 2, 3])
SEGMENTERS = dict(
    ASPPHead=dict(DECODE, dilations=(1, 2)), FCNHead=DECODE, PSPHead=DECODE,
    DepthwiseSeparableASPPHead=dict(DECODE, dilations=(1, 2), c1_in_channels=8, c1_channels=4),
    FPNHead=dict(PYRAMID, feature_strides=[4, 8, 16, 32]), SegformerHead=PYRAMID,
    UPerHead=PYRAMID)


@lru_cache
def segmenter(head):
    cfg = config('semantic_fpn', 'ResTV2')
    cfg.model.neck = None
    cfg.model.decode_head = dict(
        type=head, channels=8, num_classes=7, norm_cfg=dict(type='BN'), **SEGMENTERS[head])
    torch.manual_seed(0)
    model = build_model(cfg)
    nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    return model


@pytest.mark.parametrize('head', known.SEGMENTATION_HEADS)
def test_heads_of_segmenters(head):
    from mmrest.deploy.dense import replace_constants
    model = segmenter(head)
    wrapper, check = FAMILIES['EncoderDecoder']
    images = verify.pictures((2, 75, 130))
    with torch.no_grad():
        labels = wrapper(replace_constants(model)).eval()(images)
    errors = check(model, images, [labels.numpy()])
    assert errors['pixels wrong'] <= 1e-4 and errors['classes'] > 1


@pytest.mark.slow
@pytest.mark.parametrize('make, head', [
    *((classifier, head) for head in known.ACTIVATIONS),
    *((segmenter, head) for head in known.SEGMENTATION_HEADS)])
def test_heads_are_exported(make, head, tmp_path):
    pytest.importorskip('onnxruntime')
    export(make(head), tmp_path / 'x.onnx')
    assert (tmp_path / 'x.onnx').exists()


def test_the_table_in_the_docs():
    text = (ROOT / 'docs/deploy.md').read_text()
    assert known.table() in text, 'put what known.table() returns into docs/deploy.md'

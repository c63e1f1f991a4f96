"""The converter: converted models compute what the models of the other code bases compute.

detectron2 is not installed. Its forward passes are below, written with torch.nn.functional from
its public code (modeling/backbone/fpn.py, meta_arch/retinanet.py, proposal_generator/rpn.py,
roi_heads/, anchor_generator.py, box_regression.py). The backbone is benchmarks/published.py.
"""
import copy
import functools
import importlib
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder

from benchmarks.published import PublishedResT
from mmrest import ResT, ResTV2
from mmrest.apis import build_model
from mmrest.safe_reading import read_state_dict

from .conftest import ROOT

FOLDER = ROOT / 'tools/model_converters'
ARCH = dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4),
            sr_ratios=(4, 2, 2, 1))
CLASSES, CHANNELS, FEATURES = 3, 32, 12
BGR_MEAN = (103.53, 116.28, 123.675)  # detectron2's MODEL.PIXEL_MEAN
RGB_MEAN = BGR_MEAN[::-1]
RGB_STD = (58.395, 57.12, 57.375)  # of mm's configs
ONE = (1., 1., 1.)
IN_TRUNK, RELU = OPTIONS = [
    'model.backbone.norm_in_trunk=True', 'model.neck.relu_before_extra_convs=True']
read_once = functools.lru_cache(None)(Config.fromfile)  # it looks for mmdet's base for a second


@pytest.fixture
def convert(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(Config, 'fromfile', lambda path: copy.deepcopy(read_once(path)))
    return importlib.import_module('convert_checkpoint').convert


@pytest.fixture
def call(convert, monkeypatch, capsys, tmp_path):
    """Call the script: what it printed, and the new weights, or None if it wrote nothing."""

    def call(content, target, *args, out='out.pth'):
        out = tmp_path / out
        if not isinstance(content, Path):
            torch.save(content, tmp_path / 'in.pth')
            content = tmp_path / 'in.pth'
        out.write_bytes(b'precious')
        files = set(tmp_path.iterdir())
        monkeypatch.setattr(
            sys, 'argv', ['x', *map(str, (content, out, '--to', target, *args))])
        try:
            sys.modules['convert_checkpoint'].main()
        except SystemExit as stop:
            assert isinstance(stop.code, str)  # exit code 1
            assert out.read_bytes() == b'precious' and set(tmp_path.iterdir()) == files
            return stop.code, None
        # Copies: safetensors maps the file, which the next call replaces.
        state = {name: value.clone() for name, value in read_state_dict(out).items()}
        return capsys.readouterr().out, state

    return call


# State dicts with the names and shapes of the other code bases


def draw(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.double) /
        math.sqrt(max(1, math.prod(shape[1:])))
        for name, shape in shapes.items()
    }


def backbone(kind, prefix, out_indices):
    """The published names are in benchmarks/published.py; those of ResTv2 are its own."""
    if kind is ResT:
        shapes = PublishedResT(ARCH, out_indices).state_dict()
    else:
        last = 'norm' if out_indices == (3, ) else r'\1.0'  # as a classifier, as a detector
        shapes = {re.sub('^(norm_.)', last, name): value for name, value in ResTV2(
            ARCH, out_indices=out_indices).state_dict().items()}
    state = draw({f'{prefix}{name}': value.shape for name, value in shapes.items()})
    for name, value in state.items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(7)
        elif value.ndim == 1:  # gains and variances are about 1
            state[name] = 0.1 * value + (not name.endswith(('bias', 'mean')))
    return state


def classifier(kind=ResT, classes=CLASSES):
    return {**backbone(kind, '', (3, )),
            **draw({'head.weight': (classes, 16), 'head.bias': (classes, )})}


def detector(family, kind=ResT):
    dims, c, f = ARCH['embed_dims'], CHANNELS, FEATURES
    three = (c, c, 3, 3)
    if family == 'mask_rcnn':
        first, stages, rpn, roi = 2, (0, 1, 2, 3), 'proposal_generator.rpn_head', 'roi_heads'
        weights = {
            f'{rpn}.conv': three, f'{rpn}.objectness_logits': (3, c, 1, 1),
            f'{rpn}.anchor_deltas': (12, c, 1, 1), f'{roi}.box_head.fc1': (f, c * 49),
            f'{roi}.box_head.fc2': (f, f), f'{roi}.box_predictor.cls_score': (CLASSES + 1, f),
            f'{roi}.box_predictor.bbox_pred': (CLASSES * 4, f),
            **{f'{roi}.mask_head.mask_fcn{i}': three for i in range(1, 5)},
            f'{roi}.mask_head.deconv': (c, c, 2, 2),
            f'{roi}.mask_head.predictor': (CLASSES, c, 1, 1)}
    else:
        first, stages = 3, (1, 2, 3)
        weights = {
            'backbone.top_block.p6': (c, dims[-1], 3, 3), 'backbone.top_block.p7': three,
            **{f'head.{tower}_subnet.{i}': three for tower in ('cls', 'bbox')
               for i in (0, 2, 4, 6)},
            'head.cls_score': (9 * CLASSES, c, 3, 3), 'head.bbox_pred': (9 * 4, c, 3, 3)}
    for i, stage in enumerate(stages, first):
        weights[f'backbone.fpn_lateral{i}'] = (c, dims[stage], 1, 1)
        weights[f'backbone.fpn_output{i}'] = three
    heads = draw({f'{name}.{part}': shape if part == 'weight' else shape[:1]
                  for name, shape in weights.items() for part in ('weight', 'bias')})
    for name, value in heads.items():
        # mmdet limits how small a box becomes, detectron2 does not.
        if 'bbox_pred' in name or 'anchor_deltas' in name:
            value /= 10
    return {**backbone(kind, 'backbone.bottom_up.', stages), **heads}


def single(state):
    return {n: v.float() if v.is_floating_point() else v for n, v in state.items()}


def d2_cell_anchors(sizes):
    corners = [(size / 2 / ratio**0.5, size / 2 * ratio**0.5)
               for size in sizes for ratio in (0.5, 1., 2.)]
    return torch.tensor([(-x, -y, x, y) for x, y in corners], dtype=torch.double)


ANCHORS = dict(
    mask_rcnn=[[32], [64], [128], [256], [512]],
    retinanet=[[x, x * 2**(1 / 3), x * 2**(2 / 3)] for x in (32, 64, 128, 256, 512)])


def with_buffers(state, family, mean=BGR_MEAN, std=ONE):
    state = dict(state, pixel_mean=torch.tensor(mean).view(3, 1, 1),
                 pixel_std=torch.tensor(std).view(3, 1, 1))
    owner = 'proposal_generator.' if family == 'mask_rcnn' else ''
    for i, sizes in enumerate(ANCHORS[family]):
        state[f'{owner}anchor_generator.cell_anchors.{i}'] = d2_cell_anchors(sizes).float()
    return state


# The models of the other code bases


def published(state, prefix='', **kwargs):
    model = PublishedResT(ARCH, **kwargs).double().eval()
    model.load_state_dict({name[len(prefix):]: value for name, value in state.items()
                           if name.startswith(prefix) and not name.startswith('head.')})
    return model


def d2_layer(function, x, state, name, **kwargs):
    return function(x, state[f'{name}.weight'], state[f'{name}.bias'], **kwargs)


d2_conv = functools.partial(d2_layer, F.conv2d)
d2_linear = functools.partial(d2_layer, F.linear)


def d2_fpn(state, features, first):
    results, above = [], None
    for i in range(first + len(features) - 1, first - 1, -1):
        x = d2_conv(features[i - first], state, f'backbone.fpn_lateral{i}')
        if above is not None:
            x = x + F.interpolate(above, scale_factor=2, mode='nearest')
        above = x
        results.insert(0, d2_conv(x, state, f'backbone.fpn_output{i}', padding=1))
    return results


def d2_anchors(features, family):
    """(H W A, 4) for each level."""
    levels, strides = [], (4, 8, 16, 32, 64) if family == 'mask_rcnn' else (8, 16, 32, 64, 128)
    for x, stride, sizes in zip(features, strides, ANCHORS[family]):
        y_shift, x_shift = torch.meshgrid(
            *(torch.arange(n, dtype=torch.double) * stride for n in x.shape[-2:]),
            indexing='ij')
        shifts = torch.stack([x_shift, y_shift, x_shift, y_shift], -1).view(-1, 1, 4)
        levels.append((shifts + d2_cell_anchors(sizes)).view(-1, 4))
    return levels


def d2_per_anchor(x, k):
    """(1, A k, H, W) -> (H W A, k)."""
    N, _, H, W = x.shape
    return x.view(N, -1, k, H, W).permute(0, 3, 4, 1, 2).reshape(-1, k)


def d2_boxes(deltas, anchors, weights):
    """torchvision's decoder is detectron2's, too."""
    assert deltas.abs().max() > 0.1
    return BoxCoder(weights).decode_single(deltas, anchors)


# Our models


def build(state, weights, report):
    """The config's model with the weights, in float64, built with the options in the report."""
    layouts = sys.modules['layouts']
    cfg, *_ = layouts.fit_config(layouts.recognise(state), state)
    line, = (line for line in report if '--cfg-options ' in line)
    options = dict(o.split('=') for o in line.split('--cfg-options ')[1].split())
    cfg.merge_from_dict({k: eval(v) for k, v in options.items()})
    model = build_model(cfg).double()
    model.load_state_dict(weights, strict=True)
    return model


def image():
    """(1, 3, 64, 96) in BGR, 0 to 255."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (1, 3, 64, 96), generator=generator).double()


def mm_input(model, bgr):
    """The output of the detector's preprocessor in float64; its mean and std are float32."""
    preprocessor = model.data_preprocessor
    assert preprocessor._channel_conversion
    mean, std = (torch.tensor(value, dtype=torch.double).view(3, 1, 1)
                 for value in (BGR_MEAN[::-1], RGB_STD))
    assert_close(preprocessor.mean.float(), mean.float())
    assert_close(preprocessor.std.float(), std.float())
    return (bgr.flip(1) - mean) / std


def d2_input(bgr, order='BGR', std=ONE):
    x = bgr - torch.tensor(BGR_MEAN, dtype=torch.double).view(1, 3, 1, 1)
    x = x.flip(1) if order == 'RGB' else x
    return x / torch.tensor(std, dtype=torch.double).view(1, 3, 1, 1)


def run_head(head, features):
    """Outputs (H W A, k) of each level, for classes and boxes, and the anchors."""
    cls, reg = head(features)
    priors = head.prior_generator.grid_priors(
        [x.shape[-2:] for x in cls], dtype=torch.double, device='cpu')
    return zip(*([x.permute(0, 2, 3, 1).reshape(-1, k) for x in level] for level, k in (
        (cls, head.cls_out_channels), (reg, 4))), priors)


@pytest.mark.parametrize('order, std', [('BGR', None), ('RGB', RGB_STD)])
@torch.no_grad()
def test_retinanet_is_detectron2s(order, std, convert):
    state = detector('retinanet')
    kwargs = {} if std is None else dict(input_format=order, pixel_std=std)
    model = build(state, *convert(state, 'mmdet', **kwargs))
    ours = run_head(model.bbox_head, model.extract_feat(mm_input(model, image())))

    bottom_up = published(state, 'backbone.bottom_up.', out_indices=(1, 2, 3),
                          norm_in_trunk=True)
    stages = bottom_up(d2_input(image(), order, std or ONE))
    levels = d2_fpn(state, stages, 3)
    p6 = d2_conv(stages[-1], state, 'backbone.top_block.p6', stride=2, padding=1)
    p7 = d2_conv(p6.relu(), state, 'backbone.top_block.p7', stride=2, padding=1)
    levels += [p6, p7]
    for x, anchors, (got_scores, got_deltas, priors) in zip(
            levels, d2_anchors(levels, 'retinanet'), ours, strict=True):
        outputs = []
        for tower, out, k in (('cls_subnet', 'cls_score', CLASSES),
                              ('bbox_subnet', 'bbox_pred', 4)):
            y = x
            for j in (0, 2, 4, 6):
                y = d2_conv(y, state, f'head.{tower}.{j}', padding=1).relu()
            outputs.append(d2_per_anchor(d2_conv(y, state, f'head.{out}', padding=1), k))
        scores, deltas = outputs
        # Match detectron2's anchors with ours by their corners alone.
        distance = torch.cdist(priors, anchors, p=1)
        match = distance.argmin(1)
        assert distance.min(1).values.max() < 1e-3
        assert not match.equal(torch.arange(len(match)))
        assert_close(got_scores, scores[match])
        assert_close(got_deltas, deltas[match])
        boxes = model.bbox_head.bbox_coder.decode(priors, got_deltas)
        want = d2_boxes(deltas, anchors, (*ONE, 1.))[match]
        assert_close(boxes, want, rtol=1e-4, atol=1e-2)  # priors are made in float32


@torch.no_grad()
def test_mask_rcnn_is_detectron2s(convert):
    state = detector('mask_rcnn')
    model = build(state, *convert(with_buffers(state, 'mask_rcnn'), 'mmdet'))
    features = model.extract_feat(mm_input(model, image()))

    stages = published(state, 'backbone.bottom_up.', norm_in_trunk=True)(d2_input(image()))
    levels = d2_fpn(state, stages, 2)
    levels.append(F.max_pool2d(levels[-1], 1, 2))
    for feature, x, anchors, (got_scores, got_deltas, priors) in zip(
            features, levels, d2_anchors(levels, 'mask_rcnn'),
            run_head(model.rpn_head, features), strict=True):
        assert_close(feature, x)
        y = d2_conv(x, state, 'proposal_generator.rpn_head.conv', padding=1).relu()
        scores, deltas = (
            d2_per_anchor(d2_conv(y, state, f'proposal_generator.rpn_head.{out}'), k)
            for out, k in (('objectness_logits', 1), ('anchor_deltas', 4)))
        assert_close(priors, anchors, rtol=1e-6, atol=1e-4)
        assert_close(got_scores, scores)
        assert_close(got_deltas, deltas)
        boxes = model.rpn_head.bbox_coder.decode(priors, got_deltas)
        assert_close(boxes, d2_boxes(deltas, anchors, (*ONE, 1.)), rtol=1e-4, atol=1e-2)

    generator = torch.Generator().manual_seed(6)
    rois = torch.randn(4, CHANNELS, 7, 7, generator=generator, dtype=torch.double)
    y = rois.flatten(1)
    for fc in ('fc1', 'fc2'):
        y = d2_linear(y, state, f'roi_heads.box_head.{fc}').relu()
    scores, deltas = (d2_linear(y, state, f'roi_heads.box_predictor.{out}')
                      for out in ('cls_score', 'bbox_pred'))
    got_scores, got_deltas = model.roi_head.bbox_head(rois)
    assert_close(got_scores, scores)
    proposals = torch.tensor([[4., 8, 40, 60], [10, 2, 90, 30], [0, 0, 9, 9], [50, 20, 80, 64]],
                             dtype=torch.double)
    boxes = model.roi_head.bbox_head.bbox_coder.decode(proposals, got_deltas)
    for c in range(CLASSES):
        want = d2_boxes(deltas[:, 4 * c:4 * c + 4], proposals, (10., 10., 5., 5.))
        assert_close(boxes.view(4, CLASSES, 4)[:, c], want, rtol=1e-6, atol=1e-6)

    y = rois = torch.randn(2, CHANNELS, 14, 14, generator=generator, dtype=torch.double)
    for i in range(1, 5):
        y = d2_conv(y, state, f'roi_heads.mask_head.mask_fcn{i}', padding=1).relu()
    y = d2_layer(F.conv_transpose2d, y, state, 'roi_heads.mask_head.deconv', stride=2).relu()
    want = d2_conv(y, state, 'roi_heads.mask_head.predictor')
    assert_close(model.roi_head.mask_head(rois), want)


@torch.no_grad()
def test_classifier_is_the_published_one(convert):
    state = classifier(classes=7)
    model = build(state, *convert(state, 'mmpretrain'))
    x = (image().flip(1) - 120) / 58
    features, = published(state, out_indices=(3, ))(x)
    want = d2_linear(features.mean((2, 3)), state, 'head')
    assert_close(model(x, mode='tensor'), want)


# Round trips and reports


@pytest.mark.parametrize('kind, norm', [(ResT, 'norm4'), (ResTV2, 'norm_4')])
def test_classifiers_come_back_bit_for_bit(kind, norm, call):
    state = classifier(kind)
    values = sum(value.numel() for value in state.values())
    said, mm = call(dict(model=state, epoch=299), 'mmpretrain')
    assert f'{len(state)} tensors of {values:,} values converted, 0 dropped, none left' in said
    assert '--cfg-options model.head.num_classes=3\n' in said
    assert mm['head.fc.weight'].equal(state['head.weight'])
    assert mm[f'backbone.{norm}.bias'].equal(state['norm.bias'])
    said, back = call(mm, 'published')
    assert '--cfg-options' not in said
    assert_close(back, state, rtol=0, atol=0)


@pytest.mark.parametrize('family, options, out', [
    ('mask_rcnn', [IN_TRUNK], 'out.pth'), ('retinanet', OPTIONS, 'out.safetensors')])
def test_detectors_come_back(family, options, out, call, tmp_path):
    """Bit for bit, except for conv1: it is scaled twice, with a float32 rounding each."""
    state = single(detector(family))
    said, mm = call(dict(model=with_buffers(state, family)), 'mmdet', out=out)
    assert f'--cfg-options {" ".join(options)} model.' in said
    assert 'bbox_head.num_classes=3' in said and 'assumed' not in said
    assert '7 dropped, none left' in said and said.count('(compared)') == 5
    assert said.count('(anchors reordered)') == (2 if family == 'retinanet' else 0)
    if out == 'out.pth':
        assert set(torch.load(tmp_path / out, weights_only=True)) == {'meta', 'state_dict'}
    said, back = call(mm, 'detectron2', '--cfg-options', *options, out=out)
    assert 'INPUT.FORMAT BGR MODEL.PIXEL_MEAN "[103.53, 116.28, 123.675]"' in said
    assert 'NUM_CLASSES 3' in said
    _, again = call(back, 'mmdet')
    for first, second, stem in ((state, back, 'backbone.bottom_up'), (mm, again, 'backbone')):
        conv = f'{stem}.stem.conv1.weight'
        assert_close(second.pop(conv), first[conv], rtol=2**-22, atol=0)
        assert_close(second, {n: v for n, v in first.items() if n != conv}, rtol=0, atol=0)
    assert not mm[conv].equal(state['backbone.bottom_up.stem.conv1.weight'])


def test_detectors_of_restv2_come_back_bit_for_bit(call):
    """Its published input is that of our configs, and its norms are beside the trunk."""
    state = single(detector('mask_rcnn', ResTV2))
    said, mm = call(state, 'mmdet')
    assert 'assumed: input RGB, std 58.395 57.12 57.375' in said and 'norm_in_trunk' not in said
    for name in ('stem.proj.0.weight', 'norm_2.bias', 'patch_4.norm.weight'):
        old = name.replace('norm_2', 'norm_2.0')
        assert mm[f'backbone.{name}'].equal(state[f'backbone.bottom_up.{old}'])
    said, back = call(mm, 'detectron2')
    assert 'INPUT.FORMAT RGB' in said
    assert_close(back, state, rtol=0, atol=0)
    state['backbone.bottom_up.stem.proj.0.weight'] /= 2
    said, _ = call(with_buffers(state, 'mask_rcnn'), 'mmdet')
    assert 'proj.0: BGR / 1 1 1 -> RGB / 58.395 57.12 57.375' in said


def test_faster_rcnn_needs_no_mask_head(call):
    state = {n: v for n, v in detector('mask_rcnn').items() if 'mask_head' not in n}
    said, found = call(state, 'mmdet')
    assert 'Faster R-CNN' in said and 'model.roi_head.bbox_head.num_classes=3\n' in said
    assert len(found) == len(state) and not any('mask_head' in n for n in found)


@pytest.mark.parametrize('kind, sizes, heads, config', [
    (ResT, ('lite', 'base'), ['head.'], 'classification/rest_{}_8xb256_in1k.py'),
    (ResTV2, ('tiny', 'base'), ['head.'], 'classification/restv2_{}_8xb256_in1k.py'),
    (ResT, ('lite', ), ['rpn_head.'], 'faster_rcnn/rest_{}_fpn_1x_coco.py'),
    (ResT, ('small', ), ['roi_head.mask_head.', 'rpn_head.'],
     'mask_rcnn/rest_{}_fpn_1x_coco.py'),
    (ResTV2, ('tiny', ), ['roi_head.mask_head.'], 'mask_rcnn/restv2_{}_fpn_3x_coco.py'),
    (ResTV2, ('large', ), ['roi_head.mask_head.'], ''),  # its detection code has another
    (ResT, ('small', ), ['bbox_head.'], 'retinanet/rest_{}_fpn_1x_coco.py'),
    (ResTV2, ('small', ), ['bbox_head.'], ''),
])
def test_published_sizes_have_their_config(kind, sizes, heads, config, convert):
    for size in sizes:
        with torch.device('meta'):
            state = {f'backbone.{n}': v for n, v in kind(size).state_dict().items()}
        found = sys.modules['layouts'].recognise({**state, **dict.fromkeys(heads)})
        assert (found.size, found.config) == (size, config.format(size))
        assert not config or (ROOT / 'configs' / found.config).exists()


def test_what_the_file_says_of_its_input_decides(call):
    state = single(detector('retinanet'))
    first = state['backbone.bottom_up.stem.conv1.weight']
    scale = torch.tensor(RGB_STD).view(1, 3, 1, 1)
    for mean, std, args, wanted in (
            (RGB_MEAN, RGB_STD, [], first),
            (BGR_MEAN, RGB_STD[::-1], ['--input-format', 'BGR'], first.flip(1)),
            (RGB_MEAN, ONE, ['--pixel-std', 1, 1, 1], first * scale)):
        _, mm = call(with_buffers(state, 'retinanet', mean, std), 'mmdet', *args)
        assert_close(mm['backbone.stem.conv1.weight'], wanted)
    for mean, std, args, words in (
            (RGB_MEAN, ONE, ['--input-format', 'BGR'],
             '--input-format BGR contradicts pixel_mean'),
            (RGB_MEAN, ONE, ['--pixel-std', 1, 1, 2],
             '--pixel-std (1.0, 1.0, 2.0) contradicts pixel_std'),
            ((0.485, 0.456, 0.406), ONE, [], 'pixel_mean='),
            (RGB_MEAN, (1., 0., 1.), [], 'must be three numbers above 0')):
        said, mm = call(with_buffers(state, 'retinanet', mean, std), 'mmdet', *args)
        assert mm is None and words in said


# Errors: exit code 1, one sentence, nothing written

ones = torch.ones
BOTTOM_UP, BOX, MASK = 'backbone.bottom_up.', 'roi_heads.box_predictor.', 'roi_heads.mask_head.'


@pytest.mark.parametrize('family, changes, words', [
    ('retinanet', {'head.extra.weight': ones(1)},
     'detectron2 has no head.extra.weight in a RetinaNet'),
    ('retinanet', {'head.cls_score.weight': None}, 'lacks head.cls_score.weight'),
    ('retinanet', {f'{BOTTOM_UP}norm3.bias': None}, f'lacks {BOTTOM_UP}norm3'),
    ('retinanet', {f'{BOTTOM_UP}stage2.0.norm1.weight': None}, 'ResT of four stages'),
    ('retinanet', {f'{BOTTOM_UP}stem.conv1.weight': ones(4, 4, 3, 3)},
     'stem.conv1.weight is (4, 4, 3, 3)'),
    ('retinanet', {'head.cls_score.weight': ones(28, CHANNELS, 3, 3),
                   'head.cls_score.bias': ones(28)}, '28 outputs, which is not possible'),
    ('retinanet', {'head.cls_score.weight': torch.tensor(1.)}, '1 outputs, which is not'),
    ('retinanet', {'head.cls_subnet.0.bias': torch.tensor(1.)}, 'cls_subnet.0.bias is ()'),
    ('retinanet', {'anchor_generator.cell_anchors.0': d2_cell_anchors([16, 20, 25])},
     'differ from those of the configs here'),
    ('mask_rcnn', {f'{BOX}bbox_pred.weight': ones(4, FEATURES),
                   f'{BOX}bbox_pred.bias': ones(4)},
     'bbox_pred.weight is (4, 12); in a Mask R-CNN with 3 classes'),
    ('mask_rcnn', {f'{MASK}deconv.weight': None}, f'lacks {MASK}'),
])
def test_what_does_not_map_is_refused(family, changes, words, call):
    state = {**detector(family), **changes}
    said, mm = call({n: v for n, v in state.items() if v is not None}, 'mmdet')
    assert mm is None and words in said


def test_the_large_of_restv2s_detection_code_is_refused(call):
    state = {'roi_heads.box_head.fc1.weight': ones(1), f'{BOTTOM_UP}patch_2.norm.bias': ones(1)}
    for i, (dims, depth) in enumerate(zip((128, 256, 512, 1024), (2, 3, 16, 3)), 1):
        for block in (f'{BOTTOM_UP}stage{i}.{j}' for j in range(depth)):
            state[f'{block}.norm1.weight'] = ones(dims)
            state[f'{block}.mlp.fc1.weight'] = ones(1, 1)
    said, mm = call(state, 'mmdet')
    assert mm is None and 'another network than ResTV2' in said


def test_directions_that_do_not_exist_are_refused(call, convert):
    d2 = detector('retinanet')
    mmdet, _ = convert(d2, 'mmdet')
    published = classifier()
    mmpretrain, _ = convert(published, 'mmpretrain')
    backbone = {n: v for n, v in d2.items() if 'bottom_up' in n}
    own = {n: v for n, v in mmdet.items() if n.startswith('backbone.')}
    for state, target, args, words in [
        (d2, 'mmpretrain', [], 'a detector has no classification head'),
        (mmdet, 'published', [], 'a detector has no classification head'),
        (d2, 'detectron2', [], 'in that layout already'),
        (published, 'mmdet', [], 'model.backbone.init_cfg.checkpoint=IN\n'),
        (mmpretrain, 'mmdet', [], 'model.backbone.init_cfg.prefix=backbone.'),
        (published, 'mmpretrain', ['--input-format', 'RGB'], 'for detectron2 only'),
        (mmdet, 'detectron2', [], f'add --cfg-options {" ".join(OPTIONS)}'),
        (mmdet, 'detectron2', ['--cfg-options', IN_TRUNK], RELU),
        (mmdet, 'detectron2', ['--cfg-options', IN_TRUNK.replace('True', 'False')], IN_TRUNK),
        (d2, 'mmdet', ['--cfg-options', *OPTIONS], 'is for mmdet -> detectron2 only'),
        (backbone, 'mmdet', [], 'with no head'),
        (own, 'detectron2', [], 'not those of a classifier or detector'),
        (dict(own, **{'decode_head.conv_seg.weight': ones(1)}), 'mmdet', [], "mmseg's"),
        ({'layer1.0.conv1.weight': ones(1)}, 'mmdet', [], 'layer1.0.conv1.weight'),
    ]:
        said, found = call(state, target, *args)
        assert found is None and words in f'{said}\n'


def test_the_configs_package_must_be_installed(call, monkeypatch):
    package = 'mmengine.config.config.is_installed'
    monkeypatch.setattr(package, lambda name: name != 'mmpretrain')
    monkeypatch.setattr(Config, 'fromfile', read_once.__wrapped__)
    said, mm = call(classifier(), 'mmpretrain')
    assert mm is None and 'a config: mmpretrain is not installed' in said


def test_files_that_cannot_be_read_or_written(call, tmp_path):
    state = detector('retinanet')
    for name in ('evil.pth', 'evil.pkl'):
        torch.save(dict(model=state, scheduler=os.system), tmp_path / name)
    for content, out, words in [
            (tmp_path / 'nowhere.pth', 'out.pth', 'no such file'),
            (tmp_path / 'evil.pth', 'out.pth', 'no code in it was run'),
            (tmp_path / 'evil.pkl', 'out.pth', 'a pickle of NumPy arrays'),
            (state, 'out.onnx', 'must end in .pth or .safetensors')]:
        said, mm = call(content, 'mmdet', out=out)
        assert mm is None and words in said

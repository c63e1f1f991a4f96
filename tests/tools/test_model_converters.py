"""The converter: converted models compute what the models of the other code bases compute.

detectron2 is not installed. Its forward passes are below, written with torch.nn.functional from
its public code (modeling/backbone/fpn.py, meta_arch/retinanet.py, proposal_generator/rpn.py,
roi_heads/, anchor_generator.py, box_regression.py). The backbone is benchmarks/published.py.
"""
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.testing import assert_close

from benchmarks.published import PublishedResT, published_names
from mmrest import ResT, ResTV2
from mmrest.safe_reading import read_state_dict

from .. import golden

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'tools/model_converters'
CLASSES = 3
BGR_MEAN = (103.53, 116.28, 123.675)  # detectron2's MODEL.PIXEL_MEAN
RGB_STD = (58.395, 57.12, 57.375)  # of mm's configs
OPTIONS = ['model.backbone.norm_in_trunk=True', 'model.neck.relu_before_extra_convs=True']


@pytest.fixture
def converter(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import convert_checkpoint
    yield convert_checkpoint
    for name in ('convert_checkpoint', 'layouts'):
        sys.modules.pop(name)


@pytest.fixture
def call(converter, monkeypatch, capsys):
    """Call the script with arguments: (exit code, everything that it printed)."""
    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
        try:
            converter.main()
            code = 0
        except SystemExit as stop:
            code = 1 if isinstance(stop.code, str) else stop.code
            print(stop.code)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


# State dicts with the names and shapes of the other code bases


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.double) /
        math.sqrt(max(1, math.prod(shape[1:])))
        for name, shape in shapes.items()
    }


def module(name, *shape, outputs=None):
    return {f'{name}.weight': shape, f'{name}.bias': (outputs or shape[0], )}


def fpn(dims, first):
    shapes = {}
    for i, dim in enumerate(dims, first):
        shapes.update(module(f'backbone.fpn_lateral{i}', 256, dim, 1, 1))
        shapes.update(module(f'backbone.fpn_output{i}', 256, 256, 3, 3))
    return shapes


def mask_rcnn_heads(dims, classes=CLASSES, fc=16):
    shapes = fpn(dims, 2)
    rpn, box, mask = 'proposal_generator.rpn_head.', 'roi_heads.box_', 'roi_heads.mask_head.'
    shapes.update(module(rpn + 'conv', 256, 256, 3, 3))
    shapes.update(module(rpn + 'objectness_logits', 3, 256, 1, 1))
    shapes.update(module(rpn + 'anchor_deltas', 12, 256, 1, 1))
    shapes.update(module(box + 'head.fc1', fc, 256 * 49))
    shapes.update(module(box + 'head.fc2', fc, fc))
    shapes.update(module(box + 'predictor.cls_score', classes + 1, fc))
    shapes.update(module(box + 'predictor.bbox_pred', classes * 4, fc))
    for i in range(1, 5):
        shapes.update(module(f'{mask}mask_fcn{i}', 256, 256, 3, 3))
    shapes.update(module(mask + 'deconv', 256, 256, 2, 2))
    shapes.update(module(mask + 'predictor', classes, 256, 1, 1))
    return shapes


def retinanet_heads(dims, classes=CLASSES):
    shapes = fpn(dims[1:], 3)
    shapes.update(module('backbone.top_block.p6', 256, dims[-1], 3, 3))
    shapes.update(module('backbone.top_block.p7', 256, 256, 3, 3))
    for i in (0, 2, 4, 6):
        shapes.update(module(f'head.cls_subnet.{i}', 256, 256, 3, 3))
        shapes.update(module(f'head.bbox_subnet.{i}', 256, 256, 3, 3))
    shapes.update(module('head.cls_score', 9 * classes, 256, 3, 3))
    shapes.update(module('head.bbox_pred', 9 * 4, 256, 3, 3))
    return shapes


def d2_cell_anchors(sizes):
    boxes = []
    for size in sizes:
        area = size**2.0
        for ratio in (0.5, 1.0, 2.0):
            w = math.sqrt(area / ratio)
            h = ratio * w
            boxes.append([-w / 2, -h / 2, w / 2, h / 2])
    return torch.tensor(boxes, dtype=torch.double)


SIZES = dict(
    mask_rcnn=[[32], [64], [128], [256], [512]],
    retinanet=[[x, x * 2**(1 / 3), x * 2**(2 / 3)] for x in (32, 64, 128, 256, 512)])


def lite(family):
    """The published ResT-Lite (names from its code) and detectron2's own heads."""
    state = {}
    for name, value in golden.draw_weights('lite').items():
        if name.startswith('head.') or (family == 'retinanet' and name.startswith('norm1.')):
            continue
        if name == 'stem.conv1.weight':
            value = value / 57  # the std of the input is not 1
        state[f'backbone.bottom_up.{name}'] = value
    heads = mask_rcnn_heads if family == 'mask_rcnn' else retinanet_heads
    state.update(draw(heads((64, 128, 256, 512))))
    for name in state:  # mmdet limits how small a box becomes, detectron2 does not
        if 'bbox_pred' in name or 'anchor_deltas' in name:
            state[name] = state[name] / 10
    return state


def tiny(family, classes=CLASSES, kind=ResT):
    """The same layout with a backbone of few parameters, in float32."""
    arch = dict(embed_dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4),
                sr_ratios=(4, 2, 2, 1))
    torch.manual_seed(0)
    backbone = kind(arch, out_indices=(1, 2, 3) if family == 'retinanet' else None)
    names = {name: re.sub('^(norm_.)', r'\1.0', name) for name in backbone.state_dict()}
    state = {f'backbone.bottom_up.{names.get(name, name)}': value
             for name, value in published_names(backbone.state_dict()).items()}
    heads = mask_rcnn_heads if family == 'mask_rcnn' else retinanet_heads
    state.update(draw(heads(arch['embed_dims'], classes)))
    return {name: value.float() if value.is_floating_point() else value
            for name, value in state.items()}


def with_buffers(state, family, mean=BGR_MEAN, std=(1., 1., 1.)):
    state = dict(state, pixel_mean=torch.tensor(mean).view(3, 1, 1),
                 pixel_std=torch.tensor(std).view(3, 1, 1))
    owner = 'proposal_generator.' if family == 'mask_rcnn' else ''
    for i, sizes in enumerate(SIZES[family]):
        state[f'{owner}anchor_generator.cell_anchors.{i}'] = d2_cell_anchors(sizes).float()
    return state


def classifier(arch='lite', family='rest'):
    """The published ImageNet file. It does not have the norms that detection adds."""
    return {n: v for n, v in golden.draw_weights(arch, family).items()
            if not n.startswith(('norm1.', 'norm2.', 'norm3.', 'norm_'))}


# The models of the other code bases


def published(state, prefix='', **kwargs):
    model = PublishedResT('lite', **kwargs).double().eval()
    model.load_state_dict({name[len(prefix):]: value for name, value in state.items()
                           if name.startswith(prefix) and not name.startswith('head.')})
    return model


def d2_conv(x, state, name, **kwargs):
    return F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'], **kwargs)


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
    for x, stride, sizes in zip(features, strides, SIZES[family]):
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
    sides = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + sides / 2
    centre = centre + deltas[:, :2] / torch.tensor(weights[:2]) * sides
    scales = (deltas[:, 2:] / torch.tensor(weights[2:])).clamp(max=math.log(1000 / 16))
    assert scales.abs().max() < 4 and deltas.abs().max() > 0.1
    sides = sides * scales.exp()
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)


# Our models


def build(name, report):
    """A config's model in float64, with the options that the report prints."""
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    line, = (line for line in report if '--cfg-options ' in line)
    options = dict(o.split('=') for o in line.split('--cfg-options ')[1].split())
    cfg.merge_from_dict({k: eval(v) for k, v in options.items()})
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.fc_out_channels = 16
    return MODELS.build(cfg.model).double().eval()


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


def d2_input(bgr, order='BGR', std=(1., 1., 1.)):
    x = bgr - torch.tensor(BGR_MEAN, dtype=torch.double).view(1, 3, 1, 1)
    x = x.flip(1) if order == 'RGB' else x
    return x / torch.tensor(std, dtype=torch.double).view(1, 3, 1, 1)


@pytest.mark.parametrize('order, std', [('BGR', None), ('RGB', RGB_STD)])
@torch.no_grad()
def test_retinanet_is_detectron2s(order, std, converter):
    state = lite('retinanet')
    kwargs = {} if std is None else dict(input_format=order, pixel_std=std)
    conversion = converter.Conversion(state, 'mmdet', **kwargs)
    model = build('retinanet/rest_lite_fpn_1x_coco.py', conversion.report)
    model.load_state_dict(conversion.result, strict=True)
    cls, reg = model.bbox_head(model.extract_feat(mm_input(model, image())))
    priors = model.bbox_head.prior_generator.grid_priors(
        [x.shape[-2:] for x in cls], dtype=torch.double, device='cpu')

    bottom_up = published(state, 'backbone.bottom_up.', out_indices=(1, 2, 3),
                          norm_in_trunk=True)
    stages = bottom_up(d2_input(image(), order, std or (1., 1., 1.)))
    levels = d2_fpn(state, stages, 3)
    p6 = d2_conv(stages[-1], state, 'backbone.top_block.p6', stride=2, padding=1)
    p7 = d2_conv(p6.relu(), state, 'backbone.top_block.p7', stride=2, padding=1)
    levels += [p6, p7]
    for i, (x, anchors) in enumerate(zip(levels, d2_anchors(levels, 'retinanet'))):
        towers = []
        for tower, out, k in (('cls_subnet', 'cls_score', CLASSES),
                              ('bbox_subnet', 'bbox_pred', 4)):
            y = x
            for j in (0, 2, 4, 6):
                y = d2_conv(y, state, f'head.{tower}.{j}', padding=1).relu()
            towers.append(d2_per_anchor(d2_conv(y, state, f'head.{out}', padding=1), k))
        scores, deltas = towers
        # Match detectron2's anchors with ours by their corners alone.
        distance = torch.cdist(priors[i], anchors, p=1)
        match = distance.argmin(1)
        assert distance.min(1).values.max() < 1e-3
        assert not match.equal(torch.arange(len(match)))
        got = cls[i].permute(0, 2, 3, 1).reshape(-1, CLASSES)
        assert_close(got, scores[match])
        got = reg[i].permute(0, 2, 3, 1).reshape(-1, 4)
        assert_close(got, deltas[match])
        boxes = model.bbox_head.bbox_coder.decode(priors[i], got)
        want = d2_boxes(deltas, anchors, (1., 1., 1., 1.))[match]
        assert_close(boxes, want, rtol=1e-4, atol=1e-2)  # priors are made in float32


@torch.no_grad()
def test_mask_rcnn_is_detectron2s(converter):
    state = lite('mask_rcnn')
    conversion = converter.Conversion(with_buffers(state, 'mask_rcnn'), 'mmdet')
    model = build('mask_rcnn/rest_lite_fpn_1x_coco.py', conversion.report)
    model.load_state_dict(conversion.result, strict=True)
    features = model.extract_feat(mm_input(model, image()))
    cls, reg = model.rpn_head(features)
    priors = model.rpn_head.prior_generator.grid_priors(
        [x.shape[-2:] for x in cls], dtype=torch.double, device='cpu')

    stages = published(state, 'backbone.bottom_up.', norm_in_trunk=True)(d2_input(image()))
    levels = d2_fpn(state, stages, 2)
    levels.append(F.max_pool2d(levels[-1], 1, 2))
    for i, (x, anchors) in enumerate(zip(levels, d2_anchors(levels, 'mask_rcnn'))):
        assert_close(features[i], x)
        y = d2_conv(x, state, 'proposal_generator.rpn_head.conv', padding=1).relu()
        scores = d2_conv(y, state, 'proposal_generator.rpn_head.objectness_logits')
        deltas = d2_conv(y, state, 'proposal_generator.rpn_head.anchor_deltas')
        deltas = d2_per_anchor(deltas, 4)
        assert_close(priors[i], anchors, rtol=1e-6, atol=1e-4)
        got = cls[i].permute(0, 2, 3, 1).reshape(-1, 1)
        assert_close(got, d2_per_anchor(scores, 1))
        got = reg[i].permute(0, 2, 3, 1).reshape(-1, 4)
        assert_close(got, deltas)
        boxes = model.rpn_head.bbox_coder.decode(priors[i], got)
        assert_close(boxes, d2_boxes(deltas, anchors, (1., 1., 1., 1.)), rtol=1e-4, atol=1e-2)

    generator = torch.Generator().manual_seed(6)
    rois = torch.randn(4, 256, 7, 7, generator=generator, dtype=torch.double)
    y = rois.flatten(1)
    for fc in ('fc1', 'fc2'):
        y = F.linear(y, state[f'roi_heads.box_head.{fc}.weight'],
                     state[f'roi_heads.box_head.{fc}.bias']).relu()
    scores, deltas = (
        F.linear(y, *(state[f'roi_heads.box_predictor.{out}.{kind}']
                      for kind in ('weight', 'bias')))
        for out in ('cls_score', 'bbox_pred'))
    got_scores, got_deltas = model.roi_head.bbox_head(rois)
    assert_close(got_scores, scores)
    proposals = torch.tensor([[4., 8, 40, 60], [10, 2, 90, 30], [0, 0, 9, 9], [50, 20, 80, 64]],
                             dtype=torch.double)
    boxes = model.roi_head.bbox_head.bbox_coder.decode(proposals, got_deltas)
    for c in range(CLASSES):
        want = d2_boxes(deltas[:, 4 * c:4 * c + 4], proposals, (10., 10., 5., 5.))
        assert_close(boxes.view(4, CLASSES, 4)[:, c], want, rtol=1e-6, atol=1e-6)

    y = rois = torch.randn(2, 256, 14, 14, generator=generator, dtype=torch.double)
    for i in range(1, 5):
        y = d2_conv(y, state, f'roi_heads.mask_head.mask_fcn{i}', padding=1).relu()
    y = F.conv_transpose2d(y, state['roi_heads.mask_head.deconv.weight'],
                           state['roi_heads.mask_head.deconv.bias'], stride=2).relu()
    want = d2_conv(y, state, 'roi_heads.mask_head.predictor')
    assert_close(model.roi_head.mask_head(rois), want)


@torch.no_grad()
def test_classifier_is_the_published_one(converter):
    state = classifier()
    state['head.weight'], state['head.bias'] = state['head.weight'][:7], state['head.bias'][:7]
    conversion = converter.Conversion(state, 'mmpretrain')
    model = build('classification/rest_lite_8xb256_in1k.py', conversion.report)
    model.load_state_dict(conversion.result, strict=True)
    x = (image().flip(1) - 120) / 58
    features, = published(state, out_indices=(3, ))(x)
    want = F.linear(features.mean((2, 3)), state['head.weight'], state['head.bias'])
    assert_close(model(x, mode='tensor'), want)


# Round trips


@pytest.mark.parametrize('arch, family, norm', [
    ('lite', 'rest', 'norm4'), ('tiny', 'restv2', 'norm_4')])
def test_classifiers_come_back_bit_for_bit(arch, family, norm, call, tmp_path):
    state = classifier(arch, family)
    names = [tmp_path / n for n in ('rest_lite.pth', 'mm.pth', 'back.pth')]
    torch.save(dict(model=state, epoch=299), names[0])
    code, said = call(names[0], names[1], '--to', 'mmpretrain')
    assert code == 0, said
    assert f'config: configs/classification/{family}_{arch}_8xb256_in1k.py' in said
    assert '10,508,300' in said or f'{len(state)} tensors' in said
    assert '--cfg-options' not in said
    mm = torch.load(names[1], weights_only=True)
    assert set(mm) == {'meta', 'state_dict'}
    assert mm['state_dict']['head.fc.weight'].equal(state['head.weight'])
    assert mm['state_dict'][f'backbone.{norm}.bias'].equal(state['norm.bias'])
    assert call(names[1], names[2], '--to', 'published')[0] == 0
    back = torch.load(names[2], weights_only=True)['model']
    assert back.keys() == state.keys()
    for name, value in back.items():
        assert value.dtype == state[name].dtype and value.equal(state[name]), name


@pytest.mark.parametrize('family', ['mask_rcnn', 'retinanet'])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_detectors_come_back(family, suffix, call, tmp_path):
    """Bit for bit, except for conv1: it is scaled twice, with a float32 rounding each."""
    state = tiny(family)
    names = [tmp_path / f'{n}.{suffix}' for n in ('mm', 'back', 'again')]
    torch.save(dict(model=with_buffers(state, family), iteration=9), tmp_path / 'd2.pth')
    options = OPTIONS[:1 if family == 'mask_rcnn' else 2]
    code, said = call(tmp_path / 'd2.pth', names[0], '--to', 'mmdet')
    assert code == 0, said
    assert f'--cfg-options {" ".join(options)} model.' in said
    assert 'bbox_head.num_classes=3' in said
    assert '7 dropped, none left' in said and said.count('(compared)') == 5
    assert 'assumed' not in said
    code, said = call(names[0], names[1], '--to', 'detectron2', '--cfg-options', *options)
    assert code == 0, said
    assert 'INPUT.FORMAT BGR MODEL.PIXEL_MEAN "[103.53, 116.28, 123.675]"' in said
    assert 'NUM_CLASSES 3' in said
    assert call(names[1], names[2], '--to', 'mmdet')[0] == 0
    files = [read_state_dict(name) for name in names]
    for first, second in ((state, files[1]), (files[0], files[2])):
        assert first.keys() == second.keys()
        for name, value in first.items():
            tolerance = 2**-22 if name.endswith('stem.conv1.weight') else 0
            assert_close(second[name], value, rtol=tolerance, atol=0)
    assert not files[0]['backbone.stem.conv1.weight'].equal(
        state['backbone.bottom_up.stem.conv1.weight'])


def test_detectors_of_restv2_come_back_bit_for_bit(call, tmp_path):
    """Its published input is that of our configs, and its norms are beside the trunk."""
    state = tiny('mask_rcnn', kind=ResTV2)
    torch.save(dict(model=state), tmp_path / 'd2.pth')
    code, said = call(tmp_path / 'd2.pth', tmp_path / 'mm.pth', '--to', 'mmdet')
    assert code == 0, said
    assert 'assumed: input RGB, std 58.395 57.12 57.375' in said and 'norm_in_trunk' not in said
    mm = read_state_dict(tmp_path / 'mm.pth')
    for name in ('stem.proj.0.weight', 'norm_2.bias', 'patch_4.norm.weight'):
        old = name.replace('norm_2', 'norm_2.0')
        assert mm[f'backbone.{name}'].equal(state[f'backbone.bottom_up.{old}'])
    code, said = call(tmp_path / 'mm.pth', tmp_path / 'back.pth', '--to', 'detectron2')
    assert code == 0 and 'INPUT.FORMAT RGB' in said, said
    back = read_state_dict(tmp_path / 'back.pth')
    assert back.keys() == state.keys()
    for name, value in back.items():
        assert value.equal(state[name]), name
    state['backbone.bottom_up.stem.proj.0.weight'] /= 2
    torch.save(dict(model=with_buffers(state, 'mask_rcnn')), tmp_path / 'bgr.pth')
    code, said = call(tmp_path / 'bgr.pth', tmp_path / 'mm.pth', '--to', 'mmdet')
    assert code == 0 and 'proj.0: BGR / 1 1 1 -> RGB / 58.395 57.12 57.375' in said, said


def test_the_large_of_restv2s_detection_code_is_refused(call, tmp_path):
    stages = zip((128, 256, 512, 1024), (2, 3, 16, 3))
    state = {'roi_heads.box_head.fc1.weight': (1, ),
             'backbone.bottom_up.patch_2.norm.bias': (1, )}
    for i, (dims, depth) in enumerate(stages, 1):
        for j in range(depth):
            block = f'backbone.bottom_up.stage{i}.{j}'
            state.update({f'{block}.norm1.weight': (dims, ), f'{block}.mlp.fc1.weight': (1, 1)})
    torch.save({name: torch.zeros(shape) for name, shape in state.items()}, tmp_path / 'd2.pth')
    code, said = call(tmp_path / 'd2.pth', tmp_path / 'mm.pth', '--to', 'mmdet')
    assert code == 1 and 'another network than ResTV2' in said
    assert not (tmp_path / 'mm.pth').exists()


def test_what_the_file_says_of_its_input_decides(call, tmp_path):
    state, out = tiny('retinanet'), tmp_path / 'out.pth'
    first = state['backbone.bottom_up.stem.conv1.weight']

    def converted(mean, std, *args):
        torch.save(with_buffers(state, 'retinanet', mean, std), tmp_path / 'd2.pth')
        code, said = call(tmp_path / 'd2.pth', out, '--to', 'mmdet', *args)
        assert code == 0, said
        return read_state_dict(out)['backbone.stem.conv1.weight']

    rgb_mean = BGR_MEAN[::-1]
    assert_close(converted(rgb_mean, RGB_STD), first)
    assert_close(converted(BGR_MEAN, RGB_STD[::-1], '--input-format', 'BGR'), first.flip(1))
    scale = torch.tensor(RGB_STD).view(1, 3, 1, 1)
    assert_close(converted(rgb_mean, (1., 1., 1.), '--pixel-std', 1, 1, 1), first * scale)
    for args, words in (
            (['--input-format', 'BGR'], '--input-format BGR contradicts pixel_mean'),
            (['--pixel-std', 1, 1, 2], '--pixel-std (1.0, 1.0, 2.0) contradicts pixel_std')):
        code, said = call(tmp_path / 'd2.pth', out, '--to', 'mmdet', *args)
        assert code == 1 and words in said
    for mean, std, words in (((0.485, 0.456, 0.406), (1., 1., 1.), 'pixel_mean='),
                             (rgb_mean, (1., 0., 1.), 'must be three numbers above 0')):
        torch.save(with_buffers(state, 'retinanet', mean, std), tmp_path / 'd2.pth')
        code, said = call(tmp_path / 'd2.pth', out, '--to', 'mmdet')
        assert code == 1 and words in said


def test_faster_rcnn_needs_no_mask_head(call, tmp_path):
    state = {n: v for n, v in tiny('mask_rcnn').items() if 'mask_head' not in n}
    torch.save(state, tmp_path / 'd2.pth')
    code, said = call(tmp_path / 'd2.pth', tmp_path / 'out.pth', '--to', 'mmdet')
    assert code == 0 and 'Faster R-CNN' in said, said
    assert not any('mask_head' in n for n in read_state_dict(tmp_path / 'out.pth'))


def test_it_runs_as_a_script_from_anywhere(tmp_path):
    torch.save(tiny('retinanet', 80), tmp_path / 'd2.pth')
    done = subprocess.run(
        [sys.executable, str(FOLDER / 'convert_checkpoint.py'), 'd2.pth', 'mm.pth', '--to',
         'mmdet'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f'it needs: --cfg-options {" ".join(OPTIONS)}', 'written: mm.pth']
    assert 'assumed: input BGR, std 1 1 1, because IN does not say it' in done.stdout
    assert 'head.cls_score.*' in done.stdout and '(anchors reordered)' in done.stdout


# Errors: exit code 1, one sentence, nothing written


def edit(state, **changes):
    """Replace values, or remove them with None."""
    state = dict(state)
    for name, value in changes.items():
        name = name.replace('__', '.')
        state.pop(name, None)
        if value is not None:
            state[name] = value
    return state


OTHER_ANCHORS = {'anchor_generator.cell_anchors.0': d2_cell_anchors([16, 20, 25])}


@pytest.mark.parametrize('family, changes, words', [
    ('retinanet', {'head.extra.weight': torch.ones(1)},
     'detectron2 has no head.extra.weight in a RetinaNet'),
    ('retinanet', {'backbone.fpn_lateral3.norm.weight': torch.ones(256)},
     'fpn_lateral3.norm.weight'),
    ('retinanet', {'head.cls_subnet.4.bias': None}, 'lacks head.cls_subnet.4.bias'),
    ('retinanet', {'backbone.bottom_up.norm3.bias': None}, 'lacks backbone.bottom_up.norm3'),
    ('retinanet', {'backbone.bottom_up.stage2.0.norm1.weight': None}, 'ResT of four stages'),
    ('retinanet', {'backbone.bottom_up.stem.conv1.weight': torch.ones(4, 4, 3, 3)},
     'stem.conv1.weight is (4, 4, 3, 3)'),
    ('retinanet', {'head.bbox_pred.weight': torch.ones(12, 256, 3, 3),
                   'head.bbox_pred.bias': torch.ones(12)}, 'it is (36, 256, 3, 3)'),
    ('retinanet', {'head.cls_score.weight': torch.ones(28, 256, 3, 3),
                   'head.cls_score.bias': torch.ones(28)}, '28 outputs, which is not possible'),
    ('retinanet', {'head.cls_score.bias': torch.ones(18)}, 'head.cls_score.bias is (18,)'),
    ('retinanet', {'head.cls_score.weight': torch.tensor(1.)}, '1 outputs, which is not'),
    ('retinanet', {'head.cls_subnet.0.bias': torch.tensor(1.)}, 'cls_subnet.0.bias is ()'),
    ('retinanet', OTHER_ANCHORS, 'differ from those of the configs here'),
    ('retinanet', {'backbone.top_block.p6.weight': torch.ones(256, 256, 3, 3)},
     'it is (256, 16, 3, 3)'),
    ('mask_rcnn', {'backbone.fpn_lateral3.weight': torch.ones(256, 16, 1, 1)},
     'it is (256, 8, 1, 1)'),
    ('mask_rcnn', {'roi_heads.box_predictor.bbox_pred.weight': torch.ones(4, 16),
                   'roi_heads.box_predictor.bbox_pred.bias': torch.ones(4)},
     'bbox_pred.weight is (4, 16); in a Mask R-CNN with 3 classes'),
    ('mask_rcnn', {'roi_heads.mask_head.predictor.weight': torch.ones(80, 256, 1, 1),
                   'roi_heads.mask_head.predictor.bias': torch.ones(80)},
     'it is (3, 256, 1, 1)'),
    ('mask_rcnn', {'roi_heads.mask_head.deconv.weight': None}, 'lacks roi_heads.mask_head'),
])
def test_what_does_not_map_is_refused(family, changes, words, call, tmp_path):
    out = tmp_path / 'out.pth'
    out.write_bytes(b'precious')
    torch.save(edit(tiny(family), **changes), tmp_path / 'd2.pth')
    code, said = call(tmp_path / 'd2.pth', out, '--to', 'mmdet')
    assert code == 1 and words in said, said
    assert out.read_bytes() == b'precious'
    assert {p.name for p in tmp_path.iterdir()} == {'out.pth', 'd2.pth'}


def test_directions_that_do_not_exist_are_refused(call, converter, tmp_path):
    d2 = tiny('retinanet')
    mmdet = converter.Conversion(d2, 'mmdet').result
    published = classifier()
    mmpretrain = converter.Conversion(published, 'mmpretrain').result
    backbone = {n: v for n, v in d2.items() if 'bottom_up' in n}
    own = {n: v for n, v in mmdet.items() if n.startswith('backbone.')}
    for state, target, args, words in [
        (d2, 'mmpretrain', [], 'a detector has no classification head'),
        (mmdet, 'published', [], 'a detector has no classification head'),
        (d2, 'detectron2', [], 'in that layout already'),
        (published, 'mmdet', [], 'model.backbone.init_cfg.checkpoint=IN\n'),
        (mmpretrain, 'mmdet', [], 'model.backbone.init_cfg.prefix=backbone.'),
        (mmpretrain, 'detectron2', [], 'a classifier has no detection head'),
        (published, 'mmpretrain', ['--input-format', 'RGB'], 'for detectron2 only'),
        (mmdet, 'detectron2', [], f'add --cfg-options {" ".join(OPTIONS)}'),
        (mmdet, 'detectron2', ['--cfg-options', OPTIONS[0]], OPTIONS[1]),
        (mmdet, 'detectron2', ['--cfg-options', OPTIONS[0].replace('True', 'False')],
         OPTIONS[0]),
        (d2, 'mmdet', ['--cfg-options', *OPTIONS], 'is for mmdet -> detectron2 only'),
        (backbone, 'mmdet', [], 'with no head'),
        (own, 'detectron2', [], 'not those of a classifier or detector'),
        (dict(own, **{'decode_head.conv_seg.weight': torch.ones(1)}), 'mmdet', [], "mmseg's"),
        ({'layer1.0.conv1.weight': torch.ones(1)}, 'mmdet', [], 'layer1.0.conv1.weight'),
    ]:
        torch.save(state, tmp_path / 'in.pth')
        code, said = call(tmp_path / 'in.pth', tmp_path / 'out.pth', '--to', target, *args)
        assert code == 1 and words in said, said
        assert not (tmp_path / 'out.pth').exists()


def test_files_that_cannot_be_read_or_written(call, tmp_path):
    d2, out = tmp_path / 'd2.pth', tmp_path / 'out.pth'
    torch.save(tiny('retinanet'), d2)
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps({'model': {}}))
    (tmp_path / 'text.pth').write_text('hello')
    for name, target, words in [
            ('nowhere.pth', out, 'no such file'), ('text.pth', out, 'text.pth'),
            ('model.pkl', out, 'a pickle of NumPy arrays'),
            ('d2.pth', tmp_path / 'out.onnx', 'must end in .pth or .safetensors')]:
        code, said = call(tmp_path / name, target, '--to', 'mmdet')
        assert code == 1 and words in said, said
    out.mkdir()  # stands for a file that cannot be replaced
    code, said = call(d2, out, '--to', 'mmdet')
    assert code == 1 and 'Is a directory' in said
    assert {p.name for p in tmp_path.iterdir()} == {
        'd2.pth', 'model.pkl', 'text.pth', 'out.pth'}


class Payload:

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}', )


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('suffix', ['pth', 'pkl'])
def test_code_in_a_file_does_not_run(suffix, legacy, call, tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / f'evil.{suffix}'
    torch.save(dict(model=tiny('retinanet'), scheduler=Payload(mark)), path,
               _use_new_zipfile_serialization=not legacy)
    code, said = call(path, tmp_path / 'out.pth', '--to', 'mmdet')
    assert code == 1 and ('no code in it was run' in said or suffix == 'pkl'), said
    assert not mark.exists() and not (tmp_path / 'out.pth').exists()

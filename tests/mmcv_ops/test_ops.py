"""mmcv's operators by torchvision: against closed forms, float64 and compiled operators.

MMCV_COMPILED_WHEEL names a wheel of mmcv with compiled operators, for this Python and PyTorch.
All operators are called by mmcv's own functions, whose ``ext_module`` is replaced.
"""
import ast
import contextlib
import importlib.util
import logging
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

FOLDER = Path(__file__).parents[2] / 'mmcv_ops'
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
IMPLEMENTED = {
    'nms', 'softnms', 'nms_match', 'roi_align_forward', 'roi_align_backward',
    'roi_pool_forward', 'roi_pool_backward', 'deform_conv_forward',
    'deform_conv_backward_input', 'deform_conv_backward_parameters',
    'modulated_deform_conv_forward', 'modulated_deform_conv_backward',
    'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward', 'softmax_focal_loss_forward',
    'softmax_focal_loss_backward', 'ms_deform_attn_forward', 'ms_deform_attn_backward',
    'get_compiler_version', 'get_compiling_cuda_version'}


def load(path):
    spec = importlib.util.spec_from_file_location('_ext', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def operators(ext):
    """mmcv.ops calls ``ext``."""
    users = [module for name, module in sys.modules.items()
             if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')]
    with pytest.MonkeyPatch.context() as patch:
        for module in users:
            patch.setattr(module, 'ext_module', ext)
        yield


@pytest.fixture(scope='module')
def ours():
    return load(FOLDER / 'mmcv/_ext.py')


@pytest.fixture(autouse=True)
def use_ours(ours):
    with operators(ours):
        yield


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
    wheel = os.environ.get('MMCV_COMPILED_WHEEL')
    if not wheel:
        pytest.skip('MMCV_COMPILED_WHEEL does not name a wheel of mmcv with operators')
    folder = tmp_path_factory.mktemp('compiled')
    with zipfile.ZipFile(wheel) as archive:
        name, = (n for n in archive.namelist() if n.startswith('mmcv/_ext.'))
        return load(archive.extract(name, folder))


def random_boxes(n, dtype=torch.float32, grid=None):
    """(n, 4) and scores, (n,); on a grid, many overlaps and scores are equal."""
    corner = torch.rand(n, 2, dtype=dtype) * 50
    boxes, scores = torch.cat([corner, corner + 1 + torch.rand(n, 2) * 30], 1), torch.rand(n)
    if grid:
        boxes, scores = (boxes / grid).round(), (scores * grid).round() / grid
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes.to(dtype), scores.to(dtype)


def gradients(function, *inputs):
    """The output and the gradient of each input, for a gradient of the output that varies."""
    inputs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape))
    return [out.detach(), *(x.grad for x in inputs if x is not None)]


def ours_and_compiled(ours, compiled, function):
    """What ``function()`` returns with each of them."""
    found = []
    for ext in (ours, compiled):
        with operators(ext):
            found.append(function())
    return found


def assert_agree(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        scale = b.abs().max().item() if b.numel() else 0.
        assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


# Non-maximum suppression


def iou(a, b, offset):
    """Of two boxes, lists of four numbers."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + offset
    h = min(a[3], b[3]) - max(a[1], b[1]) + offset
    overlap = max(w, 0) * max(h, 0)
    area_a, area_b = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return overlap / (area_a + area_b - overlap)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5])
def test_nms_is_greedy(offset, threshold):
    torch.manual_seed(0)
    boxes, scores = random_boxes(80)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= threshold for j in kept):
            kept.append(i)
    assert 0 < len(kept) < 80
    dets, inds = mmcv.ops.nms(boxes, scores, threshold, offset)
    assert inds.tolist() == kept
    assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_keeps_an_iou_equal_to_the_threshold():
    """In float32, which rounds 0.3 up: 3 / 10 > 0.3 if only one side is rounded."""
    boxes = torch.tensor([[0., 0, 10, 1], [0, 0, 3, 1]])
    assert mmcv.ops.nms(boxes, torch.tensor([.9, .8]), 0.3)[1].tolist() == [0, 1]


@pytest.mark.parametrize('function', [mmcv.ops.nms, mmcv.ops.soft_nms])
def test_nms_of_nothing(function):
    dets, inds = function(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and inds.shape == (0,) and inds.dtype == torch.long


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types(dtype):
    torch.manual_seed(0)
    boxes, _ = random_boxes(50)
    boxes, scores = boxes.to(dtype), torch.randperm(50).to(dtype)
    want = mmcv.ops.nms(boxes.float(), scores.float(), 0.5)[1]
    assert_close(mmcv.ops.nms(boxes, scores, 0.5)[1], want)
    assert_close(mmcv.ops.nms(boxes.float(), scores, 0.5)[1], want)
    with torch.autocast('cpu', torch.bfloat16):
        assert_close(mmcv.ops.nms(boxes.float(), scores, 0.5)[1], want)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_decays_scores(method, offset):
    torch.manual_seed(0)
    boxes, scores = random_boxes(40)
    decay = {'naive': lambda x: float(x < 0.3),
             'linear': lambda x: 1 - x if x >= 0.3 else 1,
             'gaussian': lambda x: math.exp(-x * x / 0.5)}[method]
    left, kept = dict(enumerate(scores.tolist())), {}
    while left:
        best = max(left, key=left.get)
        kept[best] = left.pop(best)
        for i in list(left):
            left[i] *= decay(iou(boxes[best].tolist(), boxes[i].tolist(), offset))
            if left[i] < 0.2:
                del left[i]
    assert 0 < len(kept) < 40

    dets, inds = mmcv.ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.2, method=method, offset=offset)
    assert inds.tolist() == list(kept)
    assert_close(dets[:, :4], boxes[inds])
    assert_close(dets[:, 4], torch.tensor(list(kept.values())))


def test_nms_match_groups():
    dets = torch.tensor([[0., 0, 10, 10, .5], [20, 0, 30, 10, .6], [0, 0, 10, 9, .7]])
    assert [x.tolist() for x in mmcv.ops.nms_match(dets, 0.5)] == [[2, 0], [1]]


@pytest.mark.parametrize('grid', [None, 5])
@pytest.mark.parametrize('n', [0, 1, 7, 300])
def test_nms_keeps_what_mmcv_keeps(compiled, ours, n, grid):
    torch.manual_seed(n)
    boxes, scores = random_boxes(n, grid=grid)
    for threshold in (0.3, 0.5, 0.7):
        for offset in (0, 1):
            want = compiled.nms(boxes, scores, threshold, offset)
            assert ours.nms(boxes, scores, threshold, offset).tolist() == want.tolist()
            for method in (0, 1, 2):
                dets = [torch.empty(n, 5) for _ in range(2)]
                inds = [module.softnms(boxes, scores, x, threshold, 0.5, 0.05, method, offset)
                        for module, x in zip((ours, compiled), dets)]
                assert inds[0].tolist() == inds[1].tolist()
                assert_close(dets[0][:len(inds[0])], dets[1][:len(inds[0])])
        if n:
            dets = torch.cat([boxes, scores[:, None]], 1)
            assert ours.nms_match(dets, threshold) == compiled.nms_match(dets, threshold)


# Pooling of regions


def ramp(dtype=torch.float64):
    """2 images of 3 channels, 11 x 14, that are linear in x and y, and not contiguous."""
    slopes = torch.tensor([[1., 0, 5], [0, 1, -2], [2, -3, 1]], dtype=dtype)
    points = torch.stack(torch.meshgrid(
        torch.arange(14.), torch.arange(11.), torch.ones(2), indexing='ij'), -1).to(dtype)
    features = (points @ slopes.T).permute(2, 3, 1, 0)
    assert not features.is_contiguous()
    return features, slopes


def ramp_in_bins(slopes, rois, size, scale, aligned):
    """The mean over a bin of a linear function: its value at the middle."""
    (h, w), shift = size, 0.5 if aligned else 0
    start, end = rois[:, 1:3] * scale - shift, rois[:, 3:] * scale - shift
    extent = end - start if aligned else (end - start).clamp(min=1)
    x = start[:, :1] + extent[:, :1] * (torch.arange(w) + 0.5) / w
    y = start[:, 1:] + extent[:, 1:] * (torch.arange(h) + 0.5) / h
    x, y = x[:, None, :].expand(-1, h, w), y[:, :, None].expand(-1, h, w)
    return (torch.stack([x, y, torch.ones_like(x)], -1) @ slopes.T).permute(0, 3, 1, 2)


@pytest.mark.parametrize('dtype, tolerance', TOLERANCES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 3])
def test_roi_align_of_features_that_are_not_contiguous(ratio, aligned, dtype, tolerance):
    features, slopes = ramp(dtype)
    rois = torch.tensor([[0., 3, 4, 20, 17], [1, 9, 2, 11, 19], [1, 4, 4, 5, 4.5]], dtype=dtype)
    got = mmcv.ops.roi_align(features, rois, (3, 2), 0.5, ratio, 'avg', aligned)
    want = ramp_in_bins(slopes, rois, (3, 2), 0.5, aligned)
    assert_agree([got], [want], tolerance)


def test_roi_align_of_negative_sizes():
    """As mmcv's CUDA kernel: one pixel if not aligned, no sample or backward samples if so."""
    features, slopes = ramp()
    # negative width, height, both
    rois = torch.tensor([[0., 20, 4, 3, 17], [1, 9, 17, 11, 2], [1, 9, 9, 4, 4]]).double()
    for ratio, aligned in ((0, False), (2, False), (2, True)):
        got = mmcv.ops.roi_align(features, rois, (3, 2), 0.5, ratio, 'avg', aligned)
        assert_close(got, ramp_in_bins(slopes, rois, (3, 2), 0.5, aligned))
    out, grad = gradients(
        lambda x: mmcv.ops.roi_align(x, rois, (3, 2), 0.5, 0, 'avg', True), features)
    assert not out.any() and not grad.any()


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradient(ratio, aligned):
    torch.manual_seed(0)
    x = torch.rand(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0., 1, 0, 7, 9], [1, -3, 2, 4, 5], [1, 5, 1, 2, 8]]).double()
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.roi_align(
            x.transpose(2, 3), rois, (3, 2), 0.5, ratio, 'avg', aligned), x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    x, rois = torch.rand(1, 3, 9, 9).to(dtype), torch.tensor([[0, 1, 2, 14, 15]], dtype=dtype)
    weight, offset = torch.rand(2, 3, 3, 3).to(dtype), torch.rand(1, 18, 9, 9).to(dtype)
    for function, inputs in (
            (lambda x: mmcv.ops.roi_align(x, rois.to(x), (2, 2), 0.5), [x]),
            (lambda x: mmcv.ops.roi_pool(x, rois.to(x), (2, 2), 0.5), [x]),
            (lambda *x: mmcv.ops.deform_conv2d(*x, 1, 1), [x, offset, weight])):
        got = gradients(function, *inputs)
        want = gradients(function, *(x.float() for x in inputs))
        assert_agree(got[:1], [want[0].to(dtype)], 0)
        assert all(x.dtype == dtype and x.isfinite().all() and x.any() for x in got)


def test_roi_align_by_maximum_raises():
    with pytest.raises(NotImplementedError, match="roi_align with pool_mode='max'"):
        mmcv.ops.roi_align(torch.rand(1, 1, 4, 4), torch.zeros(1, 5), 2, 1., 0, 'max')


@pytest.mark.parametrize('dtype, tolerance', TOLERANCES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('n', [0, 40])
def test_roi_align_is_mmcvs(compiled, ours, n, ratio, aligned, dtype, tolerance):
    torch.manual_seed(0)
    x, boxes = torch.randn(2, 5, 13, 17, dtype=dtype), random_boxes(n, dtype)[0] - 8
    rois = torch.cat([torch.randint(0, 2, (n, 1)).to(dtype), boxes], 1)
    assert_agree(*ours_and_compiled(ours, compiled, lambda: gradients(
        lambda x: mmcv.ops.roi_align(x, rois, (3, 7), 0.25, ratio, 'avg', aligned), x)),
        tolerance)


def test_roi_pool_takes_the_maximum_of_each_bin():
    """Bins as in mmcv: torchvision rounds boxes first."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    # inside, partly outside, outside, malformed
    rois = torch.tensor([[0., 3, 1, 17, 13], [1, -5.5, 4, 9, 30], [0, 50, 3, 60, 9],
                         [1, 9, 9, 4, 12]]).double()

    def reference(x):
        out = x.new_zeros(4, 3, 3, 4)
        for n, (batch, x1, y1, x2, y2) in enumerate(rois.tolist()):
            left, top, right, bottom = x1 / 2, y1 / 2, (x2 + 1) / 2, (y2 + 1) / 2
            w, h = (right - left) / 4, (bottom - top) / 3
            for i in range(3 * (w > 0)):
                for j in range(4):
                    rows = slice(max(math.floor(i * h + top), 0),
                                 max(math.ceil((i + 1) * h + top), 0))
                    columns = slice(max(math.floor(j * w + left), 0),
                                    max(math.ceil((j + 1) * w + left), 0))
                    region = x[int(batch), :, rows, columns]
                    if region.numel():
                        out[n, :, i, j] = region.amax((1, 2))
        return out

    want = gradients(reference, x)
    assert want[0][0].any() and want[0][1].any() and not want[0][2:].any()
    got = gradients(lambda x: mmcv.ops.roi_pool(x, rois, (3, 4), 0.5), x)
    assert_agree(got, want, 1e-12)
    flipped = gradients(
        lambda x: mmcv.ops.roi_pool(x.transpose(2, 3), rois, (3, 4), 0.5), x.transpose(2, 3))
    assert_agree([flipped[0], flipped[1].transpose(2, 3)], want, 1e-12)


# Deformable convolution

CONVOLUTIONS = [  # kernel, stride, padding, dilation, groups, deform_groups
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    ((3, 2), (2, 1), (0, 1), (1, 2), 2, 1),
    ((1, 3), (1, 2), (2, 0), (2, 1), 2, 4),
]


def convolution(kernel, stride, padding, dilation, groups, deform_groups, dtype):
    """Input, offset, mask, weight and bias of a random deformable convolution."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, 7, 9, dtype=dtype)
    weight = torch.randn(6, 8 // groups, *kernel, dtype=dtype)
    height, width = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    taps = deform_groups * kernel[0] * kernel[1]
    offset = 2 * torch.randn(4, 2 * taps, height, width, dtype=dtype)
    mask = torch.rand(4, taps, height, width, dtype=dtype)
    return x, offset, mask, weight, torch.randn(6, dtype=dtype)


def sampled_convolution(x, offset, mask, weight, bias, stride, padding, dilation, groups,
                        deform_groups):
    """By the formula: each tap of the kernel is sampled, then weighted."""
    batch, channels, height, width = x.shape
    kernel, out_size = weight.shape[2:], offset.shape[2:]
    taps = kernel[0] * kernel[1]
    # (batch * deform_groups, taps, y or x, height, width)
    offset = offset.reshape(batch * deform_groups, taps, 2, *out_size)
    rows, columns = (torch.arange(n) * s - p for n, s, p in zip(out_size, stride, padding))
    dy, dx = torch.meshgrid(*(torch.arange(k) * d for k, d in zip(kernel, dilation)),
                            indexing='ij')
    y = offset[:, :, 0] + rows[:, None] + dy.reshape(-1, 1, 1)
    x_ = offset[:, :, 1] + columns + dx.reshape(-1, 1, 1)
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = F.grid_sample(
        x.reshape(batch * deform_groups, -1, height, width), grid.flatten(2, 3),
        align_corners=False)
    samples = samples.view(batch, deform_groups, -1, taps, out_size[0] * out_size[1])
    if mask is not None:
        samples = samples * mask.reshape(batch, deform_groups, 1, taps, -1)
    samples = samples.reshape(batch, groups, channels // groups * taps, -1)
    out = torch.einsum('goc,ngcl->ngol', weight.reshape(groups, len(weight) // groups, -1),
                       samples).reshape(batch, -1, *out_size)
    return out if bias is None else out + bias[:, None, None]


def mmcv_convolution(x, offset, mask, weight, bias, *geometry):
    if mask is None:
        return mmcv.ops.deform_conv2d(x, offset, weight, *geometry, False, 2)
    return mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)


def all_gradients(convolve, case, dtype, spread=1):
    """Without a mask, with one, and with a bias too."""
    x, offset, mask, weight, bias = convolution(*case, dtype)
    found = []
    for rest in ((None, weight, None), (mask, weight, None), (mask, weight, bias)):
        found += gradients(
            lambda *inputs: convolve(*inputs, *case[1:]), x, spread * offset, *rest)
    return found


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_deform_conv(case):
    want = all_gradients(sampled_convolution, case, torch.float64)
    assert_agree(all_gradients(mmcv_convolution, case, torch.float64), want, 1e-9)
    x, offset, _, weight, _ = convolution(*case, torch.float64)
    only_weight = gradients(
        lambda weight: mmcv_convolution(x, offset, None, weight, None, *case[1:]), weight)
    assert_agree(only_weight, [want[0], want[3]], 1e-9)


@pytest.mark.parametrize('with_mask', [False, True])
def test_samples_that_lie_at_the_edge_have_no_slope(with_mask):
    """At -1 exactly, where offsets of 0 put the samples of the padding."""
    x, weight = torch.ones(1, 1, 4, 5), torch.ones(1, 1, 3, 3)
    offset = torch.zeros(1, 18, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    if with_mask:
        out = mmcv.ops.modulated_deform_conv2d(
            x, offset, torch.ones(1, 9, 4, 5), weight, None, 1, 1)
    else:
        out = mmcv.ops.deform_conv2d(x, offset, weight, 1, 1)
    out.sum().backward()
    dy, dx = offset.grad.view(3, 3, 2, 4, 5).unbind(2)
    assert (dy[0, :, 0] == 0).all() and (dx[:, 0, :, 0] == 0).all()
    # Those at the last pixel lose what lies between it and the edge.
    assert (dy[1, 1, 3] == -1).all() and (dx[1, 1, :, 4] == -1).all()


@pytest.mark.parametrize('spread', [1, 0])
@pytest.mark.parametrize('dtype, tolerance', TOLERANCES)
@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_deform_conv_is_mmcvs(compiled, ours, case, dtype, tolerance, spread):
    assert_agree(*ours_and_compiled(ours, compiled, lambda: all_gradients(
        mmcv_convolution, case, dtype, spread)), tolerance)


# Focal losses: mmcv has compiled ones for GPUs alone


def sigmoid_loss(x, target, gamma, weight):
    p = torch.sigmoid(x)
    positive = F.one_hot(target, 4)[:, :3].bool()  # 3: background
    loss = torch.where(positive, -0.3 * (1 - p)**gamma * p.log(),
                       -0.7 * p**gamma * (1 - p).log())
    return loss if weight is None else loss * weight[target, None]


def softmax_loss(x, target, gamma, weight):
    label = target.clamp(min=0)
    p = x.softmax(1)[torch.arange(len(x)), label]
    loss = -0.3 * (1 - p)**gamma * p.log() * (target >= 0)  # -1: ignored
    return loss if weight is None else loss * weight[label]


@pytest.mark.parametrize('dtype, tolerance', TOLERANCES)
@pytest.mark.parametrize('gamma', [0., 0.5, 2.])
@pytest.mark.parametrize('name, definition, weighted, last', [
    ('sigmoid', sigmoid_loss, False, 3), ('sigmoid', sigmoid_loss, True, 0),
    ('softmax', softmax_loss, False, -1), ('softmax', softmax_loss, True, -1)])
def test_focal_loss(name, definition, weighted, last, gamma, dtype, tolerance):
    torch.manual_seed(0)
    x = 3 * torch.randn(7, 3, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0, 1, 2, last])
    weight = torch.tensor([0.5, 1, 2], dtype=torch.float64) if weighted else None
    want = gradients(lambda x: definition(x, target, gamma, weight).sum(), x)
    weight = None if weight is None else weight.to(dtype)
    got = gradients(lambda x: getattr(mmcv.ops, f'{name}_focal_loss')(
        x, target, gamma, 0.3, weight, 'sum'), x.to(dtype))
    assert_agree(got, [w.to(dtype) for w in want], tolerance)


def test_sigmoid_focal_loss_of_large_logits():
    x = torch.tensor([[200.], [-200.]])
    for target, wrong in ((1, 0), (0, 1)):
        out, grad = gradients(lambda x, t=target: mmcv.ops.sigmoid_focal_loss(
            x, torch.full((2,), t), 2., 0.25, None, 'none'), x)
        alpha, sign = (0.75, 1.) if target else (0.25, -1.)
        want = torch.zeros(2, 1)
        want[wrong] = 200 * alpha
        assert_close(out, want)
        want[wrong] = sign * alpha * (1 if wrong else -1)  # backward is given -1 and 1
        assert_close(grad, want)


def test_softmax_focal_loss_of_large_logits():
    x = torch.tensor([[200., 0], [0, 200.]])
    for gamma in (0., 0.5, 2.):
        out, grad = gradients(lambda x, gamma=gamma: mmcv.ops.softmax_focal_loss(
            x, torch.tensor([0, 0]), gamma, 0.25, None, 'none'), x)
        assert out[0] == 0 and not grad[0].any()
        assert out.isfinite().all() and grad.isfinite().all()


# Multi-scale deformable attention


@pytest.mark.parametrize('dtype, tolerance', TOLERANCES)
def test_ms_deform_attn(dtype, tolerance):
    """As mmcv's function for CPUs, which does not call the operator."""
    torch.manual_seed(0)
    shapes = torch.tensor([[5, 7], [3, 2]])
    value = torch.randn(2, 41, 3, 4, dtype=dtype)
    locations = 1.4 * torch.rand(2, 6, 3, 2, 5, 2, dtype=dtype) - 0.2
    weights = torch.rand(2, 6, 3, 2, 5, dtype=dtype)
    function = sys.modules['mmcv.ops.multi_scale_deform_attn']
    want = gradients(lambda value, locations, weights: (
        function.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)),
        value, locations, weights)
    start = torch.tensor([0, 35])
    got = gradients(lambda value, locations, weights: (
        function.MultiScaleDeformableAttnFunction.apply(
            value, shapes, start, locations, weights, 64)), value, locations, weights)
    assert_agree(got, want, tolerance)
    with torch.autocast('cpu', torch.bfloat16):
        out = function.MultiScaleDeformableAttnFunction.apply(
            value, shapes, start, locations, weights, 64)
    assert_agree([out], want[:1], tolerance)


# The module


def test_other_operators_raise_when_they_are_called(ours):
    names = set()
    for path in Path(mmcv.ops.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    assert names > IMPLEMENTED
    assert {name for name in names if name in vars(ours)} == IMPLEMENTED
    for name in names - IMPLEMENTED:
        with pytest.raises(NotImplementedError, match=f'^{name} .*pip install .*mmcv'):
            getattr(ours, name)()
    with pytest.raises(AttributeError, match='__wrapped__'):
        ours.__wrapped__  # noqa: B018


def test_the_environment_says_that_nothing_is_compiled():
    assert mmcv.ops.get_compiler_version().startswith('none (operators by torchvision ')
    assert mmcv.ops.get_compiling_cuda_version().endswith(('available', '(torchvision)'))


def test_one_line_says_which_operators_are_in_use(caplog, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.delenv('SLURM_PROCID', raising=False)

    def lines():
        caplog.clear()
        load(FOLDER / 'mmcv/_ext.py')
        return caplog.record_tuples

    (name, level, text), = lines()
    assert (name, level) == ('mmcv', logging.WARNING)
    assert text.startswith('mmcv.ops: nms, roi_align, ') and 'by torchvision' in text
    with monkeypatch.context() as patch:
        patch.setenv('RANK', '1')
        assert not lines()
    monkeypatch.setattr(multiprocessing, 'parent_process', object)  # a worker
    assert not lines()


def test_wheel(tmp_path):
    """It has one file, and no editable install, which would map mmcv itself."""
    source = shutil.copytree(FOLDER, tmp_path / 'source', ignore=shutil.ignore_patterns(
        'build', '*.egg-info', '__pycache__'))

    def build(kind):
        code = f'from setuptools import build_meta as b; b.build_{kind}({str(tmp_path)!r})'
        return subprocess.run([sys.executable, '-c', code], cwd=source, text=True,
                              capture_output=True)

    assert build('wheel').returncode == 0
    wheel, = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read('mmcv/_ext.py') == (FOLDER / 'mmcv/_ext.py').read_bytes()
    assert [name for name in names if '.dist-info/' not in name] == ['mmcv/_ext.py']

    editable = build('editable')
    assert editable.returncode and 'cannot be installed with -e' in editable.stderr

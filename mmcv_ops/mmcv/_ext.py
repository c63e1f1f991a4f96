"""The operators of mmcv that detectors need, by torchvision and PyTorch.

mmcv calls its operators in the compiled module ``mmcv._ext``. This file stands in for that
module. Names, order of arguments and semantics are mmcv's; a tensor called ``output``,
``argmax``, ``dets`` or ``grad_*`` is filled in place. Half precision is computed in float32.
Operators of mmcv that are not defined here raise ``NotImplementedError`` when they are called.

Python prefers a compiled ``_ext`` in the same folder to this file.
"""
import contextlib
import ctypes
import logging
import multiprocessing
import os
from importlib import metadata

import torch
import torch.nn.functional as F
import torchvision

_tv = torch.ops.torchvision


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _float32(x: float) -> float:
    """mmcv compares with thresholds in float32: float32(0.3) > 0.3 decides ties."""
    return ctypes.c_float(x).value


# Non-maximum suppression


def _iou(box, boxes, offset=0):
    """IoU of ``box``, (4,), with each of ``boxes``, (n, 4), rounded as mmcv rounds it."""

    def area(b):
        return (b[..., 2:] - b[..., :2] + offset).prod(-1)

    low = torch.maximum(box[:2], boxes[:, :2])
    high = torch.minimum(box[2:], boxes[:, 2:])
    overlap = (high - low + offset).clamp(min=0).prod(-1)
    return (overlap / (area(box) + area(boxes) - overlap)).nan_to_num(0)  # 0 / 0: no overlap


def nms(boxes, scores, iou_threshold, offset):
    """Indices of the boxes that are kept, (k,), best first."""
    # mmcv's sort, which is not stable: torchvision's own would keep other boxes at ties.
    order = scores.sort(0, descending=True).indices
    boxes = _wide(boxes)[order]
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device).to(boxes)
    return order[_tv.nms(boxes, rank, _float32(iou_threshold))]


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Soft-NMS (Bodla et al., ICCV 2017); method 0: naive, 1: linear, 2: gaussian.

    Writes boxes and decayed scores into ``dets``, (n, 5), and returns indices, (k,).
    """
    iou_threshold, min_score = _float32(iou_threshold), _float32(min_score)
    boxes, scores = _wide(boxes).clone(), _wide(scores).clone()
    left = torch.arange(len(boxes))
    kept = []
    while len(left):
        best = int(scores.argmax())
        box = boxes[best].clone()
        dets[len(kept), :4], dets[len(kept), 4] = box, scores[best]
        kept.append(int(left[best]))
        for x in (boxes, scores, left):
            x[best] = x[0]
        boxes, scores, left = boxes[1:], scores[1:], left[1:]

        iou = _iou(box, boxes, offset)
        if method == 2:
            # float32 of the exact exp, as in C: torch.exp may be off by one bit, and swap ties
            scores *= (-(iou * iou) / sigma).double().exp().to(iou)
        else:
            decay = 1 - iou if method == 1 else torch.zeros_like(iou)
            scores *= torch.where(iou >= iou_threshold, decay, 1)

        alive = ~(scores < min_score)
        count = int(alive.sum())
        if count < len(alive):
            # mmcv fills the place of a dropped box with the last box, which decides ties
            order = torch.arange(count)
            order[~alive[:count]] = alive[count:].nonzero()[:, 0].flip(0) + count
            boxes, scores, left = boxes[order], scores[order], left[order]
    return torch.tensor(kept, dtype=torch.long)


def nms_match(dets, iou_threshold):
    """Groups of indices, as lists: a kept box, then the boxes that it suppresses."""
    boxes, iou_threshold = _wide(dets[:, :4]), _float32(iou_threshold)
    left = dets[:, 4].sort(0, descending=True).indices
    groups = []
    while len(left):
        suppressed = _iou(boxes[left[0]], boxes[left]) >= iou_threshold
        suppressed[0] = True
        groups.append(left[suppressed].tolist())
        left = left[~suppressed]
    return groups


# Pooling of regions


def _rois_for_align(rois, sampling_ratio, pool_mode):
    if pool_mode != 1:
        raise _missing("roi_align with pool_mode='max'")
    rois = _wide(rois)
    if sampling_ratio > 0:
        return rois
    # mmcv's CUDA kernel gives zeros for a negative size, its CPU kernel an error. torchvision
    # would allocate a negative number of samples; an empty box has none, and gives zeros.
    return torch.cat([rois[:, :3], torch.maximum(rois[:, 3:], rois[:, 1:3])], 1)


def roi_align_forward(input, rois, output, argmax_y, argmax_x, aligned_height, aligned_width,
                      spatial_scale, sampling_ratio, pool_mode, aligned):
    rois = _rois_for_align(rois, sampling_ratio, pool_mode)
    output.copy_(_tv.roi_align(
        _wide(input), rois, spatial_scale, aligned_height, aligned_width, sampling_ratio,
        aligned))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, aligned_height,
                       aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned):
    rois = _rois_for_align(rois, sampling_ratio, pool_mode)
    grad_input.copy_(_tv._roi_align_backward(
        _wide(grad_output), rois, spatial_scale, aligned_height, aligned_width,
        *grad_input.shape, sampling_ratio, aligned))


def _bins(start, end, count, size):
    """First pixel and the pixel after the last of each bin, both (n, count)."""
    steps = torch.arange(count + 1, device=start.device)
    edges = steps * ((end - start) / count)[:, None] + start[:, None]
    return edges[:, :-1].floor().clamp(0, size), edges[:, 1:].ceil().clamp(0, size)


def roi_pool_forward(input, rois, output, argmax, pooled_height, pooled_width, spatial_scale):
    """torchvision rounds boxes to whole pixels and mmcv does not, so each bin is a box here."""
    height, width = input.shape[2:]
    rois = _wide(rois)
    x1, y1 = (rois[:, 1:3] * spatial_scale).unbind(1)
    x2, y2 = ((rois[:, 3:] + 1) * spatial_scale).unbind(1)
    left, right = (x[:, None, :] for x in _bins(x1, x2, pooled_width, width))
    top, bottom = (y[:, :, None] for y in _bins(y1, y2, pooled_height, height))
    batch = rois[:, 0, None, None]
    bins = torch.stack(
        torch.broadcast_tensors(batch, left, top, right - 1, bottom - 1), -1)
    # a box outside of the image has no pixel: 0, and -1 as argmax
    outside = bins.new_tensor([width, height, width, height])
    empty = (right <= left) | (bottom <= top)
    bins[..., 1:] = torch.where(empty[..., None], outside, bins[..., 1:])

    values, places = _tv.roi_pool(_wide(input), bins.flatten(0, 2), 1., 1, 1)
    shape = (len(rois), pooled_height, pooled_width, input.shape[1])
    output.copy_(values.view(shape).permute(0, 3, 1, 2))
    argmax.copy_(places.view(shape).permute(0, 3, 1, 2))


def roi_pool_backward(grad_output, rois, argmax, grad_input, pooled_height, pooled_width,
                      spatial_scale):
    grad_input.copy_(_tv._roi_pool_backward(
        _wide(grad_output), _wide(rois), argmax, spatial_scale, pooled_height, pooled_width,
        *grad_input.shape))


# Deformable convolution


def _deform_inputs(input, weight, offset, mask=None, bias=None):
    """torchvision takes a mask and a bias in any case; version 1 has neither."""
    if mask is None:
        mask = input.new_zeros(len(input), 1)
    if bias is None:
        bias = input.new_zeros(len(weight))
    return [_wide(x) for x in (input, weight, offset, mask, bias)]


def _clear_edge(grad_offset, offset, kernel, stride, padding, dilation):
    """mmcv gives 0 where a sample lies at -1 exactly, torchvision the slope to the inside.

    With padding, offsets of 0 put samples there: all untrained layers have some.
    """
    # (B, groups, kh, kw, 2, H, W)
    grads, offsets = (x.unflatten(1, (-1, *kernel, 2)) for x in (grad_offset, offset))
    for axis in range(2):
        taps = torch.arange(kernel[axis], device=offset.device) * dilation[axis]
        steps = torch.arange(offset.shape[2 + axis], device=offset.device) * stride[axis]
        places = taps[:, None] + steps - padding[axis]  # (k, H) or (k, W)
        places = places[:, None, :, None] if axis == 0 else places[:, None]
        at_edge = offsets[:, :, :, :, axis] + places == -1
        grads[:, :, :, :, axis].masked_fill_(at_edge, 0)


def deform_conv_forward(input, weight, offset, output, columns, ones, kW, kH, dW, dH, padW,
                        padH, dilationW, dilationH, group, deformable_group, im2col_step):
    output.copy_(_tv.deform_conv2d(
        *_deform_inputs(input, weight, offset), dH, dW, padH, padW, dilationH, dilationW, group,
        deformable_group, False))


def deform_conv_backward_input(input, offset, gradOutput, gradInput, gradOffset, weight,
                               columns, kW, kH, dW, dH, padW, padH, dilationW, dilationH, group,
                               deformable_group, im2col_step):
    grad_input, grad_weight, grad_offset, _, _ = _tv._deform_conv2d_backward(
        _wide(gradOutput), *_deform_inputs(input, weight, offset), dH, dW, padH, padW,
        dilationH, dilationW, group, deformable_group, False)
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)
    _clear_edge(gradOffset, offset, (kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW))
    # mmcv passes the same columns, which it does not read, to the next function: torchvision
    # computes all gradients at once, and this saves it from doing so twice.
    columns.resize_(grad_weight.shape).copy_(grad_weight)


def deform_conv_backward_parameters(input, offset, gradOutput, gradWeight, columns, ones, kW,
                                    kH, dW, dH, padW, padH, dilationW, dilationH, group,
                                    deformable_group, scale, im2col_step):
    if columns.shape == gradWeight.shape:
        grad_weight = columns
    else:  # neither input nor offset needs a gradient
        _, grad_weight, _, _, _ = _tv._deform_conv2d_backward(
            _wide(gradOutput), *_deform_inputs(input, gradWeight, offset), dH, dW, padH, padW,
            dilationH, dilationW, group, deformable_group, False)
    gradWeight.add_(grad_weight, alpha=scale)


def modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns,
                                  kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
                                  dilation_h, dilation_w, group, deformable_group, with_bias):
    output.copy_(_tv.deform_conv2d(
        *_deform_inputs(input, weight, offset, mask, bias if with_bias else None), stride_h,
        stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True))


def modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns,
                                   grad_input, grad_weight, grad_bias, grad_offset, grad_mask,
                                   grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h,
                                   pad_w, dilation_h, dilation_w, group, deformable_group,
                                   with_bias):
    grads = _tv._deform_conv2d_backward(
        _wide(grad_output),
        *_deform_inputs(input, weight, offset, mask, bias if with_bias else None), stride_h,
        stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group, True)
    targets = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        targets.append(grad_bias)
    for target, grad in zip(targets, grads):
        target.copy_(grad)
    _clear_edge(grad_offset, offset, (kernel_h, kernel_w), (stride_h, stride_w),
                (pad_h, pad_w), (dilation_h, dilation_w))


# Focal losses


def _sigmoid_focal(input, target, weight, alpha):
    """Sign, logit of the right answer, and factor of each element, all (n, classes)."""
    input = _wide(input)
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    positive = positive.to(input)
    factor = alpha * positive + (1 - alpha) * (1 - positive)
    if weight.numel():
        factor = factor * _wide(weight)[target, None]
    sign = 2 * positive - 1
    return sign, sign * input, factor


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Focal loss (Lin et al., ICCV 2017) of logits, (n, classes); others are background.

    mmcv takes log(sigmoid(x)) and stops at -87; this is exact for large logits too.
    """
    _, logit, factor = _sigmoid_focal(input, target, weight, alpha)
    output.copy_(-factor * torch.sigmoid(-logit)**gamma * F.logsigmoid(logit))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    sign, logit, factor = _sigmoid_focal(input, target, weight, alpha)
    p, q = torch.sigmoid(logit), torch.sigmoid(-logit)
    grad_input.copy_(sign * factor * q**gamma * (gamma * p * F.logsigmoid(logit) - q))


def _softmax_focal(softmax, target, weight, alpha):
    """Probability of the right class, and factor of each row, both (n,); 0 for -1."""
    softmax = _wide(softmax)
    label = target.clamp(min=0)
    p = softmax.gather(1, label[:, None])[:, 0].clamp(min=torch.finfo(torch.float32).tiny)
    factor = alpha * (target >= 0).to(softmax)
    if weight.numel():
        factor = factor * _wide(weight)[label]
    return p, factor


def softmax_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Focal loss of probabilities, (n, classes), per row; rows with a negative target: 0."""
    p, factor = _softmax_focal(input, target, weight, alpha)
    output.copy_(-factor * (1 - p)**gamma * p.log())


def softmax_focal_loss_backward(input, target, weight, buff, grad_input, gamma, alpha):
    p, factor = _softmax_focal(input, target, weight, alpha)
    q = 1 - p
    # q**gamma / q is not finite where q == 0 and gamma < 1, but log(p) == 0 there
    slope = torch.where(q > 0, gamma * q**(gamma - 1) * p * p.log(), 0)
    buff.copy_(factor * (slope - q**gamma))
    one_hot = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(buff[:, None] * (one_hot.to(buff) - input))


# Multi-scale deformable attention


def _ms_deform_attn(value, shapes, locations, weights):
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    shapes = shapes.tolist()
    out = 0
    for level, x in enumerate(value.split([h * w for h, w in shapes], 1)):
        # (batch * heads, channels, h, w) at (batch * heads, queries, points, 2)
        x = x.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shapes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        x = F.grid_sample(x, grid, mode='bilinear', align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).reshape(-1, 1, queries, points)
        out = out + (x * weight).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(value, value_spatial_shapes, value_level_start_index,
                           sampling_locations, attention_weights, im2col_step):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Value (batch, keys, heads, channels), locations (batch, queries, heads, levels, points, 2)
    and weights (batch, queries, heads, levels, points) -> (batch, queries, heads * channels).
    """
    with torch.autocast(value.device.type, enabled=False):
        return _ms_deform_attn(
            _wide(value), value_spatial_shapes, _wide(sampling_locations),
            _wide(attention_weights)).to(value)


def ms_deform_attn_backward(value, value_spatial_shapes, value_level_start_index,
                            sampling_locations, attention_weights, grad_output, grad_value,
                            grad_sampling_loc, grad_attn_weight, im2col_step):
    inputs = [_wide(x).detach().requires_grad_()
              for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad(), torch.autocast(value.device.type, enabled=False):
        out = _ms_deform_attn(inputs[0], value_spatial_shapes, *inputs[1:])
    grads = torch.autograd.grad(out, inputs, _wide(grad_output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.copy_(grad)


# What mmcv asks of its compiled module besides operators


def get_compiler_version():
    return f'none (operators by torchvision {torchvision.__version__})'


def get_compiling_cuda_version():
    version = _tv._cuda_version()
    if version < 0:
        return 'not available'
    return f'{version // 1000}.{version // 10 % 100} (torchvision)'


def _missing(operator):
    mmcv = 'onedl-mmcv'
    for name in ('onedl-mmcv', 'mmcv', 'mmcv-lite'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            mmcv = f'{name.removesuffix("-lite")}=={metadata.version(name)}'
    return NotImplementedError(
        f'{operator} is an operator of mmcv that mmcv-torchvision-ops does not have; `pip '
        f'install --no-cache-dir --no-build-isolation --no-deps --force-reinstall {mmcv}` '
        'builds mmcv with it, given a C++ compiler (for GPUs, CUDA too).')


def __getattr__(name):
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*args, **kwargs):
        raise _missing(name)

    return operator


# Once a run: not in workers of data loaders, nor in every rank. Python shows warnings only.
_rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
if multiprocessing.parent_process() is None and _rank == '0':
    logging.getLogger('mmcv').warning(
        'mmcv.ops: nms, roi_align, roi_pool and deformable convolution by torchvision %s; '
        'soft_nms, nms_match, focal losses and deformable attention by PyTorch; other '
        'operators raise. A compiled mmcv has them all.', torchvision.__version__)

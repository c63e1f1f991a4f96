"""The operators of mmcv that detectors need, by torchvision and PyTorch.

mmcv calls its operators in the compiled module ``mmcv._ext``. This file stands in for that
module. Names, order of arguments and semantics are mmcv's; a tensor called ``output``,
``argmax``, ``dets`` or ``grad_*`` is filled in place. Half precision is computed in float32.
Operators of mmcv that are not defined here raise ``NotImplementedError`` when they are called.

Python prefers a compiled ``_ext`` in the same folder to this file.
"""
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
    return torch.tensor(x, dtype=torch.float32).item()


# Non-maximum suppression


def _iou(box, boxes, offset=0):
    """IoU of ``box``, (4,), with each of ``boxes``, (n, 4), rounded as mmcv rounds it."""

    def area(b):
        return (b[..., 2:] - b[..., :2] + offset).prod(-1)

    low = torch.maximum(box[:2], boxes[:, :2])
    high = torch.minimum(box[2:], boxes[:, 2:])
    overlap = (high - low + offset).clamp(min=0).prod(-1)
    return overlap / (area(box) + area(boxes) - overlap)


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
    boxes, scores = _wide(boxes), _wide(scores).clone()
    iou_threshold, min_score = _float32(iou_threshold), _float32(min_score)
    kept = []
    left = torch.arange(len(boxes), device=boxes.device)
    while len(left):
        best = scores[left].argmax()
        index = left[best].item()
        left[best] = left[0]
        left = left[1:]
        dets[len(kept), :4] = boxes[index]
        dets[len(kept), 4] = scores[index]
        kept.append(index)

        iou = _iou(boxes[index], boxes[left], offset)
        if method == 2:
            # float32 of the exact exp, as in C: torch.exp may be off by one bit, and swap ties
            scores[left] *= (-(iou * iou) / sigma).double().exp().to(iou)
        else:
            decay = 1 - iou if method == 1 else torch.zeros_like(iou)
            scores[left] *= torch.where(iou >= iou_threshold, decay, 1)

        # mmcv fills the place of a dropped box with the last box: that decides ties.
        alive = ~(scores[left] < min_score)
        count = int(alive.sum())
        moved = left[count:][alive[count:]].flip(0)
        left, alive = left[:count], alive[:count]
        left[~alive] = moved
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


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
        raise NotImplementedError(_missing("roi_align with pool_mode='max'"))
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


def _deform_conv(input, weight, offset, mask, bias, *geometry):
    use_mask = mask is not None
    tensors = [_wide(x) for x in (input, weight, offset, mask if use_mask else input[:1, :1],
                                  bias if bias is not None else input.new_zeros(len(weight)))]
    return _tv.deform_conv2d(*tensors, *geometry, use_mask)


def _deform_conv_backward(grad_output, input, weight, offset, mask, bias, *geometry):
    use_mask = mask is not None
    tensors = [_wide(x) for x in (grad_output, input, weight, offset,
                                  mask if use_mask else input[:1, :1],
                                  bias if bias is not None else input.new_zeros(len(weight)))]
    return _tv._deform_conv2d_backward(*tensors, *geometry, use_mask)


def deform_conv_forward(input, weight, offset, output, columns, ones, kW, kH, dW, dH, padW,
                        padH, dilationW, dilationH, group, deformable_group, im2col_step):
    output.copy_(_deform_conv(
        input, weight, offset, None, None, dH, dW, padH, padW, dilationH, dilationW, group,
        deformable_group))


def deform_conv_backward_input(input, offset, gradOutput, gradInput, gradOffset, weight,
                               columns, kW, kH, dW, dH, padW, padH, dilationW, dilationH, group,
                               deformable_group, im2col_step):
    grad_input, _, grad_offset, _, _ = _deform_conv_backward(
        gradOutput, input, weight, offset, None, None, dH, dW, padH, padW, dilationH,
        dilationW, group, deformable_group)
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(input, offset, gradOutput, gradWeight, columns, ones, kW,
                                    kH, dW, dH, padW, padH, dilationW, dilationH, group,
                                    deformable_group, scale, im2col_step):
    _, grad_weight, _, _, _ = _deform_conv_backward(
        gradOutput, input, gradWeight, offset, None, None, dH, dW, padH, padW, dilationH,
        dilationW, group, deformable_group)
    gradWeight.add_(grad_weight, alpha=scale)


def modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns,
                                  kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
                                  dilation_h, dilation_w, group, deformable_group, with_bias):
    output.copy_(_deform_conv(
        input, weight, offset, mask, bias if with_bias else None, stride_h, stride_w, pad_h,
        pad_w, dilation_h, dilation_w, group, deformable_group))


def modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns,
                                   grad_input, grad_weight, grad_bias, grad_offset, grad_mask,
                                   grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h,
                                   pad_w, dilation_h, dilation_w, group, deformable_group,
                                   with_bias):
    grads = _deform_conv_backward(
        grad_output, input, weight, offset, mask, bias if with_bias else None, stride_h,
        stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, grad in zip(targets[:4 + with_bias], grads):
        target.copy_(grad)


# Focal losses


def _sigmoid_focal(input, target, weight, alpha):
    """Sign, logit of the right answer, and factor of each element, all (n, classes)."""
    input = _wide(input)
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    sign = torch.where(positive, 1., -1.).to(input)
    factor = torch.where(positive, alpha, 1 - alpha).to(input)
    if weight.numel():
        factor = factor * _wide(weight)[target, None]
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
    return 'not available' if version < 0 else (
        f"torchvision's, {version // 1000}.{version // 10 % 100}")


def _missing(operator):
    for name in ('onedl-mmcv', 'mmcv', 'mmcv-lite'):
        try:
            version = metadata.version(name)
            break
        except metadata.PackageNotFoundError:
            continue
    return (f'{operator} is not among the operators of mmcv-torchvision-ops; `MMCV_WITH_OPS=1 '
            f'pip install --no-cache-dir --no-build-isolation --no-deps --force-reinstall '
            f'--no-binary {name} {name}=={version}` builds mmcv with it')


def __getattr__(name):
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*args, **kwargs):
        raise NotImplementedError(_missing(name))

    return operator


# One line a run: not from data loader workers, nor from every rank.
if multiprocessing.parent_process() is None and os.environ.get('RANK', '0') == '0':
    logging.getLogger('mmcv').warning(
        'mmcv.ops: nms, roi_align, roi_pool and deformable convolution by torchvision %s, '
        'soft_nms, focal losses and deformable attention by PyTorch; other operators raise.',
        torchvision.__version__)

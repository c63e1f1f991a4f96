"""Whether exported models say what mm's own ``predict`` says."""
import copy
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ..errors import UserError
from . import known

BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 1e-3  # share of the pixels of label maps, and of masks within their boxes
TOLERANCE = 1e-4  # of logits and features, relative to the largest
# That much, too, where mm's own float32 is further from float64 than half of TOLERANCE.
LIMIT = 0.05
# Batch, height and width: no multiple of 32, one portrait, one batch of 3.
SIZES = ((1, 203, 310), (1, 250, 190), (3, 97, 131))

Outputs = Sequence[np.ndarray]


def pictures(shape: Tuple[int, int, int], paths: Sequence[str] = (), first: int = 0) -> Tensor:
    """RGB images (B, 3, H, W), uint8: files made to fit, or blobs and noise without files.

    Args:
        shape (tuple[int, int, int]): B, H and W.
        paths (Sequence[str]): The files. Those after number ``first`` are taken, in turn.
        first (int): See there; without files, seed of the random numbers.
    """
    B, H, W = shape
    if paths:
        from PIL import Image
        files = [paths[(first + i) % len(paths)] for i in range(B)]
        images = [np.array(Image.open(file).convert('RGB').resize((W, H))) for file in files]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(first)
    blobs = torch.rand(B, 3, H // 16 + 2, W // 16 + 2, generator=generator)
    blobs = F.interpolate(blobs, size=(H, W), mode='bilinear')
    noise = torch.rand(B, 3, H, W, generator=generator)
    return (255 * (0.85 * blobs + 0.15 * noise)).to(torch.uint8)


def predict(model: nn.Module, images: Tensor, sample: type) -> list:
    """mm's predictions of RGB images (B, 3, H, W), as data samples of a type."""
    hw = tuple(images.shape[-2:])
    data = [
        dict(inputs=image, data_samples=sample(
            metainfo=dict(img_shape=hw, ori_shape=hw, scale_factor=(1., 1.))))
        for image in images.flip(1)  # mm loads BGR
    ]
    with torch.no_grad():
        return model.test_step(pseudo_collate(data))


def check_detections(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare boxes, scores and labels, and masks if there are any.

    Both lists are in the order of scores. Where two scores differ by less than
    SCORE_TOLERANCE, their order may differ, and so may the last box of a list. A pixel of a
    mask may differ where its probability is within SCORE_TOLERANCE of the threshold.

    Args:
        model (nn.Module): Of MMDetection.
        images (Tensor): (B, 3, H, W), RGB, uint8.
        outputs (Sequence[np.ndarray]): Of the exported model.

    Returns:
        dict[str, float]: The largest errors, and the number of boxes compared.

    Raises:
        ValueError: They disagree.
    """
    from mmdet.structures import DetDataSample
    cfg = model.test_cfg.get('rcnn') or model.test_cfg
    result = dict(boxes=0., px=0., score=0.)
    for i, wanted in enumerate(predict(model, images, DetDataSample)):
        wanted = wanted.pred_instances
        found = [torch.from_numpy(output[i]) for output in outputs]
        found = [output[found[2] >= 0] for output in found]
        pairs = match(wanted, found, cfg)
        a, b = pairs.T
        result['boxes'] += len(pairs)
        if len(pairs):
            worst = (wanted.bboxes[a] - found[0][b]).abs().max().item()
            result['px'] = max(result['px'], worst)
            worst = (wanted.scores[a] - found[1][b]).abs().max().item()
            result['score'] = max(result['score'], worst)
        if len(found) > 3 and len(pairs):
            some, most = (paste(model, found, images.shape[-2:], shift)[b]
                          for shift in (SCORE_TOLERANCE, -SCORE_TOLERANCE))
            wrong = (some & ~wanted.masks[a] | ~most & wanted.masks[a]).sum().item()
            sides = (wanted.bboxes[a, 2:] - wanted.bboxes[a, :2]).clamp(min=1)
            share = wrong / sides.prod(1).sum().item()
            refuse_above('mask', share, PIXEL_TOLERANCE, 'of the pixels in boxes')
            result['mask'] = max(result.get('mask', 0.), share)
    return result


def match(wanted, found: List[Tensor], cfg) -> Tensor:
    """Pairs (n, 2) of the same box in both lists, see :func:`check_detections`."""
    boxes, scores, labels = found[:3]
    distance = (wanted.bboxes[:, None] - boxes).abs().amax(-1)  # (wanted, found)
    fits = (distance <= BOX_TOLERANCE) & (
        (wanted.scores[:, None] - scores).abs() <= SCORE_TOLERANCE) & (
            wanted.labels[:, None] == labels)
    pairs, free = [], torch.ones(len(labels), dtype=torch.bool)
    for i, row in enumerate(fits):
        if (row & free).any():
            j = distance[i].masked_fill(~(row & free), float('inf')).argmin().item()
            pairs.append((i, j))
            free[j] = False
    pairs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    # A score that differs may be on the other side of the threshold, or of the list's end.
    floor = cfg.score_thr
    for these in (wanted.scores, scores):
        if len(these) == cfg.max_per_img:
            floor = max(floor, these.min().item())
    missing = torch.ones(len(wanted.scores), dtype=torch.bool)
    missing[pairs[:, 0]] = False
    lone = torch.cat([wanted.scores[missing], scores[free]])
    if (lone > floor + SCORE_TOLERANCE).any():
        raise UserError(
            f'{int(missing.sum())} of {len(missing)} boxes of mm have none within '
            f'{BOX_TOLERANCE} px and {SCORE_TOLERANCE} of score, and {int(free.sum())} of '
            f'{len(free)} boxes of ONNX; the highest such score is {lone.max():.4f}')
    order = wanted.scores[pairs[pairs[:, 1].argsort(), 0]]
    if (order[1:] - order[:-1] > SCORE_TOLERANCE).any():
        raise UserError(f'boxes are in another order: {order.tolist()}')
    return pairs


def paste(model: nn.Module, found: List[Tensor], hw: Tuple[int, int],
          shift: float = 0.) -> Tensor:
    """mmdet's own masks (n, H, W) from probabilities (n, s, s) in boxes.

    ``shift`` is added to the threshold.
    """
    from mmengine.structures import InstanceData
    cfg = copy.copy(model.roi_head.test_cfg)
    cfg.mask_thr_binary += shift
    boxes, _, labels, masks = found
    head = model.roi_head.mask_head
    if not head.class_agnostic:
        masks = masks[:, None].expand(-1, head.num_classes, -1, -1)
    else:
        masks = masks[:, None]
    results = head.predict_by_feat(
        (masks, ), [InstanceData(bboxes=boxes.clone(), labels=labels)],
        [dict(scale_factor=(1., 1.), ori_shape=tuple(hw))], cfg, rescale=True,
        activate_map=True)
    return results[0].masks


def check_label_maps(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare the classes of pixels, see :func:`check_detections`."""
    from mmseg.structures import SegDataSample
    samples = predict(model, images, SegDataSample)
    wanted = torch.stack([sample.pred_sem_seg.data[0] for sample in samples])
    share = (wanted != torch.from_numpy(outputs[0])).float().mean().item()
    refuse_above('labels', share, PIXEL_TOLERANCE, 'of the pixels')
    return {'pixels wrong': share, 'classes': len(wanted.unique())}


def check_logits(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare logits as :func:`check_features` compares features.

    mm's scores have to be what :data:`mmrest.deploy.known.ACTIVATIONS` makes of its logits.
    """
    from mmpretrain.structures import DataSample
    samples = predict(model, images, DataSample)
    inputs = model.data_preprocessor(dict(inputs=images.flip(1)))['inputs']
    with torch.no_grad():
        plain = model(inputs, mode='tensor')
        exact = copy.deepcopy(model).double()(inputs.double(), mode='tensor')
    sigmoid = known.ACTIVATIONS[type(model.head).__name__] == 'sigmoid'
    scores = plain.sigmoid() if sigmoid else plain.softmax(-1)
    wanted = torch.stack([sample.pred_score for sample in samples])
    refuse_above('scores', (scores - wanted).abs().max().item(), TOLERANCE)
    return compare_with_float64('logits', outputs, [plain], [exact])


def check_features(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare a backbone's features with float64, relative to the largest of each stage.

    ``images`` are what the backbone gets. ONNX may be twice as far off as PyTorch in float32:
    an untrained ResT loses three digits, because its instance norm amplifies differences in
    nearly uniform maps.
    """
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        return compare_with_float64('features', outputs, model(images), exact)


def compare_with_float64(name: str, outputs: Outputs, plain: Sequence[Tensor],
                         exact: Sequence[Tensor]) -> Dict[str, float]:
    """See :func:`check_features`: what ONNX gives, and PyTorch in float32 and in float64."""
    errors = []
    for tensors in (plain, map(torch.from_numpy, outputs)):
        errors.append(max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
                          for a, b in zip(tensors, exact)))
    mm, found = errors
    refuse_above(name, found, min(max(TOLERANCE, 2 * mm), LIMIT), 'of the largest')
    return {name: found, f'{name} of PyTorch': mm}


def refuse_above(name: str, error: float, most: float, unit: str = '') -> None:
    if not error <= most:  # NaN too
        raise UserError(f'{name}: {error:.1e} off, at most {most:.0e} {unit}'.rstrip())

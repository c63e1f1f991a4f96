"""Whether exported detectors find what mm's own functions find, one stage after the other.

Non-maximum suppression is discontinuous: where two boxes score nearly the same, rounding
decides which one stays. So the boxes of ONNX are not compared with mm's list. They have to be
what suppression may leave of mm's candidates: each is a candidate, no two overlap by more than
the threshold, and what is missing is suppressed by one that is there and scores as high.
Near-ties, within the tolerances below, may go either way. mm's second stage gets the proposals
that ONNX had.
"""
import copy
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..errors import UserError
from .verify import PIXEL_TOLERANCE, Outputs, collate, predict, refuse_above

BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3
IOU_TOLERANCE = 5e-3  # mm's float32 moves boxes by 0.004 px, where there are 80 classes
ALL = 2**31 - 1


class Boxes(NamedTuple):
    """Boxes (n, 4) of one image. Those of two groups do not suppress each other."""
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    groups: Tensor

    def take(self, index: Tensor) -> 'Boxes':
        return Boxes(*(x[index] for x in self))


def check_detections(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare boxes, scores and labels, masks and proposals if there are any.

    A pixel of a mask may differ where its probability is within SCORE_TOLERANCE of the
    threshold.

    Args:
        model (nn.Module): Of MMDetection.
        images (Tensor): (B, 3, H, W), RGB, uint8.
        outputs (Sequence[np.ndarray]): Of the exported model: its names, and its probes if it
            has them. Without them, the proposals have to be mm's own.

    Returns:
        dict[str, float]: The largest differences, the number of ``boxes`` compared, and of
        those that mm's ``predict`` does not have because of ``near-ties``.

    Raises:
        UserError: They disagree.
    """
    from mmdet.structures import DetDataSample
    data = model.data_preprocessor(collate(images, DetDataSample), False)
    metas = [sample.metainfo for sample in data['data_samples']]
    with torch.no_grad():
        features = model.extract_feat(data['inputs'])
        if hasattr(model, 'roi_head'):
            *outputs, boxes, scores = with_probes(model, outputs, features, metas)
            cfg, candidates = second_stage(model, features, metas, proposals(boxes, scores))
        else:
            cfg = model.bbox_head.test_cfg
            candidates = [dense(model.bbox_head, cfg, features, metas, sign)
                          for sign in (1, -1)]
        found = [from_outputs(outputs, i) for i in range(len(images))]
        result = compare('boxes', found, candidates, cfg)
        own = predict(model, images, DetDataSample)
        result['near-ties'] = float(sum(
            (assign(boxes, from_mm(sample.pred_instances)) < 0).sum().item()
            for boxes, sample in zip(found, own)))
        if len(outputs) > 3:
            result['mask'] = compare_masks(model, features, metas, found, outputs[3])
    return result


def from_mm(instances: InstanceData) -> Boxes:
    return Boxes(instances.bboxes, instances.scores, instances.labels, instances.labels)


def from_outputs(outputs: Outputs, i: int) -> Boxes:
    boxes, scores, labels = (torch.from_numpy(output[i]) for output in outputs[:3])
    return Boxes(boxes, scores, labels, labels).take(labels >= 0)


def with_probes(model: nn.Module, outputs: Outputs, features: Sequence[Tensor],
                metas: List[dict]) -> Outputs:
    """The outputs with proposals (B, n, 4) and their scores, -1 where there is none.

    Raises:
        UserError: They are not what mm's RPN may leave.
    """
    head = model.rpn_head
    if len(outputs) < 5:
        own = head.predict_by_feat(*head(features), batch_img_metas=metas)
        boxes, scores = (nn.utils.rnn.pad_sequence(
            [one[name] for one in own], batch_first=True, padding_value=-1.).numpy()
            for name in ('bboxes', 'scores'))
        return [*outputs, boxes, scores]
    candidates = [dense(head, head.test_cfg, features, metas, sign) for sign in (1, -1)]
    found = []
    for one in proposals(*outputs[-2:]):
        zeros = torch.zeros(len(one), dtype=torch.int64)
        found.append(Boxes(one.bboxes, one.scores, zeros, zeros))
    compare('proposals', found, candidates, head.test_cfg)
    return outputs


def proposals(boxes: np.ndarray, scores: np.ndarray) -> List[InstanceData]:
    """Those of each image that are there, as mm's second stage takes them."""
    found = []
    for box, score in zip(map(torch.from_numpy, boxes), map(torch.from_numpy, scores)):
        there = score >= 0
        found.append(InstanceData(bboxes=box[there], scores=score[there]))
    return found


def second_stage(model: nn.Module, features: Sequence[Tensor], metas: List[dict],
                 found: List[InstanceData]) -> Tuple[dict, List[List[Boxes]]]:
    """The config of mm's second stage, and its candidates as of :func:`dense`."""
    candidates = []
    for sign in (1, -1):
        seen: List[Tensor] = []
        cfg = without_suppression(model.roi_head.test_cfg, sign, seen)
        results = model.roi_head.predict_bbox(features, metas, found, cfg)
        candidates.append([with_groups(one, model.roi_head.test_cfg, seen) for one in results])
    return model.roi_head.test_cfg, candidates


def dense(head: nn.Module, cfg: dict, features: Sequence[Tensor], metas: List[dict],
          sign: int) -> List[Boxes]:
    """What a head of one stage finds in each image before suppression.

    Args:
        sign (int): 1 adds boxes that are below the thresholds by less than the tolerances, -1
            leaves out those that are above by less.
    """
    seen: List[Tensor] = []
    results = head.predict_by_feat(*head(features), batch_img_metas=metas,
                                   cfg=without_suppression(cfg, sign, seen))
    return [with_groups(one, cfg, seen) for one in results]


def without_suppression(cfg: dict, sign: int, seen: List[Tensor]) -> dict:
    """A ``test_cfg`` with which all candidates stay, see :func:`dense`.

    ``seen`` gets the boxes of each image that has some, as mm moves their groups apart.
    """

    def keep_all(boxes: Tensor, scores: Tensor, **options) -> Tuple[Tensor, Tensor]:
        order = scores.argsort(descending=True)
        seen.append(boxes[order])
        return torch.cat([boxes, scores[:, None]], 1)[order], order

    few = max(cfg.get('nms_pre', 0) // 100, 10)
    cfg = copy.deepcopy(cfg)
    cfg.update(
        nms=dict(type=keep_all, split_thr=ALL), max_per_img=ALL,
        nms_pre=max(cfg.get('nms_pre', 0) + sign * few, 1),
        score_thr=cfg.get('score_thr', 0.) - sign * SCORE_TOLERANCE,
        min_bbox_size=max(cfg.get('min_bbox_size', -1), 0) - sign * BOX_TOLERANCE)
    return cfg


def with_groups(instances: InstanceData, cfg: dict, seen: List[Tensor]) -> Boxes:
    boxes, many = instances.bboxes, cfg.nms.get('split_thr', 10000)
    groups = torch.zeros_like(instances.labels)
    moved = seen.pop(0) if len(boxes) else boxes
    if not cfg.nms.get('class_agnostic', False) or len(boxes) >= many:
        groups = ((moved - boxes)[:, 0] / (boxes.max() + 1 if len(boxes) else 1)).round().long()
    return Boxes(boxes, instances.scores, instances.labels, groups)


def compare(name: str, found: List[Boxes], candidates: List[List[Boxes]],
            cfg: dict) -> Dict[str, float]:
    """The largest differences of all images, see :func:`check_suppression`."""
    result = dict(boxes=0., px=0., score=0.)
    for one, most, least in zip(found, *candidates):
        try:
            wanted = check_suppression(one, most, least, cfg)
        except UserError as error:
            raise UserError(f'{name}: {error}') from None
        result['boxes'] += len(one.scores)
        if len(one.scores):
            for key, a, b in zip(('px', 'score'), one, wanted):
                result[key] = max(result[key], (a - b).abs().max().item())
    return result


def check_suppression(found: Boxes, most: Boxes, least: Boxes, cfg: dict) -> Boxes:
    """Refuse boxes that suppression cannot leave of mm's candidates.

    Args:
        found (Boxes): In the order of their scores.
        most (Boxes): All that may be candidates.
        least (Boxes): Those that surely are.
        cfg (dict): With ``nms.iou_threshold`` and ``max_per_img``.

    Returns:
        Boxes: mm's candidates that are found.
    """
    index = assign(found, most)
    strange = found.scores[index < 0]
    if len(strange):
        raise UserError(
            f'{len(strange)} of {len(index)} of ONNX are none of mm, within {BOX_TOLERANCE} px '
            f'and {SCORE_TOLERANCE} of score; the highest such score is {strange.max():.4f}')
    kept, iou = most.take(index), cfg['nms']['iou_threshold']
    if (kept.scores[1:] - kept.scores[:-1] > SCORE_TOLERANCE).any():
        raise UserError(f'they are in another order: {kept.scores.tolist()}')
    overlap = overlaps(kept, kept).triu(1)
    if (overlap > iou + IOU_TOLERANCE).any():
        raise UserError(f'two overlap by {overlap.max():.3f}, nms.iou_threshold={iou}')
    explained = (overlaps(least, kept) > iou - IOU_TOLERANCE) & (
        kept.scores > least.scores[:, None] - SCORE_TOLERANCE)
    missing = least.scores[~explained.any(1)]
    if len(kept.scores) >= cfg['max_per_img']:
        missing = missing[missing > kept.scores.min() + SCORE_TOLERANCE]
    if len(missing):
        raise UserError(f'ONNX lacks {len(missing)} of mm beside its {len(index)}; the highest '
                        f'score is {missing.max():.4f}')
    return kept


def overlaps(a: Boxes, b: Boxes) -> Tensor:
    """(n, m), zero between two groups."""
    return box_iou(a.boxes, b.boxes) * (a.groups[:, None] == b.groups)


def assign(found: Boxes, wanted: Boxes) -> Tensor:
    """(n, ), the nearest box of ``wanted`` within the tolerances, each once; -1 for none."""
    px = (found.boxes[:, None] - wanted.boxes).abs().amax(-1)
    off = (found.scores[:, None] - wanted.scores).abs()
    fits = (px <= BOX_TOLERANCE) & (off <= SCORE_TOLERANCE) & (
        found.labels[:, None] == wanted.labels)
    distance = torch.where(fits, px / BOX_TOLERANCE + off / SCORE_TOLERANCE, torch.inf)
    index = torch.full((len(distance), ), -1)
    for i, row in enumerate(distance if len(wanted.scores) else ()):
        j = row.argmin()
        if row[j] < torch.inf:
            index[i] = j
            distance[:, j] = torch.inf
    return index


def compare_masks(model: nn.Module, features: Sequence[Tensor], metas: List[dict],
                  found: List[Boxes], masks: np.ndarray) -> float:
    """The largest share of an image's pixels in boxes with another mask than mm's."""
    instances = [InstanceData(bboxes=one.boxes.clone(), scores=one.scores, labels=one.labels)
                 for one in found]
    wanted = model.roi_head.predict_mask(features, metas, instances, rescale=False)
    worst = 0.
    for one, mm, probabilities in zip(found, wanted, masks):
        if len(one.scores):
            crops = torch.from_numpy(probabilities[:len(one.scores)])
            some, most = (paste(model, one, crops, mm.masks.shape[1:], shift)
                          for shift in (SCORE_TOLERANCE, -SCORE_TOLERANCE))
            wrong = (some & ~mm.masks | ~most & mm.masks).sum().item()
            sides = (one.boxes[:, 2:] - one.boxes[:, :2]).clamp(min=1)
            worst = max(worst, wrong / sides.prod(1).sum().item())
    refuse_above('mask', worst, PIXEL_TOLERANCE, 'of the pixels in boxes')
    return worst


def paste(model: nn.Module, found: Boxes, masks: Tensor, hw: Tuple[int, int],
          shift: float = 0.) -> Tensor:
    """mmdet's own masks (n, H, W) from probabilities (n, s, s) in boxes.

    ``shift`` is added to the threshold.
    """
    cfg = copy.copy(model.roi_head.test_cfg)
    cfg.mask_thr_binary += shift
    head = model.roi_head.mask_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    channels = 1 if head.class_agnostic else head.num_classes
    results = head.predict_by_feat(
        (masks[:, None].expand(-1, channels, -1, -1), ),
        [InstanceData(bboxes=found.boxes.clone(), labels=found.labels)],
        [dict(scale_factor=(1., 1.), ori_shape=tuple(hw))], cfg, rescale=True,
        activate_map=True)
    return results[0].masks

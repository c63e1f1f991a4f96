"""MMDetection's detectors as plain modules that can be exported.

Images (B, 3, H, W) become ``boxes`` (B, n, 4), x1 y1 x2 y2 in pixels, ``scores`` (B, n) and
``labels`` (B, n), -1 where there is nothing; n is the config's ``max_per_img``. Inside, too,
the number of boxes is fixed, so that nothing depends on what an image shows; boxes that are not
there have the score NOTHING.
"""
from typing import Iterable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from . import known
from .dense import OnnxModel, Preprocess

NOTHING = -1.


@torch.library.custom_op('mmrest::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, score_thr: float) -> Tensor:
    """Non-maximum suppression as ONNX has it, with batches and a threshold of the scores.

    torchvision's operator knows neither, and so does not export.

    Args:
        boxes (Tensor): (B, N, 4).
        scores (Tensor): (B, N).

    Returns:
        Tensor: (n, 2), image and box of those that are kept.
    """
    kept = []
    for i in range(len(boxes)):
        there, = (scores[i] > score_thr).nonzero(as_tuple=True)
        box = there[torchvision.ops.nms(boxes[i, there], scores[i, there], iou_threshold)]
        kept.append(torch.stack([torch.full_like(box, i), box], 1))
    return torch.cat(kept)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_thr: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


def translations() -> dict:
    """What ``torch.onnx.export`` writes for :func:`nms`."""
    from onnxscript import FLOAT
    from onnxscript import opset18 as op

    def translate(boxes: FLOAT, scores: FLOAT, iou_threshold: float, score_thr: float):
        kept = op.NonMaxSuppression(  # (n, 3): image, class, box
            boxes, op.Unsqueeze(scores, [1]), op.Constant(value_ints=[2**31 - 1]),
            op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[score_thr]))
        return op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)

    return {torch.ops.mmrest.nms.default: translate}


def best(boxes: Tensor, scores: Tensor, groups: Tensor, cfg) -> Tuple[Tensor, Tensor]:
    """mmcv's ``batched_nms`` for a batch: the ``cfg.max_per_img`` best boxes (B, N, 4).

    A box suppresses others of its group alone. Returns scores and indices (B, max_per_img).
    """
    # Groups are moved apart by more than the largest coordinate, in float32 as mmcv does it.
    there = scores[..., None] > NOTHING
    if cfg.nms.get('class_agnostic', False):  # which mmcv forgets where there are many boxes
        groups = groups * (there.sum(1) >= cfg.nms.get('split_thr', 10000))
    most = torch.where(there, boxes, torch.zeros_like(boxes)).amax((1, 2), keepdim=True)
    apart = boxes + groups.to(boxes)[..., None] * (most + 1)
    image, box = nms(apart, scores, cfg.nms.iou_threshold, NOTHING / 2).unbind(1)
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep = keep.index_put((image, box), torch.ones_like(box, dtype=torch.bool))
    return torch.where(keep, scores, torch.full_like(scores, NOTHING)).topk(cfg.max_per_img)


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, c), (B, n) -> (B, n, c)"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def decode(coder, anchors: Tensor, deltas: Tensor, whwh: Tensor) -> Tensor:
    """Boxes (B, n, 4) of anchors and deltas (B, n, 4), clipped to the image.

    Anchors that are points (B, n, 2) have distances to the four sides as their deltas.
    """
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
    from mmdet.structures.bbox import distance2bbox
    if anchors.shape[-1] == 2:
        boxes = distance2bbox(anchors, deltas)
    else:
        boxes = delta2bbox(
            anchors.reshape(-1, 4), deltas.reshape(-1, 4), coder.means, coder.stds, None,
            add_ctr_clamp=coder.add_ctr_clamp, ctr_clamp=coder.ctr_clamp).view(anchors.shape)
    if not coder.clip_border:
        return boxes
    return boxes.clamp(min=0).minimum(whwh)


class Candidates(nn.Module):
    """The best ``nms_pre`` boxes of each level of a dense head, with anchors or points.

    Args:
        head (nn.Module): Of mm.
        cfg (ConfigDict): Its ``test_cfg``.
        score_thr (float): Boxes have a higher score.
    """

    def __init__(self, head: nn.Module, cfg, score_thr: float = NOTHING):
        super().__init__()
        self.head, self.cfg, self.score_thr = head, cfg, score_thr

    def forward(self, features: Sequence[Tensor], whwh: Tensor) -> List[Tensor]:
        """Boxes (B, n, 4), and (B, n) each: scores, classes, levels."""
        logits, deltas, *centerness = self.head(features)
        anchors = self.head.prior_generator.grid_priors(
            [x.shape[-2:] for x in logits], dtype=deltas[0].dtype, device=deltas[0].device)
        deltas = [x.permute(0, 2, 3, 1) for x in deltas]
        if hasattr(self.head, 'integral'):  # GFL: distances as distributions
            anchors = [self.head.anchor_center(x) for x in anchors]
            project = self.head.integral.project.clone()  # else the exporter loses its name
            deltas = [F.linear(x.unflatten(-1, (4, -1)).softmax(-1), project) * stride[0]
                      for x, stride in zip(deltas, self.head.prior_generator.strides)]
        levels = [self.level(*level, whwh) for level in zip(
            logits, deltas, centerness[0] if centerness else [None] * len(logits), anchors)]
        number = [torch.full_like(labels, i) for i, (_, _, labels) in enumerate(levels)]
        return [torch.cat(x, 1) for x in (*zip(*levels), number)]

    def level(self, logits: Tensor, deltas: Tensor, centerness: Optional[Tensor],
              anchors: Tensor, whwh: Tensor):
        B, C, k = len(logits), self.head.cls_out_channels, self.cfg.nms_pre
        scores = logits.permute(0, 2, 3, 1).reshape(B, -1, C)  # (B, anchors, C)
        if self.head.use_sigmoid_cls:
            scores = scores.sigmoid()
        else:
            C -= 1
            scores = scores.softmax(-1)[..., :C]
        scores = scores.reshape(B, -1)
        # Padded, so that any size of image has enough for topk.
        scores, index = torch.cat([scores, scores.new_full((B, k), NOTHING)], 1).topk(k)
        there = scores > self.score_thr
        index = torch.where(there, index, torch.zeros_like(index))
        anchor = index // C
        boxes = decode(self.head.bbox_coder, take(anchors.expand(B, -1, -1), anchor),
                       take(deltas.reshape(B, -1, 4), anchor), whwh)
        if centerness is not None:
            centerness = centerness.permute(0, 2, 3, 1).reshape(B, -1).sigmoid()
            scores = scores * centerness.gather(1, anchor)
        least = self.cfg.get('min_bbox_size', -1)
        if least >= 0:
            there = there & (boxes[..., 2:] - boxes[..., :2] > least).all(-1)
        return boxes, torch.where(there, scores, torch.full_like(scores, NOTHING)), index % C


def finish(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    there = scores > NOTHING
    return (torch.where(there[..., None], boxes, torch.zeros_like(boxes)),
            torch.where(there, scores, torch.zeros_like(scores)),
            torch.where(there, labels, torch.full_like(labels, -1)))


class OnnxDetector(OnnxModel):
    """What both kinds of detectors share.

    Raises:
        UserError: The model has an option or a part that is not known.
    """
    names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module):
        super().__init__()
        known.check(model)
        self.preprocess = Preprocess(model.data_preprocessor)
        self.backbone, self.cfg = model.backbone, model.test_cfg
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        H, W = image.shape[-2:]
        features = self.neck(self.backbone(self.preprocess(image)))
        return self.detect(features, torch.tensor([W, H, W, H], dtype=torch.float32))

    def detect(self, features: Sequence[Tensor], whwh: Tensor) -> Tuple[Tensor, ...]:
        """What is in the features of images of a size W H W H, (4, )."""
        raise NotImplementedError


class OneStage(OnnxDetector):
    """RetinaNet, FCOS, ATSS, GFL and RTMDet."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.candidates = Candidates(model.bbox_head, self.cfg, self.cfg.get('score_thr', 0.))

    def detect(self, features: Sequence[Tensor], whwh: Tensor) -> Tuple[Tensor, ...]:
        boxes, scores, labels, _ = self.candidates(features, whwh)
        scores, index = best(boxes, scores, labels, self.cfg)
        return finish(take(boxes, index), scores, labels.gather(1, index))


class TwoStage(OnnxDetector):
    """Faster and Cascade R-CNN, and with masks, which are ``masks`` (B, n, s, s),
    probabilities in each box.

    The probes are the boxes that the first stage proposes, and their scores.
    """
    probes = ('proposals', 'objectness')

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.candidates = Candidates(model.rpn_head, self.cfg.rpn)
        self.roi = model.roi_head
        if model.with_mask:
            self.names = (*self.names, 'masks')
            self.metadata = dict(mask_threshold=self.cfg.rcnn.get('mask_thr_binary', 0.5))

    def detect(self, features: Sequence[Tensor], whwh: Tensor) -> Tuple[Tensor, ...]:
        boxes, scores, _, levels = self.candidates(features, whwh)
        scores, index = best(boxes, scores, levels, self.cfg.rpn)
        boxes = take(boxes, index)
        found = self.classify(features, boxes, scores > NOTHING, whwh)
        masks = (self.masks(features, *found), ) if 'masks' in self.names else ()
        return (*found, *masks, boxes, scores)

    def classify(self, features: Sequence[Tensor], boxes: Tensor, there: Tensor,
                 whwh: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The second stage's boxes, scores and labels from proposals (B, n, 4)."""
        B, n, _ = boxes.shape
        image = torch.arange(B)[:, None].expand(B, n).reshape(-1)
        all_logits: List[Tensor] = []
        *first, (head, extractor) = stages(self.roi.bbox_head, self.roi.bbox_roi_extractor)
        for one, its_extractor in first:  # of Cascade R-CNN
            logits, deltas = one(crop(its_extractor, features, boxes.reshape(-1, 4), image))
            all_logits.append(logits)
            boxes = refine(one, boxes, logits, deltas, whwh)
        logits, deltas = head(crop(extractor, features, boxes.reshape(-1, 4), image))
        all_logits.append(logits)
        C = head.num_classes
        scores = sum(all_logits) / len(all_logits)
        scores = scores.softmax(-1)[:, :C].reshape(B, n, C)
        there = there[..., None] & (scores > self.cfg.rcnn.score_thr)
        scores = torch.where(there, scores, torch.full_like(scores, NOTHING)).view(B, n * C)
        each = 1 if head.reg_class_agnostic else C
        boxes = boxes[:, :, None].expand(B, n, each, 4).reshape(B, n * each, 4)
        boxes = decode(head.bbox_coder, boxes, deltas.view(B, n * each, 4), whwh)
        boxes = boxes.view(B, n, each, 4).expand(B, n, C, 4).reshape(B, n * C, 4)
        labels = torch.arange(C).repeat(n).expand(B, n * C)
        scores, index = best(boxes, scores, labels, self.cfg.rcnn)
        return finish(take(boxes, index), scores, labels.gather(1, index))

    def masks(self, features: Sequence[Tensor], boxes: Tensor, scores: Tensor,
              labels: Tensor) -> Tensor:
        # Convolutions are for boxes that are there; one more, so that there always is one.
        wanted = (labels >= 0) | (torch.arange(labels.shape[1]) == 0)
        image, index = wanted.nonzero(as_tuple=True)
        torch._check(image.shape[0] > 0)  # for torch.export
        masks = torch.stack([
            head(crop(extractor, features, boxes[image, index], image)).sigmoid()
            for head, extractor in stages(self.roi.mask_head, self.roi.mask_roi_extractor)
        ]).mean(0)
        label = labels[image, index]
        # Not label.clamp(min=0), which onnxruntime's OpenVINO computes as zeros.
        masks = of_class(masks, torch.where(label < 0, torch.zeros_like(label), label))
        full = masks.new_zeros((*labels.shape, *masks.shape[1:]))
        full = full.index_put((image, index), masks)
        return torch.where((labels >= 0)[..., None, None], full, torch.zeros_like(full))


def stages(head: nn.Module, extractor: nn.Module) -> Iterable[Tuple[nn.Module, nn.Module]]:
    """Pairs of a head and its extractor, several of Cascade R-CNN."""
    return zip(head, extractor) if isinstance(head, nn.ModuleList) else [(head, extractor)]


def of_class(x: Tensor, label: Tensor) -> Tensor:
    """(n, C, ...), (n, ) -> (n, ...); C is 1 of what is the same for all classes."""
    n, C = x.shape[:2]
    return x.flatten(0, 1)[torch.arange(n) * C + (label if C > 1 else 0)]


def refine(head: nn.Module, boxes: Tensor, logits: Tensor, deltas: Tensor,
           whwh: Tensor) -> Tensor:
    """Boxes (B, n, 4) as a stage moves them for their likeliest class."""
    deltas = of_class(deltas.view(len(deltas), -1, 4), logits[:, :-1].argmax(1))
    return decode(head.bbox_coder, boxes, deltas.reshape(boxes.shape), whwh)


def crop(extractor: nn.Module, features: Sequence[Tensor], boxes: Tensor,
         image: Tensor) -> Tensor:
    """SingleRoIExtractor: features (n, c, s, s) of boxes (n, 4) in images (n,).

    With torchvision's RoIAlign, which is mmcv's to the last digit and exports.
    """
    rois = torch.cat([image[:, None].to(boxes), boxes], 1)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    indices = [(levels == i).nonzero()[:, 0] for i in range(extractor.num_inputs)]
    parts = [
        torchvision.ops.roi_align(x, rois[index], layer.output_size, layer.spatial_scale,
                                  layer.sampling_ratio, layer.aligned)
        for x, index, layer in zip(features, indices, extractor.roi_layers)
    ]
    order = torch.cat(indices)
    back = torch.zeros_like(levels).index_put((order, ), torch.arange(order.shape[0]))
    return torch.cat(parts)[back]

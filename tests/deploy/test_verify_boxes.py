"""What the check of detectors lets through, and what it refuses."""
import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmrest.deploy import verify, verify_boxes
from mmrest.deploy.export import FAMILIES
from mmrest.deploy.verify_boxes import Boxes, check_suppression
from mmrest.errors import UserError

from .models import build

CFG = dict(nms=dict(iou_threshold=0.5), max_per_img=8)


def boxes(*rows):
    """Boxes of rows x, width, score, label; all are 10 high."""
    x, width, scores, labels = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4).T
    zeros = torch.zeros_like(x)
    return Boxes(torch.stack([x, zeros, x + width, zeros + 10], 1), scores, labels.long(),
                 labels.long())


# Pairs that overlap by 0.67 at 0, by 0.504 at 40; one apart; one of another class.
CANDIDATES = boxes((0, 10, 0.9, 0), (2, 10, 0.8995, 0), (40, 10, 0.8, 1), (43.3, 10, 0.798, 1),
                   (80, 10, 0.6, 2), (0, 10, 0.5, 3))
KEPT = CANDIDATES.take(torch.tensor([0, 2, 4, 5]))


def check(found, **cfg):
    return check_suppression(found, CANDIDATES, CANDIDATES, dict(CFG, **cfg))


def kept(*index):
    return CANDIDATES.take(torch.tensor(index))


@pytest.mark.parametrize('index, cfg', [
    ([0, 2, 4, 5], {}), ([1, 2, 4, 5], {}),  # a score 0.0005 less than the other's
    # An overlap near the threshold
    ([0, 2, 3, 4, 5], {}), ([0, 2, 4, 5], dict(nms=dict(iou_threshold=0.506))),
    ([0, 2, 4], dict(max_per_img=3))])
def test_what_suppression_may_leave_passes(index, cfg):
    found = kept(*index)
    assert all(map(torch.equal, check(found, **cfg), found))


@pytest.mark.parametrize('index, cfg, words', [
    ([0, 2, 3, 4, 5], dict(nms=dict(iou_threshold=0.49)),
     'two overlap by 0.504, nms.iou_threshold=0.49'),
    ([0, 2, 4, 5], dict(nms=dict(iou_threshold=0.52)), 'lacks 1 .* score is 0.7980'),
    ([2, 4, 5], {}, 'lacks 2 of mm beside its 3'),
    ([0, 1, 2, 4, 5], {}, 'two overlap by 0.667'),
    ([0, 0, 2, 4, 5], {}, '1 of 5 of ONNX are none of mm'),  # one box is not two of mm
    # A pair of which only the worse is there, and the better is no near-tie: 0.8 and 0.798.
    ([0, 3, 4, 5], {}, 'lacks 1 of mm beside its 4; .* score is 0.80'),
    ([0, 2, 5, 4], {}, 'in another order'),
    ([0, 2, 4], dict(max_per_img=4), 'lacks 1 .* score is 0.5000'),
    ([0, 2, 5], dict(max_per_img=3), 'lacks 1 .* score is 0.6000')])
def test_what_it_cannot_leave_is_refused(index, cfg, words):
    with pytest.raises(UserError, match=words):
        check(kept(*index), **cfg)


@pytest.mark.parametrize('number, change', [(0, 0.05), (1, 5e-4)])
def test_small_differences_pass(number, change):
    found = KEPT._replace(**{KEPT._fields[number]: KEPT[number] + change})
    assert torch.equal(check(found).boxes, KEPT.boxes)


@pytest.mark.parametrize('number, place, change', [
    (0, (0, 3), 0.2), (1, 0, 2e-3), (2, 0, 1), (0, (1, 0), np.nan), (1, 1, np.nan)])
def test_large_differences_are_refused(number, place, change):
    found = Boxes(*(x.clone() for x in KEPT))
    found[number][place] += change
    with pytest.raises(UserError, match='1 of 4 of ONNX are none of mm, within 0.1 px'):
        check(found)


def test_what_only_may_be_a_candidate_may_be_there_or_not():
    for found in (KEPT, kept(0, 2, 4)):
        check_suppression(found, CANDIDATES, kept(*range(5)), CFG)


def test_groups_are_those_of_mm():
    instances = InstanceData(bboxes=KEPT.boxes, scores=KEPT.scores, labels=KEPT.labels)
    moved = KEPT.boxes + (KEPT.labels * (KEPT.boxes.max() + 1))[:, None]
    for options, wanted in ((dict(), [0, 1, 2, 3]), (dict(class_agnostic=True), [0] * 4),
                            (dict(class_agnostic=True, split_thr=4), [0, 1, 2, 3])):
        found = verify_boxes.with_groups(instances, ConfigDict(nms=options), [moved])
        assert found.groups.tolist() == wanted
    none = InstanceData(bboxes=moved[:0], scores=moved[:0, 0], labels=KEPT.labels[:0])
    assert len(verify_boxes.with_groups(none, ConfigDict(nms={}), []).groups) == 0


@pytest.fixture(scope='module')
def mask_rcnn():
    """A model, images, and what its export class gives."""
    model, images = build('mask_rcnn'), verify.pictures((1, 97, 61))
    with torch.no_grad():
        return model, images, [x.numpy() for x in FAMILIES['MaskRCNN'][0](model)(images)]


def test_without_probes_the_proposals_are_mms(mask_rcnn):
    model, images, outputs = mask_rcnn
    found = verify_boxes.check_detections(model, images, outputs[:-2])
    assert found['boxes'] > 10 and found['px'] == found['score'] == found['near-ties'] == 0


def test_near_ties_of_proposals_are_counted(mask_rcnn):
    """Scores of proposals that differ in the fourth digit let others stay, and other boxes."""
    model, images, _ = mask_rcnn
    network = FAMILIES['MaskRCNN'][0](copy.deepcopy(model))
    torch.manual_seed(0)
    network.candidates.head.rpn_cls.register_forward_hook(
        lambda module, args, out: out + 1e-3 * torch.randn_like(out))
    with torch.no_grad():
        outputs = [x.numpy() for x in network(images)]
    found = verify_boxes.check_detections(model, images, outputs)
    assert 0 < found['near-ties'] < found['boxes'] / 2 and found['px'] < 1e-3
    with pytest.raises(UserError, match='^boxes: '):
        verify_boxes.check_detections(model, images, outputs[:-2])  # from mm's own proposals


def test_masks_near_the_threshold_may_differ(mask_rcnn):
    model, _, outputs = mask_rcnn
    one = verify_boxes.from_outputs(outputs, 0).take(torch.arange(5))
    probabilities = torch.full((5, 28, 28), 0.5)
    some, most = (verify_boxes.paste(model, one, probabilities, (97, 61), shift)
                  for shift in (1e-3, -1e-3))
    assert not some.any() and most.any()

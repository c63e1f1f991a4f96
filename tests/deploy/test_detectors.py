"""The export classes of detectors as PyTorch runs them, compared with mm's predict."""
import pytest
import torch
import torchvision
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from torch.testing import assert_close

from mmrest.deploy import detectors, verify
from mmrest.deploy.export import FAMILIES

from .models import CASCADES, DENSE, build

PAIRS = [*((family, backbone) for family in ('retinanet', 'faster_rcnn', 'mask_rcnn')
           for backbone in ('ResT', 'ResTV2')),
         *((family, 'ResTV2') for family in (*DENSE, *CASCADES))]


@pytest.mark.parametrize('family, backbone', PAIRS)
def test_equal_to_predict_to_the_last_digit(family, backbone):
    model = build(family, backbone)
    wrapper, check = FAMILIES[type(model).__name__]
    network = wrapper(model).eval()
    assert network.names[3:] == (('masks', ) if 'mask' in family else ())
    for number, shape in enumerate([(1, 75, 130), (3, 97, 61)]):
        images = verify.pictures(shape, first=number)
        with torch.no_grad():
            outputs = [output.numpy() for output in network(images)]
        n = (model.test_cfg.get('rcnn') or model.test_cfg).max_per_img
        assert [output.shape for output in outputs[:3]] == [
            (shape[0], n, 4), (shape[0], n), (shape[0], n)]
        errors = check(model, images, outputs)
        assert errors.pop('boxes') > 10
        assert set(errors.values()) == {0.}
        for output in outputs[:len(network.names)]:
            assert not output[outputs[2] == -1].any() or output is outputs[2]


def test_nothing_is_found_where_nothing_is():
    model = build('mask_rcnn')
    torch.nn.init.constant_(model.roi_head.bbox_head.fc_cls.bias[-1:], 1e4)  # background
    with torch.no_grad():
        boxes, scores, labels, masks, *_ = detectors.TwoStage(model)(
            verify.pictures((2, 64, 64)))
    assert (labels == -1).all() and not boxes.any() and not scores.any() and not masks.any()
    assert masks.shape == (2, 100, 28, 28)


def test_nms_is_torchvisions_for_each_image():
    torch.manual_seed(0)
    corner = 50 * torch.rand(3, 200, 2)
    boxes = torch.cat([corner, corner + 30 * torch.rand(3, 200, 2)], 2)
    scores = torch.rand(3, 200)
    kept = detectors.nms(boxes, scores, 0.5, 0.3)
    for i in range(3):
        wanted = torchvision.ops.nms(boxes[i], scores[i], 0.5)
        wanted = wanted[scores[i, wanted] > 0.3]
        assert 10 < len(wanted) < 130
        assert_close(kept[kept[:, 0] == i, 1], wanted)


def test_best_is_mmcvs_batched_nms():
    torch.manual_seed(0)
    corner = 50 * torch.rand(2, 300, 2)
    boxes = torch.cat([corner, corner + 30 * torch.rand(2, 300, 2)], 2)
    scores, groups = torch.rand(2, 300), torch.randint(5, (2, 300))
    scores[0, ::2] = detectors.NOTHING
    boxes[0, 0] = 1e6  # is not there, so that it moves no group
    cfg = ConfigDict(nms=dict(type='nms', iou_threshold=0.4), max_per_img=250)
    found, index = detectors.best(boxes, scores, groups, cfg)
    for i in range(2):
        there = scores[i] >= 0
        wanted, kept = batched_nms(boxes[i, there], scores[i, there], groups[i, there], cfg.nms)
        assert 50 < len(kept) < 250
        assert_close(found[i, :len(kept)], wanted[:, 4], rtol=0, atol=0)
        assert_close(boxes[i, index[i, :len(kept)]], wanted[:, :4], rtol=0, atol=0)
        assert (found[i, len(kept):] == detectors.NOTHING).all()


@pytest.mark.parametrize('options, groups', [
    (dict(class_agnostic=True), 1), (dict(class_agnostic=True, split_thr=400), 1),
    (dict(class_agnostic=True, split_thr=300), 5), (dict(split_thr=10), 5)])
def test_options_of_suppression_are_mmcvs(options, groups):
    torch.manual_seed(0)
    corner = 50 * torch.rand(300, 2)
    boxes = torch.cat([corner, corner + 30 * torch.rand(300, 2)], 1)
    scores, labels = torch.rand(300), torch.randint(5, (300, ))
    cfg = ConfigDict(nms=dict(type='nms', iou_threshold=0.4, **options), max_per_img=280)
    wanted, kept = batched_nms(boxes, scores, labels, cfg.nms)
    found, index = detectors.best(boxes[None], scores[None], labels[None], cfg)
    assert len(kept) < 280 and (len(kept) > 220) == (groups == 5)
    assert_close(found[0, :len(kept)], wanted[:, 4], rtol=0, atol=0)
    assert_close(index[0, :len(kept)], kept, rtol=0, atol=0)
    assert (found[0, len(kept):] == detectors.NOTHING).all()

"""The export classes of detectors as PyTorch runs them, compared with mm's predict."""
import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from torch.testing import assert_close

from mmrest.deploy import detectors, verify, verify_boxes
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
    model, images = build('mask_rcnn'), verify.pictures((2, 64, 64))
    torch.nn.init.constant_(model.roi_head.bbox_head.fc_cls.bias[-1:], 1e4)  # background
    with torch.no_grad():
        outputs = [output.numpy() for output in detectors.TwoStage(model)(images)]
    boxes, scores, labels, masks, *_ = outputs
    assert (labels == -1).all() and not boxes.any() and not scores.any() and not masks.any()
    assert masks.shape == (2, 100, 28, 28)
    assert verify_boxes.check_detections(model, images, outputs)['boxes'] == 0


@pytest.mark.parametrize('options', [
    {}, dict(class_agnostic=True), dict(class_agnostic=True, split_thr=400),
    dict(class_agnostic=True, split_thr=300), dict(split_thr=10)])
def test_best_is_mmcvs_batched_nms(options):
    """Of two images: in one of them, half of the boxes are not there."""
    torch.manual_seed(0)
    corner = 0.5 * torch.rand(2, 300, 2) - 0.5
    boxes = torch.cat([corner, corner + 0.3 * torch.rand(2, 300, 2)], 2)
    scores, groups = torch.rand(2, 300), torch.randint(5, (2, 300))
    scores[0, ::2] = detectors.NOTHING
    boxes[0, 0] = 1e6  # is not there, so that it moves no group
    cfg = ConfigDict(nms=dict(type='nms', iou_threshold=0.4, **options), max_per_img=280)
    found, index = detectors.best(boxes, scores, groups, cfg)
    for i in range(2):
        there, = (scores[i] >= 0).nonzero(as_tuple=True)
        wanted, kept = batched_nms(boxes[i, there], scores[i, there], groups[i, there], cfg.nms)
        assert 50 < len(kept) < 280
        assert_close(found[i, :len(kept)], wanted[:, 4], rtol=0, atol=0)
        assert_close(index[i, :len(kept)], there[kept], rtol=0, atol=0)
        assert (found[i, len(kept):] == detectors.NOTHING).all()

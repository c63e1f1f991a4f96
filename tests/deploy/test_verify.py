"""What the check of exports lets through, and what it refuses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmrest.deploy import verify

IMAGES = torch.zeros(1, 3, 90, 120, dtype=torch.uint8)
SCORES = [0.9, 0.5, 0.4995, 0.3, 0.0505]


@pytest.fixture
def wanted(monkeypatch):
    """mm's five boxes in one image of 90 x 120, each with a mask."""
    boxes = torch.tensor([[i * 20., 10., i * 20. + 15., 40.] for i in range(5)])
    with DefaultScope.overwrite_default_scope('mmdet'):  # whatever other tests have left
        head = FCNMaskHead(num_convs=0, in_channels=4, class_agnostic=True, num_classes=9)
    cfg = ConfigDict(score_thr=0.05, max_per_img=8, mask_thr_binary=0.5)
    model = SimpleNamespace(test_cfg=ConfigDict(rcnn=cfg), roi_head=SimpleNamespace(
        mask_head=head, test_cfg=cfg))
    crops = torch.rand(5, 28, 28)
    found = [boxes, torch.tensor(SCORES), torch.tensor([0, 1, 2, 3, 4]), crops]
    masks = verify.paste(model, found, (90, 120))
    instances = InstanceData(bboxes=boxes, scores=found[1], labels=found[2], masks=masks)
    monkeypatch.setattr(verify, 'predict', lambda *_: [
        SimpleNamespace(pred_instances=instances)])
    return model


@pytest.fixture
def outputs(wanted):
    """The same from ONNX, padded to eight."""
    instances = verify.predict()[0].pred_instances
    found = [np.zeros((1, 8, 4), np.float32), np.zeros((1, 8), np.float32),
             np.full((1, 8), -1), np.zeros((1, 8, 28, 28), np.float32)]
    torch.manual_seed(0)
    for output, value in zip(found, (instances.bboxes, instances.scores, instances.labels)):
        output[0, :5] = value
    return found[:3]


def test_the_same_passes(wanted, outputs):
    assert verify.check_detections(wanted, IMAGES, outputs) == dict(boxes=5., px=0., score=0.)


def test_small_differences_pass_and_are_measured(wanted, outputs):
    outputs[0] += 0.05
    outputs[1][:, :5] += 5e-4
    found = verify.check_detections(wanted, IMAGES, outputs)
    assert found['boxes'] == 5
    assert found['px'] == pytest.approx(0.05, rel=1e-3)
    assert found['score'] == pytest.approx(5e-4, rel=1e-3)


def test_scores_less_than_the_tolerance_apart_may_change_places(wanted, outputs):
    for output in outputs:
        output[0, [1, 2]] = output[0, [2, 1]]
    assert verify.check_detections(wanted, IMAGES, outputs)['boxes'] == 5
    for output in outputs:
        output[0, [2, 3]] = output[0, [3, 2]]
    with pytest.raises(ValueError, match='another order'):
        verify.check_detections(wanted, IMAGES, outputs)


@pytest.mark.parametrize('number, place, change', [
    (0, (0, 0, 3), 0.2), (1, (0, 0), 2e-3), (2, (0, 0), 1), (0, (0, 1, 0), np.nan),
    (1, (0, 1), np.nan)])
def test_large_differences_are_refused(wanted, outputs, number, place, change):
    outputs[number][place] += change
    with pytest.raises(ValueError, match='1 of 5 boxes of mm have none within 0.1 px'):
        verify.check_detections(wanted, IMAGES, outputs)


def test_only_boxes_at_the_threshold_may_be_missing(wanted, outputs):
    outputs[2][0, 4] = -1
    assert verify.check_detections(wanted, IMAGES, outputs)['boxes'] == 4
    outputs[2][0, 3] = -1
    with pytest.raises(ValueError, match='2 of 5 boxes of mm have none .* 0.3000'):
        verify.check_detections(wanted, IMAGES, outputs)


def test_a_box_that_mm_does_not_find_is_refused(wanted, outputs):
    outputs[0][0, 5], outputs[1][0, 5], outputs[2][0, 5] = 50, 0.2, 3
    with pytest.raises(ValueError, match='1 of 6 boxes of ONNX; .* 0.2000'):
        verify.check_detections(wanted, IMAGES, outputs)


def test_the_end_of_a_full_list_is_a_threshold(wanted, outputs):
    wanted.test_cfg.rcnn.max_per_img = 5
    outputs[0][0, 4], outputs[1][0, 4], outputs[2][0, 4] = 50, 0.051, 7
    assert verify.check_detections(wanted, IMAGES, outputs)['boxes'] == 4


def test_masks(wanted, outputs):
    crops = torch.rand(1, 8, 28, 28)
    instances = verify.predict()[0].pred_instances
    found = [torch.from_numpy(output[0, :5]) for output in outputs] + [crops[0, :5]]
    instances.masks = verify.paste(wanted, found, (90, 120))
    assert verify.check_detections(wanted, IMAGES, [*outputs, crops.numpy()])['mask'] == 0
    crops[0, :5] = 0.5  # as of an untrained head: rounding decides
    instances.masks = verify.paste(wanted, found, (90, 120), -1e-3)
    instances.masks &= torch.rand(instances.masks.shape) < 0.5
    near = crops + 9e-4 * (2 * torch.rand(crops.shape) - 1)
    assert verify.check_detections(wanted, IMAGES, [*outputs, near.numpy()])['mask'] == 0
    crops[0, 0, :3] = 0.502
    instances.masks[0] = False
    with pytest.raises(ValueError, match='mask: .* off, at most 1e-03 of the pixels'):
        verify.check_detections(wanted, IMAGES, [*outputs, crops.numpy()])


def test_label_maps(monkeypatch):
    labels = torch.randint(5, (1, 1, 100, 100))
    monkeypatch.setattr(verify, 'predict', lambda *_: [
        SimpleNamespace(pred_sem_seg=PixelData(data=labels[0]))])
    found = labels[:, 0].numpy().copy()
    found[0, 0, :9] += 1
    assert verify.check_label_maps(None, IMAGES, [found]) == {
        'pixels wrong': pytest.approx(9e-4), 'classes': 5}
    found[0, 1, :9] += 1
    with pytest.raises(ValueError, match='labels: 1.8e-03 off'):
        verify.check_label_maps(None, IMAGES, [found])


class Rest(nn.Module):

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        return [x + (self.error if x.dtype == torch.float32 else 0)]


@pytest.mark.parametrize('plain, found, passes', [
    (0., 0.9e-4, True), (0., 1.1e-4, False), (1e-3, 1.9e-3, True), (1e-3, 2.1e-3, False),
    (0., np.nan, False)])
def test_features_may_be_twice_as_far_off_as_pytorchs(plain, found, passes):
    x = torch.ones(1, 3, 4, 5)
    outputs = [(x + found).numpy()]
    if passes:
        assert verify.check_features(Rest(plain), x, outputs)['features'] == pytest.approx(
            found, rel=1e-2)
    else:
        with pytest.raises(ValueError, match='features: .* off'):
            verify.check_features(Rest(plain), x, outputs)


def test_pictures_from_files(tmp_path):
    from PIL import Image
    paths = [tmp_path / f'{i}.png' for i in range(2)]
    for i, path in enumerate(paths):
        Image.new('RGB', (50, 40), (200, 10 * i, 0)).save(path)
    images = verify.pictures((3, 20, 30), paths, first=1)
    assert images.shape == (3, 3, 20, 30) and images.dtype == torch.uint8
    assert images[:, :, 5, 5].tolist() == [[200, 10, 0], [200, 0, 0], [200, 10, 0]]
    assert not torch.equal(verify.pictures((1, 20, 30)), verify.pictures((1, 20, 30), first=1))

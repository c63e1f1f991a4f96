"""Objects at the borders of tiles, with a detector that sees what is in its tile."""
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmrest import tiled
from mmrest.errors import MissingPackageError, UserError

needs_sahi = pytest.mark.skipif(find_spec('sahi') is None, reason='sahi is not installed')


def draw(*boxes, shape=(200, 300)):
    """A black picture with rectangles (x1, y1, x2, y2): green says which, red its class."""
    image = np.zeros((*shape, 3), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = 100 + i % 2, 1 + i, 0
    return image


class Seeing:
    """In place of MMDetection's inferencer: finds rectangles, the larger, the surer."""

    def __init__(self, masks=True):
        self.masks, self.tiles = masks, []
        self.model = SimpleNamespace(dataset_meta=dict(classes=['even', 'odd']))

    def pipeline(self, image):
        self.tiles.append(image.shape[:2])
        return dict(inputs=image)

    def forward(self, data):
        return data['inputs']

    def pred2dict(self, image):
        """Of BGR (h, w, 3), as mm loads it."""
        found = dict(labels=[], scores=[], bboxes=[], masks=[])
        for number in np.unique(image[..., 1])[1:]:
            mask = image[..., 1] == number
            (y1, x1), (y2, x2) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
            found['labels'].append(int(image[y1, x1, 2]) - 100)
            found['scores'].append(min(mask.sum() / 5000, 0.99))
            found['bboxes'].append([float(x) for x in (x1, y1, x2, y2)])
            found['masks'].append(mask_utils.encode(np.asfortranarray(mask, np.uint8)))
        if not self.masks:
            del found['masks']
        return found


def find(boxes, side=100, overlap=0.5, merge='NMS', **kwargs):
    """What is found of rectangles: boxes and masks, in their order."""
    image, detector = draw(*boxes), Seeing(**kwargs)
    found = tiled.find(detector, image, tiled.Tiling(side, overlap, merge, 0., 4))
    assert set(detector.tiles) == {(100, 100)}
    assert found['scores'] == sorted(found['scores'], reverse=True)
    order = np.lexsort(np.array(found['bboxes'])[:, :2].T) if found['bboxes'] else []
    masks = [mask_utils.decode(found['masks'][i]) for i in order] if 'masks' in found else None
    for i in order:
        x1, y1, *_ = map(int, found['bboxes'][i])
        assert found['labels'][i] == image[y1, x1, 0] - 100
    return [tuple(map(int, found['bboxes'][i])) for i in order], masks


@needs_sahi
@pytest.mark.parametrize('merge', ['NMS', 'GREEDYNMM', 'NMM'])
def test_an_object_in_several_tiles_is_found_once(merge):
    """Tiles begin at 0, 50, 100 and so on: these are in two to four tiles, some cut there."""
    boxes = [(10, 20, 30, 44), (95, 90, 120, 120), (140, 130, 190, 180), (260, 0, 300, 40)]
    found, masks = find(boxes, merge=merge)
    assert sorted(found) == sorted(boxes)
    for (x1, y1, x2, y2), mask in zip(found, masks):
        assert mask.shape == (200, 300) and mask.sum() == (x2 - x1) * (y2 - y1)
        assert mask[y1:y2, x1:x2].all()


@needs_sahi
def test_a_crowd_of_small_objects_stays():
    """Neighbours of one class whose boxes share a third, as masks in front of each other."""
    boxes = [(x, y, x + 12, y + 12) for y in range(2, 190, 24) for x in range(2, 280, 8)]
    found, _ = find(boxes[::2][:100], masks=False)
    assert sorted(found) == sorted(boxes[::2][:100])
    image = draw(*boxes[:30])  # each is in front of the one before
    whole = Seeing().pred2dict(image[..., ::-1])
    tiles = tiled.find(Seeing(), image, tiled.Tiling(100, 0.5))
    assert sorted(tiles['bboxes']) == sorted(whole['bboxes']) and len(whole['bboxes']) == 30


@needs_sahi
def test_an_object_larger_than_the_overlap():
    """No tile has it whole. NMS keeps its largest part, NMM joins parts and masks."""
    box = (20, 30, 130, 70)  # tiles begin at 0, 60, 120 and so on
    found, masks = find([box], overlap=0.4, merge='NMM')
    assert found == [box] and masks[0].sum() == masks[0][30:70, 20:130].sum() == 110 * 40
    found, masks = find([(10, 30, 110, 70)], overlap=0.25)
    assert found == [(10, 30, 100, 70)] and masks[0].sum() == 90 * 40


@needs_sahi
def test_masks_of_a_few_pixels_and_nothing_at_all():
    found, masks = find([])
    assert not found and masks == []
    boxes = [(50, 50, 51, 51), (150, 20, 152, 22), (220, 20, 221, 40)]
    found, masks = find(boxes)
    assert sorted(found) == boxes and sorted(mask.sum() for mask in masks) == [1, 4, 20]


def test_without_sahi(monkeypatch):
    def refuse(name):
        raise ImportError(f'No module named {name!r}')

    monkeypatch.setattr(tiled.importlib, 'import_module', refuse)
    monkeypatch.setattr(tiled.np, '__version__', '2.1.0')
    with pytest.raises(MissingPackageError, match='No module named .*pip install sahi'):
        tiled.import_sahi('slicing')
    monkeypatch.setattr(tiled.np, '__version__', '1.26.4')
    with pytest.raises(UserError, match="NumPy 2; OpenMMLab's own .* NumPy 1, here 1.26"):
        tiled.import_sahi('slicing')

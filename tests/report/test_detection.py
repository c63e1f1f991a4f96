"""The figures of a detector, beside pycocotools and a matching in plain Python."""
import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.testing import assert_close

from mmrest.errors import UserError
from mmrest.report import Report, detection

pytest.importorskip('hotcoco')
NAMES = {7: 'cat', 3: 'dog', 12: 'bird', 5: 'never there'}


def scene(seed=0, images=25, crowds=True):
    """Labels, and boxes and masks near them, double and stray."""
    rng = np.random.default_rng(seed)
    labels, boxes = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 9)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(10, 120, 2)]
            kind = int(rng.choice([7, 3, 12]))
            labels.append(thing(image, kind, box, id=len(labels) + 1, area=box[2] * box[3],
                                iscrowd=int(crowds and rng.random() < 0.1)))
            for _ in range(rng.integers(0, 4)):
                other = kind if rng.random() < 0.7 else int(rng.choice([7, 3, 12]))
                near = box + rng.normal(0, 4, 4)
                boxes.append(thing(image, other, near.tolist(), score=round(rng.random(), 2)))
        box = [*rng.uniform(0, 150, 2), *rng.uniform(10, 120, 2)]
        boxes.append(thing(image, 7, box, score=round(rng.random(), 2)))
    truth = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=300, height=300) for i in range(images)],
        categories=[dict(id=i, name=name) for i, name in sorted(NAMES.items())],
        annotations=labels)
    return truth, boxes


def thing(image, category, box, **more):
    x, y, w, h = map(float, box)
    corners = [[x, y, x + w, y, x, y + h]]  # a triangle: half the box
    rle = mask_utils.merge(mask_utils.frPyObjects(corners, 300, 300))
    rle['counts'] = rle['counts'].decode()
    return dict(image_id=image, category_id=category, bbox=[x, y, w, h], segmentation=rle,
                **more)


def pairs(labels, boxes, any_class):
    """One to one, the surest first: (box, label it is on or None)."""
    free, found = list(labels), []
    for box in sorted(boxes, key=lambda one: -one['score']):
        near = [one for one in free if one['image_id'] == box['image_id'] and (
            any_class or one['category_id'] == box['category_id'])]
        ious = mask_utils.iou([box['bbox']], [one['bbox'] for one in near], [0] * len(near))
        on = near[np.argmax(ious)] if near and np.max(ious) >= 0.5 else None
        if on:
            free.remove(on)
        found.append((box, on))
    return found


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_average_precision_is_that_of_pycocotools(kind):
    truth, boxes = scene()
    assert sum(one['iscrowd'] for one in truth['annotations']) > 3
    figures, _ = detection.count(truth, dict(bbox=boxes, segm=boxes), None)
    given = json.loads(json.dumps(boxes))
    for one in given if kind == 'segm' else ():
        del one['bbox']  # as mm does, for the sizes of masks
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        wanted = COCOeval(coco, coco.loadRes(given), kind)
        wanted.evaluate()
        wanted.accumulate()
        wanted.summarize()
    found = figures['kinds'][kind]
    np.testing.assert_allclose(list(found['ap'].values()), wanted.stats[:6], rtol=1e-9)
    precision = wanted.eval['precision'][..., -1]
    for k, row in enumerate(found['classes']):
        for area, key in enumerate(('AP', 'AP small', 'AP medium', 'AP large')):
            values = precision[:, :, k, area]
            assert (row[key] is None) == (values == -1).all()
            assert row[key] is None or row[key] == pytest.approx(values[values > -1].mean())
    assert [row['objects'] for row in found['classes'] if row['AP'] is None] == [0]


def test_confusions_and_worst_images_are_one_to_one():
    truth, boxes = scene(1, crowds=False)
    figures, _ = detection.count(truth, dict(bbox=boxes), 0.3)
    above = [one for one in boxes if one['score'] >= 0.3]
    index = {i: k for k, i in enumerate(sorted(NAMES))}
    wanted = np.zeros((5, 5), int)
    matched = pairs(truth['annotations'], above, any_class=True)
    for box, on in matched:
        wanted[index[on['category_id']] if on else 4, index[box['category_id']]] += 1
    for one in truth['annotations']:
        if all(one is not on for _, on in matched):
            wanted[index[one['category_id']], 4] += 1
    assert wanted[:4, :4].trace() < wanted[:4, :4].sum() and wanted[4].any()
    np.testing.assert_array_equal(figures['kinds']['bbox']['confusions'], wanted)

    matched = pairs(truth['annotations'], above, any_class=False)
    for image in figures['worst']:
        on = [label for box, label in matched if box['image_id'] == image['id']]
        labels = sum(one['image_id'] == image['id'] for one in truth['annotations'])
        right = sum(label is not None for label in on)
        assert (image['right'], image['wrong'], image['missed']) == (
            right, len(on) - right, labels - right)
    errors = [image['wrong'] + image['missed'] for image in figures['worst']]
    assert len(errors) == 12 and errors == sorted(errors, reverse=True) and errors[-1] > 0


def test_the_best_f1_is_that_of_all_scores():
    truth, boxes = scene(2, crowds=False)
    figures, _ = detection.count(truth, dict(bbox=boxes), None)

    def f1(labels, found, score):
        """F1, precision and recall of what is at least as sure."""
        kept = [one for one in found if one['score'] >= score]
        right = sum(on is not None for _, on in pairs(labels, kept, any_class=False))
        return (2 * right / (len(kept) + len(labels)), right / len(kept), right / len(labels))

    rows = {row['name']: row['best'] for row in figures['kinds']['bbox']['classes']}
    assert rows.pop('never there') is None
    for category, name in list(NAMES.items())[:3]:
        labels, found = ([one for one in things if one['category_id'] == category]
                         for things in (truth['annotations'], boxes))
        best = rows[name]
        assert f1(labels, found, best['score']) == pytest.approx(
            (best['f1'], best['precision'], best['recall']))
        assert best['f1'] == pytest.approx(
            max(f1(labels, found, one['score'])[0] for one in found))
    whole = figures['kinds']['bbox']['best']
    assert figures['score_thr'] == whole['score'] and figures['score_thr_is'] == 'best'
    by_score = figures['kinds']['bbox']['by_score']
    assert_close((by_score['f1'][40], by_score['precision'][40], by_score['recall'][40]),
                 f1(truth['annotations'], boxes, 0.4))


def test_nothing_found_and_crowds_alone():
    truth, boxes = scene(3)
    figures, _ = detection.count(truth, dict(bbox=[], segm=[]), None)
    total = sum(not one['iscrowd'] for one in truth['annotations'])
    assert figures['score_thr_is'] == 'default' and figures['objects'] == total
    for found in figures['kinds'].values():
        assert found['ap']['AP'] == 0 and found['best'] is None
        assert np.array(found['confusions'])[:4, 4].sum() == total
    assert sum(image['missed'] for image in figures['worst']) > 12
    plain = json.loads(Report(figures, '').json())
    assert plain['kinds']['bbox']['by_score']['precision'] == [None] * 101

    for one in truth['annotations']:
        one['iscrowd'] = 1
    on = [thing(one['image_id'], one['category_id'], one['bbox'], score=1.)
          for one in truth['annotations']]
    figures, _ = detection.count(truth, dict(bbox=on), None)
    assert figures['objects'] == 0 and figures['worst'] == []
    assert figures['kinds']['bbox']['ap']['AP'] is None


def test_a_wrong_label_is_the_first_to_look_at():
    truth, _ = scene(4, crowds=False)
    found = [thing(one['image_id'], one['category_id'], one['bbox'], score=0.9 - i / 1000)
             for i, one in enumerate(truth['annotations'])]
    # Less sure boxes of the labels' own classes, as most detectors have them.
    wrong, gone = truth['annotations'][0], truth['annotations'].pop(5)
    found += [dict(one, category_id=3 if one['category_id'] != 3 else 7, score=0.1)
              for one in found]
    was = wrong['category_id']
    wrong['category_id'] = found[len(truth['annotations']) + 1]['category_id']
    figures, _ = detection.count(truth, dict(bbox=found), 0.5)
    swapped, missing = figures['labels']
    assert (swapped['labelled'], swapped['found']) == (NAMES[wrong['category_id']], NAMES[was])
    assert swapped['file_name'] == f'{wrong["image_id"]}.jpg' and swapped['score'] == 0.9
    assert missing['labelled'] is None and missing['found'] == NAMES[gone['category_id']]
    assert missing['box'] == pytest.approx(gone['bbox'], abs=0.06)


def test_what_is_on_crowds_is_no_confusion():
    truth, _ = scene(5, images=1, crowds=False)
    truth['annotations'] = [thing(0, 7, [0, 0, 100, 100], id=1, iscrowd=1, area=10**4),
                            thing(0, 3, [200, 200, 50, 50], id=2, iscrowd=0, area=2500)]
    found = [thing(0, 7, [10, 10, 20, 20], score=0.9), thing(0, 3, [10, 10, 20, 20], score=0.8),
             thing(0, 3, [200, 200, 50, 50], score=0.7)]
    figures, _ = detection.count(truth, dict(bbox=found, segm=found), 0.5)
    for kind in ('bbox', 'segm'):  # dog, never there, cat, bird, nothing
        wanted = np.zeros((5, 5), int)
        wanted[0, 0] = wanted[4, 0] = 1  # the dog, and another on the crowd of cats
        np.testing.assert_array_equal(figures['kinds'][kind]['confusions'], wanted)


def test_found_objects_of_other_data_are_refused():
    truth, boxes = scene()
    for key in ('image_id', 'category_id'):
        with pytest.raises(UserError, match=f'1 of {len(boxes)} .* their {key}, such as 99'):
            detection.count(truth, dict(
                bbox=[dict(boxes[0], **{key: 99}), *boxes[1:]]), None)

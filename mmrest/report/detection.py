"""What a detector gets wrong in COCO's data, counted by hotcoco."""
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from mmengine.fileio import load

from ..errors import UserError
from .form import check_labels
from .pictures import NUM_WORST
from .predictions import Found

AREAS = ('all', 'small', 'medium', 'large')
IOU = 0.5  # of confusions, F1, error types and pictures
STEPS = 101  # points of a curve
NUM_LABELS = 50


class Matched(NamedTuple):
    """Each found object, in the order of its file, and each labelled one.

    Attributes:
        image (np.ndarray): (N, ) Image ids.
        category (np.ndarray): (N, ) Category ids.
        score (np.ndarray): (N, ).
        state (np.ndarray): (N, ) 1 right, 0 wrong, -1 not counted: on a crowd, or after the
            hundredth of its image.
        by (np.ndarray): (M, ) Which found object is right on a labelled one, or -1.
        counted (np.ndarray): (M, ) False for crowds.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    state: np.ndarray
    by: np.ndarray
    counted: np.ndarray


def read_truth(dataset: Any) -> dict:
    """Read the labels of a data set of mm, as COCO's format has them.

    Annotations get new ids from 1, because 0 means "none" where they are matched, and those
    of classes that the config does not have are left out.

    Raises:
        UserError: It is not in COCO's format, or has no labels, or lacks a class.
    """
    from mmdet.datasets import CocoDataset
    if not isinstance(dataset, CocoDataset):
        raise UserError(f'the test data is a {type(dataset).__name__}; a report of a detector '
                        'needs a CocoDataset')
    try:
        truth = load(dataset.ann_file, backend_args=dataset.backend_args)
    except (TypeError, ValueError) as error:  # of a name that does not end in .json, too
        raise UserError(f'{dataset.ann_file} is not JSON: {error}') from error
    check_labels(truth, dataset.ann_file)
    classes = dataset.metainfo['classes']
    lacking = set(classes) - {category['name'] for category in truth['categories']}
    if lacking:
        raise UserError(f'{dataset.ann_file} lacks classes of the config: '
                        f'{", ".join(sorted(lacking))}. MMDetection would give another number '
                        'to those after them')
    categories = [one for one in truth['categories'] if one['name'] in classes]
    known = {category['id'] for category in categories}
    objects = [one for one in truth['annotations'] if one['category_id'] in known]
    return dict(images=truth['images'], categories=sorted(categories, key=lambda c: c['id']),
                annotations=[_annotation(one, i) for i, one in enumerate(objects, 1)])


def _annotation(one, i):
    return dict(one, id=i, iscrowd=int(one.get('iscrowd', 0)),
                area=one.get('area', one['bbox'][2] * one['bbox'][3]))


def check_found(truth: dict, found: Found) -> None:
    """Refuse objects in images or of classes that the labels do not have.

    Raises:
        UserError: There are some.
    """
    for key, known in (('image_id', truth['images']), ('category_id', truth['categories'])):
        ids = {one['id'] for one in known}
        for objects in found.values():
            strange = [one[key] for one in objects if one[key] not in ids]
            if strange:
                raise UserError(
                    f'{len(strange)} of {len(objects)} found objects: the labels do not have '
                    f'their {key}, such as {strange[0]}. Is this the data on which they were '
                    'found?')


def count(truth: dict, found: Found, score_thr: Optional[float]) -> Tuple[dict, Matched]:
    """Count what is right and wrong.

    Args:
        truth (dict): From :func:`read_truth`.
        found (dict): Boxes as ``'bbox'``, and masks as ``'segm'`` if there are any.
        score_thr (float, optional): By default, the score with the best F1 of all boxes.

    Returns:
        tuple: The figures, and how boxes were matched with labels at IoU 0.5.
    """
    check_found(truth, found)
    crowds = sum(one['iscrowd'] for one in truth['annotations'])
    figures: dict = dict(images=len(truth['images']), crowds=crowds,
                         objects=len(truth['annotations']) - crowds, notes=[])
    found = {'bbox': found['bbox'], **found}
    if 'segm' in found and not all(one.get('segmentation') for one in truth['annotations']):
        del found['segm']
        figures['notes'].append('Some labels have no masks, so found masks are not judged.')
    evaluations = {kind: _evaluate(truth, found[kind], kind) for kind in found}
    matched = match(truth, found['bbox'], evaluations['bbox'])
    best = best_f1(matched, np.ones(len(matched.score), bool), figures['objects'])
    given = score_thr is not None
    figures.update(score_thr=score_thr if given else best['score'] if best else 0.5,
                   score_thr_is='given' if given else 'best' if best else 'default')
    figures['kinds'] = {
        kind: _figures(truth, found[kind], kind, evaluation, figures['score_thr'])
        for kind, evaluation in evaluations.items()}
    figures['labels'], figures['num_labels'] = labels_to_look_at(
        truth, found['bbox'], figures['score_thr'])
    figures['worst'] = worst_images(truth, matched, figures['score_thr'])
    return figures, matched


def _comparison(truth, objects, kind):
    from hotcoco import COCO, COCOeval
    labels = COCO(truth)
    if kind == 'segm':  # as mm does: else small and large are sizes of boxes
        objects = [{key: one[key] for key in one if key != 'bbox'} for one in objects]
    return COCOeval(labels, labels.load_res(objects), kind)


def _evaluate(truth, objects, kind):
    evaluation = _comparison(truth, objects, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def match(truth: dict, objects: List[dict], evaluation: Any) -> Matched:
    """The matches of each class at IoU 0.5. A score threshold does not change them: surer
    objects are matched first."""
    states = evaluation.image_diagnostics(iou_thr=IOU)
    codes = dict(tp=1, fp=0)
    by = states['gt_match']
    return Matched(
        np.array([one['image_id'] for one in objects]),
        np.array([one['category_id'] for one in objects]),
        np.array([one['score'] for one in objects], float),
        np.array([codes.get(states['dt_status'].get(i), -1)
                  for i in range(1, len(objects) + 1)], int),
        np.array([by.get(one['id'], 0) - 1 for one in truth['annotations']], int),
        np.array([not one['iscrowd'] for one in truth['annotations']], bool))


def best_f1(matched: Matched, chosen: np.ndarray, total: int) -> Optional[Dict[str, float]]:
    """The score with the best F1 of ``total`` labelled objects, precision and recall there.

    Args:
        matched (Matched): The matches.
        chosen (np.ndarray): (N, ) Which found objects count.
        total (int): How many there are to find.

    Returns:
        dict: None if nothing is right at any score.
    """
    chosen = chosen & (matched.state >= 0)
    order = np.argsort(-matched.score[chosen], kind='stable')
    score, right = matched.score[chosen][order], matched.state[chosen][order].cumsum()
    if not total or not len(right) or not right[-1]:
        return None
    number = np.arange(1, len(score) + 1)
    f1 = 2 * right / (number + total)
    f1[:-1][score[:-1] == score[1:]] = -1  # a threshold takes all of one score
    i = int(f1.argmax())
    return dict(f1=float(f1[i]), score=float(score[i]), precision=float(right[i] / number[i]),
                recall=float(right[i] / total))


def by_score(matched: Matched, total: int) -> Dict[str, List[Optional[float]]]:
    """Precision, recall and F1 of all classes together at scores from 0 to 1."""
    scores = np.linspace(0, 1, STEPS)
    kept, right = (np.sort(matched.score[matched.state >= state]) for state in (0, 1))
    kept, right = (len(one) - np.searchsorted(one, scores) for one in (kept, right))
    precision = [r / n if n else None for r, n in zip(right.tolist(), kept.tolist())]
    return dict(precision=precision, recall=(right / max(total, 1)).tolist(),
                f1=(2 * right / np.maximum(kept + total, 1)).tolist())


def _figures(truth, objects, kind, evaluation, score_thr) -> dict:
    """Of one kind: AP, classes, curves, confusions and types of errors."""
    matched = match(truth, objects, evaluation)
    confusions = _confusions(truth, objects, kind, matched, score_thr)
    errors = evaluation.tide_errors(pos_thr=IOU)
    precision = evaluation.eval['precision'][..., -1]  # (IoUs, recalls, classes, areas)
    total = int(matched.counted.sum())
    return dict(
        found=len(objects),
        above=int((matched.score >= score_thr).sum()),
        ap=average_precisions(precision),
        classes=_classes(truth, matched, precision),
        best=best_f1(matched, np.ones(len(objects), bool), total),
        by_score=by_score(matched, total),
        confusions=confusions.tolist(),
        errors={name: dict(gain=float(gain), number=errors['counts'].get(name))
                for name, gain in errors['delta_ap'].items()})


def _confusions(truth, objects, kind, matched, score_thr) -> np.ndarray:
    """(K + 1, K + 1) Labels by what was found. What AP does not count, crowds, is left out."""
    counted = [one for one, state in zip(objects, matched.state) if state >= 0]
    comparison = _comparison(truth, counted, kind)
    return comparison.confusion_matrix(iou_thr=IOU, min_score=score_thr)['matrix'].astype(int)


def average_precisions(precision: np.ndarray) -> Dict[str, Optional[float]]:
    """AP of all sizes, at IoU 0.5 and 0.75, and of each size.

    Args:
        precision (np.ndarray): (IoUs, recalls, ..., areas). Negative where there is no object.
    """
    chosen = dict(AP=precision[..., 0], AP50=precision[0, ..., 0], AP75=precision[5, ..., 0])
    chosen.update({f'AP {area}': precision[..., i] for i, area in enumerate(AREAS) if i})
    known = {name: values[values >= 0] for name, values in chosen.items()}
    return {name: float(values.mean()) if values.size else None
            for name, values in known.items()}


def _classes(truth, matched, precision) -> List[dict]:
    labelled = np.array([one['category_id'] for one in truth['annotations']])
    found = []
    for k, category in enumerate(truth['categories']):
        total = int((matched.counted & (labelled == category['id'])).sum())
        found.append(dict(
            name=category['name'], objects=total, **average_precisions(precision[:, :, k]),
            best=best_f1(matched, matched.category == category['id'], total),
            curve=precision[0, :, k, 0].tolist() if total else None))
    return found


def labels_to_look_at(truth: dict, objects: List[dict],
                      score_thr: float) -> Tuple[List[dict], int]:
    """Labels that sure boxes contradict, the surest first, and how many there are.

    Less sure boxes are left out before: most labels have one of their class among them.
    """
    objects = [one for one in objects if one['score'] >= score_thr]
    evaluation = _evaluate(truth, objects, 'bbox')
    errors = evaluation.image_diagnostics(iou_thr=IOU, score_thr=score_thr)['label_errors']
    files = {image['id']: image['file_name'] for image in truth['images']}
    errors = sorted(errors, key=lambda one: (-one['dt_score'], one['dt_id']))
    rows = [dict(file_name=files[one['image_id']], labelled=one.get('gt_category'),
                 found=one['dt_category'], score=one['dt_score'],
                 box=[round(side, 1) for side in objects[one['dt_id'] - 1]['bbox']])
            for one in errors[:NUM_LABELS]]
    return rows, len(errors)


def worst_images(truth: dict, matched: Matched, score_thr: float) -> List[dict]:
    """The images with the most wrong and missed boxes at a score."""
    place = {image['id']: i for i, image in enumerate(truth['images'])}
    above = matched.score >= score_thr
    labelled = np.array([place[one['image_id']] for one in truth['annotations']], int)
    found = np.array([place[i] for i in matched.image.tolist()], int)
    number = [np.bincount(images, minlength=len(place)) for images in (
        found[above & (matched.state == 1)], found[above & (matched.state == 0)],
        labelled[missed(matched, score_thr)])]
    order = np.argsort(-(number[1] + number[2]), kind='stable')[:NUM_WORST]
    return [dict(id=truth['images'][i]['id'], file_name=truth['images'][i]['file_name'],
                 right=int(number[0][i]), wrong=int(number[1][i]), missed=int(number[2][i]))
            for i in order if number[1][i] + number[2][i]]


def missed(matched: Matched, score_thr: float) -> np.ndarray:
    """(M, ) Which labelled objects no box is right on, of those with a high enough score."""
    score = np.append(matched.score, -1)[matched.by]
    return matched.counted & (score < score_thr)

"""The page of what a detector gets wrong."""
from html import escape
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config

from . import detection
from .html import Line, chart, confusions, curve, section, table
from .pictures import Box, drawing, legend, load_picture
from .predictions import find_objects, read_found, test_dataset

KINDS = dict(bbox='Boxes', segm='Masks')
ERRORS = dict(
    Cls='the right place, but the wrong class',
    Loc='the right class, but too far off (IoU from 0.1 to 0.5)',
    Both='the wrong class, and too far off',
    Dupe='a second box on an object that is found already',
    Bkg='nothing labelled is there',
    Miss='a labelled object that no box is near',
    FP='everything found that is not right',
    FN='every labelled object that is not found')
SCORES = dict(
    given='the score that was asked for',
    best='the score with the best F1 of all classes together',
    default='0.5, because nothing that was found is right at any score')
Sections = List[Tuple[str, str, str]]


def report(cfg: Config, found: Sequence = (),
           score_thr: Optional[float] = None) -> Tuple[dict, Sections]:
    """Find objects in the test data, or read ``found``; count and show what is wrong."""
    dataset = test_dataset(cfg)
    truth = detection.read_truth(dataset)
    objects = read_found(found) if found else find_objects(cfg, dataset)
    figures, matched = detection.count(truth, objects, score_thr)
    figures['data'] = dataset.ann_file
    pictures = worst_pictures(dataset, truth, objects['bbox'], matched, figures)
    parts = [kind_section(figures, kind) for kind in figures['kinds']]
    return figures, [summary(figures), pictures, labels(figures), *parts]


def summary(figures: dict) -> Tuple[str, str, str]:
    """AP of boxes and masks, and the score from which objects are shown."""
    rows = [(KINDS[kind], *one['ap'].values(), one['found'], one['above'])
            for kind, one in figures['kinds'].items()]
    score, crowds = figures['score_thr'], figures['crowds']
    text = ("<p>AP is COCO's, of at most 100 objects an image: the mean over classes, and over "
            'IoUs from 0.5 to 0.95. An object is small below 32² pixels and large from 96² on. '
            f'{f"Crowds, which need not be found: {crowds}. " if crowds else ""}'
            f'<p>Everything else is at an IoU of 0.5. Confusions, pictures and labels are of '
            f'objects with a score of at least <b>{score:.3f}</b>: '
            f'{SCORES[figures["score_thr_is"]]}.')
    head = ('', *figures['kinds']['bbox']['ap'], 'found', f'score ≥ {score:.3f}')
    return section('summary', 'Summary', table(head, rows), text)


def kind_section(figures: dict, kind: str) -> Tuple[str, str, str]:
    """Curves, classes, confusions and error types of boxes or masks."""
    one = figures['kinds'][kind]
    names = [row['name'] for row in one['classes']]
    return section(
        kind, KINDS[kind],
        '<h3>Which score to take</h3>', curves(one),
        '<h3>Classes</h3><p>Best F1 with the score that gives it, and precision and recall '
        'there. The curve is precision over recall; the dot is the best F1.',
        classes(one),
        '<h3>Confusions</h3><p>Each labelled object has at most one found object, the surest '
        'that overlaps it with an IoU of 0.5, whatever its class. What AP does not count, such '
        'as on crowds, is left out.',
        confusions(names, one['confusions'], background=True),
        '<h3>Types of errors</h3><p>What AP at an IoU of 0.5 would gain without them, of all '
        'scores (<a href="https://arxiv.org/abs/2008.08115">TIDE</a>).',
        error_types(one))


def curves(one: dict) -> str:
    """Precision, recall and F1 over the score, and precision over recall."""
    scores = np.linspace(0, 1, detection.STEPS)
    styles = dict(precision=('var(--a)', ''), recall=('var(--b)', '8 4'),
                  f1=('var(--c)', '2 3'))
    lines = [Line(name, list(zip(scores, one['by_score'][name])), *style)
             for name, style in styles.items()]
    known = [(p, r) for p, r in zip(one['by_score']['precision'], one['by_score']['recall'])]
    points = [(r, p) for p, r in known if p is not None]
    best = one['best']
    text = (f'<p>All classes together: the best F1 is {best["f1"]:.3f}, at a score of '
            f'{best["score"]:.3f}, with precision {best["precision"]:.3f} and recall '
            f'{best["recall"]:.3f}.' if best else '<p>Nothing that was found is right.')
    dots = [(best['score'], best['f1']), (best['recall'], best['precision'])] if best else [
        None, None]
    return (f'{text}<div class="charts"><figure>{chart(lines, "score", mark=dots[0])}</figure>'
            f'<figure>{chart([Line("precision", points)], "recall", mark=dots[1])}</figure>'
            '</div>')


def classes(one: dict) -> str:
    """AP and the best score of each class."""
    head = ('class', 'objects', *one['ap'], 'best F1', 'score', 'precision', 'recall', 'curve')
    recalls = np.linspace(0, 1, detection.STEPS)
    rows = []
    for row in one['classes']:
        best: dict = row['best'] or dict.fromkeys(('f1', 'score', 'precision', 'recall'))
        dot = (best['recall'], best['precision']) if row['best'] else None
        shown = curve(list(zip(recalls, row['curve'])), dot) if row['curve'] else None
        rows.append((row['name'], row['objects'], *(row[name] for name in one['ap']),
                     *(best[key] for key in ('f1', 'score', 'precision', 'recall')), shown))
    return table(head, rows)


def error_types(one: dict) -> str:
    """TIDE's types of errors, with what each costs."""
    rows = [(name, meaning, one['errors'][name]['gain'], one['errors'][name]['number'])
            for name, meaning in ERRORS.items()]
    return table(('type', 'what it is', 'AP50 gained', 'number'), rows)


def worst_pictures(dataset: Any, truth: dict, objects: List[dict],
                   matched: detection.Matched, figures: dict) -> Tuple[str, str, str]:
    """The images with the most errors, with their boxes drawn."""
    names = {one['id']: one['name'] for one in truth['categories']}
    shown, score = [], figures['score_thr']
    lost, above = detection.missed(matched, score), matched.score >= score
    for image in figures['worst']:
        boxes = [Box(('wrong', 'right')[matched.state[k]], objects[k]['bbox'],
                     f'{names[objects[k]["category_id"]]} {objects[k]["score"]:.2f}')
                 for k in np.flatnonzero(above & (matched.image == image['id']))
                 if matched.state[k] >= 0]
        boxes += [Box('missed', one['bbox'], f'missed {names[one["category_id"]]}')
                  for one, is_lost in zip(truth['annotations'], lost)
                  if is_lost and one['image_id'] == image['id']]
        boxes.sort(key=lambda box: ('right', 'missed', 'wrong').index(box.state))
        text = (f'{image["file_name"]}: {image["right"]} found, {image["wrong"]} wrong, '
                f'{image["missed"]} missed')
        shown.append(_figure(dataset, image['file_name'], boxes, text))
    return section('pictures', 'Worst pictures', legend(), '<p>Those with the most wrong and '
                   'missed boxes. A wrong box has the class that was found, and its score. An '
                   'object found as another class is wrong and missed.',
                   f'<div class="pictures">{"".join(shown)}</div>' if shown else
                   '<p>No box is wrong or missed.')


def _figure(dataset, name, boxes, text):
    picture, why = load_picture(dataset, _path(dataset, name))
    shown = f'<p class="note">{escape(why)}</p>' if picture is None else drawing(picture, boxes)
    return f'<figure>{shown}<figcaption>{escape(text)}</figcaption></figure>'


def _path(dataset, name):
    from mmengine.fileio import join_path
    return join_path(dataset.data_prefix['img'], name)


def labels(figures: dict) -> Tuple[str, str, str]:
    """Labels that may be wrong."""
    rows = [(one['file_name'], one['labelled'] or 'no label', one['found'], one['score'],
             ', '.join(map(str, one['box']))) for one in figures['labels']]
    text = ('<p>Where a sure box disagrees with the labels: another class, or nothing is '
            f'labelled there. Either may be wrong. The {len(rows)} surest of '
            f'{figures["num_labels"]}:')
    head = ('image', 'labelled', 'found', 'score', 'box: x, y, width, height')
    shown = table(head, rows, 'files')
    return section('labels', 'Labels to look at', *([text, shown] if rows else ['<p>None.']))

"""What a classifier gets wrong, counted by MMPretrain's own metrics."""
from html import escape
from typing import Any, List, NamedTuple, Tuple

import torch
from mmengine.config import Config

from ..errors import UserError
from .html import confusions, section, table
from .pictures import NUM_WORST, data_uri, load_picture
from .predictions import EachSample, run_test, test_dataset


class Guess(NamedTuple):
    """What was found in an image: its path, class, the label, and the scores of both."""

    path: str
    label: int
    found: int
    score: float
    score_of_label: float


def report(cfg: Config) -> Tuple[dict, List[Tuple[str, str, str]]]:
    """Classify the test data; count and show what is wrong."""
    guesses: List[Guess] = []
    metric = EachSample(lambda sample: guesses.append(_guess(sample)))
    dataset = test_dataset(cfg)
    run_test(cfg, metric)
    figures = count(guesses, metric.dataset_meta['classes'])
    figures['data'] = dataset.img_prefix or dataset.ann_file
    names = [row['name'] for row in figures['classes']]
    head = ('class', 'images', 'precision', 'recall', 'F1')
    rows = [tuple(row[key] for key in ('name', 'images', 'precision', 'recall', 'f1'))
            for row in figures['classes']]
    return figures, [
        section('summary', 'Summary', f'<p>Accuracy: <b>{figures["accuracy"]:.3f}</b>. '
                f'{figures["wrong"]} of {len(guesses)} images are wrong.'),
        pictures(dataset, names, figures['worst']),
        section('classes', 'Classes', table(head, rows)),
        section('confusions', 'Confusions', confusions(names, figures['confusions']))]


def _guess(sample: dict) -> Guess:
    label, score = sample.get('gt_label'), sample.get('pred_score')
    if label is None or score is None or label.numel() != 1:
        raise UserError('the test data of a classifier needs one label for each image, and '
                        'the classifier a score for each class')
    found = int(score.argmax())
    return Guess(sample.get('img_path') or '', int(label), found, float(score[found]),
                 float(score[int(label)]))


def count(guesses: List[Guess], names: Any) -> dict:
    """The figures of a classifier. MMPretrain's per cent are fractions here."""
    from mmpretrain.evaluation import ConfusionMatrix, SingleLabelMetric
    label, found = (torch.tensor([one[i] for one in guesses]) for i in (1, 2))
    matrix = ConfusionMatrix.calculate(found, label, num_classes=len(names))
    precision, recall, f1, support = (
        values.tolist() for values in SingleLabelMetric.calculate(
            found, label, num_classes=len(names), average=None))
    wrong = [one for one in guesses if one.label != one.found]
    worst = sorted(wrong, key=lambda one: (-one.score, one.path))[:NUM_WORST]
    return dict(
        images=len(guesses), notes=[], wrong=len(wrong),
        accuracy=1 - len(wrong) / len(guesses), confusions=matrix.tolist(),
        classes=[dict(name=name, images=int(n), precision=p / 100,
                      recall=r / 100 if n else None, f1=f / 100 if n else None)
                 for name, n, p, r, f in zip(names, support, precision, recall, f1)],
        worst=[one._asdict() for one in worst])


def pictures(dataset: Any, names: List[str], worst: List[dict]) -> Tuple[str, str, str]:
    """The images of which a classifier is wrong and surest."""
    shown = []
    for one in worst:
        picture, why = load_picture(dataset, one['path'])
        image = f'<p class="note">{escape(why)}</p>' if picture is None else (
            f'<img alt="" src="{data_uri(picture)}">')
        text = (f'{one["path"]}: labelled {names[one["label"]]} '
                f'({one["score_of_label"]:.3f}), found {names[one["found"]]} '
                f'({one["score"]:.3f})')
        shown.append(f'<figure>{image}<figcaption>{escape(text)}</figcaption></figure>')
    return section('pictures', 'Worst pictures', '<p>Wrong, and surest of it. Scores are in '
                   'brackets.', f'<div class="pictures small">{"".join(shown)}</div>')

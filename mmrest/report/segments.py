"""What a segmenter gets wrong, in pixels counted by hotcoco."""
import heapq
from html import escape
from typing import Any, List, Sequence, Tuple

import numpy as np
from mmengine.config import Config

from ..errors import UserError
from .html import Raw, confusions, section, table
from .pictures import NUM_WORST, data_uri, load_picture, map_uri
from .predictions import EachSample, run_test, test_dataset


class PixelCount:
    """Sums the confusions of all images, and keeps the worst maps.

    Args:
        num_classes (int): How many classes there are.
        ignore_index (int): What labels say of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.images = 0
        self.worst: List[tuple] = []  # a heap: share of right pixels, path, truth, found

    def take(self, sample: dict) -> None:
        """Count a sample of mmseg. Its maps are (h, w)."""
        from hotcoco.metrics import pixel_confusion
        if 'gt_sem_seg' not in sample:
            raise UserError('the test data has no maps of classes to compare with what was '
                            "found: its pipeline needs LoadAnnotations, and its data_prefix "
                            'seg_map_path')
        found, truth = (sample[key]['data'].squeeze().cpu().numpy().astype(np.int64)
                        for key in ('pred_sem_seg', 'gt_sem_seg'))
        matrix = pixel_confusion(truth, found, self.num_classes,
                                 ignore_index=self.ignore_index).astype(np.int64)
        self.matrix += matrix
        self.images += 1
        right = matrix.trace() / max(matrix.sum(), 1)
        if right < 1 and matrix.any():
            kind = np.uint8 if self.num_classes <= 256 else np.uint16
            entry = (-right, -self.images, sample['img_path'], truth.astype(kind),
                     found.astype(kind))
            push = heapq.heappush if len(self.worst) < NUM_WORST else heapq.heappushpop
            push(self.worst, entry)

    def figures(self, names: Sequence[str]) -> dict:
        """IoU and confusions. A class that neither labels nor model have has no IoU."""
        from hotcoco.metrics import mean_iou
        found = mean_iou(self.matrix.astype(np.uint64))
        rows = [dict(name=name, pixels=int(n), iou=_known(iou), recall=_known(recall))
                for name, n, iou, recall in zip(names, self.matrix.sum(1), found['IoU'],
                                                found['Acc'])]
        worst = [dict(path=path, right=float(-right))
                 for right, _, path, _, _ in sorted(self.worst, key=lambda e: e[:2])[::-1]]
        return dict(images=self.images, notes=[], mIoU=_known(found['mIoU']),
                    aAcc=_known(found['aAcc']), mAcc=_known(found['mAcc']), classes=rows,
                    confusions=self.matrix.tolist(), worst=worst)


def _known(value):
    return float(value) if value >= 0 else None


def report(cfg: Config) -> Tuple[dict, List[Tuple[str, str, str]]]:
    """Segment the test data; count and show what is wrong."""
    dataset = test_dataset(cfg)
    names, palette = (dataset.metainfo[key] for key in ('classes', 'palette'))
    evaluator = cfg.test_evaluator if isinstance(cfg.test_evaluator, dict) else {}
    pixels = PixelCount(len(names), evaluator.get('ignore_index', 255))
    run_test(cfg, EachSample(pixels.take))
    figures = pixels.figures(names)
    figures['data'] = dataset.data_prefix['img_path']
    rows = [(Raw(f'<td>{_chip(color)} {escape(row["name"])}'), row['pixels'], row['iou'],
             row['recall']) for row, color in zip(figures['classes'], palette)]
    share = [[round(100 * n / max(sum(row), 1), 1) for n in row]
             for row in figures['confusions']]
    return figures, [
        section('summary', 'Summary', table(
            ('', 'mIoU', 'right pixels', 'mean recall'),
            [('all classes', figures['mIoU'], figures['aAcc'], figures['mAcc'])])),
        pictures(dataset, pixels.worst, palette),
        section('classes', 'Classes', table(('class', 'pixels', 'IoU', 'recall'), rows)),
        section('confusions', 'Confusions', '<p>Of the pixels of each class, in per cent.',
                confusions(names, share, unit='% of its pixels'))]


def _chip(color):
    return f'<span class="chip" style="background:rgb{tuple(map(int, color))}"></span>'


def pictures(dataset: Any, worst: List[tuple],
             palette: Sequence[Sequence[int]]) -> Tuple[str, str, str]:
    """The images with the smallest share of right pixels, with the maps beside them."""
    shown = []
    for right, _, path, truth, found in sorted(worst, key=lambda entry: entry[:2])[::-1]:
        picture, why = load_picture(dataset, path)
        first = f'<p class="note">{escape(why)}</p>' if picture is None else (
            f'<img alt="" src="{data_uri(picture)}">')
        maps = ''.join(f'<div><img alt="{name}" src="{map_uri(one, palette)}">{name}</div>'
                       for name, one in (('truth', truth), ('found', found)))
        shown.append(f'<figure><div class="maps"><div>{first}image</div>{maps}</div>'
                     f'<figcaption>{escape(path)}: {-right:.1%} of the pixels are right'
                     '</figcaption></figure>')
    return section('pictures', 'Worst pictures', '<p>The colours are those of the classes '
                   'below. What does not count is white.',
                   f'<div class="pictures wide">{"".join(shown)}</div>')

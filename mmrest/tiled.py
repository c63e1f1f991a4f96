"""Detection in tiles of a large photograph, by sahi.

sahi's ``get_sliced_prediction`` turns masks into outlines and makes the boxes of these, a pixel
short; a mask of one line is lost, and its box too. So tiles and suppression are sahi's, while
boxes and masks stay the detector's.
"""
import importlib
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
from mmengine.dataset import pseudo_collate
from pycocotools import mask as mask_utils

from .errors import MissingPackageError, UserError

Found = Dict[str, list]


class Tiling(NamedTuple):
    """How an image is cut, and what becomes of an object that is in two tiles.

    Args:
        side (int): Height and width of a tile, in pixels.
        overlap (float): Share of the side that neighbours have in common, 0 to below 1.
        merge (str): Of boxes of a class of which half of the smaller one is in the larger one,
            'NMS' keeps the one with the best score; 'GREEDYNMM' joins boxes and masks with the
            best, 'NMM' with all that they touch, too.
        score_thr (float): Boxes with less are left out before they are joined, because each
            would make the box larger. 'NMS' leaves none out.
        batch_size (int): How many tiles the model gets at once.
    """
    side: int
    overlap: float = 0.25
    merge: str = 'NMS'
    score_thr: float = 0.3
    batch_size: int = 8

    def cuts(self, image: np.ndarray) -> bool:
        """Whether an image (h, w, 3) does not fit into one tile."""
        return max(image.shape[:2]) > self.side


def import_sahi(module: str) -> Any:
    """Import a module of sahi.

    Raises:
        UserError: sahi is not installed, or cannot be.
    """
    try:
        return importlib.import_module(f'sahi.{module}')
    except ImportError as error:
        if np.lib.NumpyVersion(np.__version__) < '2.0.0':
            raise UserError(
                "tiles need sahi, which needs an opencv-python for NumPy 2; OpenMMLab's own "
                f"packages need NumPy 1, here {np.__version__}: take OneDL's, "
                '`pip install "mmrest[onedl,tiles]"`') from error
        raise MissingPackageError(
            f'tiles need sahi ({error}): run `pip install sahi`') from error


def find(inferencer: Any, image: np.ndarray, tiling: Tiling) -> Found:
    """What a detector finds in an image, tile by tile. Each tile is an image for its pipeline.

    Args:
        inferencer (DetInferencer): MMDetection's.
        image (np.ndarray): (h, w, 3), RGB, uint8.
        tiling (Tiling): The tiles.

    Returns:
        dict[str, list]: As ``DetInferencer.pred2dict``, in pixels of the image: ``labels``,
        ``scores`` from the highest on, ``bboxes`` (x1 y1 x2 y2) and perhaps ``masks`` (COCO's
        RLE).

    Raises:
        UserError: sahi is not installed, or cannot be.
    """
    corners, found = _find_in_tiles(inferencer, image, tiling)
    groups = _group(found, tiling)
    joined: Found = dict(
        labels=[found['labels'][best] for best, *_ in groups],
        scores=[found['scores'][best] for best, *_ in groups],
        bboxes=[_join_boxes([found['bboxes'][i] for i in group]) for group in groups])
    if 'masks' in found:
        joined['masks'] = [_join_masks(
            [(corners[i], found['masks'][i]) for i in group], image.shape[:2])
            for group in groups]
    return joined


def _find_in_tiles(inferencer: Any, image: np.ndarray,
                   tiling: Tiling) -> Tuple[List[Tuple[int, int]], Found]:
    """What is in all tiles, and the upper left corner of the tile of each."""
    corners: List[Tuple[int, int]] = []
    found: Found = dict(labels=[], scores=[], bboxes=[])
    for (x, y), one in _predict(inferencer, image, tiling):
        corners += [(x, y)] * len(one['labels'])
        one['bboxes'] = [[x1 + x, y1 + y, x2 + x, y2 + y] for x1, y1, x2, y2 in one['bboxes']]
        for name in ('labels', 'scores', 'bboxes', 'masks'):
            if name in one:
                found.setdefault(name, []).extend(one[name])
    return corners, found


def _predict(inferencer: Any, image: np.ndarray,
             tiling: Tiling) -> Iterator[Tuple[Tuple[int, int], Found]]:
    """Yield the upper left corner of each tile and what is in it, in pixels of the tile."""
    tiles = import_sahi('slicing').get_slice_bboxes(
        *image.shape[:2], tiling.side, tiling.side, False, tiling.overlap, tiling.overlap)
    bgr = image[..., ::-1]
    for start in range(0, len(tiles), tiling.batch_size):
        batch = tiles[start:start + tiling.batch_size]
        data = [inferencer.pipeline(np.ascontiguousarray(bgr[y1:y2, x1:x2]))
                for x1, y1, x2, y2 in batch]
        for (x, y, *_), sample in zip(batch, inferencer.forward(pseudo_collate(data))):
            yield (x, y), inferencer.pred2dict(sample)


def _group(found: Found, tiling: Tiling) -> List[List[int]]:
    """The numbers of what is one object each, from the best score on."""
    rows = np.array([[*box, score, label] for box, score, label in zip(
        found['bboxes'], found['scores'], found['labels'])]).reshape(-1, 6)
    combine = import_sahi('postprocess.combine')
    if not len(rows):
        return []
    if tiling.merge == 'NMS':
        return [[i] for i in combine.batched_nms(rows, 'IOS', 0.5)]
    there = np.flatnonzero(rows[:, 4] >= tiling.score_thr)
    join = dict(GREEDYNMM=combine.batched_greedy_nmm, NMM=combine.batched_nmm)[tiling.merge]
    joined = [there[[first, *others]] for first, others in join(
        rows[there], 'IOS', 0.5).items()]
    groups = [group[np.argsort(-rows[group, 4], kind='stable')].tolist() for group in joined]
    return sorted(groups, key=lambda group: -rows[group[0], 4])


def _join_boxes(boxes: List[List[float]]) -> List[float]:
    corners = np.array(boxes)
    return [*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist()]


def _join_masks(masks: List[Tuple[Tuple[int, int], dict]], shape: Tuple[int, ...]) -> dict:
    """Masks of tiles, by the tile's corner -> one mask of the image."""
    joined = np.zeros(shape, np.uint8, order='F')
    for (x, y), mask in masks:
        h, w = mask['size']
        joined[y:y + h, x:x + w] |= mask_utils.decode(mask)
    rle = mask_utils.encode(joined)
    return dict(rle, counts=rle['counts'].decode())

"""Whole photographs for training and for validation."""
import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import List, Sequence, Set

from ...errors import UserError
from .photos import Notes, Photo, read_pixels


def divide(photos: Sequence[Photo], share: float, categories: Sequence[dict],
           notes: Notes) -> None:
    """Put a share of the photographs into 'val', the others into 'train'.

    A hash of the files decides, so that every machine does the same. Identical pictures stay
    together. A class gets into both parts if two pictures that differ have it.

    Raises:
        UserError: All photographs are one picture.
    """
    groups = _identical(photos)
    if len(groups) < 2:
        raise UserError('--val needs two photographs that differ')
    classes = [{thing['category_id'] for photo in group for thing in photo.things
                if not thing['iscrowd']} for group in groups]
    val = _choose(classes, [len(group) for group in groups], max(1, round(share * len(photos))))
    for i, group in enumerate(groups):
        for photo in group:
            photo.parts = {'val' if i in val else 'train'}
    lacking = set().union(*classes).difference(*(classes[i] for i in val))
    for category in categories:
        if category['id'] in lacking:
            notes.add('classes that are in the training alone: they have too few photographs',
                      category['name'])


def _choose(classes: Sequence[Set[int]], sizes: Sequence[int], wanted: int) -> Set[int]:
    """Numbers of the groups for validation, with ``wanted`` photographs or a few more."""
    left = Counter(kind for kinds in classes for kind in kinds)  # groups for training
    chosen: Set[int] = set()

    def take(candidates):
        """Take the first that has not the last objects of a class for training."""
        for i in candidates:
            if i not in chosen and len(chosen) < len(classes) - 1 and all(
                    left[kind] > 1 for kind in classes[i]):
                chosen.add(i)
                left.subtract(classes[i])
                return sizes[i]
        return 0

    count = 0
    for kind, _ in sorted(left.items(), key=lambda item: item[::-1]):  # the rarest first
        if not any(kind in classes[i] for i in chosen):
            count += take(i for i, kinds in enumerate(classes) if kind in kinds)
    for i in range(len(classes)):
        if count < wanted:
            count += take([i])
    return chosen


def _identical(photos: Sequence[Photo]) -> List[List[Photo]]:
    """Groups of photographs that mm sees as one picture, in the order of a hash."""
    with ThreadPoolExecutor() as threads:
        hashes = list(threads.map(_hashes, photos))
    groups = defaultdict(list)
    for (picture, file), photo in zip(hashes, photos):
        groups[picture].append((file, photo))
    ordered = sorted(groups.values(), key=lambda group: min(file for file, _ in group))
    return [[photo for _, photo in group] for group in ordered]


def _hashes(photo: Photo):
    """Of the picture, and of the file: decoders may differ in a pixel."""
    content = hashlib.sha256(photo.path.read_bytes()).hexdigest()
    pixels = read_pixels(photo.path)
    if pixels is None:
        return content, content
    picture = hashlib.sha256(pixels.tobytes())
    picture.update(str(pixels.shape).encode())
    return picture.hexdigest(), content

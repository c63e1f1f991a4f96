"""COCO JSON from other formats. Photographs stay where they are."""
import os
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Sequence

from ...errors import UserError
from .divide import divide
from .labelme import read_labelme
from .photos import Notes, Photo, new_folder, write_coco
from .voc import read_voc
from .yolo import read_yolo

__all__ = ['FORMATS', 'convert']
FORMATS = 'voc', 'yolo', 'labelme'


def convert(kind: str, sources: Sequence[Path], out: Path, val: float = 0.,
            from_one: bool = False) -> List[str]:
    """Write ``out/train.json`` and, where there are such parts, val.json and test.json.

    Args:
        kind (str): One of ``FORMATS``.
        sources (Sequence[Path]): Folders in the format's layout, or files.
        out (Path): A new folder.
        val (float): The share of photographs to validate on, if the format has no such parts.
        from_one (bool): Pascal VOC alone: see :func:`~.voc.read_voc`.

    Returns:
        list[str]: Lines to print: what was left out, and what was written.

    Raises:
        UserError: ``out`` exists, no photograph is found, or ``val`` cannot be used.
        FileNotFoundError: A source is not there.
    """
    if not 0 <= val < 1:
        raise UserError(f'--val={val} must be at least 0 and less than 1')
    if from_one and kind != 'voc':
        raise UserError(f'--from-one is for voc: {kind} does not count pixels')
    notes = Notes()
    with new_folder(out) as folder:
        readers: Dict[str, Callable] = dict(
            voc=partial(read_voc, from_one=from_one), yolo=read_yolo,
            labelme=partial(read_labelme, embedded=folder / 'photographs'))
        photos, categories = readers[kind](sources, notes)
        if not photos:
            where = ', '.join(map(str, sources[:5]))
            raise UserError('\n'.join([*notes.lines(), f'no photograph of {kind} in {where}']))
        own = sorted({part for photo in photos for part in photo.parts} - {'train'})
        if val and own:
            raise UserError(f'the data has its own lists or folders ({", ".join(own)}): leave '
                            '--val out, or give single files')
        if val:
            divide(photos, val, categories, notes)
        lines = [_write(folder / f'{part}.json', photos, part, categories)
                 for part in ('train', 'val', 'test')]
    return [*notes.lines(), *(f'{out}/{line}' for line in lines if line)]


def _write(path: Path, photos: Sequence[Photo], part: str, categories: List[dict]) -> str:
    """Write a part, unless it is empty. What is in no part is for training."""
    images: List[dict] = []
    annotations: List[dict] = []
    for photo in photos:
        if part in (photo.parts or {'train'}):
            images.append(dict(
                id=len(images) + 1, file_name=_relative(photo.path, path.parent),
                width=photo.size[0], height=photo.size[1]))
            annotations += [
                dict(thing, id=i, image_id=len(images))
                for i, thing in enumerate(photo.things, len(annotations) + 1)]
    if not images:
        return ''
    content = dict(images=images, annotations=annotations, categories=[
        dict(category, supercategory='none') for category in categories])  # mm's scripts ask
    return write_coco(path, content)


def _relative(photo: Path, folder: Path) -> str:
    """The way from the JSON's folder: '..' of a linked folder leads to its real parent."""
    real = Path(os.path.realpath(photo.parent), photo.name)
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()

"""Pascal VOC: an XML file for each photograph, lists, and maps of objects."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from .photos import (
    Notes,
    Photo,
    find_photo,
    number,
    number_classes,
    open_photo,
    part_by_folder,
    walk,
)

SIDES = 'xmin', 'ymin', 'xmax', 'ymax'
VOID = 255  # in maps: the borders of objects


def read_voc(sources: Sequence[Path], notes: Notes, from_one: bool = False,
             ) -> Tuple[List[Photo], List[dict]]:
    """Read XML files, or the folders that they are in.

    The photograph is beside the XML file, or in ``JPEGImages`` or ``images`` beside
    ``Annotations``. Lists in ``ImageSets/Main``, or folders of the names, say what is for
    training, validation and test.

    Args:
        sources (Sequence[Path]): Files and folders.
        notes (Notes): Gets what is left out, or kept though it looks wrong.
        from_one (bool): Whether the first pixel is number 1, and a box has the pixels xmin to
            xmax. Otherwise corners are taken as they stand.
    """
    photos = []
    for source in sources:
        lists: Dict[Any, Any] = {}
        for path in walk(source, ['.xml']):
            folder: Any = _annotations(path)
            if folder not in lists:  # who names single files wants those
                listed = folder is not None and path != source
                lists[folder] = _read_lists(folder, notes) if listed else {}
            photo = _read_file(path, folder, notes, from_one)
            if photo is None:
                continue
            photo.parts = part_by_folder(path, source)
            if lists[folder]:
                name = path.relative_to(folder).with_suffix('').as_posix()
                photo.parts = lists[folder].get(name)
                if not photo.parts:
                    notes.add('files that are in none of the lists, left out', path)
                    continue
            photos.append(photo)
    return photos, number_classes(photos)


def _annotations(path: Path) -> Optional[Path]:
    """The folder of VOC's layout that an XML file is in."""
    return next((p for p in path.parents if p.name.lower() == 'annotations'), None)


def _read_lists(annotations: Path, notes: Notes) -> Dict[str, Set[str]]:
    """The parts of each name in the lists. ``trainval`` counts where there is no ``train``."""
    folder = annotations.parent / 'ImageSets/Main'
    found: Dict[str, Set[str]] = {}
    files = {part: folder / f'{part}.txt' for part in ('train', 'val', 'test')}
    if not files['train'].is_file():
        files['train'] = folder / 'trainval.txt'
    for part, file in files.items():
        if not file.is_file():
            continue
        for line in file.read_text('utf-8-sig').splitlines():
            name = line.strip()
            if name and not (annotations / f'{name}.xml').is_file():
                notes.add('names in lists that have no XML file', file)
            elif name:
                found.setdefault(name, set()).add(part)
    return found


def _read_file(path: Path, annotations: Optional[Path], notes: Notes, from_one: bool,
               ) -> Optional[Photo]:
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        notes.add('broken XML files, left out', f'{path} ({error})')
        return None
    if tree.tag != 'annotation':
        notes.add("XML files that are not Pascal VOC's, left out", path)
        return None
    folders = [path.parent]
    if annotations:
        inner = path.parent.relative_to(annotations)
        folders += [annotations.parent / name / inner for name in ('JPEGImages', 'images')]
    named = (tree.findtext('filename') or '').strip()
    said = [number(tree.findtext(f'size/{side}')) for side in ('width', 'height')]
    photo = open_photo(path, find_photo(path, named, folders, notes), said, notes)
    if photo is None:
        return None
    # Maps number the objects in the order of the file, with those that are left out.
    things = {i: _read_object(thing, path, notes, from_one)
              for i, thing in enumerate(tree.iter('object'), 1)}
    numbered = {i: thing for i, thing in things.items() if thing}
    maps = annotations and annotations.parent / 'SegmentationObject'
    if maps and maps.is_dir():
        _add_masks(numbered, maps / f'{path.stem}.png', photo, notes)
    photo.things = list(numbered.values())
    return photo


def _read_object(thing: ElementTree.Element, path: Path, notes: Notes, from_one: bool,
                 ) -> Optional[dict]:
    name = (thing.findtext('name') or '').strip()
    corners: List[Any] = [number(thing.findtext(f'bndbox/{side}')) for side in SIDES]
    if not name or None in corners:
        notes.add('objects without a name or four numbers in <bndbox>, left out', path)
        return None
    for tag in ('polygon', 'part'):
        if thing.find(tag) is not None:
            notes.add(f'objects with <{tag}>, of which the box alone is kept', path)
    difficult = (thing.findtext('difficult') or '').strip() == '1'
    notes.add('objects marked difficult: they become crowds, neither learned nor evaluated',
              path, difficult)
    x1, y1, x2, y2 = corners
    if from_one:
        x1, y1 = x1 - 1, y1 - 1
    w, h = x2 - x1, y2 - y1
    return dict(category_id=name, bbox=[x1, y1, w, h], area=w * h, iscrowd=int(difficult))


def _add_masks(numbered: Dict[int, dict], path: Path, photo: Photo, notes: Notes) -> None:
    """Give objects their pixels in a map of VOC's ``SegmentationObject``."""
    if not path.is_file():
        notes.add('photographs without a map in SegmentationObject: boxes alone', photo.path)
        return
    try:
        with Image.open(path) as image:
            values = np.array(image)  # of a palette, the numbers and not the colours
    except (OSError, SyntaxError, ValueError):
        values = np.zeros(0)
    if values.shape != photo.size[::-1]:
        notes.add('maps that are unreadable, in colours or of another size: boxes alone', path)
        return
    for i, thing in numbered.items():
        if not (values == i).any():
            notes.add('objects that their map does not have: boxes alone', path)
            continue
        mask = mask_utils.encode(np.asfortranarray(values == i, np.uint8))
        thing.update(area=int(mask_utils.area(mask)),
                     segmentation=dict(mask, counts=mask['counts'].decode()))
    notes.add('objects in maps that are not in the XML file, left out', path,
              len(set(np.unique(values).tolist()) - {0, VOID, *numbered}))

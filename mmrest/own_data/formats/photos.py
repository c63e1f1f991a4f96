"""Photographs, the objects on them, and what has to be said about a conversion."""
import json
import math
import os
import shutil
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import cv2
import numpy as np
from PIL import Image

from ...errors import UserError
from ...files import write_whole

EXIF_ORIENTATION = 0x0112
SUFFIXES = '.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm'
PARTS = dict(train='train', val='val', valid='val', validation='val', test='test')
Size = Tuple[int, int]


@dataclass
class Photo:
    """A photograph and its objects.

    Attributes:
        path (Path): Its file.
        size (tuple): Width and height, as its annotation says or else as OpenCV reads it.
        things (list[dict]): Annotations as in COCO, without ``id`` and ``image_id``. The
            ``category_id`` may be a name, see :func:`number_classes`.
        parts (set[str]): 'train', 'val' and 'test' as far as the format puts it there.
    """

    path: Path
    size: Size
    things: List[dict] = field(default_factory=list)
    parts: Set[str] = field(default_factory=set)


class Notes:
    """What was left out, kept or changed, how often, and in which files."""

    def __init__(self):
        self.files: Dict[str, Counter] = {}

    def add(self, what: str, file, count: int = 1) -> None:
        """Note ``count`` times ``what``, which begins with a noun in plural."""
        if count:
            self.files.setdefault(what, Counter())[str(file)] += count

    def lines(self) -> List[str]:
        """One line for each kind, with the number and the first files."""
        lines = []
        for what, files in self.files.items():
            named = ', '.join(list(files)[:5])
            more = f' and {len(files) - 5} more' if len(files) > 5 else ''
            line = f'W {what} ({sum(files.values())}): {named}{more}'
            lines.append(line.encode(errors='backslashreplace').decode())  # names of any bytes
        return lines


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, which gets the name ``out`` when all is written.

    Raises:
        UserError: ``out`` exists.
    """
    if out.exists():
        raise UserError(f'--out={out} exists: give a new folder or remove it')
    partial = out.with_name(f'{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def walk(source: Path, suffixes: Sequence[str]) -> List[Path]:
    """Files below a folder, through links and without hidden ones; or ``source``, a file."""
    if source.is_file():
        return [source]
    if not source.exists():
        raise FileNotFoundError(f'{source}: no such file or folder')
    found, seen = [], set()
    for root, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [Path(root, name) for name in names
                  if not name.startswith('.') and name.lower().endswith(tuple(suffixes))]
    return sorted(found)


def part_by_folder(path: Path, source: Path) -> Set[str]:
    """The part of a file below ``source/train``, ``source/images/valid`` and the like."""
    if path == source:
        return set()
    names = path.relative_to(source).parts[:-1]
    return {PARTS[name.lower()] for name in names if name.lower() in PARTS}


def number(text: Any) -> Optional[float]:
    """The finite number that a text is, whole if it is written so; None for other things."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(value):
        return None
    return int(text) if text.strip().lstrip('+-').isdigit() else value


def outline_area(points: Sequence[float]) -> float:
    """Area in pixels of the outline x1, y1, x2, y2 ..."""
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def outlined(outlines: List[List[float]]) -> dict:
    """``bbox``, ``area`` and ``segmentation`` of the object with these outlines."""
    xs, ys = ([value for points in outlines for value in points[axis::2]] for axis in (0, 1))
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return dict(bbox=box, area=sum(map(outline_area, outlines)), segmentation=outlines)


def read_pixels(path: Path) -> Optional[np.ndarray]:
    """Read (h, w, 3), BGR, turned upright, of 8 bits or those of the file. None: unreadable."""
    content = np.fromfile(path, np.uint8)
    try:
        return cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        return None


def read_header(path: Path) -> Tuple[Optional[Size], int]:
    """Width and height as stored, and EXIF's orientation. (None, 0): the pixels must tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size, image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow only saves decoding, and OpenCV may read what it does not
        return None, 0


def read_size(path: Path) -> Optional[Tuple[Size, Size]]:
    """Width and height, upright as OpenCV reads them and as stored. None: unreadable."""
    stored, orientation = read_header(path)
    if stored and orientation in (1, 2, 3, 4):
        return stored, stored
    pixels = read_pixels(path)  # OpenCV turns some formats by their EXIF and others not
    if pixels is None:
        return None
    size = pixels.shape[1::-1]
    return size, stored or size


def find_photo(source: Path, named: str, folders: Sequence[Path], notes: Notes,
               ) -> Optional[Path]:
    """The photograph of an annotation file: one of its name, or else the one it names."""
    named = named.replace('\\', '/')
    ending = Path(named).suffix
    suffixes = dict.fromkeys([ending, *SUFFIXES, *map(str.upper, SUFFIXES)])
    for folder in folders:
        for suffix in suffixes:
            own = folder / f'{source.stem}{suffix}'
            if suffix and own != source and own.is_file():
                if named and source.stem not in (Path(named).stem, Path(named).name):
                    notes.add("files that name another photograph: the one of the file's own "
                              'name is taken', f'{source} (names {Path(named).name})')
                return own
    for file in (source.parent / named, *(folder / Path(named).name for folder in folders)):
        if named and file != source and file.is_file():
            return file
    return None


def open_photo(source: Path, path: Optional[Path], said: Sequence, notes: Notes,
               ) -> Optional[Photo]:
    """The photograph at ``path``, of the size that its annotation ``source`` says."""
    if path is None:
        notes.add('files without their photograph, left out', source)
        return None
    found = read_size(path)
    if found is None:
        notes.add('photographs that cannot be read, left out', path)
        return None
    size, stored = found
    if not all(isinstance(side, int) and side > 0 for side in said):
        notes.add("files whose size is not two numbers: the photograph's is taken", source,
                  set(said) != {None})
        return Photo(path, size)
    said = tuple(said)
    if said != size:
        notes.add('files with the size from before EXIF turns the photograph upright, as mm '
                  'reads it; kept, so that own_data.py refuses them' if said == stored else
                  "files with another size than the photograph's; kept, so that own_data.py "
                  'refuses them', f'{source} ({said[0]}x{said[1]}, not {size[0]}x{size[1]})')
    return Photo(path, said)


def write_coco(path: Path, content: dict) -> str:
    """Write ``content``; returns what is in it, in a line."""
    write_whole(path, json.dumps(content).encode())
    crowds = sum(thing['iscrowd'] for thing in content['annotations'])
    return (f'{path.name}: {len(content["images"])} images, '
            f'{len(content["annotations"]) - crowds} objects, {crowds} crowds')


def number_classes(photos: Sequence[Photo]) -> List[dict]:
    """Replace the names in ``category_id`` by numbers; returns the categories, by name."""
    names = sorted({thing['category_id'] for photo in photos for thing in photo.things})
    numbers = {name: i for i, name in enumerate(names, 1)}
    for photo in photos:
        for thing in photo.things:
            thing['category_id'] = numbers[thing['category_id']]
    return [dict(id=i, name=name) for name, i in numbers.items()]

"""LabelMe: a JSON file for each photograph."""
import base64
import io
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from PIL import Image

from ...files import write_whole
from .photos import (
    Notes,
    Photo,
    find_photo,
    number_classes,
    open_photo,
    outlined,
    part_by_folder,
    walk,
)

SAGITTA = 0.1  # pixels between a circle and the sides of its outline


def read_labelme(sources: Sequence[Path], notes: Notes, embedded: Path,
                 ) -> Tuple[List[Photo], List[dict]]:
    """Read JSON files, or the folders that they are in.

    Args:
        sources (Sequence[Path]): Files and folders.
        notes (Notes): Gets what is left out.
        embedded (Path): The folder for photographs that only a JSON file has.
    """
    photos = []
    for source in sources:
        for path in walk(source, ['.json']):
            photo = _read_file(path, notes, embedded)
            if photo is not None:
                photo.parts = part_by_folder(path, source)
                photos.append(photo)
    return photos, number_classes(photos)


def _read_file(path: Path, notes: Notes, embedded: Path) -> Optional[Photo]:
    try:
        content = json.loads(path.read_text('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        notes.add('broken JSON files, left out', f'{path} ({error})')
        return None
    shapes = content.get('shapes') if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        notes.add("JSON files that are not LabelMe's, left out", path)
        return None
    named = str(content.get('imagePath') or '')
    file = find_photo(path, named, [path.parent], notes)
    if file is None and content.get('imageData'):
        file = _write_embedded(path, content['imageData'], notes, embedded)
    said = [content.get('imageWidth'), content.get('imageHeight')]
    photo = open_photo(path, file, said, notes)
    if photo is not None:
        photo.things = _read_shapes(shapes, path, notes)
    return photo


def _write_embedded(path: Path, text: str, notes: Notes, folder: Path) -> Optional[Path]:
    try:
        content = base64.b64decode(text)
        with Image.open(io.BytesIO(content)) as image:
            suffix = str(image.format).lower()
    except (OSError, SyntaxError, TypeError, ValueError):
        return None
    count = len(list(folder.glob('*')))
    file = folder / f'{count:06d}_{path.stem}.{suffix}'
    write_whole(file, content)
    notes.add('photographs that are only in imageData, written beside the JSON', path)
    return file


def _read_shapes(shapes: List[dict], path: Path, notes: Notes) -> List[dict]:
    """The objects. Shapes of one label with one ``group_id`` are parts of one object."""
    objects = defaultdict(list)
    for i, shape in enumerate(shapes):
        kind, name = shape.get('shape_type') or 'polygon', shape.get('label')
        points = _points(shape.get('points'))
        if kind not in OUTLINES:
            notes.add(f'shapes of the kind {kind}, left out', path)
        elif not name or not isinstance(name, str):
            notes.add('shapes without a label, left out', path)
        elif points is None or len(points) < (3 if kind == 'polygon' else 2):
            notes.add('shapes with too few points, or with points that are not two numbers, '
                      'left out', path)
        else:
            if kind == 'circle':
                notes.add(f'circles, as outlines that are within {SAGITTA} pixel', path)
            group = shape.get('group_id')
            key = (i, None) if group is None else (None, str(group))
            objects[name, key].append(OUTLINES[kind](points))
    return [dict(outlined(outlines), category_id=name, iscrowd=0)
            for (name, _), outlines in objects.items()]


def _points(values) -> Optional[List[List[float]]]:
    """The points if they are pairs of finite numbers."""
    pairs = isinstance(values, list) and all(
        isinstance(point, list) and len(point) == 2 and all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in point)
        for point in values)
    return values if pairs else None


def _polygon(points: List[List[float]]) -> List[float]:
    return [value for point in points for value in point]


def _rectangle(points: List[List[float]]) -> List[float]:
    (left, right), (top, bottom) = ((min(line), max(line)) for line in zip(*points))
    return [left, top, right, top, right, bottom, left, bottom]


def _circle(points: List[List[float]]) -> List[float]:
    """Corners on the circle, of which a multiple of four makes the box exact."""
    (x, y), on = points[:2]
    radius = math.dist((x, y), on)
    angle = math.acos(1 - min(SAGITTA / radius, 0.5)) if radius else math.pi / 4
    corners = 4 * math.ceil(math.pi / angle / 4)
    turns = (2 * math.pi * i / corners for i in range(corners))
    return [value for t in turns
            for value in (x + radius * math.cos(t), y + radius * math.sin(t))]


OUTLINES = dict(polygon=_polygon, rectangle=_rectangle, circle=_circle)

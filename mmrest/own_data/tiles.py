"""Tiles of large photographs, with the objects in them, from COCO JSON."""
import json
import math
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from ..errors import UserError
from ..files import write_whole
from .form import find_images
from .formats.photos import (
    Notes,
    new_folder,
    outline_area,
    outlined,
    read_pixels,
    read_size,
    write_coco,
)

Box = Tuple[float, float, float, float]  # left, top, right, bottom
KEYPOINTS = 'keypoints', 'num_keypoints'


def cut(path: Path, tile: int, out: Path, overlap: float = 0.) -> List[str]:
    """Write ``out/images/*.png``, and a JSON file of the name of ``path`` in ``out``.

    Tiles cover a photograph evenly. An object is cut at the border of a tile. One of which less
    than half is inside is a crowd, which is neither learned nor evaluated; what is less than a
    pixel wide or high is left out.

    Args:
        path (Path): A COCO file.
        tile (int): Pixels on each side of a tile.
        out (Path): A new folder.
        overlap (float): The least share of a tile that its neighbour has, too.

    Returns:
        list[str]: Lines to print: what was left out, and what was written.

    Raises:
        UserError: A number or the file cannot be used, or a photograph is missing, unreadable
            or of another size than the file says.
    """
    if tile < 1:
        raise UserError(f'--tile={tile} must be 1 or more')
    if not 0 <= overlap < 1:
        raise UserError(f'--overlap={overlap} must be at least 0 and less than 1')
    notes = Notes()
    images: List[dict] = []
    annotations: List[dict] = []
    content = _read(path)
    objects = _objects_by_image(content, notes)
    photos = _find_photos(path, content['images'])
    with new_folder(out) as folder:
        for number, (image, photo) in enumerate(zip(content['images'], photos)):
            size = image['width'], image['height']
            boxes = list(_grid(*size, tile, overlap))
            for piece in _cut_objects(objects[image['id']], boxes, size, photo, notes):
                piece.update(id=len(annotations) + 1, image_id=piece['image_id'] + len(images))
                annotations.append(piece)
            name = f'{number:06d}_{photo.stem}'
            for entry in _write_tiles(photo, boxes, folder / 'images', name):
                images.append(dict(entry, id=len(images) + 1))
        content.update(images=images, annotations=annotations)
        line = write_coco(folder / path.name, content)
    return [*notes.lines(), f'{out}/{line}']


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text('utf-8-sig'))
        for part, names in (('images', ('id', 'file_name', 'width', 'height')),
                            ('annotations', ('id', 'image_id', 'category_id', 'bbox')),
                            ('categories', ('id', 'name'))):
            for entry in content[part]:
                [entry[name] for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: no COCO file ({type(error).__name__}: {error}): see '
                        'tools/own_data.py') from error
    return content


def _find_photos(path: Path, images: Sequence[dict]) -> List[Path]:
    """The photographs, where tools/own_data.py looks for them too, if all can be cut."""
    folder = find_images(path, [image['file_name'] for image in images])
    if folder is None:
        raise UserError(f'{path}: none of its images is in images/, beside it, or in COCO\'s '
                        'place for them')
    photos = [folder / image['file_name'] for image in images]
    faults = []
    for photo, image in zip(photos, images):
        found = read_size(photo) if photo.is_file() else None
        if found is None:
            faults.append(f'{photo}: missing or not readable')
        elif found[0] != (image['width'], image['height']):
            turned = '' if found[0] == found[1] else ' (EXIF turns it)'
            faults.append(f'{photo}: {found[0][0]} x {found[0][1]} pixels{turned}, and {path} '
                          f'says {image["width"]} x {image["height"]}')
    if faults:
        more = f'\nand {len(faults) - 5} more' if len(faults) > 5 else ''
        raise UserError('\n'.join(faults[:5]) + more)
    return photos


def _objects_by_image(content: dict, notes: Notes) -> Dict[int, List[dict]]:
    objects: Dict[int, List[dict]] = {image['id']: [] for image in content['images']}
    for thing in content['annotations']:
        box = thing['bbox']
        if thing['image_id'] not in objects:
            notes.add('objects of no image, left out', f'annotation {thing["id"]}')
        elif not (isinstance(box, list) and len(box) == 4 and all(
                isinstance(v, (int, float)) and math.isfinite(v) for v in box)):
            notes.add("objects whose 'bbox' is not four numbers, left out",
                      f'annotation {thing["id"]}')
        else:
            objects[thing['image_id']].append(thing)
    return objects


def _grid(width: int, height: int, tile: int, overlap: float) -> Iterator[Box]:
    for y in _starts(height, tile, overlap):
        for x in _starts(width, tile, overlap):
            yield x, y, min(x + tile, width), min(y + tile, height)


def _starts(size: int, tile: int, overlap: float) -> Iterable[int]:
    """Where tiles start that cover ``size`` pixels evenly."""
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil(max(size - tile, 0) / step) + 1
    return np.linspace(0, max(size - tile, 0), count).round().astype(int).tolist()


def _write_tiles(photo: Path, boxes: Sequence[Box], folder: Path, name: str) -> Iterator[dict]:
    pixels = read_pixels(photo)
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f'{photo}: OpenCV cannot read it as 8 or 16 bits, which PNG takes')
    for left, top, right, bottom in boxes:
        file_name = f'{name}_{left}_{top}.png'
        _, content = cv2.imencode('.png', pixels[top:bottom, left:right])
        write_whole(folder / file_name, content.tobytes())
        yield dict(file_name=file_name, width=right - left, height=bottom - top)


def _cut_objects(things: Sequence[dict], boxes: Sequence[Box], size: Tuple[int, int],
                 photo: Path, notes: Notes) -> Iterator[dict]:
    """The pieces of objects in tiles; ``image_id`` is the number of the tile, from 1."""
    for thing in things:
        shape = _shape(thing, size, photo, notes)
        rest = {k: v for k, v in thing.items() if k not in ('segmentation', *KEYPOINTS)}
        notes.add('objects with key points, which are left out', photo,
                  KEYPOINTS[0] in thing)
        shares = []
        for i, box in enumerate(boxes, 1):
            piece = shape.inside(box) if _overlap(shape.bounds, box) else None
            if piece and min(piece['bbox'][2:]) >= 1:
                shares.append(piece['area'] / shape.area)
                crowd = thing.get('iscrowd') or shares[-1] < 0.5
                yield dict(rest, **piece, image_id=i, iscrowd=int(bool(crowd)))
        notes.add('objects that are nowhere a pixel wide and high, left out', photo, not shares)
        notes.add('objects of which no tile has half, so that all their pieces are crowds',
                  photo, bool(shares) and max(shares) < 0.5)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shape(thing: dict, size: Tuple[int, int], photo: Path, notes: Notes):
    """What of an object is cut: its mask, its outlines, or else its box."""
    given = thing.get('segmentation')
    if isinstance(given, list):
        outlines = [part for part in given if isinstance(part, list) and len(part) >= 6
                    and len(part) % 2 == 0 and np.isfinite(part).all()]
        notes.add('outlines with fewer than three points, or NaN, left out', photo,
                  len(given) - len(outlines))
        if outlines:
            return _Outlines(thing, outlines)
    elif isinstance(given, dict):
        counts, (width, height) = given.get('counts'), size
        if given.get('size') == [height, width] and (
                isinstance(counts, str) or sum(counts or [0]) == width * height):
            return _Mask(thing)
        notes.add('masks of another size than their photograph, left out', photo)
    return _Rectangle(thing)


class _Rectangle:

    def __init__(self, thing: dict):
        x, y, w, h = self.box = thing['bbox']
        self.bounds = x, y, x + w, y + h
        self.area = w * h

    def inside(self, box: Box) -> Optional[dict]:
        """``bbox``, ``area`` and ``segmentation`` of what is in a tile, from its corner."""
        left, top, right, bottom = (
            choose(pair) for choose, pair in zip((max, max, min, min), zip(self.bounds, box)))
        w, h = right - left, bottom - top
        if (left, top, right, bottom) == self.bounds:
            w, h = self.box[2:]  # without the rounding of x + w - x
        return dict(bbox=[left - box[0], top - box[1], w, h], area=w * h)


class _Outlines:

    def __init__(self, thing: dict, outlines: List[List[float]]):
        self.outlines, self.thing = outlines, thing
        self.box: Any = _Rectangle(thing)
        x, y, w, h = outlined(outlines)['bbox']
        self.bounds = x, y, x + w, y + h
        self.area = sum(map(outline_area, outlines))

    def inside(self, box: Box) -> Optional[dict]:
        clipped = [_clip(points, box) for points in self.outlines]
        clipped = [points for points in clipped if points and outline_area(points)]
        if not clipped:
            return None
        moved = outlined([[value - box[i % 2] for i, value in enumerate(points)]
                          for points in clipped])
        if clipped == self.outlines:  # whole: box and area are as in the file
            moved.update(self.box.inside(box), area=self.thing.get('area', moved['area']))
        return moved


class _Mask:

    def __init__(self, thing: dict):
        given = thing['segmentation']
        if isinstance(given['counts'], list):
            given = mask_utils.frPyObjects(given, *given['size'])
        self.mask = mask_utils.decode(given)
        x, y, w, h = mask_utils.toBbox(given).tolist()
        self.bounds = x, y, x + w, y + h
        self.area = int(mask_utils.area(given))
        self.box: Any = _Rectangle(thing)

    def inside(self, box: Box) -> Optional[dict]:
        left, top, right, bottom = box
        mask = mask_utils.encode(np.asfortranarray(self.mask[top:bottom, left:right]))
        area = int(mask_utils.area(mask))
        piece = dict(bbox=mask_utils.toBbox(mask).tolist(), area=area,
                     segmentation=dict(mask, counts=mask['counts'].decode()))
        if area == self.area:
            piece['bbox'] = self.box.inside(box)['bbox']
        return piece if area else None


def _clip(points: Sequence[float], box: Box) -> List[float]:
    """Cut an outline at one side of a box after the other (Sutherland and Hodgman, 1974)."""
    corners: List[Any] = list(zip(points[::2], points[1::2]))
    for side, limit in enumerate(box):
        axis, sign = side % 2, 1 if side < 2 else -1
        kept = []
        for a, b in zip(corners[-1:] + corners[:-1], corners):
            inside = [sign * (corner[axis] - limit) >= 0 for corner in (a, b)]
            if inside[0] != inside[1]:
                t = (limit - a[axis]) / (b[axis] - a[axis])
                crossing = [u + t * (v - u) for u, v in zip(a, b)]
                crossing[axis] = limit
                kept.append(tuple(crossing))
            if inside[1]:
                kept.append(b)
        corners = kept
    return [value for corner in corners for value in corner]

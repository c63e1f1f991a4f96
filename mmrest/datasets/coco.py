"""Boxes and masks in COCO JSON."""
import json
import math
from collections import Counter
from pathlib import Path
from typing import Optional, Sequence

from .split import Split

FIELDS = dict(
    images=('id', 'file_name', 'height', 'width'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd'),
    categories=('id', 'name'))
WHOLE = ('id', 'image_id', 'category_id', 'height', 'width')


def read_coco(data: Path, masks: bool = False) -> Split:
    """Check a COCO file and its images.

    Args:
        data (Path): The file, or a folder with one JSON file in it. The images are in
            ``images/`` beside the file, beside it, or in COCO's place for them:
            ``train/`` for ``annotations/instances_train.json``.
        masks (bool): Whether each object needs a segmentation.

    Raises:
        FileNotFoundError: There is no such file, or not exactly one in the folder.
    """
    if data.is_dir():
        files = sorted(data.glob('*.json'))
        if len(files) != 1:
            raise FileNotFoundError(f'{data} has {len(files)} JSON files: name the one to take')
        data, = files
    split = Split(data, data.parent / 'images')
    content = check_annotations(split, masks)
    if content is None:
        return split
    images = {image['file_name']: image for image in content['images']}
    split.add('W', (name for name in images if Path(name).is_absolute()),
              'absolute paths, which only this computer has: write them as in images/')
    coco_place = data.parent.parent / data.stem.replace('instances_', '')
    for folder in (split.images, data.parent, coco_place):
        if any((folder / name).is_file() for name in images):
            split.images = folder
            break
    stored = split.read_images(list(images))
    said = {name: (images[name]['width'], images[name]['height']) for name in stored}
    wrong = [name for name in stored if split.sizes[name] != said[name]]
    turned = [name for name in wrong if stored[name] == said[name]]
    split.add('E', turned, "'width' and 'height' (and the boxes?) are those before EXIF turns "
              'the image upright, as mm reads it: save the images without EXIF')
    split.add('E', (f'{name} (is {"x".join(map(str, split.sizes[name]))})' for name in wrong
                    if name not in turned), "the image has other 'width' and 'height': correct "
              'them, and the boxes if they are for another size')
    return split


def check_annotations(split: Split, masks: bool,
                      classes: Optional[Sequence[str]] = None) -> Optional[dict]:
    """Check the JSON of ``split.path``, and not the images.

    Args:
        split (Split): Gets the findings, the classes and the boxes.
        masks (bool): Whether each object needs a segmentation.
        classes (Sequence[str], optional): The names that a config takes, one at least.

    Returns:
        dict, optional: The content of the file; None if it cannot be read as COCO.
    """
    text = split.path.read_text()
    try:
        content = json.loads(text)
    except ValueError as error:
        split.add('E', [f'{len(text)} characters'], f'no JSON: {error}')
        return None
    if not isinstance(content, dict):
        split.add('E', [type(content).__name__], f'must be an object of {", ".join(FIELDS)}')
        return None
    split.add('E', (repr(part) for part in FIELDS if not content.get(part)),
              'missing, or nothing in it')
    for part, fields in FIELDS.items():
        entries = [(f'{part}[{i}]', entry) for i, entry in enumerate(content.get(part) or ())]
        for name in fields:
            split.add('E', (place for place, entry in entries if name not in entry),
                      f'no {name!r}, which MMDetection needs')
            split.add('E', (place for place, entry in entries if name in WHOLE and name in entry
                            and not isinstance(entry[name], int)),
                      f'{name!r} must be a whole number, without quotes')
    if split.findings:
        return None
    for part, entries in content.items():
        if part in FIELDS:
            copies = Counter(entry['id'] for entry in entries)
            split.add('E', (f'id {i}' for i, n in copies.items() if n > 1),
                      f'several {part} have it: number them anew')
    names = Counter(category['name'] for category in content['categories'])
    split.add('E', (name for name, n in names.items() if n > 1),
              'names of several categories: leave one of each')
    if classes is not None and not set(names) & set(classes):
        split.add('E', names, 'the categories have none of the classes that the config names: '
                  f'{", ".join(map(str, classes[:5]))} ...')
    _check_objects(split, content, masks)
    return content


def _check_objects(split, content, masks):
    """Check the annotations, and count what is left of them for training."""
    categories = {c['id']: str(c['name']) for c in content['categories']}
    images = {i['id']: i for i in content['images']}
    split.classes = list(categories.values())
    things = content['annotations']

    def drop(level, wrong, what):
        nonlocal things
        split.add(level, (f'annotation {a["id"]}' for a in things if wrong(a)), what)
        things = [a for a in things if not wrong(a)]

    drop('E', lambda a: a['category_id'] not in categories,
         "'category_id' is none of the categories: add the category or remove the objects")
    drop('E', lambda a: a['image_id'] not in images,
         "'image_id' is none of the images: add the image or remove the objects")
    drop('E', lambda a: not _numbers(a['bbox'], 4), "'bbox' is not x, y, width, height")
    drop('E', lambda a: not _numbers([a['area']], 1), "'area' is not a number")
    todo = 'MMDetection leaves such objects out: correct or remove them'
    drop('W', lambda a: min(a['bbox'][2:]) < 0, f"'bbox' is inverted: a size below 0; {todo}")
    drop('W', lambda a: min(a['bbox'][2:]) < 1 or a['area'] <= 0,
         f"'bbox' is empty: less than a pixel wide or high, or 'area' is 0; {todo}")
    drop('W', lambda a: _outside(a, images) >= 1, f"'bbox' is outside of the image; {todo}")
    split.add('W', (f'annotation {a["id"]}' for a in things if _outside(a, images) > 0),
              "'bbox' is partly outside of the image, and cut there. If many are: it is x, y, "
              'width, height in pixels, and not two corners')
    split.add('W', [a['id'] for a in things if a['id'] == 0], 'is the id of an annotation, and '
              'pycocotools takes it for no object, so that AP is lower: number from 1')
    crowds = {categories[a['category_id']] for a in things if a['iscrowd']}
    things = [a for a in things if not a['iscrowd']]
    split.counts = Counter(categories[a['category_id']] for a in things)
    split.add('W', sorted(crowds - set(split.counts)),
              'only crowd regions, which nothing is learned from')
    split.add('W', (n for n in split.classes if n not in split.counts and n not in crowds),
              'no objects of these categories, so that nothing learns them')
    split.boxes = [(*a['bbox'][2:], images[a['image_id']]['width'],
                    images[a['image_id']]['height']) for a in things]
    split.empty = len(images) - len({a['image_id'] for a in things})
    if masks:
        drop('E', lambda a: not a.get('segmentation'), "no 'segmentation', which masks need: "
             'outline these objects, or train boxes with --task boxes')


def _numbers(values, count):
    return (isinstance(values, list) and len(values) == count
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values))


def _outside(thing, images):
    """1 if a box is outside of its image, between 0 and 1 if a strip of over a pixel is."""
    image = images[thing['image_id']]
    x, y, w, h = thing['bbox']
    inside_w = min(x + w, image['width']) - max(x, 0)
    inside_h = min(y + h, image['height']) - max(y, 0)
    if min(inside_w, inside_h) <= 0:
        return 1
    return 1 - inside_w * inside_h / (w * h) if max(w - inside_w, h - inside_h) > 1 else 0

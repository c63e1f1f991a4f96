"""The form of files: COCO JSON by a table of its fields, folders of classes, and of maps."""
import codecs
import json
import locale
import math
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Iterable, List, Optional, Sequence

from .findings import Split, similar_names
from .formats.photos import walk

READ = '.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif'  # by MMPretrain
IGNORED = 255  # what MMSegmentation neither trains on nor counts


def _finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def _whole(value):
    return type(value) is int


def _encodable(text):
    return text == text.encode(errors='replace').decode()  # a half emoji is not


def _outline(value):
    """Outlines of three corners at least, or run lengths."""
    if isinstance(value, dict):
        size = value.get('size')
        return (isinstance(size, list) and len(size) == 2 and all(map(_whole, size))
                and isinstance(value.get('counts'), (str, list)))
    return isinstance(value, list) and all(
        isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
        and all(map(_finite, points)) for points in value)


# Kinds of values: a test, and what to say.
WHOLE = _whole, '{} must be a whole number, without quotes or a point'
SIZE = (lambda value: _whole(value) and value > 0,
        '{} must be a whole number above 0, without quotes or a point')
TEXT = lambda value: isinstance(value, str) and bool(value), '{} must be a text'  # noqa: E731
NAME = (lambda value: isinstance(value, str) and bool(value) and _encodable(value),
        '{} must be a text that UTF-8 can write')
FLAG = lambda value: value in (0, 1), '{} must be 0 or 1, without quotes'  # noqa: E731
NUMBER = _finite, '{} is not a number'
BOX = (lambda value: isinstance(value, list) and len(value) == 4 and all(map(_finite, value)),
       '{} is not x, y, width, height')
OUTLINE = _outline, ('{} must be outlines of three corners or more, x1, y1, x2, y2 ..., or run '
                     'lengths with size and counts')
FIELDS = dict(
    images=dict(id=WHOLE, file_name=TEXT, height=SIZE, width=SIZE),
    annotations=dict(id=WHOLE, image_id=WHOLE, category_id=WHOLE, bbox=BOX, area=NUMBER,
                     iscrowd=FLAG),
    categories=dict(id=WHOLE, name=NAME))
ONE = dict(images='image', annotations='annotation', categories='category')


def read_coco(data: Path, masks: bool = False) -> Split:
    """Check the form of a COCO file, and find its images.

    Args:
        data (Path): The file, or a folder with one JSON file in it. The images are in
            ``images/`` beside the file, beside it, or in COCO's place for them:
            ``train/`` for ``annotations/instances_train.json``.
        masks (bool): Whether each object needs a segmentation.

    Returns:
        Split: Without ``content`` if the form is wrong.

    Raises:
        FileNotFoundError: There is no such file, or not exactly one in the folder.
    """
    if data.is_dir():
        files = sorted(data.glob('*.json'))
        if not files:
            raise FileNotFoundError(f'{data} has no JSON file: of other formats, '
                                    'tools/dataset_converters/to_coco.py makes one')
        if len(files) > 1:
            raise FileNotFoundError(f'{data} has {len(files)} JSON files: name the one to take')
        data, = files
    split = Split(data, data.parent / 'images')
    content = _read_json(split)
    if split.usable and _has_form(split, content, masks):
        split.content = content
        split.classes = [category['name'] for category in content['categories']]
        names = [image['file_name'] for image in content['images']]
        split.images = find_images(data, names) or split.images
        _look(split, content, names)
    return split


def find_images(path: Path, names: Sequence[str]) -> Optional[Path]:
    """The folder of the images of a COCO file, from where at least one of ``names`` leads."""
    places = (path.parent / 'images', path.parent,
              path.parent.parent / path.stem.replace('instances_', ''))
    return next((place for place in places if any((place / n).is_file() for n in names)), None)


def read_text(split: Split, path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; else a finding."""
    try:
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        split.add('E', [path.name], f'not in UTF-8 (byte {error.start + 1}): save it in UTF-8')
        return ''


def _read_json(split):
    text = read_text(split, split.path)
    if split.path.read_bytes()[:3] == codecs.BOM_UTF8:
        split.add('E', [split.path.name], 'begins with a byte order mark, at which pycocotools '
                  'stops: save it in UTF-8 without one')
    if not split.usable:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        split.add('E', [f'{len(text)} characters'], f'no JSON: {error}')
        return None
    if not isinstance(content, dict):
        split.add('E', [type(content).__name__], f'must be an object of {", ".join(FIELDS)}')
        return None
    encoding = locale.getpreferredencoding(False)
    if not text.isascii() and encoding.lower().replace('-', '') != 'utf8':
        split.add('E', [f'other letters than ASCII, and this computer writes {encoding}'],
                  'pycocotools takes them for others: set PYTHONUTF8=1')
    return content


def _has_form(split, content, masks):
    """Whether the file has all parts, fields, kinds of values, ids and references."""
    for part in FIELDS:
        if not isinstance(content.get(part), list) or not content[part]:
            split.add('E', [repr(part)], 'missing, or nothing in it')
    if not split.usable:
        return False
    for part in FIELDS:
        split.add('E', (f'{part}[{i}]' for i, entry in enumerate(content[part])
                        if not isinstance(entry, dict)), 'must be an object with fields')
    if not split.usable:
        return False
    for part, fields in FIELDS.items():
        for name, (right, what) in fields.items():
            _check_field(split, content, part, name, right, what)
    _check_optional(split, content, 'ignore', FLAG)
    if masks:
        _check_masks(split, content)
    if split.usable:
        _check_ids(split, content)
    return split.usable


def _check_field(split, content, part, name, right, what):
    entries = content[part]
    missing = [i for i, entry in enumerate(entries) if name not in entry]
    wrong = [i for i, entry in enumerate(entries) if name in entry and not right(entry[name])]
    split.add('E', places(content, part, missing),
              f'no {name!r}, which MMDetection needs')
    split.add('E', places(content, part, wrong), what.format(repr(name)))


def _check_optional(split, content, name, kind):
    right, what = kind
    wrong = [i for i, thing in enumerate(content['annotations'])
             if name in thing and not right(thing[name])]
    split.add('E', places(content, 'annotations', wrong), what.format(repr(name)))


def _check_masks(split, content):
    without = [i for i, thing in enumerate(content['annotations'])
               if not thing.get('segmentation')]
    split.add('E', places(content, 'annotations', without),
              "no 'segmentation', which masks need: outline these objects, or train boxes with "
              '--task boxes')
    right, what = OUTLINE
    _check_optional(split, content, 'segmentation', (lambda v: not v or right(v), what))


def _check_ids(split, content):
    for part in FIELDS:
        copies = Counter(entry['id'] for entry in content[part])
        split.add('E', (f'id {i}' for i, n in copies.items() if n > 1),
                  f'several {part} have it: number them anew')
    names = Counter(category['name'] for category in content['categories'])
    split.add('E', (name for name, n in names.items() if n > 1),
              'names of several categories: leave one of each')
    for name, part in (('category_id', 'categories'), ('image_id', 'images')):
        known = {entry['id'] for entry in content[part]}
        wrong = [i for i, thing in enumerate(content['annotations'])
                 if thing[name] not in known]
        split.add('E', places(content, 'annotations', wrong),
                  f'{name!r} is none of the {part}: add the {ONE[part]} or remove the objects')


def _look(split, content, names):
    """Add what is allowed, and seldom meant."""
    similar_names(split)
    split.add('W', (name for name in names if Path(name).is_absolute()),
              'absolute paths, which only this computer has: write them as in images/')
    ids = {}
    for image in content['images']:
        ids.setdefault(image['file_name'], []).append(str(image['id']))
    split.add('W', (f'{name} (ids {", ".join(own)})' for name, own in ids.items()
                    if len(own) > 1), 'one file for several images: it is trained on several '
              'times, each time without the objects of the others')
    split.add('W', (thing['id'] for thing in content['annotations'] if thing['id'] == 0),
              "is the id of an annotation: pycocotools treats id 0 as 'no match', which lowers "
              'AP: start at 1')


def places(content: dict, part: str, numbers: Iterable[int]) -> List[str]:
    """Where entries are: their ids, their places in the file, and their images or names."""
    numbers, found = list(numbers), []
    images = {repr(image.get('id')): image.get('file_name')
              for image in content['images']} if numbers else {}
    for i in numbers:
        entry = content[part][i]
        name = (images.get(repr(entry.get('image_id'))) if part == 'annotations' else
                entry.get('file_name' if part == 'images' else 'name'))
        where = ', '.join([f'{part}[{i}]', *([name] if isinstance(name, str) else [])])
        found.append(f'{ONE[part]} {entry["id"]} ({where})' if 'id' in entry else where)
    return found


def read_classes(data: Path) -> Split:
    """Find the classes of a folder that has one folder of images for each of them."""
    split = Split(data, data)
    split.classes = sorted(path.name for path in data.iterdir() if path.is_dir())
    hidden = [name for name in split.classes if name.startswith('.') or name == '__MACOSX']
    split.add('E', hidden, 'hidden folders, which MMPretrain takes for classes: remove them')
    if not split.classes:
        split.add('E', ['no folder'], 'one folder for each class is needed')
    similar_names(split)
    return split


def read_segments(data: Path) -> Split:
    """Find ``images/``, a second folder of PNG maps, and ``classes.txt``.

    The map of ``images/x.jpg`` is ``x.png``. Its pixels are class numbers: 0 is the first line
    of ``classes.txt``, and 255 is ignored.

    Raises:
        FileNotFoundError: A folder or ``classes.txt`` is missing, or has too many beside it.
    """
    folders = [path for path in sorted(data.iterdir())
               if path.is_dir() and not path.name.startswith('.')]
    others = [path for path in folders if path.name != 'images']
    if data / 'images' not in folders or len(others) != 1:
        names = ', '.join(path.name for path in folders)
        raise FileNotFoundError(f'{data} must have two folders, images and one of PNG maps; '
                                f'it has {names or "none"}')
    split = Split(data, data / 'images', maps=others[0])
    text = read_text(split, data / 'classes.txt')
    if split.usable:
        split.classes = [name.strip() for name in text.rstrip().splitlines()]
        _check_lines(split)
    endings = Counter(path.suffix for path in walk(split.images, READ))
    split.suffix = max(endings, key=endings.__getitem__, default='.jpg')
    if not endings:
        split.add('E', ['images'], f'no image that ends in {" ".join(READ)}')
    return split


def _check_lines(split):
    """Check classes.txt."""
    split.add('E', [] if split.classes else ['classes.txt'], 'no name of a class in it')
    lines = [f'line {i}' for i, name in enumerate(split.classes, 1) if not name]
    split.add('E', lines, 'empty lines of classes.txt: a pixel is the number of a line from 0')
    copies = Counter(filter(None, split.classes))
    split.add('E', (name for name, n in copies.items() if n > 1),
              'several lines of classes.txt: leave one of each')
    split.add('E', split.classes[IGNORED:], f'more than {IGNORED} names in classes.txt: '
              f'MMSegmentation ignores pixels of {IGNORED}, and there is no class above')
    similar_names(split)


def check_names(split: Split, classes: Sequence[str]) -> None:
    """Add what is wrong with the classes of a config for the file of ``split``.

    MMDetection numbers those that the file has by the order of its categories.
    """
    missing = [name for name in classes if name not in split.classes]
    split.add('E', missing, 'classes of the config that the categories do not have, so that '
              'MMDetection gives those after them other numbers. The categories are '
              f'{_few(split.classes)}')
    here = [name for name in split.classes if name in set(classes)]
    if not missing and here != list(classes):
        split.add('E', here, 'MMDetection numbers the classes in the order of the file, and '
                  f'the config has another order: {_few(classes)}')


def _few(names):
    return ', '.join(chain(names[:5], ['...'] if len(names) > 5 else ()))

"""YOLO: a text file for each photograph, and data.yaml or a list of the classes."""
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import yaml

from ...errors import UserError
from .photos import PARTS, SUFFIXES, Notes, Photo, number, outlined, part_by_folder, read_size
from .photos import walk as files_below

LISTS = 'classes.txt', 'obj.names'


def read_yolo(sources: Sequence[Path], notes: Notes) -> Tuple[List[Photo], List[dict]]:
    """Read data sets by their data.yaml, or folders of photographs with ``classes.txt``.

    The labels of ``images/x.jpg`` are ``labels/x.txt``, or ``x.txt`` beside it.

    Raises:
        UserError: Nothing names the classes, or two data sets have other ones.
    """
    photos: List[Photo] = []
    names: Any = None
    for source in sources:
        file = _data_file(source)
        classes, found = _read_yaml(file, notes) if file else _read_folder(source)
        if names not in (None, classes):
            raise UserError(f'{source} has other classes than {sources[0]}: convert it alone')
        names = classes
        used: Set[Path] = set()
        for path, parts in found.items():
            size = read_size(path)
            if size is None:
                notes.add('photographs that cannot be read, left out', path)
                continue
            photos.append(Photo(path, size[0], parts=parts))
            _read_labels(photos[-1], names, notes, used)
        _note_others(used, notes)
    return photos, [dict(id=i + 1, name=name) for i, name in sorted(names.items())]


def _data_file(source: Path) -> Optional[Path]:
    """The YAML file of a source, if it is one or has one."""
    if source.is_file():
        if source.suffix not in ('.yaml', '.yml'):
            raise UserError(f'{source}: give a folder, or a data.yaml')
        return source
    if not source.is_dir():
        raise FileNotFoundError(f'{source}: no such file or folder')
    files = sorted(file for file in source.iterdir() if file.suffix in ('.yaml', '.yml'))
    data = [file for file in files if file.stem == 'data'] or files
    if len(data) > 1:
        raise UserError(f'{source} has {len(data)} YAML files: name the one to take')
    return data[0] if data else None


def _read_yaml(file: Path, notes: Notes) -> Tuple[Dict[int, str], Dict[Path, Set[str]]]:
    """Names by number, and the parts of each photograph."""
    try:
        data = yaml.safe_load(file.read_text('utf-8-sig'))
        names = data['names']
        names = dict(enumerate(names) if isinstance(names, list) else names)
        for i, name in names.items():
            if type(name) not in (str, int):  # yes, no, on and off
                notes.add('names of classes that YAML does not take for text; put them in '
                          'quotes', f'{file} ({i}: {name})')
        names = {int(i): str(name) for i, name in names.items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: no YAML with 'names', a list or numbers with names "
                        f'({type(error).__name__}: {error})') from error
    if 'kpt_shape' in data:
        raise UserError(f'{file}: its labels have key points, which COCO boxes have not')
    path = str(data.get('path') or '')
    bases = [file.parent / path, Path(path), file.parent]  # a path may be another computer's
    found: Dict[Path, Set[str]] = {}
    for key, part in PARTS.items():
        entries = data.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            here = _resolve(entry, bases)
            if here is None:
                notes.add(f'entries of {file} that are not there, left out', f'{key}: {entry}')
                continue
            for photo in _photos_of(here, bases, notes):
                found.setdefault(photo, set()).add(part)
    return names, found


def _resolve(entry: str, bases: Sequence[Path]) -> Optional[Path]:
    """Where an entry of data.yaml is. Roboflow writes ../train for train beside the file."""
    tries = [entry, entry[3:]] if entry.startswith('../') else [entry]
    paths = (Path(os.path.normpath(base / name)) for base in bases for name in tries)
    return next((path for path in paths if path.exists()), None)


def _photos_of(path: Path, bases: Sequence[Path], notes: Notes) -> List[Path]:
    """The photographs below a folder, or in a text file of a path a line."""
    if path.suffix != '.txt':
        return files_below(path, SUFFIXES)
    photos = []
    for line in filter(None, map(str.strip, path.read_text('utf-8-sig').splitlines())):
        photo = _resolve(line, [path.parent, *bases])
        if photo is None:
            notes.add('photographs in lists that are not there, left out', f'{path} ({line})')
        else:
            photos.append(photo)
    return photos


def _read_folder(source: Path) -> Tuple[Dict[int, str], Dict[Path, Set[str]]]:
    """Names by number, and the parts of each photograph by their folders."""
    lists = [folder / name for folder in (source, source / 'labels') for name in LISTS]
    file = next((file for file in lists if file.is_file()), None)
    if file is None:
        raise UserError(f'{source} has no data.yaml, {" and no ".join(LISTS)}, which name the '
                        'classes: write classes.txt, a name a line')
    names = file.read_text('utf-8-sig').strip().splitlines()
    return ({i: name.strip() for i, name in enumerate(names)},
            {path: part_by_folder(path, source) for path in files_below(source, SUFFIXES)})


def _label_file(photo: Path) -> Path:
    """``labels/x.txt`` for the last ``images`` in the path, or the file beside it."""
    parts = list(photo.with_suffix('.txt').parts)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    file = Path(*parts)
    return file if file.is_file() else photo.with_suffix('.txt')


def _read_labels(photo: Photo, names: Dict[int, str], notes: Notes, used: Set[Path]) -> None:
    file = _label_file(photo.path)
    used.add(file)
    if not file.is_file():
        notes.add('photographs without a label file, kept without objects', photo.path)
        return
    for line in file.read_text('utf-8-sig', errors='replace').splitlines():
        values: List[Any] = list(map(number, line.split()))
        if not values:
            continue
        kind, *rest = values
        if None in values or len(rest) != 4 and (len(rest) < 6 or len(rest) % 2):
            notes.add('lines that are neither a box (class x y width height) nor an outline '
                      '(class x1 y1 x2 y2 x3 y3 ...), left out', file)
        elif kind not in names:
            notes.add(f'objects of classes other than {min(names)} to {max(names)}, left out',
                      file)
        else:
            if min(rest) < 0 or max(rest) > 1:
                notes.add('objects with values outside of 0 to 1, kept', file)
            photo.things.append(dict(_shape(rest, *photo.size), category_id=int(kind) + 1,
                                     iscrowd=0))


def _shape(values: List[float], width: int, height: int) -> dict:
    """``bbox``, ``area`` and, for outlines, ``segmentation`` in pixels."""
    if len(values) > 4:
        return outlined([[value * (height if i % 2 else width)
                          for i, value in enumerate(values)]])
    x, y, w, h = values
    return dict(bbox=[(x - w / 2) * width, (y - h / 2) * height, w * width, h * height],
                area=w * width * h * height)


def _note_others(used: Set[Path], notes: Notes) -> None:
    """Note label files in the same folders that no photograph has."""
    for folder in sorted({file.parent for file in used if file.parent.is_dir()}):
        for file in sorted(set(folder.glob('*.txt')) - used):
            text = file.read_text('utf-8-sig', errors='replace')
            first = next(iter(text.splitlines()), '').split()
            if len(first) > 4 and None not in map(number, first):
                notes.add('label files without a photograph, left out', file)

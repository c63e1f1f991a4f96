"""Images in a folder for each class, and images with PNG maps of class numbers."""
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from .split import READ, Split

IGNORED = 255  # what MMSegmentation neither trains on nor counts


def read_classes(data: Path) -> Split:
    """Check a folder that has one folder of images for each class.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    split = Split(data, data)
    split.classes = sorted(path.name for path in data.iterdir() if path.is_dir())
    files = [path for name in split.classes for path in sorted((data / name).rglob('*'))
             if path.is_file()]
    names = [str(p.relative_to(data)) for p in files if p.suffix.lower() in READ]
    split.add('W', (p.relative_to(data) for p in files if p.suffix.lower() not in READ),
              f'left out: MMPretrain reads {" ".join(READ)}')
    split.counts = Counter(Path(name).parts[0] for name in names)
    split.add('E' if not names else 'W', (c for c in split.classes if not split.counts[c]),
              'classes without images, which nothing is learned of')
    if not split.classes:
        split.add('E', ['no folder'], 'one folder for each class is needed')
    split.read_images(names)
    return split


def read_segments(data: Path) -> Split:
    """Check ``images/``, a second folder of PNG maps, and ``classes.txt``.

    The map of ``images/x.jpg`` is ``x.png``. Its pixels are class numbers: 0 is the first line
    of ``classes.txt``, and 255 is ignored.

    Raises:
        FileNotFoundError: A folder or ``classes.txt`` is missing, or has too many beside it.
    """
    folders = [path for path in sorted(data.iterdir()) if path.is_dir()]
    others = [path for path in folders if path.name != 'images']
    if len(folders) != 2 or len(others) != 1:
        names = ', '.join(path.name for path in folders)
        raise FileNotFoundError(f'{data} must have two folders, images and one of PNG maps; '
                                f'it has {names or "none"}')
    split = Split(data, data / 'images', maps=others[0])
    text = (data / 'classes.txt').read_text()
    split.classes = [line.strip() for line in text.splitlines() if line.strip()]
    files = [p for p in sorted(split.images.rglob('*')) if p.suffix.lower() in READ]
    names = [str(path.relative_to(split.images)) for path in files]
    endings = Counter(path.suffix for path in files)
    split.suffix = max(endings, key=endings.get, default='.jpg')
    split.add('E', [] if names else ['images'], f'no image that ends in {" ".join(READ)}')
    split.add('E', (n for n in names if not n.endswith(split.suffix)),
              f'the other images end in {split.suffix}, and MMSegmentation reads one ending')
    split.read_images(names)
    _check_maps(split)
    return split


def _check_maps(split):
    missing, colored, sizes, beyond, first = [], [], [], {}, IGNORED
    for name, size in split.sizes.items():
        path = split.maps / Path(name).with_suffix('.png')
        if not path.is_file():
            missing.append(path.name)
            continue
        with Image.open(path) as image:
            values = np.array(image)
        if values.ndim != 2:
            colored.append(path.name)
            continue
        if values.shape[::-1] != size:
            sizes.append(path.name)
        counts = dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True))))
        first = min(first, *counts)
        wrong = [value for value in counts if len(split.classes) <= value != IGNORED]
        if wrong:
            beyond[path.name] = wrong
        split.counts.update({
            name: counts[i] for i, name in enumerate(split.classes) if i in counts})
    split.add('E', missing, f'not found in {split.maps}')
    split.add('E', colored, 'a picture in colours; a map has one channel of class numbers')
    split.add('E', sizes, 'another size than the image')
    split.add('E', beyond, f'values {sorted(set().union(*beyond.values()))[:9]}: classes.txt '
              f'has {len(split.classes)} names, so that 0 to {len(split.classes) - 1} and '
              f'{IGNORED} (ignored) are allowed')
    if 0 < first < IGNORED:
        split.add('W', [f'smallest value {first}'], 'no pixel is of the first class, 0: if the '
                  'maps count from 1, subtract 1 or put a line for 0 on top of classes.txt')
    split.add('W', (name for name in split.classes if not split.counts[name]),
              'no pixels of these classes, so that nothing learns them')

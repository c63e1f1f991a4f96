"""One split of a data set: what is in it, and what is wrong with it."""
import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

import cv2
from PIL import Image

EXIF_ORIENTATION = 0x0112
READ = '.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif'  # by MMPretrain


@dataclass
class Finding:
    """What is wrong where, and what to do. Level E: cannot be trained on; W: look at it."""

    level: str
    path: Path  # of the file or folder
    where: Sequence  # ids, or names of files or classes
    what: str

    def __str__(self) -> str:
        more = f' and {len(self.where) - 5} more' if len(self.where) > 5 else ''
        named = ', '.join(map(str, self.where[:5]))
        return f'{self.level} {self.path}: {named}{more}: {self.what}'


@dataclass
class Split:
    """The training or the validation part of a data set.

    Attributes:
        path (Path): The annotation file, or the folder of the classes or of the images.
        images (Path): The folder of the images.
        classes (list[str]): Names of the classes, in the order of their numbers.
        counts (Counter): Objects, images or pixels of each class.
        sizes (dict): Width and height of each image as mm reads it, by the file's name.
        empty (int): Number of images without an object.
        boxes (list): Width and height of each box, and those of its image.
        digests (dict): The name of a file by the hash of its pixels.
        findings (list[Finding]): What is wrong.
        maps (Path): The folder of the class maps.
        suffix (str): How the names of the images end, where one ending is needed.
    """

    path: Path
    images: Path
    classes: List[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    sizes: Dict[str, Tuple[int, int]] = field(default_factory=dict)
    empty: int = 0
    boxes: List[Tuple[float, float, int, int]] = field(default_factory=list)
    digests: Dict[str, str] = field(default_factory=dict)
    findings: List[Finding] = field(default_factory=list)
    maps: Path = Path()
    suffix: str = ''

    def add(self, level: str, where: Iterable, what: str) -> None:
        """Add a finding, if there is anything in ``where``."""
        where = list(where)
        if where:
            self.findings.append(Finding(level, self.path, where, what))

    def read_images(self, names: Sequence[str]) -> Dict[str, Tuple[int, int]]:
        """Read images into ``sizes`` and ``digests``; returns the sizes without rotation."""
        with ThreadPoolExecutor() as threads:
            results = dict(zip(names, threads.map(_read, (self.images / n for n in names))))
        missing = [n for n, r in results.items() if r is None]
        self.add('E', missing, f'not found in {self.images}')
        broken = {n: r for n, r in results.items() if isinstance(r, str)}
        self.add('E', broken, f'cannot be read whole ({next(iter(broken.values()), "")}): '
                 'replace the images or leave them out')
        read = {n: r for n, r in results.items() if isinstance(r, tuple)}
        rotated = [n for n, (_, orientation, _) in read.items() if orientation > 1]
        self.add('W', rotated, 'EXIF says that the image is rotated or mirrored, and mm turns '
                 'it upright: check that it was annotated upright')
        for name, (size, orientation, digest) in read.items():
            self.sizes[name] = size[::-1] if orientation > 4 else size
            self.digests[digest] = name
        return {n: size for n, (size, *_) in read.items()}


def _read(path: Path):
    """None, an error's text, or the stored size (w, h), EXIF orientation and hash of pixels."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            digest = hashlib.sha1(image.tobytes()).hexdigest()
            found = image.size, image.getexif().get(EXIF_ORIENTATION, 1), digest
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return found if cv2.haveImageReader(str(path)) else 'OpenCV does not know its format'


def compare(train: Split, val: Split, subset: bool) -> None:
    """Add what is wrong with two splits together to the findings of ``val``.

    Args:
        train (Split): The training data.
        val (Split): The validation data.
        subset (bool): Whether classes that only ``val`` has are ignored, as in COCO files.
    """
    plain = {_plain(name): name for name in train.classes}
    similar = {name: plain[_plain(name)] for name in val.classes
               if name not in train.classes and _plain(name) in plain}
    val.add('E', (f'{name!r}' for name in similar),
            f'{train.path} writes {", ".join(map(repr, similar.values()))}: rename one of them')
    extra = [name for name in val.classes if name not in [*train.classes, *similar]]
    val.add('W' if subset else 'E', extra,
            f'classes that {train.path} does not have, so nothing learns them')
    missing = [n for n in train.classes if n not in [*val.classes, *similar.values()]]
    val.add('E', missing, f'classes of {train.path} that are missing here, so that mm gives '
            'those after them other numbers: add them, with or without objects')
    shared = [name for name in val.classes if name in train.classes]
    if sorted(shared) == sorted(train.classes) and shared != train.classes:
        val.add('E', shared, 'MMDetection numbers the classes in the order of the file, and '
                f'{train.path} has another order: {", ".join(train.classes)}')
    both = [name for digest, name in val.digests.items() if digest in train.digests]
    val.add('W', both, f'the same pictures are in {train.path}: AP is higher than for new ones')


def _plain(name: str) -> str:
    return ''.join(name.lower().split()).replace('_', '').replace('-', '')

"""One part of a data set: what mm sees of it, and what is wrong with it."""
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple


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
        line = f'{self.level} {self.path}: {named}{more}: {self.what}'
        return line.encode(errors='backslashreplace').decode()  # names of any bytes


@dataclass
class Split:
    """The part of a data set to train, to validate or to test on.

    Attributes:
        path (Path): The annotation file, or the folder of the classes or of the images.
        images (Path): The folder of the images.
        classes (list[str]): Names of the classes, in the order of their numbers.
        content (dict, optional): What is in the annotation file, if it is COCO.
        maps (Path): The folder of the class maps.
        suffix (str): How the names of the images end, where one ending is needed.
        sizes (dict): Width and height of each image that mm gives to the model, by its name.
        counts (Counter): Objects, images or pixels of each class, as mm counts them.
        empty (int): How many of ``sizes`` have no object.
        left_out (int): Images that mm leaves out of the training since they have no object.
        boxes (list): Class, width and height of each object, and the size of its image.
        digests (dict): The names of the images by a hash of their pixels.
        loaded (bool): Whether mm has loaded it, so that the numbers above count.
        findings (list[Finding]): What is wrong.
    """

    path: Path
    images: Path
    classes: List[str] = field(default_factory=list)
    content: Optional[dict] = None
    maps: Path = Path()
    suffix: str = ''
    sizes: Dict[str, Tuple[int, int]] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    empty: int = 0
    left_out: int = 0
    boxes: List[Tuple[str, float, float, int, int]] = field(default_factory=list)
    digests: Dict[bytes, List[str]] = field(default_factory=dict)
    loaded: bool = False
    findings: List[Finding] = field(default_factory=list)

    def add(self, level: str, where: Iterable, what: str) -> None:
        """Add a finding, if there is anything in ``where``."""
        where = list(where)
        if where:
            self.findings.append(Finding(level, self.path, where, what))

    @property
    def usable(self) -> bool:
        """Whether no error was found so far."""
        return all(finding.level != 'E' for finding in self.findings)


def compare_names(train: Split, other: Split, subset: bool) -> None:
    """Add what is wrong with the classes of two splits together to those of ``other``.

    Args:
        train (Split): The training data.
        other (Split): The validation or test data.
        subset (bool): Whether classes that only ``other`` has are ignored, as in COCO files.
    """
    plain = {_plain(name): name for name in train.classes}
    similar = {name: plain[_plain(name)] for name in other.classes
               if name not in train.classes and _plain(name) in plain}
    other.add('E', (f'{name!r}' for name in similar),
              f'{train.path} writes {", ".join(map(repr, similar.values()))}: rename one of '
              'them')
    extra = [name for name in other.classes if name not in [*train.classes, *similar]]
    other.add('W' if subset else 'E', extra,
              f'classes that {train.path} does not have, so nothing learns them')
    missing = [n for n in train.classes if n not in [*other.classes, *similar.values()]]
    other.add('E', missing, f'classes of {train.path} that are missing here, so that mm gives '
              'those after them other numbers: add them, with or without objects')
    shared = [name for name in other.classes if name in train.classes]
    if sorted(shared) == sorted(train.classes) and shared != train.classes:
        other.add('E', shared, 'mm numbers the classes in the order of the file, and '
                  f'{train.path} has another order: {", ".join(train.classes)}')


def compare_pictures(splits: Sequence[Split]) -> None:
    """Add the pictures that are twice in one split, or in two, by the pixels that mm reads."""
    for i, split in enumerate(splits):
        twice = [' = '.join(sorted(names)) for names in split.digests.values()
                 if len(names) > 1]
        split.add('W', twice, 'the same picture under several names or ids')
        for earlier in splits[:i]:
            both = split.digests.keys() & earlier.digests.keys()
            split.add('W', sorted(name for key in both for name in split.digests[key]),
                      f'the same pictures are in {earlier.path}: AP is higher than for new '
                      'ones')


def similar_names(split: Split) -> None:
    """Add names of classes of one split that differ in case, spaces, hyphens or underscores."""
    groups: Dict[str, List[str]] = {}
    for name in dict.fromkeys(split.classes):
        groups.setdefault(_plain(name), []).append(name)
    split.add('W', (' and '.join(map(repr, names)) for names in groups.values()
                    if len(names) > 1), 'two classes, though their names look like one')


def _plain(name: str) -> str:
    return ''.join(name.lower().split()).replace('_', '').replace('-', '')

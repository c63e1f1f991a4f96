"""Data sets of one's own: checks, tables of what is in them, and configs for them."""
from pathlib import Path
from typing import List, Optional

from .config import BASES, check_options, dataset, make_config
from .findings import Finding, Split, compare_names, compare_pictures
from .form import check_names, read_classes, read_coco, read_segments
from .judge import load
from .table import contents, training

__all__ = ['BASES', 'Finding', 'Split', 'check_names', 'check_options', 'contents',
           'make_config', 'read', 'read_coco', 'training']
SCOPES = dict(boxes='mmdet', masks='mmdet', classes='mmpretrain', segments='mmseg')


def read(task: str, train: Path, val: Optional[Path] = None, test: Optional[Path] = None,
         keep_empty: bool = False) -> List[Split]:
    """Check the parts of a data set by loading all of it once as mm does.

    Args:
        task (str): 'boxes', 'masks', 'classes' or 'segments'.
        train (Path): The data to train on. See :mod:`mmrest.own_data.form` for its form.
        val (Path, optional): The data to validate on.
        test (Path, optional): The data to test on.
        keep_empty (bool): Whether images without objects are trained on.

    Returns:
        list[Split]: One for each path, with the findings.

    Raises:
        FileNotFoundError: A file or folder is not there.
    """
    splits = [_read(task, path) for path in (train, val, test) if path]
    coco = task in ('boxes', 'masks')
    ready = [split for split in splits if split.usable]
    for other in ready[1:] if splits[0] in ready else ():
        compare_names(splits[0], other, subset=coco)
    for split in ready:
        first = splits[0] if splits[0] in ready and split.usable else split
        cfg = dataset(task, split, first.classes, split is splits[0], keep_empty)
        load(split, cfg, SCOPES[task])
    compare_pictures(splits)
    return splits


def _read(task, data):
    if not data.exists():
        raise FileNotFoundError(f'{data}: no such file or folder')
    if task in ('boxes', 'masks'):
        return read_coco(data, masks=task == 'masks')
    return read_classes(data) if task == 'classes' else read_segments(data)

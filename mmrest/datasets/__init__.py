"""Data sets of one's own: checks, tables of what is in them, and configs for them."""
from pathlib import Path

from .coco import check_annotations, read_coco
from .config import BASES, make_config
from .folders import read_classes, read_segments
from .split import Finding, Split, compare
from .table import contents, training

__all__ = ['BASES', 'Finding', 'Split', 'check_annotations', 'compare', 'contents',
           'make_config', 'read', 'training']


def read(task: str, data: Path) -> Split:
    """Check a split for a task: 'boxes', 'masks', 'classes' or 'segments'.

    See :func:`~mmrest.datasets.coco.read_coco` and :mod:`mmrest.datasets.folders`.
    """
    if not data.exists():
        raise FileNotFoundError(f'{data}: no such file or folder')
    if task in ('boxes', 'masks'):
        return read_coco(data, masks=task == 'masks')
    return read_classes(data) if task == 'classes' else read_segments(data)

"""The form of files: what COCO's labels and results must have before they are counted."""
from pathlib import Path
from typing import Any, Sequence, Union

from ..errors import UserError
from ..own_data.form import FIELDS, NUMBER, WHOLE


def _run_lengths(value):
    if not isinstance(value, dict):
        return False
    size, counts = value.get('size'), value.get('counts')
    return (isinstance(size, list) and [type(side) for side in size] == [int, int]
            and (isinstance(counts, str) or isinstance(counts, list)
                 and all(type(count) is int for count in counts)))


MASK = _run_lengths, '{} must be run lengths with size and counts'
RESULT = dict(image_id=WHOLE, category_id=WHOLE, score=NUMBER)
LABELS = dict(FIELDS, annotations={name: FIELDS['annotations'][name]
                                   for name in ('image_id', 'category_id', 'bbox')})


def check_rows(rows: Any, fields: dict, where: Union[str, Path],
               optional: Sequence[str] = ()) -> None:
    """Refuse what is not a list of objects with these fields.

    Args:
        rows (list[dict]): The objects.
        fields (dict): A test and what to say, by name, as in :mod:`mmrest.own_data.form`.
        where (str | Path): The file, and what part of it.
        optional (Sequence[str]): Fields that may be missing.

    Raises:
        UserError: It names the first object that is wrong, counted from 0, and its field.
    """
    if not isinstance(rows, list):
        raise UserError(f'{where} must be a list of objects')
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f'{where}[{i}] must be an object with {", ".join(fields)}')
        for name, (right, what) in fields.items():
            if name not in row and name not in optional:
                raise UserError(f'{where}[{i}] has no {name!r}')
            if name in row and not right(row[name]):
                raise UserError(f'{where}[{i}]: {what.format(repr(name))}')


def check_labels(content: Any, path: Union[str, Path]) -> None:
    """Refuse what is not a COCO file of labels, or labels of images that it does not have.

    Raises:
        UserError: It names the first part that is wrong.
    """
    if not isinstance(content, dict):
        raise UserError(f'{path} must be an object of {", ".join(LABELS)}')
    for part, fields in LABELS.items():
        if not content.get(part):
            raise UserError(f'{path} has no {part}: a report needs data that has labels')
        check_rows(content[part], fields, f'{path}: {part}')
    images = {image['id'] for image in content['images']}
    for i, label in enumerate(content['annotations']):
        if label['image_id'] not in images:
            raise UserError(f'{path}: annotations[{i}] is of image {label["image_id"]}, which '
                            'the file does not have')

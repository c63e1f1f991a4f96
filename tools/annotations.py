"""What a COCO annotation file lacks, in a sentence, for runs that ended with an error."""
import json
from pathlib import Path
from typing import Optional, Sequence

FIELDS = dict(
    images=('id', 'file_name', 'height', 'width'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
    categories=('id', 'name'))


def fault(path: Path, classes: Sequence[str], with_mask: bool) -> Optional[str]:
    """The first thing in a COCO file that CocoDataset cannot train on, or None.

    Args:
        path (Path): The annotation file.
        classes (Sequence[str]): Names of the classes that the dataset takes.
        with_mask (bool): Whether each object needs a segmentation.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        return f'{path} is no JSON file, but {path.stat().st_size} bytes long: {error}'
    if not isinstance(content, dict):
        return f'{path} must hold an object of {", ".join(FIELDS)}, not a {type(content)}'
    for part, fields in FIELDS.items():
        if not content.get(part):
            return f"{path} has no {part!r}, or none in it"
        for i, entry in enumerate(content[part]):
            for field in fields:
                if field not in entry:
                    return f'{path}: {part}[{i}] has no {field!r}'
    wanted = {c['id'] for c in content['categories'] if c['name'] in classes}
    if not wanted:
        return (f"{path}: 'categories' has none of the classes that the config names: "
                f'{", ".join(map(str, classes[:5]))} ...')
    if not any(a['category_id'] in wanted for a in content['annotations']):
        return f"{path}: 'category_id' of every annotation is none of {sorted(wanted)[:5]} ..."
    for i, entry in enumerate(content['annotations']):
        box = entry['bbox']
        if len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
            return f"{path}: annotations[{i}] has 'bbox' {box}, not 4 numbers"
        if with_mask and not entry.get('segmentation'):
            return (f"{path}: annotations[{i}] (id {entry['id']}) has no 'segmentation', "
                    'which the masks need')
    return None

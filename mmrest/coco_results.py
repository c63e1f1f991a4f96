"""Detections in COCO's results format, which pycocotools, hotcoco and mm's scripts take."""
import json
import os
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Union

from mmengine.config import Config

from .errors import UserError
from .files import write_whole


class CocoResults:
    """Collects what is found in images, with the ids of an annotation file.

    Args:
        cfg (Config): ``test_dataloader`` names the file, of COCO's format.
        classes (Sequence[str]): The model's, in the order of its labels.
        paths (Iterable[str]): The images, which are known by their file name in the file, with
            as many folders as it has there.

    Raises:
        UserError: There is no such file, or it does not have an image or a class, or two of
            the paths are one image there.
    """

    def __init__(self, cfg: Config, classes: Sequence[str], paths: Iterable[str]):
        self.boxes: List[dict] = []
        self.masks: List[dict] = []
        file = _annotation_file(cfg)
        content = json.loads(file.read_text())
        by_name: Dict[str, list] = {}
        for image in content['images']:
            name = Path(image['file_name'])
            by_name.setdefault(name.name, []).append((name.parts, image['id']))
        self.image_ids = {path: _image_id(Path(path), by_name, file) for path in paths}
        _check_once(self.image_ids, file)
        ids = {category['name']: category['id'] for category in content['categories']}
        lacking = [name for name in classes if name not in ids]
        if lacking:
            raise UserError(f'{file} has no category {", ".join(lacking)}, which the model '
                            'finds: COCO\'s results need its id')
        self.category_ids = [ids[name] for name in classes]

    def add(self, path: str, found: dict) -> None:
        """Add what is found in an image: the content of its JSON file."""
        masks = found.get('masks') or [None] * len(found['labels'])
        for label, score, box, mask in zip(
                found['labels'], found['scores'], found['bboxes'], masks):
            row = dict(image_id=self.image_ids[path], category_id=self.category_ids[label],
                       score=score)
            x1, y1, x2, y2 = box
            self.boxes.append(dict(row, bbox=[x1, y1, x2 - x1, y2 - y1]))
            if mask is not None:
                self.masks.append(dict(row, segmentation=mask))

    def write(self, path: Union[str, Path]) -> List[Path]:
        """Write boxes to ``path``, and masks beside it: found.bbox.json, found.segm.json.

        pycocotools would measure the area of a mask in the box of its row, hence two files.
        """
        path = Path(path)
        files = {path: self.boxes}
        if self.masks:
            stem = path.name.removesuffix('.json').removesuffix('.bbox')
            files[path.with_name(f'{stem}.segm.json')] = self.masks
        for file, rows in files.items():
            write_whole(file, json.dumps(rows).encode())
        return list(files)


def _annotation_file(cfg: Config) -> Path:
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    ann_file = dataset.get('ann_file')
    path = Path(os.path.join(dataset.get('data_root') or '', ann_file or ''))
    if not ann_file or path.suffix != '.json' or not path.is_file():
        raise UserError('COCO\'s results need the ids of a COCO file: '
                        f'test_dataloader.dataset.ann_file={str(path) if ann_file else None!r} '
                        'of the config is none; set it in the config')
    return path


def _image_id(path: Path, by_name: Dict[str, list], file: Path) -> int:
    parts = path.absolute().parts
    ids = [number for name, number in by_name.get(path.name, ())
           if parts[-len(name):] == name]
    if len(ids) != 1:
        raise UserError(f'{file} has {len(ids) or "no"} images named {path}: COCO\'s results '
                        'need its id')
    return ids[0]


def _check_once(image_ids: Dict[str, int], file: Path) -> None:
    paths: Dict[int, str] = {}
    for path, number in image_ids.items():
        if paths.setdefault(number, path) != path:
            raise UserError(f"{paths[number]} and {path} are one image in {file}, that of id "
                            f"{number}: COCO's results need one of them")

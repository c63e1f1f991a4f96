"""Make COCO data with tiles of large images, from boxes in Pascal VOC XML.

    python tools/dataset_converters/voc_to_coco.py photos/*.xml --out trees --tile 256 --val 0.3

The image of an XML file is beside it: the file that it names, or one with its own name. OUT
gets train/images/*.png and train/train.json, and with --val, val/images and val/val.json from
the right part of each image. Tiles cover the image evenly, so neighbours may overlap. An object
is cut at the border of a tile; one of which less than half is inside counts as a crowd, which
is neither learned nor evaluated.
"""
import argparse
import json
import math
from pathlib import Path
from typing import Iterable, List, Tuple
from xml.etree import ElementTree

import cv2
import numpy as np

SIDES = 'xmin', 'ymin', 'xmax', 'ymax'
Box = Tuple[float, float, float, float]


def read_voc(path: Path) -> Tuple[np.ndarray, List[Tuple[str, Box]]]:
    """Read the image (BGR) and the objects of an XML file: class and box by its corners."""
    root = ElementTree.parse(path).getroot()
    named = path.with_name(Path(root.findtext('filename', '')).name)
    for file in (named, *sorted(path.parent.glob(f'{path.stem}.*'))):
        image = cv2.imread(str(file)) if file.is_file() and file != path else None
        if image is not None:
            break
    else:
        raise SystemExit(f'{path}: no image {named.name} or {path.stem}.* beside it')
    return image, [(thing.findtext('name'),
                    tuple(float(thing.findtext(f'bndbox/{side}')) for side in SIDES))
                   for thing in root.iter('object')]


def starts(low: int, high: int, tile: int) -> Iterable[int]:
    """Where tiles start that cover the pixels from ``low`` to ``high`` evenly."""
    count = math.ceil((high - low) / tile)
    return np.linspace(low, max(high - tile, low), count).round().astype(int).tolist()


class Writer:
    """Writes tiles of images, and at the end their annotations."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images, self.annotations = [], []
        (folder / 'images').mkdir(parents=True)

    def add(self, name: str, image: np.ndarray, objects: List[Tuple[int, Box]], columns: range,
            tile: int) -> None:
        """Write the tiles of some columns of an image, with the objects in them."""
        for y in starts(0, len(image), tile):
            for x in starts(columns.start, columns.stop, tile):
                part = image[y:y + tile, x:min(x + tile, columns.stop)]
                height, width = part.shape[:2]
                file_name = f'{name}_{x}_{y}.png'
                cv2.imwrite(str(self.folder / 'images' / file_name), part)
                self.images.append(dict(id=len(self.images) + 1, file_name=file_name,
                                        width=width, height=height))
                for category, (x1, y1, x2, y2) in objects:
                    left, right = np.clip([x1 - x, x2 - x], 0, width).tolist()
                    top, bottom = np.clip([y1 - y, y2 - y], 0, height).tolist()
                    w, h = right - left, bottom - top
                    if min(w, h) >= 1:
                        self.annotations.append(dict(
                            id=len(self.annotations) + 1, image_id=len(self.images),
                            category_id=category, bbox=[left, top, w, h], area=w * h,
                            iscrowd=int(w * h < 0.5 * (x2 - x1) * (y2 - y1))))

    def close(self, classes: List[str]) -> None:
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        content = dict(
            images=self.images, annotations=self.annotations, categories=categories)
        (self.folder / f'{self.folder.name}.json').write_text(json.dumps(content))
        print(f'{self.folder}: {len(self.images)} images, {len(self.annotations)} objects')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('xml', type=Path, nargs='+')
    parser.add_argument('--out', type=Path, required=True, help='a new folder')
    parser.add_argument('--tile', type=int, default=256, help='pixels on each side')
    parser.add_argument(
        '--val', type=float, default=0., help='share of each image, its right, to validate on')
    parser.add_argument('--one-class', help='name of a class that takes the place of all')
    args = parser.parse_args()
    if not 0 <= args.val < 1:
        raise SystemExit(f'--val={args.val} must be at least 0 and less than 1')
    if args.out.exists():
        raise SystemExit(f'--out={args.out} exists: give a new folder or remove it')

    photos = {path.stem: read_voc(path) for path in args.xml}
    names = {name for _, objects in photos.values() for name, _ in objects}
    classes = [args.one_class] if args.one_class else sorted(names)
    writers = [Writer(args.out / part) for part in ('train', 'val')[:1 + (args.val > 0)]]
    for name, (image, objects) in photos.items():
        numbered = [(1 if args.one_class else classes.index(kind) + 1, box)
                    for kind, box in objects]
        width = image.shape[1]
        cut = round(width * (1 - args.val))
        for writer, columns in zip(writers, (range(cut), range(cut, width))):
            writer.add(name, image, numbered, columns, args.tile)
    for writer in writers:
        writer.close(classes)


if __name__ == '__main__':
    main()

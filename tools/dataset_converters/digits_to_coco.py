"""Make small data sets for every task from scikit-learn's handwritten digits, offline.

The 1797 scans (8x8 pixels) are enlarged and put on textured backgrounds:

    OUT/annotations/instances_{train,val}.json    COCO boxes and masks, class = digit
    OUT/{train,val}/*.jpg                         128 px, 2 to 4 digits of 28 to 64 px
    OUT/semantic/{train,val}/*.png                the class of each pixel: 0 is background,
                                                  d + 1 the ink of digit d
    OUT/cls/{train,val}/{0..9}/*.jpg              64 px, one digit of 40 to 60 px (one folder
                                                  for each class, as in ImageNet)

The split of the scans does not depend on the seed: a scan is either in training images or in
validation images.
"""
import argparse
import json
import shutil
from pathlib import Path
from typing import List, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# The longer side of a digit's box in pixels. Rendering may add or take one, so these are one
# inside 28 to 64 and 40 to 60.
DETECTION_SIZES = (29, 63)
CLASSIFICATION_SIZES = (41, 59)
NOISE_STD = 25
NOISE_SIGMAS = (3, 8)  # of the Gaussian that smooths the noise, in pixels
MIN_CONTRAST = 180  # smallest RGB distance of ink and background
MAX_TRIES = 100


def _bounds(mask: np.ndarray) -> Tuple[slice, slice]:
    """Rows and columns of the smallest box that holds a mask."""
    return tuple(
        slice(line.argmax(), len(line) - line[::-1].argmax())
        for line in (mask.any(1), mask.any(0)))


class Split:
    """Draws scenes from the scans of one split."""

    def __init__(self, name: str, rng: np.random.Generator):
        scans, labels = load_digits(return_X_y=True)
        train, val = train_test_split(
            np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        self.indices = {'train': train, 'val': val}[name]
        self.scans = scans.reshape(-1, 8, 8).astype(np.float32) / 16
        self.labels = labels
        self.rng = rng

    def glyph(self, index: int, size: int) -> np.ndarray:
        """Ink of a scan, in [0, 1]. The longer side of what is above 0.5 is ``size``."""
        scan = np.pad(self.scans[index], 1)
        large = cv2.resize(scan, (160, 160), interpolation=cv2.INTER_CUBIC)
        ink = ((large - 0.15) / 0.4).clip(0, 1)  # bold, with soft edges
        scale = size / max(side.stop - side.start for side in _bounds(ink > 0.5))
        ink = ink[_bounds(ink > 0)]
        width, height = (round(side * scale) for side in ink.shape[::-1])
        return cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)

    def scene(self, side: int, sizes: Tuple[int, int],
              indices: List[int]) -> Tuple[np.ndarray, List[dict]]:
        """An image (side, side, 3) of these scans, and the label and mask of each."""
        while True:
            placed = self._place(side, sizes, indices)
            if placed is not None:
                break
        rng = self.rng
        background = rng.uniform(0, 255, 3)
        image = np.full((side, side, 3), background, np.float32)
        instances = []
        for index, glyph, x, y in placed:
            height, width = glyph.shape
            ink = self._ink(background)
            patch = image[y:y + height, x:x + width]
            patch += glyph[..., None] * (ink - patch)
            mask = np.zeros((side, side), np.uint8, order='F')
            mask[y:y + height, x:x + width] = glyph > 0.5
            instances.append(dict(label=int(self.labels[index]), mask=mask))
        noise = rng.standard_normal((side, side, 3)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(*NOISE_SIGMAS))
        image += noise * (NOISE_STD / noise.std())
        return image.clip(0, 255).round().astype(np.uint8), instances

    def _place(self, side: int, sizes: Tuple[int, int], indices: List[int]):
        """(index, glyph, x, y) of each scan, with disjoint boxes. None if they do not fit."""
        placed = []
        for index in indices:
            glyph = self.glyph(index, self.rng.integers(*sizes, endpoint=True))
            height, width = glyph.shape
            if max(height, width) > side:
                return None
            for _ in range(MAX_TRIES):
                x = self.rng.integers(side - width + 1)
                y = self.rng.integers(side - height + 1)
                if all(x >= x2 + g.shape[1] or x2 >= x + width or y >= y2 + g.shape[0]
                       or y2 >= y + height for _, g, x2, y2 in placed):
                    placed.append((index, glyph, x, y))
                    break
            else:
                return None
        return placed

    def _ink(self, background: np.ndarray) -> np.ndarray:
        while True:
            ink = self.rng.uniform(0, 255, 3)
            if np.linalg.norm(ink - background) >= MIN_CONTRAST:
                return ink


def write_detection(out: Path, name: str, split: Split, num_images: int) -> None:
    for folder in (out / name, out / 'semantic' / name):
        folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(num_images):
        indices = split.rng.choice(split.indices, split.rng.integers(2, 5), replace=False)
        image, instances = split.scene(128, DETECTION_SIZES, indices)
        file_name = f'{i:06d}.jpg'
        _write(out / name / file_name, image)
        images.append(dict(id=i + 1, file_name=file_name, width=128, height=128))
        classes = sum(instance['mask'] * (instance['label'] + 1) for instance in instances)
        _write(out / 'semantic' / name / f'{i:06d}.png', classes.astype(np.uint8))
        for instance in instances:
            rle = mask_utils.encode(instance['mask'])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=instance['label'] + 1,
                    bbox=mask_utils.toBbox(rle).tolist(),
                    area=float(mask_utils.area(rle)),
                    iscrowd=0,
                    segmentation=dict(rle, counts=rle['counts'].decode())))
    categories = [dict(id=d + 1, name=str(d), supercategory='none') for d in range(10)]
    path = out / 'annotations' / f'instances_{name}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def write_classification(out: Path, name: str, split: Split, renders: int) -> None:
    for digit in range(10):
        (out / 'cls' / name / str(digit)).mkdir(parents=True)
    for index in split.indices:
        for i in range(renders):
            image, (instance, ) = split.scene(64, CLASSIFICATION_SIZES, [index])
            folder = out / 'cls' / name / str(instance['label'])
            _write(folder / f'{index:04d}_{i}.jpg', image)


def _write(path: Path, image: np.ndarray) -> None:
    # Without 4:4:4 sampling, JPEG blurs the colours and with them the digits' edges.
    options = [
        cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    ]
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f'cannot write {path}')


def convert(out: Path, seed: int, num_train: int, num_val: int, renders: int) -> None:
    """Write the data sets to ``out``. The folder appears when it is complete."""
    if out.exists():
        raise SystemExit(f'out={str(out)!r} exists: give a new folder or remove it')
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for offset, name, num_images, times in ((0, 'train', num_train, renders),
                                            (1, 'val', num_val, 1)):
        split = Split(name, np.random.default_rng([seed, offset]))
        write_detection(partial, name, split, num_images)
        write_classification(partial, name, split, times)
    partial.rename(out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, nargs='?', default=Path('data/digits'))
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers')
    parser.add_argument('--num-train', type=int, default=2000, help='images to train detectors')
    parser.add_argument('--num-val', type=int, default=200, help='images to validate detectors')
    parser.add_argument(
        '--renders', type=int, default=10,
        help='classification images of each training scan (each validation scan has one)')
    args = parser.parse_args()
    for name in ('seed', 'num_train', 'num_val', 'renders'):
        least = 0 if name == 'seed' else 1
        if getattr(args, name) < least:
            parser.error(f'{name}={getattr(args, name)} must be {least} or more')
    return args


if __name__ == '__main__':
    args = parse_args()
    convert(args.out, args.seed, args.num_train, args.num_val, args.renders)
    print(f'{args.out}: {args.num_train} + {args.num_val} detection images, and '
          f'classification images in {args.out / "cls"}')

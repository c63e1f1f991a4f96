"""Pictures and JSON of what an exported model finds, with NumPy, Pillow and ONNX Runtime alone.

    python tools/deployment/run_onnx.py detector.onnx photo.jpg folder/ --out-dir found

The model is a file of tools/deployment/export_onnx.py. Detectors draw boxes and masks,
segmenters class maps, classifiers write their best class on the picture. OUT_DIR gets
pictures/NAME and predictions/NAME.json, and from segmenters predictions/NAME.png with the class
of each pixel.
"""
import argparse
import json
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageOps, UnidentifiedImageError

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
RESAMPLE = dict(bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC,
                nearest=Image.Resampling.NEAREST)


class Model:
    """An exported model with what is around it: resizing, pasting of masks, names of classes.

    Args:
        run (Callable): Takes ``image`` (1, 3, H, W), uint8, and returns the outputs by name.
        metadata (dict[str, str]): The file's.
    """

    def __init__(self, run: Callable[[np.ndarray], Dict[str, np.ndarray]],
                 metadata: Dict[str, str]):
        self.run = run
        self.classes = json.loads(metadata['classes'])
        self.size = json.loads(metadata['test_size'])

    def __call__(self, image: Image.Image) -> dict:
        """What is found in an RGB picture, for JSON.

        Returns:
            dict: Of detectors ``bboxes`` (x1 y1 x2 y2 in pixels of the picture), ``scores``,
            ``labels``, ``classes`` and perhaps ``masks`` (COCO's run lengths). Of segmenters
            ``labels``, an array (H, W). Of classifiers ``pred_scores``, ``pred_label``,
            ``pred_score`` and ``pred_class``.
        """
        resized = fit(image, self.size)
        found = self.run(np.asarray(resized).transpose(2, 0, 1)[None])
        found = {name: output[0] for name, output in found.items()}
        if 'logits' in found:
            scores = np.exp(found['logits'] - found['logits'].max())
            scores /= scores.sum()
            best = int(scores.argmax())
            return dict(pred_scores=scores.tolist(), pred_label=best,
                        pred_score=float(scores[best]), pred_class=self.name(best))
        if 'boxes' not in found:
            labels = found['labels'].astype(np.uint8 if len(self.classes) <= 256 else np.uint16)
            return dict(labels=np.asarray(
                Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)))
        there = found['labels'] >= 0
        found = {name: output[there] for name, output in found.items()}
        scale = np.divide(resized.size, image.size).astype(np.float32)
        boxes = found['boxes'] / np.tile(scale, 2)
        result = dict(
            bboxes=boxes.tolist(), scores=found['scores'].tolist(),
            labels=found['labels'].tolist(), classes=[self.name(i) for i in found['labels']])
        if 'masks' in found:
            result['masks'] = [run_lengths(paste(mask, box, image.height, image.width))
                               for mask, box in zip(found['masks'], boxes)]
        return result

    def name(self, label: int) -> str:
        return self.classes[label] if self.classes else str(label)


def load(path: str) -> Model:
    """A model that ONNX Runtime runs.

    Its memory pattern, a plan of all buffers for each size of image, would more than double
    the memory of large images.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> Dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(image=image))))

    return Model(run, session.get_modelmeta().custom_metadata_map)


def fit(image: Image.Image, size: dict) -> Image.Image:
    """Resize and crop a picture as the config's test pipeline does, see ``test_size`` in
    :func:`mmrest.deploy.describe`."""
    w, h = image.size
    if 'edge' in size:
        factor = size['edge'] / min(w, h)
        w, h = (size['edge'] if side == min(w, h) else int(side * factor) for side in (w, h))
    elif size.get('keep_ratio'):
        factor = min(max(size['scale']) / max(w, h), min(size['scale']) / min(w, h))
        w, h = int(w * factor + 0.5), int(h * factor + 0.5)
    elif 'scale' in size:
        w, h = size['scale']
    resample = RESAMPLE[size.get('interpolation', 'bilinear')]
    if (w, h) != image.size and size['antialias']:
        image = image.resize((w, h), resample)
    elif (w, h) != image.size:  # as OpenCV does it
        matrix = (image.width / w, 0, 0, 0, image.height / h, 0)
        image = image.transform((w, h), Image.Transform.AFFINE, matrix, resample)
    if 'crop' in size:
        width, height = size['crop']
        x, y = max(round((w - width) / 2), 0), max(round((h - height) / 2), 0)
        image = image.crop((x, y, min(x + width, w), min(y + height, h)))
    return image


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities (s, s) in a box -> the pixels (height, width) of at least 0.5."""
    x1, y1, x2, y2 = box
    left, right = (int(np.clip(x, 0, width)) for x in (np.floor(x1) - 1, np.ceil(x2) + 1))
    top, bottom = (int(np.clip(y, 0, height)) for y in (np.floor(y1) - 1, np.ceil(y2) + 1))
    rows = interpolation(np.arange(top, bottom), y1, y2, len(mask))
    columns = interpolation(np.arange(left, right), x1, x2, len(mask))
    pasted = np.zeros((height, width), bool)
    pasted[top:bottom, left:right] = rows @ mask @ columns.T >= 0.5
    return pasted


def interpolation(pixels: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Linear weights (pixels, bins) of bins that divide low to high; zeros are outside."""
    position = (pixels + np.float32(0.5) - low) / max(high - low, 1e-6) * bins - np.float32(0.5)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(bins)), 0).astype(np.float32)


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask, down its columns, from a run of zeros on."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *counts] if flat[0] else counts)


def decode(run_lengths: dict) -> np.ndarray:
    """The mask of :func:`run_lengths`."""
    counts = run_lengths['counts']
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(run_lengths['size'], order='F')


def draw(image: Image.Image, found: dict, score_thr: float) -> Image.Image:
    """A picture of what :class:`Model` found."""
    pixels = np.asarray(image).astype(np.float32)
    if 'bboxes' not in found and 'labels' in found:
        colors = np.array([(0, 0, 0), *(color(i) for i in range(found['labels'].max()))])
        return Image.fromarray((0.5 * pixels + 0.5 * colors[found['labels']]).astype(np.uint8))
    drawn = [i for i, score in enumerate(found.get('scores', ())) if score >= score_thr]
    for i in drawn if 'masks' in found else ():
        mask = decode(found['masks'][i])
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(color(found['labels'][i]))
    image = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if 'pred_class' in found:
        write(pen, (0, 0), found['pred_class'], found['pred_score'], color(0))
    for i in drawn:
        x1, y1, *end = found['bboxes'][i]
        pen.rectangle([x1, y1, *end], outline=color(found['labels'][i]), width=2)
        write(pen, (x1, max(y1 - 12, 0)), found['classes'][i], found['scores'][i],
              color(found['labels'][i]))
    return image


def color(label: int) -> Tuple[int, int, int]:
    return ImageColor.getrgb(f'hsl({label * 137 % 360}, 80%, 55%)')


def write(pen: ImageDraw.ImageDraw, corner: Sequence[float], name: str, score: float,
          background: Tuple[int, int, int]) -> None:
    text = f'{name} {score:.0%}'
    pen.rectangle(pen.textbbox(corner, text), fill=background)
    pen.text(corner, text, fill='black')


def run(model: Model, path: Path, out: Path, score_thr: float) -> None:
    """Write the picture and the predictions of an image."""
    image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    found = model(image)
    draw(image, found, score_thr).save(out / 'pictures' / path.name)
    if isinstance(found.get('labels'), np.ndarray):
        labels = found['labels']
        Image.fromarray(labels).save(out / 'predictions' / f'{path.name}.png')
        shares = np.bincount(labels.ravel()) / labels.size
        found = dict(shares={model.name(i): share for i, share in enumerate(shares) if share})
    (out / 'predictions' / f'{path.name}.json').write_text(json.dumps(found))


def find_images(paths: Sequence[Path]) -> List[Path]:
    images = []
    for path in paths:
        images += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES) if (
            path.is_dir()) else [path]
    return images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a file of export_onnx.py')
    parser.add_argument('images', nargs='+', type=Path, help='images, and folders of images')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'))
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='smallest score of a box that is drawn; the JSON file has all boxes')
    args = parser.parse_args()
    model = load(args.model)
    for name in ('pictures', 'predictions'):
        (args.out_dir / name).mkdir(parents=True, exist_ok=True)
    broken = []
    paths = find_images(args.images)
    for path in paths:
        try:
            run(model, path, args.out_dir, args.score_thr)
        except (FileNotFoundError, UnidentifiedImageError):
            broken.append(str(path))
    print(f'{args.out_dir}/pictures, {args.out_dir}/predictions')
    if broken:
        raise SystemExit(f'{len(broken)} of {len(paths)} images cannot be read: '
                         f'{", ".join(broken)}')


if __name__ == '__main__':
    main()

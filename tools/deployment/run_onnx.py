"""Pictures and JSON of what an exported model finds, with NumPy, Pillow and ONNX Runtime alone.

    python tools/deployment/run_onnx.py detector.onnx photo.jpg folder/ --out-dir found

The model is a file of tools/deployment/export_onnx.py. Detectors draw boxes and masks,
segmenters class maps, classifiers write their best class on the picture. OUT_DIR gets
pictures/NAME and predictions/NAME.json, and from segmenters predictions/NAME.png with the class
of each pixel. Of two images with one name, NAME has the folders in it. Images are decoded and
resized as OpenCV, and so mm, does it.
"""
import argparse
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterator, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageColor, ImageDraw, UnidentifiedImageError

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
LARGE = 2**26  # pixels
RESAMPLE = dict(bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC,
                nearest=Image.Resampling.NEAREST)
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by EXIF's orientation
PROVIDERS = dict(
    cpu=('CPUExecutionProvider', {}), cuda=('CUDAExecutionProvider', {}),
    openvino=('OpenVINOExecutionProvider', dict(device_type='CPU', precision='FP32')))
Files = Dict[str, bytes]  # contents by the path in the output folder
FilesOf = Iterator[Tuple[Union[str, Path], Union[Files, Exception]]]  # of each image


class Model:
    """An exported model with what is around it: resizing, pasting of masks, names of classes.

    Args:
        run (Callable): Takes ``image`` (1, 3, H, W), uint8, and returns the outputs by name.
        metadata (dict[str, str]): The file's.
    """

    def __init__(self, run: Callable[[np.ndarray], Dict[str, np.ndarray]],
                 metadata: Dict[str, str]):
        self.run = run
        metadata = {name: json.loads(value) for name, value in metadata.items()
                    if name in ('classes', 'test_size', 'activation', 'mask_threshold',
                                'slide')}
        self.classes, self.size = metadata['classes'], metadata['test_size']
        self.activation = metadata.get('activation')
        self.mask_threshold = metadata.get('mask_threshold')
        self.slide = metadata.get('slide')

    def __call__(self, image: Image.Image) -> dict:
        """What is found in an RGB picture, for JSON.

        Returns:
            dict: Of detectors ``bboxes`` (x1 y1 x2 y2 in pixels of the picture), ``scores``,
            ``labels``, ``classes`` and perhaps ``masks`` (COCO's run lengths). Of segmenters
            ``labels``, an array (H, W). Of classifiers ``pred_scores``, ``pred_label``,
            ``pred_score`` and ``pred_class``.
        """
        resized = fit(image, self.size)
        pixels = np.asarray(pad(resized, self.size)).transpose(2, 0, 1)[None]
        if self.slide:
            logits = slide(self.run, pixels, self.slide['crop_size'], self.slide['stride'])
            labels = best_classes(
                logits, image.height, image.width, self.slide['align_corners'])
            return dict(labels=self.small(labels))
        found = self.run(pixels)
        found = {name: output[0] for name, output in found.items()}
        if 'logits' in found:
            scores = ACTIVATIONS[self.activation](found['logits'])
            best = int(scores.argmax())
            return dict(pred_scores=scores.tolist(), pred_label=best,
                        pred_score=float(scores[best]), pred_class=self.name(best))
        if 'boxes' not in found:
            labels = Image.fromarray(self.small(found['labels']))
            return dict(labels=np.asarray(
                labels.resize(image.size, Image.Resampling.NEAREST)))
        there = found['labels'] >= 0
        found = {name: output[there] for name, output in found.items()}
        scale = np.divide(resized.size, image.size).astype(np.float32)
        boxes = found['boxes'] / np.tile(scale, 2)
        result = dict(
            bboxes=boxes.tolist(), scores=found['scores'].tolist(),
            labels=found['labels'].tolist(), classes=[self.name(i) for i in found['labels']])
        if 'masks' in found:
            result['masks'] = [
                run_lengths(paste(mask, box, image.height, image.width, self.mask_threshold))
                for mask, box in zip(found['masks'], boxes)]
        return result

    def small(self, labels: np.ndarray) -> np.ndarray:
        return labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)

    def name(self, label: int) -> str:
        return self.classes[label] if self.classes else str(label)


def load(path: str, device: str = 'cpu') -> Model:
    """A model that ONNX Runtime runs.

    Its memory pattern, a plan of all buffers for each size of image, would more than double
    the memory of large images.
    """
    import onnxruntime
    if not Path(path).is_file():
        raise SystemExit(f"model='{path}': no such file")
    there = onnxruntime.get_available_providers()
    provider, settings = PROVIDERS[device]
    if provider not in there:
        names = ' '.join(name for name, (one, _) in PROVIDERS.items() if one in there)
        raise SystemExit(f'--device {device}: this onnxruntime has only {names}')
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(path, options, [(provider, settings)])
    except Exception as error:  # of onnxruntime, for each reason another class
        raise SystemExit(f"model='{path}' cannot be loaded: {error}") from None
    if provider not in session.get_providers():  # of which onnxruntime only warns
        raise SystemExit(f'--device {device}: onnxruntime cannot use it, as it says above')
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> Dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(image=image))))

    return Model(run, session.get_modelmeta().custom_metadata_map)


def fit(image: Image.Image, size: dict) -> Image.Image:
    """Resize and crop a picture as the config's test pipeline does, see ``test_size`` in
    :func:`mmrest.deploy.describe`.

    Raises:
        OSError: It is so thin that nothing is left.
    """
    w, h = image.size
    if 'edge' in size:
        factor = size['edge'] / min(w, h)
        w, h = (size['edge'] if side == min(w, h) else int(side * factor) for side in (w, h))
    elif size.get('keep_ratio'):
        factor = min(max(size['scale']) / max(w, h), min(size['scale']) / min(w, h))
        w, h = int(w * factor + 0.5), int(h * factor + 0.5)
    elif 'scale' in size:
        w, h = size['scale']
    if min(w, h) < 1:
        raise OSError(f'{image.width} x {image.height} pixels would become {w} x {h}')
    interpolation = size.get('interpolation', 'bilinear')
    if (w, h) != image.size and size['antialias']:
        image = image.resize((w, h), RESAMPLE[interpolation])
    elif (w, h) != image.size:
        image = Image.fromarray(resize(np.asarray(image), w, h, interpolation))
    if 'crop' in size:
        width, height = size['crop']
        x, y = max(round((w - width) / 2), 0), max(round((h - height) / 2), 0)
        image = image.crop((x, y, min(x + width, w), min(y + height, h)))
    return image


def pad(image: Image.Image, size: dict) -> Image.Image:
    """Pad a picture as the config's test pipeline does, see :func:`fit`."""
    if 'pad' not in size:
        return image
    w, h = map(max, zip(image.size, size['pad']))
    padded = Image.new('RGB', (w, h), tuple(size['pad_value']))
    padded.paste(image)
    return padded


def resize(image: np.ndarray, w: int, h: int, interpolation: str) -> np.ndarray:
    """What ``cv2.resize`` makes of (H, W, C), uint8: ``bilinear`` and ``nearest`` bit for bit.

    OpenCV interpolates along the rows, then along the columns, with weights of 11 bits. It
    drops 4 bits between the two and 16 bits of each product, then rounds the last 2.
    """
    H, W = image.shape[:2]
    if interpolation == 'nearest':
        rows, columns = (np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(int)
                         for new, old in ((h, H), (w, W)))
        return image[rows][:, columns]
    if interpolation != 'bilinear':
        raise ValueError(f'OpenCV resizes by {interpolation} in a way that is not known here')
    if (2 * h, 2 * w) == (H, W):
        a, b, c, d = (image[y::2, x::2].astype(np.int32) for y in (0, 1) for x in (0, 1))
        return (a + b + c + d + 2 >> 2).astype(np.uint8)
    columns, weights = neighbours(W, w, clip=True)
    rows, heights = neighbours(H, h, clip=False)
    needed, rows = np.unique(rows, return_inverse=True)
    image = image[needed]
    lines = sum(image[:, at] * weight[:, None] for at, weight in zip(columns, weights)) >> 4
    total = sum(lines[at] * weight[:, None, None] >> 16
                for at, weight in zip(rows.reshape(2, h), heights))
    return (total + 2 >> 2).astype(np.uint8)


def neighbours(old: int, new: int, clip: bool) -> Tuple[np.ndarray, np.ndarray]:
    """The two pixels of ``old`` for each of ``new``, and their weights of 11 bits: (2, new).

    ``clip`` gives all the weight to one pixel at the edges, which makes a last bit of
    difference.
    """
    at = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    low = np.floor(at)
    part = at - low
    if clip:
        part[(low < 0) | (low >= old - 1)] = 0
    weights = np.rint(np.stack([1 - part, part]) * 2048).astype(np.int32)
    return np.clip([low, low + 1], 0, old - 1).astype(int), weights


def slide(run: Callable[[np.ndarray], Dict[str, np.ndarray]], image: np.ndarray,
          crop_size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """The mean of the logits of overlapping crops, as mmseg's ``slide_inference`` takes it.

    Args:
        run (Callable): Takes crops (1, 3, h, w), and returns their ``logits``, (1, C, h, w).
        image (np.ndarray): (1, 3, H, W).
        crop_size (Sequence[int]): Height and width of the crops, or H and W if that is less.
        stride (Sequence[int]): The rows and the columns from one crop to the next. The last
            ones are moved back to the edge.

    Returns:
        np.ndarray: (C, H, W), float32.
    """
    H, W = image.shape[-2:]
    total, counts = None, np.zeros((H, W), np.float32)
    for y in starts(H, crop_size[0], stride[0]):
        for x in starts(W, crop_size[1], stride[1]):
            at = np.s_[y:y + crop_size[0], x:x + crop_size[1]]
            logits = run(image[(..., *at)])['logits'][0]
            if total is None:
                total = np.zeros((len(logits), H, W), np.float32)
            total[(slice(None), *at)] += logits
            counts[at] += 1
    total /= counts
    return total


def starts(side: int, crop: int, stride: int) -> Iterator[int]:
    """Where the crops of a side begin."""
    for i in range(max(side - crop + stride - 1, 0) // stride + 1):
        yield max(min(i * stride, side - crop), 0)


def best_classes(logits: np.ndarray, height: int, width: int,
                 align_corners: bool) -> np.ndarray:
    """Logits (C, H, W) -> the best class of each pixel (height, width), int64.

    They are resized by linear interpolation, as PyTorch does it, one class after the other.
    """
    at, weights = zip(*(linear(old, new, align_corners) for old, new in zip(
        logits.shape[1:], (height, width))))
    labels = np.zeros((height, width), int)
    best = np.full((height, width), -np.inf, np.float32)
    for label, one in enumerate(logits):
        rows = sum(one[i] * weight[:, None] for i, weight in zip(at[0], weights[0]))
        resized = sum(rows[:, i] * weight for i, weight in zip(at[1], weights[1]))
        better = resized > best
        labels[better] = label
        best[better] = resized[better]
    return labels


def linear(old: int, new: int, align_corners: bool) -> Tuple[np.ndarray, np.ndarray]:
    """The two pixels of ``old`` for each of ``new``, and their weights: (2, new)."""
    if align_corners:
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        at = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = np.minimum(at.astype(int), old - 1)
    part = (at - low).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([1 - part, part])


def softmax(logits: np.ndarray) -> np.ndarray:
    scores = np.exp(logits - logits.max())
    return scores / scores.sum()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * logits)  # without an overflow


ACTIVATIONS = dict(softmax=softmax, sigmoid=sigmoid)


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int,
          threshold: float) -> np.ndarray:
    """Probabilities (s, s) in a box -> the pixels (height, width) of at least a threshold."""
    x1, y1, x2, y2 = box
    left, right = (int(np.clip(x, 0, width)) for x in (np.floor(x1) - 1, np.ceil(x2) + 1))
    top, bottom = (int(np.clip(y, 0, height)) for y in (np.floor(y1) - 1, np.ceil(y2) + 1))
    rows = interpolation(np.arange(top, bottom), y1, y2, len(mask))
    columns = interpolation(np.arange(left, right), x1, x2, len(mask))
    pasted = np.zeros((height, width), bool)
    pasted[top:bottom, left:right] = rows @ mask @ columns.T >= threshold
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
    pixels = np.array(image)
    if 'bboxes' not in found and 'labels' in found:
        colors = [(0, 0, 0), *(color(i) for i in range(found['labels'].max()))]
        return Image.fromarray(pixels // 2 + np.array(colors, np.uint8)[found['labels']] // 2)
    drawn = [i for i, score in enumerate(found.get('scores', ())) if score >= score_thr]
    for i in drawn if 'masks' in found else ():
        mask = decode(found['masks'][i])
        pixels[mask] = pixels[mask] // 2 + np.array(color(found['labels'][i]), np.uint8) // 2
    image = Image.fromarray(pixels)
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


def read(path: Path) -> Image.Image:
    """An image in RGB, with the pixels that mm gets from OpenCV 4.12.

    Raises:
        OSError: It cannot be read.
    """
    try:
        # Pillow maps a file of its own into memory, and then misreads some turned TIFFs.
        image = Image.open(io.BytesIO(path.read_bytes()))
        say_if_large(path, *image.size)
        image.load()
        return turn(image, to_rgb(image))
    except UnidentifiedImageError:  # whose text names the bytes, not the file
        raise OSError('Pillow does not know its format') from None
    except Exception as error:  # of any decoder
        raise OSError(str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """OpenCV's colours of what Pillow decoded: alpha is dropped, 16 bits are cut to 8."""
    if image.mode.startswith('I;16') or (image.mode, image.format) == ('I', 'PNG'):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
    if image.mode[0] in 'IF':
        raise ValueError(f'mode {image.mode}, with more than 16 bits or a sign')
    if image.mode in ('LAB', 'YCbCr') and image.format == 'TIFF':
        raise ValueError(f'TIFF in {image.mode}, which OpenCV converts in its own way')
    if image.mode == 'CMYK' and image.format != 'TIFF':  # as Adobe stores it, upside down
        pixels = np.asarray(image).astype(np.int32)
        black = 255 - pixels[..., 3:]
        return Image.fromarray((black - (pixels[..., :3] * black >> 8)).astype(np.uint8))
    if image.mode == 'RGBA' and image.format == 'TIFF' and image.tag_v2[258][0] == 8:
        pixels = np.asarray(image).astype(np.int32)
        return Image.fromarray(
            ((pixels[..., :3] * pixels[..., 3:] + 127) // 255).astype(np.uint8))
    image.info.pop('transparency', None)  # about which Pillow warns
    return image.convert('RGB')


def turn(image: Image.Image, upright: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says. TIFFs are turned already, OpenCV turns no WebP."""
    exif = Image.Exif()
    if image.format in ('JPEG', 'MPO', 'PNG') and 'exif' in image.info:
        try:
            exif.load(image.info['exif'])
        except Exception:  # cut short, or no EXIF at all
            return upright
    turned = TURNS.get(exif.get(0x0112))
    return upright if turned is None else upright.transpose(turned)


def run(model: Model, path: Path, name: str, score_thr: float) -> Files:
    """The picture and the predictions of an image.

    Raises:
        OSError: The image cannot be read.
    """
    image = read(path)
    found = model(image)
    files = {f'pictures/{name}': encode(draw(image, found, score_thr), path.suffix)}
    if isinstance(found.get('labels'), np.ndarray):
        labels = found['labels']
        files[f'predictions/{name}.png'] = encode(Image.fromarray(labels), '.png')
        shares = np.bincount(labels.ravel()) / labels.size
        found = dict(shares={model.name(i): share for i, share in enumerate(shares) if share})
    return {**files, f'predictions/{name}.json': json.dumps(found).encode()}


def encode(image: Image.Image, suffix: str) -> bytes:
    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[suffix.lower()])
    return content.getvalue()


# What follows is shared with tools/infer.py.


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'))
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='smallest score of a box that is drawn; the JSON file has all boxes')
    return parser


def find_images(inputs: Sequence[Path]) -> Dict[str, Path]:
    """Images, and those in folders, by the name of what is written for them.

    That is the file's name. If two have one name, their folders are part of all names.
    """
    paths = []
    for given in inputs:
        found = [given]
        if given.is_dir():
            found = sorted(p for p in given.iterdir()
                           if p.suffix.lower() in IMAGES and p.is_file())
        elif not given.exists():
            raise SystemExit(f"input='{given}': no such file or folder")
        elif given.suffix.lower() not in IMAGES:
            raise SystemExit(f"input='{given}' must be a folder or an image "
                             f"({' '.join(IMAGES)})")
        if not found:
            raise SystemExit(f"input='{given}' has no image in it ({' '.join(IMAGES)})")
        paths += found
    unique = {os.path.abspath(path): path for path in paths}
    if max(Counter(path.name for path in unique.values()).values()) == 1:
        return {path.name: path for path in unique.values()}
    root = os.path.commonpath([os.path.dirname(path) for path in unique])
    return {Path(path).relative_to(root).as_posix(): given for path, given in unique.items()}


def say_if_large(path: Union[str, Path], width: int, height: int) -> None:
    if width * height > LARGE:
        print(f'{path} is large, {width} x {height} pixels: it takes its time and memory',
              file=sys.stderr)


def write_all(results: FilesOf, total: int, out: Path,
              write: Callable[[Path, bytes], object]) -> None:
    """Write the files of each image, and end with the images that have none, and why.

    Raises:
        Exception: All fail, and the first for another reason than that it cannot be read.
    """
    errors = {}
    for path, files in results:
        if isinstance(files, Exception):
            errors[path] = files
            continue
        for name, content in files.items():
            write(out / name, content)
    first = next(iter(errors.values()), OSError())
    if len(errors) == total and not isinstance(first, OSError):
        raise first
    print(f'{out}/pictures, {out}/predictions')
    if errors:
        reasons = (f'{path} ({error})' for path, error in errors.items())
        raise SystemExit(f'{len(errors)} of {total} images cannot be read: '
                         f'{", ".join(reasons)}')


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('model', help='a file of export_onnx.py')
    parser.add_argument('images', nargs='+', type=Path, help='images, and folders of images')
    parser.add_argument('--device', choices=PROVIDERS, default='cpu',
                        help='cuda and openvino need an onnxruntime of their own')
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # a guard against attacks, which one's own images are not
    images = find_images(args.images)
    model = load(args.model, args.device)

    def results() -> FilesOf:
        for name, path in images.items():
            try:
                yield path, run(model, path, name, args.score_thr)
            except Exception as error:  # the others are done
                yield path, error

    def write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    try:
        write_all(results(), len(images), args.out_dir, write)
    except OSError as error:  # of writing
        raise SystemExit(f'--out-dir {args.out_dir}: {error}') from error


if __name__ == '__main__':
    main()

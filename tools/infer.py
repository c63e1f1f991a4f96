"""Pictures and JSON of what a trained model finds, with mm's own inferencers.

    python tools/infer.py configs/mask_rcnn/rest_small_fpn_1x_coco.py CHECKPOINT photo.jpg
    python tools/infer.py CONFIG CHECKPOINT folder/ --out-dir found --score-thr 0.5
    python tools/infer.py CONFIG CHECKPOINT film.mp4 --device cuda
    python tools/infer.py CONFIG CHECKPOINT large.jpg --tile 512 --overlap 0.25

Detectors draw boxes and masks, segmenters class maps, classifiers their best class. OUT_DIR
gets pictures/NAME and predictions/NAME.json, and from segmenters predictions/NAME.png with the
class of each pixel, too. A film gives pictures/NAME.mp4 and predictions/NAME/FRAME.json.
Of two images with one name, NAME has the folders in it.

--tile finds small objects in photographs that are larger than those of the training: a detector
gets them in tiles, which sahi cuts. An image that fits into one tile is done as without it.
"""
import argparse
import contextlib
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np
import torch
from deployment import run_onnx
from mmcv import VideoReader
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from PIL import Image
from pycocotools import mask as mask_utils

from mmrest import tiled
from mmrest.apis import as_picture, check_fit, exit_on_user_error, package_of
from mmrest.coco_results import CocoResults
from mmrest.errors import UserError
from mmrest.files import write_whole
from mmrest.safe_reading import read_state_dict, register_safe_loader

FILMS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')
LONGEST = 4096  # side of a classifier's picture
HELD = 2**28  # bytes of images that wait for others of their size
DRAWN = 50  # masks that are in memory at once


Result = Tuple[np.ndarray, dict, Dict[str, np.ndarray]]
Results = Iterator[Tuple[str, Union[Result, Exception]]]  # by path


class Loaded(NamedTuple):
    """An image to draw on (RGB), and what the model gets of it."""

    path: str
    picture: np.ndarray
    data: dict
    in_full: bool  # whether the picture has all that was loaded


class Detector:
    """MMDetection's inferencer, and the pipeline that loads an image for it."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmdet.apis import DetInferencer
        self.inferencer = DetInferencer(config, checkpoint, device)
        self.pipeline = self.inferencer.pipeline
        self.score_thr = score_thr

    def describe(self, sample, image: np.ndarray) -> Result:
        """Draw a prediction on its image (RGB).

        Returns:
            tuple: The picture (RGB), the content of the JSON file, and further images by the
            suffix of their file.
        """
        picture, = self.inferencer.visualize(
            [image], [sample], return_vis=True, pred_score_thr=self.score_thr)
        return picture, self.with_classes(self.inferencer.pred2dict(sample)), {}

    def describe_tiled(self, image: np.ndarray, tiling: tiled.Tiling) -> Result:
        """The same of an image (RGB) in tiles. Few masks of its size are in memory at once."""
        from mmdet.structures import DetDataSample
        found = self.with_classes(tiled.find(self.inferencer, image, tiling))
        count = sum(score > self.score_thr for score in found['scores'])
        for start in range(0, max(count, 1), DRAWN):
            at = slice(start, min(start + DRAWN, count))
            drawn = InstanceData(
                bboxes=torch.tensor(found['bboxes'][at]).reshape(-1, 4),
                labels=torch.tensor(found['labels'][at], dtype=torch.long),
                scores=torch.tensor(found['scores'][at]))
            if found.get('masks', ())[at]:
                drawn.masks = torch.from_numpy(np.stack(
                    [mask_utils.decode(mask) for mask in found['masks'][at]])).bool()
            image, = self.inferencer.visualize(
                [image], [DetDataSample(pred_instances=drawn)], return_vis=True,
                pred_score_thr=self.score_thr)
        return image, found, {}

    def with_classes(self, found: dict) -> dict:
        classes = self.inferencer.model.dataset_meta['classes']
        return dict(found, classes=[classes[label] for label in found['labels']])


class Segmenter:
    """MMSegmentation's inferencer."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmseg.apis import MMSegInferencer
        self.inferencer = MMSegInferencer(config, checkpoint, device=device)
        self.pipeline = self.inferencer.pipeline

    def describe(self, sample, image: np.ndarray) -> Result:
        """See :class:`Detector`."""
        picture, = self.inferencer.visualize([image], [sample], return_vis=True)
        classes = self.inferencer.model.dataset_meta['classes']
        labels = sample.pred_sem_seg.data[0].cpu().numpy()  # of one output: floats
        labels = labels.astype(np.uint8 if len(classes) <= 256 else np.uint16)
        shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        found = {name: share for name, share in zip(classes, shares.tolist()) if share}
        return picture, dict(shares=found), {'.png': labels}


class Classifier:
    """MMPretrain's inferencer."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmpretrain.apis import ImageClassificationInferencer
        from mmpretrain.registry import TRANSFORMS
        from mmpretrain.visualization import UniversalVisualizer
        self.inferencer = ImageClassificationInferencer(config, checkpoint, device)
        steps = self.inferencer.config.test_dataloader.dataset.pipeline
        # The inferencer's own pipeline does not have the config's loading step.
        self.pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        self.visualizer = UniversalVisualizer()

    def describe(self, sample, image: np.ndarray) -> Result:
        """See :class:`Detector`."""
        short, long = sorted(image.shape[:2])
        picture = self.visualizer.visualize_cls(
            image, sample, classes=self.inferencer.classes, draw_gt=False,
            resize=max(min(max(short, 224), short * LONGEST // long), 1))
        found, = self.inferencer.postprocess([sample], None)
        found['pred_scores'] = found['pred_scores'].tolist()
        return picture, found, {}


MODELS = dict(mmdet=Detector, mmseg=Segmenter, mmpretrain=Classifier)


class Frames(BaseStorageBackend):
    """Files in memory, each read once: frames of a film, which the config loads as files."""

    files: Dict[str, bytes] = {}

    def get(self, filepath: str) -> bytes:
        return self.files.pop(filepath)

    get_text = get


def load(model, path: str) -> Loaded:
    """Run the model's pipeline, of which the first step loads an image.

    Raises:
        OSError: It cannot.
    """
    first, *others = model.pipeline.transforms
    loader = getattr(first, 'from_file', first)
    loader.backend_args = loader.file_client_args = None  # of the storage of training's data
    try:
        loaded = first(dict(img_path=path))
    except Exception as error:  # of any image library
        raise OSError(repr(error)) from error
    run_onnx.say_if_large(path, *loaded['img'].shape[1::-1])
    image, picture = loaded['img'], as_picture(loaded['img'])
    in_full = image.shape == picture.shape and (
        image.dtype == np.uint8 or np.array_equal(image[..., ::-1], picture))
    return Loaded(path, picture, Compose(others)(loaded), in_full)


def load_ahead(model, paths: Iterable[str], workers: int) -> Iterator[Tuple[str, Future]]:
    """Load images by threads, while the caller is busy with those that have been yielded."""
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as threads:
        for path in paths:
            pending.append((path, threads.submit(load, model, path)))
            if len(pending) > workers:
                yield pending.popleft()
        yield from pending


def predict(model, batch: List[Loaded]) -> Results:
    """Run the model on images of one size. If that fails, each is tried alone."""
    try:
        samples = model.inferencer.forward(pseudo_collate([one.data for one in batch]))
    except Exception as error:
        if len(batch) == 1:
            yield batch[0].path, error
        else:
            for one in batch:
                yield from predict(model, [one])
        return
    for one, sample in zip(batch, samples):
        try:
            yield one.path, model.describe(sample, one.picture)
        except Exception as error:
            yield one.path, error


def predict_tiled(model, one: Loaded, tiling: tiled.Tiling) -> Union[Result, Exception]:
    """Run the model on an image in tiles."""
    try:
        if not one.in_full:
            raise OSError('--tile takes 8 bits in three channels')
        return model.describe_tiled(one.picture, tiling)
    except Exception as error:
        return error


def infer(model, paths: Iterable[str], batch_size: int, workers: int,
          tiling: Optional[tiled.Tiling] = None) -> Results:
    """Yield what the model finds in images. Those of one size are in order.

    Those of one size come together to the model, so that none is padded to the size of another:
    that would change what is found.
    """
    waiting: Dict[tuple, List[Loaded]] = {}
    for path, future in load_ahead(model, paths, workers):
        if future.exception():
            yield path, future.exception()
            continue
        one = future.result()
        if tiling and tiling.cuts(one.picture):
            yield path, predict_tiled(model, one, tiling)
            continue
        size = one.data['inputs'].shape
        waiting.setdefault(size, []).append(one)
        if len(waiting[size]) == batch_size:
            yield from predict(model, waiting.pop(size))
        while sum(one.picture.nbytes + one.data['inputs'].nbytes
                  for batch in waiting.values() for one in batch) > HELD:
            yield from predict(model, waiting.pop(next(iter(waiting))))
    for batch in waiting.values():
        yield from predict(model, batch)


def encode(suffix: str, image: np.ndarray) -> bytes:
    done, content = cv2.imencode(suffix, image)
    if not done:
        raise ValueError(f'OpenCV cannot write {image.shape} as {suffix}')
    return content.tobytes()


def predictions(name: str, found: dict, more: Dict[str, np.ndarray]) -> run_onnx.Files:
    files = {f'predictions/{name}.json': json.dumps(found).encode()}
    for suffix, image in more.items():
        files[f'predictions/{name}{suffix}'] = encode(suffix, image)
    return files


def image_files(names: Dict[str, str], results: Results) -> run_onnx.FilesOf:
    """Pictures and predictions of images, by path. ``names`` are those of what is written."""
    for path, result in results:
        if not isinstance(result, Exception):
            picture, *found = result
            try:
                content = encode(Path(path).suffix.lower(), picture[..., ::-1])
                result = {f'pictures/{names[path]}': content,
                          **predictions(names[path], *found)}
            except Exception as error:
                result = error
        yield path, result


def collect(results: Results, coco: CocoResults, out: Path) -> Results:
    """Pass results on, and write COCO's results of all images when they end."""
    for path, result in results:
        if not isinstance(result, Exception):
            coco.add(path, result[1])
        yield path, result
    print(f'\n{", ".join(map(str, coco.write(out)))}')


def frame_files(film: Path, fps: float, out: Path, results: Results) -> run_onnx.FilesOf:
    """Predictions of a film's frames, by their address. The film of the pictures is written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix('.partial.mp4')
    writer = None
    for address, result in results:
        if not isinstance(result, Exception):
            picture, *found = result
            if writer is None:
                writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*'mp4v'), fps,
                                         picture.shape[1::-1])
            writer.write(np.ascontiguousarray(picture[..., ::-1]))
            name = address.rpartition('/')[2]
            result = predictions(f'{film.name}/{name}', *found)
        yield address, result
    if writer is None:
        raise UserError(f"input='{film}' has no frame that can be read")
    writer.release()
    partial.replace(out)


def keep_frames(film: VideoReader) -> Iterator[str]:
    """Put one frame after the other into memory, and yield its address."""
    register_backend('frames', Frames, prefixes='frame', force=True)
    for i, frame in enumerate(film):
        Frames.files[f'frame://{i:06}'] = encode('.bmp', frame)
        yield f'frame://{i:06}'


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} must be a whole number above 0')
    return int(text)


def share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text} must be a number from 0 to below 1')


def make_parser() -> argparse.ArgumentParser:
    parser = run_onnx.make_parser(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('input', type=Path, nargs='+',
                        help='images, and folders of images; or one film')
    parser.add_argument('--device', default=get_device(), help='default: a GPU if there is one')
    parser.add_argument('--batch-size', type=positive, default=8,
                        help='how many images of one size the model gets at once; default: 8')
    parser.add_argument('--workers', type=positive, default=2,
                        help='threads that load images ahead; default: 2')
    parser.add_argument('--tile', type=positive, metavar='SIDE',
                        help='height and width of tiles in pixels; needs sahi')
    parser.add_argument('--overlap', type=share, help='share of a tile that its neighbours '
                        'have too, 0 to below 1; default: 0.25. The largest object should fit')
    parser.add_argument('--postprocess-type', choices=('NMS', 'GREEDYNMM', 'NMM'),
                        help='what sahi does with two boxes of a class of which one is half '
                        'inside the other: NMS, the default, keeps the better one. GREEDYNMM, '
                        "sahi's own default, and NMM join those of at least --score-thr, masks "
                        'too: for an object that no tile has whole. But neighbours in a crowd '
                        'become one')
    parser.add_argument('--out-json', type=Path, metavar='FILE',
                        help="also write COCO's results of all images, as found.bbox.json, and "
                        'of masks found.segm.json beside it; the ids are those of the COCO '
                        'file in test_dataloader of the config')
    return parser


def check_options(args: argparse.Namespace, package: str, is_film: bool) -> None:
    """Refuse options that need a detector, or another option."""
    for option in ('tile', 'out_json'):
        name = f'--{option.replace("_", "-")}'
        if getattr(args, option) and (package != 'mmdet' or is_film):
            kind = 'a film' if is_film else f'a config of {package}'
            slide = "; a segmenter cuts images by test_cfg.mode='slide' of its config" * (
                package == 'mmseg' and option == 'tile')
            raise UserError(f'{name} is for detectors and images, not for {kind}{slide}')
    for option in ('overlap', 'postprocess_type'):
        if getattr(args, option) is not None and not args.tile:
            raise UserError(f'--{option.replace("_", "-")} changes nothing without --tile')
    if args.tile:
        tiled.import_sahi('slicing')


@exit_on_user_error
def main() -> None:
    args = make_parser().parse_args()
    Image.MAX_IMAGE_PIXELS = None  # a guard against attacks, which one's own images are not
    first, *more = args.input
    is_film = first.suffix.lower() in FILMS and first.is_file() and not more
    images = {} if is_film else run_onnx.find_images(args.input)
    cfg = Config.fromfile(args.config)
    package = package_of(cfg)
    if package not in MODELS:
        raise UserError(f'{args.config} is for {package}; this script knows the inferencers '
                        f'of {", ".join(MODELS)}')
    check_options(args, package, is_film)
    register_safe_loader(weights_only=True)
    model = MODELS[package](args.config, args.checkpoint, args.device, args.score_thr)
    check_fit(model.inferencer.model, read_state_dict(args.checkpoint), args.checkpoint)
    options = args.batch_size, args.workers
    if images:
        names = {str(path): name for name, path in images.items()}
        tiling = args.tile and tiled.Tiling(
            args.tile, 0.25 if args.overlap is None else args.overlap,
            args.postprocess_type or 'NMS', args.score_thr, args.batch_size)
        found = infer(model, names, *options, tiling)
        if args.out_json:
            classes = model.inferencer.model.dataset_meta['classes']
            found = collect(found, CocoResults(cfg, classes, names), args.out_json)
        results, total = image_files(names, found), len(images)
    else:
        film = VideoReader(str(first))
        results, total = frame_files(
            first, film.fps or 25, args.out_dir / f'pictures/{first.stem}.mp4',
            infer(model, keep_frames(film), *options)), len(film)
    run_onnx.write_all(track_iter_progress((results, total)), total, args.out_dir, write_whole)


if __name__ == '__main__':
    main()

"""Pictures and JSON of what a trained model finds, with mm's own inferencers.

    python tools/infer.py configs/mask_rcnn/rest_small_fpn_1x_coco.py CHECKPOINT photo.jpg
    python tools/infer.py CONFIG CHECKPOINT folder/ --out-dir found --score-thr 0.5
    python tools/infer.py CONFIG CHECKPOINT film.mp4 --device cuda

Detectors draw boxes and masks, segmenters class maps, classifiers their best class. OUT_DIR
gets pictures/NAME and predictions/NAME.json, and from segmenters predictions/NAME.png with the
class of each pixel, too. A film gives pictures/NAME.mp4 and predictions/NAME/FRAME.json.
Of two images with one name, NAME has the folders in it.
"""
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple, Union

import cv2
import numpy as np
from deployment import run_onnx
from mmcv import VideoReader
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.utils import track_iter_progress
from PIL import Image

from mmrest.apis import as_picture, check_fit, exit_on_user_error, package_of
from mmrest.errors import UserError
from mmrest.files import write_whole
from mmrest.safe_reading import read_state_dict, register_safe_loader

FILMS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')
LONGEST = 4096  # side of a classifier's picture
HELD = 2**28  # bytes of images that wait for others of their size


Result = Tuple[np.ndarray, dict, Dict[str, np.ndarray]]
Results = Iterator[Tuple[str, Union[Result, Exception]]]  # by path


class Loaded(NamedTuple):
    """An image to draw on (RGB), and what the model gets of it."""

    path: str
    picture: np.ndarray
    data: dict


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
        found = self.inferencer.pred2dict(sample)
        classes = self.inferencer.model.dataset_meta['classes']
        found['classes'] = [classes[label] for label in found['labels']]
        return picture, found, {}


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
    picture = as_picture(loaded['img'])
    return Loaded(path, picture, Compose(others)(loaded))


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


def infer(model, paths: Iterable[str], batch_size: int, workers: int) -> Results:
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
    if int(text) < 1:
        raise ValueError
    return int(text)


@exit_on_user_error
def main() -> None:
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
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # a guard against attacks, which one's own images are not
    first, *more = args.input
    is_film = first.suffix.lower() in FILMS and first.is_file() and not more
    images = {} if is_film else run_onnx.find_images(args.input)
    package = package_of(Config.fromfile(args.config))
    if package not in MODELS:
        raise UserError(f'{args.config} is for {package}; this script knows the inferencers '
                        f'of {", ".join(MODELS)}')
    register_safe_loader(weights_only=True)
    model = MODELS[package](args.config, args.checkpoint, args.device, args.score_thr)
    check_fit(model.inferencer.model, read_state_dict(args.checkpoint), args.checkpoint)
    options = args.batch_size, args.workers
    if images:
        names = {str(path): name for name, path in images.items()}
        results, total = image_files(names, infer(model, names, *options)), len(images)
    else:
        film = VideoReader(str(first))
        results, total = frame_files(
            first, film.fps or 25, args.out_dir / f'pictures/{first.stem}.mp4',
            infer(model, keep_frames(film), *options)), len(film)
    run_onnx.write_all(track_iter_progress((results, total)), total, args.out_dir, write_whole)


if __name__ == '__main__':
    main()

"""Pictures and JSON of what a trained model finds, with mm's own inferencers.

    python tools/infer.py configs/mask_rcnn/rest_small_fpn_1x_coco.py CHECKPOINT photo.jpg
    python tools/infer.py CONFIG CHECKPOINT folder/ --out-dir found --score-thr 0.5
    python tools/infer.py CONFIG CHECKPOINT film.mp4 --device cuda

Detectors draw boxes and masks, segmenters class maps, classifiers their best class. OUT_DIR
gets pictures/NAME and predictions/NAME.json, and from segmenters predictions/NAME.png with the
class of each pixel, too. A film gives pictures/NAME.mp4 and predictions/NAME/FRAME.json.
"""
import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, List, Tuple

import cv2
import numpy as np
from mmcv import VideoReader
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.utils import track_iter_progress

from mmrest.apis import as_picture, check_fit, exit_on_user_error, package_of
from mmrest.errors import UserError
from mmrest.files import write_whole
from mmrest.safe_reading import read_state_dict, register_safe_loader

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
FILMS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')
Result = Tuple[np.ndarray, dict, Dict[str, np.ndarray]]


class Detector:
    """MMDetection's inferencer, and the pipeline that loads an image for it."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmdet.apis import DetInferencer
        self.inferencer = DetInferencer(config, checkpoint, device)
        self.pipeline = self.inferencer.pipeline
        self.score_thr = score_thr

    def __call__(self, data: dict, image: np.ndarray) -> Result:
        """Predict from ``data``, which the pipeline packed, and draw on ``image`` (RGB).

        Returns:
            tuple: The picture (RGB), the content of the JSON file, and further images by the
            suffix of their file.
        """
        sample, = self.inferencer.forward(pseudo_collate([data]))
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

    def __call__(self, data: dict, image: np.ndarray) -> Result:
        """See :class:`Detector`."""
        sample, = self.inferencer.forward(pseudo_collate([data]))
        picture, = self.inferencer.visualize([image], [sample], return_vis=True)
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        classes = self.inferencer.model.dataset_meta['classes']
        shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        found = {name: share for name, share in zip(classes, shares.tolist()) if share}
        labels = labels.astype(np.uint8 if len(classes) <= 256 else np.uint16)
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

    def __call__(self, data: dict, image: np.ndarray) -> Result:
        """See :class:`Detector`."""
        sample, = self.inferencer.forward(pseudo_collate([data]))
        picture = self.visualizer.visualize_cls(
            image, sample, classes=self.inferencer.classes, draw_gt=False,
            resize=max(min(image.shape[:2]), 224))
        found, = self.inferencer.postprocess([sample], None)
        found['pred_scores'] = found['pred_scores'].tolist()
        return picture, found, {}


MODELS = dict(mmdet=Detector, mmseg=Segmenter, mmpretrain=Classifier)


def load(model, path: Path) -> dict:
    """Run the first step of the model's pipeline, which loads an image.

    Raises:
        OSError: It cannot.
    """
    try:
        return model.pipeline.transforms[0](dict(img_path=str(path)))
    except Exception as error:  # of any image library
        raise OSError(f'{path} ({error!r})') from error


def predict(model, loaded: dict) -> Result:
    """Run the other steps and the model on what :func:`load` returns."""
    picture = as_picture(loaded['img'])
    return model(Compose(model.pipeline.transforms[1:])(loaded), picture)


def write_predictions(path: Path, found: dict, more: Dict[str, np.ndarray]) -> None:
    write_whole(f'{path}.json', json.dumps(found).encode())
    for suffix, image in more.items():
        write_whole(f'{path}{suffix}', cv2.imencode(suffix, image)[1].tobytes())


def run_images(model, paths: List[Path], out: Path) -> List[str]:
    """Write pictures and predictions of images, and return which cannot be read, and why."""
    broken = []
    for path in track_iter_progress(paths):
        try:
            loaded = load(model, path)
        except OSError as error:
            broken.append(str(error))
            continue
        picture, found, more = predict(model, loaded)
        content = cv2.imencode(path.suffix.lower(), picture[..., ::-1])[1].tobytes()
        write_whole(out / 'pictures' / path.name, content)
        write_predictions(out / 'predictions' / path.name, found, more)
    return broken


def run_film(model, path: Path, out: Path) -> None:
    """Write a film of the pictures, and the predictions of each frame."""
    film = VideoReader(str(path))
    (out / 'pictures').mkdir(parents=True, exist_ok=True)
    partial = out / 'pictures' / f'{path.stem}.partial.mp4'
    writer = None
    with TemporaryDirectory() as folder:
        file = Path(folder, 'frame.png')  # the config says how to load a file
        for i, frame in enumerate(track_iter_progress((film, len(film)))):
            cv2.imwrite(str(file), frame)
            picture, found, more = predict(model, load(model, file))
            if writer is None:
                writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*'mp4v'),
                                         film.fps or 25, picture.shape[1::-1])
            writer.write(np.ascontiguousarray(picture[..., ::-1]))
            write_predictions(out / 'predictions' / path.name / f'{i:06}', found, more)
    if writer is None:
        raise UserError(f"input='{path}' has no frame that can be read")
    writer.release()
    partial.replace(out / 'pictures' / f'{path.stem}.mp4')


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('input', type=Path, help='an image, a folder of images or a film')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'))
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='smallest score of a box that is drawn; the JSON file has all boxes')
    parser.add_argument('--device', default=get_device(), help='default: a GPU if there is one')
    args = parser.parse_args()
    paths, suffix = [args.input], args.input.suffix.lower()
    if args.input.is_dir():
        paths = sorted(p for p in args.input.iterdir() if p.suffix.lower() in IMAGES)
        suffix = ''
    elif not args.input.exists():
        raise FileNotFoundError(f"input='{args.input}': no such file or folder")
    elif suffix not in IMAGES + FILMS:
        raise UserError(f"input='{args.input}' must be a folder, an image ({' '.join(IMAGES)})"
                         f" or a film ({' '.join(FILMS)})")
    if not paths:
        raise UserError(f"input='{args.input}' has no image in it ({' '.join(IMAGES)})")

    package = package_of(Config.fromfile(args.config))
    if package not in MODELS:
        raise UserError(f'{args.config} is for {package}; this script knows the inferencers '
                         f'of {", ".join(MODELS)}')
    register_safe_loader(weights_only=True)
    model = MODELS[package](args.config, args.checkpoint, args.device, args.score_thr)
    check_fit(model.inferencer.model, read_state_dict(args.checkpoint), args.checkpoint)
    broken = []
    if suffix in FILMS:
        run_film(model, args.input, args.out_dir)
    else:
        broken = run_images(model, paths, args.out_dir)
    print(f'{args.out_dir}/pictures, {args.out_dir}/predictions')
    if broken:
        raise SystemExit(f'{len(broken)} of {len(paths)} images cannot be read: '
                         f'{", ".join(broken)}')


if __name__ == '__main__':
    main()

"""Pictures and JSON of what a trained model finds, through mm's own inferencers.

    python tools/infer.py configs/mask_rcnn/rest_small_fpn_1x_coco.py CHECKPOINT photo.jpg
    python tools/infer.py CONFIG CHECKPOINT folder/ --out-dir found --score-thr 0.5
    python tools/infer.py CONFIG CHECKPOINT film.mp4 --device cuda

Detectors draw boxes and masks, segmenters class maps, classifiers their best class. OUT_DIR
gets pictures/NAME and predictions/NAME.json (segmenters: NAME.png with the class of each
pixel, too); of a film, pictures/NAME.mp4 and predictions/NAME/FRAME.json.
"""
import argparse
import json
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.utils import ProgressBar

from mmrest.safe_loading import load_safely

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
FILMS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')


class Detector:
    """MMDetection's inferencer."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmdet.apis import DetInferencer
        self.inferencer = DetInferencer(config, checkpoint, device)
        self.score_thr = score_thr

    def __call__(self, image: np.ndarray) -> Tuple[np.ndarray, dict, Dict[str, np.ndarray]]:
        """BGR image -> RGB picture, what goes into JSON, further pictures by suffix."""
        (_, data), = self.inferencer.preprocess([image])
        sample, = self.inferencer.forward(data)
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample('', image[..., ::-1], sample, draw_gt=False,
                                  pred_score_thr=self.score_thr)
        found = self.inferencer.pred2dict(sample)
        classes = self.inferencer.model.dataset_meta['classes']
        found['classes'] = [classes[label] for label in found['labels']]
        return visualizer.get_image(), found, {}


class Segmenter:
    """MMSegmentation's inferencer."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmseg.apis import MMSegInferencer
        self.inferencer = MMSegInferencer(config, checkpoint, device=device)
        meta = self.inferencer.model.dataset_meta
        self.inferencer.visualizer.set_dataset_meta(**meta)
        self.classes = meta['classes']

    def __call__(self, image: np.ndarray) -> Tuple[np.ndarray, dict, Dict[str, np.ndarray]]:
        """See :class:`Detector`."""
        data, = self.inferencer.preprocess([image])
        sample, = self.inferencer.forward(data)
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample('', image[..., ::-1], sample, draw_gt=False)
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        shares = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
        found = {name: share for name, share in zip(self.classes, shares.tolist()) if share}
        return visualizer.get_image(), dict(shares=found), {'.png': labels.astype(np.uint8)}


class Classifier:
    """MMPretrain's inferencer."""

    def __init__(self, config: str, checkpoint: str, device: str, score_thr: float):
        from mmpretrain.apis import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer
        self.inferencer = ImageClassificationInferencer(config, checkpoint, device)
        self.visualizer = UniversalVisualizer()

    def __call__(self, image: np.ndarray) -> Tuple[np.ndarray, dict, Dict[str, np.ndarray]]:
        """See :class:`Detector`."""
        data, = self.inferencer.preprocess([image])
        sample, = self.inferencer.forward(data)
        picture = self.visualizer.visualize_cls(
            image[..., ::-1], sample, classes=self.inferencer.classes, draw_gt=False,
            resize=max(min(image.shape[:2]), 224))
        found, = self.inferencer.postprocess([sample], None)
        found['pred_scores'] = found['pred_scores'].tolist()
        return picture, found, {}


MODELS = dict(mmdet=Detector, mmseg=Segmenter, mmpretrain=Classifier)


def write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_bytes(content)
    partial.replace(path)


def write_predictions(folder: Path, name: str, found: dict, more: dict) -> None:
    write(folder / f'{name}.json', json.dumps(found).encode())
    for suffix, image in more.items():
        write(folder / f'{name}{suffix}', cv2.imencode(suffix, image)[1].tobytes())


def run_images(model, paths: List[Path], out: Path) -> List[Path]:
    """Pictures and predictions of images; those that cannot be read are returned."""
    progress, broken = ProgressBar(len(paths)), []
    for path in paths:
        image = cv2.imread(str(path))
        if image is None:
            broken.append(path)
        else:
            picture, found, more = model(image)
            suffix = path.suffix.lower()
            content = cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()
            write(out / 'pictures' / path.name, content)
            write_predictions(out / 'predictions', path.name, found, more)
        progress.update()
    return broken


def frames(film: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        more, image = film.read()
        if not more:
            return
        yield image


def run_film(model, path: Path, out: Path) -> None:
    """A film of the pictures, and predictions of each frame."""
    film = cv2.VideoCapture(str(path))
    progress = ProgressBar(int(film.get(cv2.CAP_PROP_FRAME_COUNT)))
    (out / 'pictures').mkdir(parents=True, exist_ok=True)
    partial = out / 'pictures' / f'{path.stem}.partial.mp4'
    writer = None
    for i, image in enumerate(frames(film)):
        picture, found, more = model(image)
        if writer is None:
            writer = cv2.VideoWriter(
                str(partial), cv2.VideoWriter_fourcc(*'mp4v'),
                film.get(cv2.CAP_PROP_FPS) or 25, picture.shape[1::-1])
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
        write_predictions(out / 'predictions' / path.name, f'{i:06}', found, more)
        progress.update()
    if writer is None:
        raise SystemExit(f'input={str(path)!r}: no frame of it can be read as a film')
    writer.release()
    partial.replace(out / 'pictures' / f'{path.stem}.mp4')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('input', type=Path, help='an image, a folder of images or a film')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'))
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='least score of a box that is drawn; the JSON has all')
    parser.add_argument('--device', default=None, help="'cpu', 'cuda', ... (default: a GPU)")
    args = parser.parse_args()
    for name in ('config', 'checkpoint'):
        if not Path(getattr(args, name)).is_file():
            raise SystemExit(f'{name}={getattr(args, name)!r}: no such file')
    if not args.input.exists():
        raise SystemExit(f"input='{args.input}': no such file or folder")
    paths, suffix = [args.input], args.input.suffix.lower()
    if args.input.is_dir():
        paths = sorted(p for p in args.input.iterdir() if p.suffix.lower() in IMAGES)
    elif suffix not in IMAGES + FILMS:
        raise SystemExit(f"input='{args.input}' must be a folder, an image ({' '.join(IMAGES)})"
                         f" or a film ({' '.join(FILMS)})")
    if not paths:
        raise SystemExit(f"input='{args.input}': no image in it ({' '.join(IMAGES)})")

    load_safely()
    scope = Config.fromfile(args.config).get('default_scope') or 'mmdet'
    model = MODELS[scope](args.config, args.checkpoint, args.device, args.score_thr)
    if suffix in FILMS:
        run_film(model, args.input, args.out_dir)
        broken = []
    else:
        broken = run_images(model, paths, args.out_dir)
    print(f'\n{args.out_dir}/pictures, {args.out_dir}/predictions')
    if broken:
        raise SystemExit(f'{len(broken)} of {len(paths)} images cannot be read: '
                         f'{", ".join(map(str, broken))}')


if __name__ == '__main__':
    main()

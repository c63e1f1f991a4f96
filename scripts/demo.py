"""From handwritten digits to a trained Mask R-CNN with a ResT backbone, on a CPU, and to ONNX.

Runs the commands that a user would type, one after the other, and shows the results. After an
interruption, the same command continues: steps that are complete are not repeated.
"""
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.fileio import load
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmrest.engine import cpu_has_bfloat16

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/digits')
WORK = Path('work_dirs')
DEMO = WORK / 'demo'
FOUND = DEMO / 'found.bbox.json'  # and found.segm.json
CLASSIFIER = Path('configs/classification/rest_lite_digits.py')
DETECTOR = Path('configs/mask_rcnn/rest_lite_fpn_digits.py')
# What comes after a training takes as long as so many of its iterations, on two cores.
REST = {CLASSIFIER.stem: 1500, DETECTOR.stem: 250}
NUM_PICTURES = 12
SCALE = 5  # of the pictures

started = time.monotonic()
used: Dict[str, Tuple[float, float]] = {}  # minutes and peak memory in GiB of each step


def run(title: str, step: str, command: List[str]) -> None:
    """Run a command, show its progress and write its output to a log."""
    log = DEMO / f'{step}.log'
    print(f'\n{title}\n$ {shlex.join(["python", *command])}\n  (whole log: {log})')
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, *command],
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT,
                               text=True)
    shown = 0
    with log.open('a') as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if progress := re.search(r'Iter\(train\) +\[ *(\d+)/(\d+)\].*', line):
                print('  ' + '  '.join(re.findall(r'Iter\S+ +\[.*?\]|\w*loss\w*: [\d.]+',
                                                  progress[0])))
                shown += 1
                if shown == 2:  # the first includes the start
                    announce(step, progress)
            elif result := re.search(r'Iter\(\w+\) +\[ *(\d+)/\1\].*', line):
                print('  ' + re.sub(r' {2,}', '  ', result[0]))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    used[step] = (time.monotonic() - begin) / 60, peak / 2**30
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-30:])
        raise SystemExit(f'{tail}\nThe step above ended with exit code {process.returncode}.')


def announce(step: str, progress: re.Match) -> None:
    """Say how long the demo will take, from a line of a training's log."""
    seconds = float(re.search(r' time: ([\d.]+)', progress[0])[1])
    left = (int(progress[2]) - int(progress[1]) + REST[step]) * seconds
    so_far = time.monotonic() - started
    print(f'  The demo takes about {(so_far + left) / 60:.0f} minutes on this computer.')


def train(title: str, config: Path) -> Path:
    """Train a config to its end, resuming if possible; returns the last checkpoint."""
    last = WORK / config.stem / f'iter_{Config.fromfile(config).max_iters}.pth'
    if last.exists():
        print(f'\n{title}\n  done before: {last}')
    else:
        # A tiny classifier gains nothing from bfloat16.
        amp = ['--amp'] if config == DETECTOR and cpu_has_bfloat16() else []
        run(title, config.stem, ['tools/train.py', str(config), '--resume', *amp,
                                 '--cfg-options', 'optim_wrapper.optimizer.fused=True'])
    return last


def test(title: str, config: Path, checkpoint: Path) -> List[dict]:
    """Return what a checkpoint predicts on held-out images, by tools/test.py."""
    predictions = DEMO / f'{config.stem}.pkl'
    begun = checkpoint.stat().st_mtime
    if any(not path.exists() or path.stat().st_mtime < begun for path in (predictions, FOUND)):
        run(title, f'test_{config.stem}', [
            'tools/test.py', str(config), str(checkpoint), '--work-dir', str(DEMO / 'test'),
            '--out', str(predictions), '--cfg-options',
            f'test_evaluator.outfile_prefix={DEMO / "found"}'])
    return load(predictions)


def report(config: Path) -> Path:
    """Write what the detector gets wrong as one page, from what tools/test.py has found."""
    page = DEMO / 'report.html'
    if not page.exists() or page.stat().st_mtime < FOUND.stat().st_mtime:
        run('7. What it gets wrong, as one page', 'report', [
            'tools/analysis_tools/report.py', str(config), '--dt', str(FOUND), '--out',
            str(page)])
    return page


def export(config: Path, checkpoint: Path) -> Path:
    """Write a detector as ONNX. Returns a folder with what it finds in held-out images."""
    exported, found = DEMO / f'{config.stem}.onnx', DEMO / 'onnx'
    images = sorted(map(str, (DATA / 'val').glob('*')))[:3]
    if not exported.exists() or exported.stat().st_mtime < checkpoint.stat().st_mtime:
        run('5. The detector as one ONNX file, if that agrees with MMDetection', 'export', [
            'tools/deployment/export_onnx.py', str(config), str(checkpoint), str(exported),
            '--images', *images])
    run('6. The same images, by ONNX Runtime without PyTorch', 'run_onnx', [
        'tools/deployment/run_onnx.py', str(exported), str(DATA / 'val'), '--out-dir',
        str(found)])
    return found / 'predictions'


def average_precision(folder: Path) -> Dict[str, float]:
    """COCO's AP of boxes and masks in what tools/deployment/run_onnx.py wrote."""
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(DATA / 'annotations/instances_val.json'))
        for image in truth.dataset['images']:
            one = json.loads((folder / f'{image["file_name"]}.json').read_text())
            for label, score, (x, y, x2, y2), mask in zip(
                    one['labels'], one['scores'], one['bboxes'], one['masks']):
                found.append(dict(
                    image_id=image['id'], category_id=label + 1, score=score,
                    bbox=[x, y, x2 - x, y2 - y],
                    segmentation=mask_utils.frPyObjects(mask, *mask['size'])))
        result = {}
        for kind in ('bbox', 'segm'):
            evaluation = COCOeval(truth, truth.loadRes(found), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            result[kind] = evaluation.stats[0]
    return result


def logged(config: Path, key: str) -> Dict[int, float]:
    """Return the values that a config's trainings logged, by iteration."""
    values = {}
    for scalars in sorted((WORK / config.stem).glob('*/vis_data/scalars.json')):
        for record in map(json.loads, scalars.read_text().splitlines()):
            if key in record:
                # A resumed run repeats steps: the later record counts.
                values[record['step']] = record[key]
    return dict(sorted(values.items()))


def draw_curves(path: Path) -> None:
    """Plot losses and the accuracy of both trainings over their iterations."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    panels = [
        (CLASSIFIER, 'classifier: loss', ['loss']),
        (CLASSIFIER, 'classifier: top-1 of held-out digits, %', ['accuracy/top1']),
        (DETECTOR, 'Mask R-CNN: losses', ['loss', 'loss_cls', 'loss_bbox', 'loss_mask']),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    for axis, (config, title, keys) in zip(axes, panels):
        for key in keys:
            values = logged(config, key)
            marker = 'o' if '/' in key else None
            axis.plot(list(values), list(values.values()), marker=marker, label=key)
        axis.set(title=title, xlabel='iteration')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pictures(folder: Path, predictions: List[dict]) -> None:
    """Draw truth (left) and predictions (right) of images, enlarged."""
    known = json.loads((DATA / 'annotations/instances_val.json').read_text())
    names = {image['id']: image['file_name'] for image in known['images']}
    folder.mkdir(parents=True, exist_ok=True)
    for predicted in predictions:
        name = names[predicted['img_id']]
        image = cv2.resize(cv2.imread(str(DATA / 'val' / name)), None, fx=SCALE, fy=SCALE,
                           interpolation=cv2.INTER_CUBIC)
        truth = [(a['category_id'] - 1, '', a['bbox'], a['segmentation'])
                 for a in known['annotations'] if a['image_id'] == predicted['img_id']]
        found = predicted['pred_instances']
        guesses = [(int(label), f' {score:.0%}', [x, y, x2 - x, y2 - y], rle)
                   for label, score, (x, y, x2, y2), rle in zip(
                       found['labels'], found['scores'], found['bboxes'].tolist(),
                       found['masks']) if score >= 0.5]
        panels = [draw_digits(image, digits) for digits in (truth, guesses)]
        cv2.imwrite(str(folder / f'{Path(name).stem}.png'), np.hstack(panels))


def draw_digits(image: np.ndarray, digits: Iterable[tuple]) -> np.ndarray:
    """Draw (class, text after it, box in x y w h, mask in RLE) on an enlarged BGR image."""
    image = image.copy()
    for label, text, box, rle in digits:
        hue = np.uint8([[[label * 18, 220, 255]]])
        color = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0]
        mask = cv2.resize(mask_utils.decode(rle), image.shape[1::-1]) > 0
        image[mask] = image[mask] * 0.4 + color * 0.6
        x, y, width, height = (round(side * SCALE) for side in box)
        cv2.rectangle(image, (x, y), (x + width, y + height), color.tolist(), 3)
        text = f'{label}{text}'
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.9, 2)
        x = min(x, image.shape[1] - width - 8)
        y = max(y, height + 12)
        cv2.rectangle(image, (x, y - height - 12), (x + width + 8, y), color.tolist(), -1)
        cv2.putText(image, text, (x + 4, y - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (0, 0, 0), 2,
                    cv2.LINE_AA)
    return image


def main() -> None:
    os.chdir(ROOT)
    sys.stdout.reconfigure(line_buffering=True)
    DEMO.mkdir(parents=True, exist_ok=True)
    if not DATA.exists():
        run('1. Data: handwritten digits on textured backgrounds', 'data',
            ['tools/dataset_converters/digits_to_coco.py', str(DATA)])
    classifier = train('2. The backbone learns digits as a classifier', CLASSIFIER)
    detector = train('3. Mask R-CNN starts from it', DETECTOR)
    predictions = test('4. Mask R-CNN on 200 images of digits held out', DETECTOR, detector)
    curves, pictures = DEMO / 'curves.png', DEMO / 'pictures'
    draw_curves(curves)
    draw_pictures(pictures, predictions[:NUM_PICTURES])
    by_onnx = average_precision(export(DETECTOR, detector))
    page = report(DETECTOR)

    def last(config, key):
        return list(logged(config, key).values())[-1]

    top1 = last(CLASSIFIER, 'accuracy/top1')
    onnx = ' and '.join(f'{value:.3f}' for value in by_onnx.values())
    for kind, value in by_onnx.items():
        if abs(value - last(DETECTOR, f'coco/{kind}_mAP')) > 1e-3:
            raise SystemExit(f'AP of the ONNX file differs: {kind} {value:.4f}')

    def spent(step):
        return '{:6.1f} min  {:5.2f} GiB'.format(*used[step]) if step in used else 'done before'

    print(f'''
On digits that no training image shows              time    peak memory
  classification top-1  {top1:6.1f} %        {spent(CLASSIFIER.stem)}
  box AP                {last(DETECTOR, 'coco/bbox_mAP'):6.3f}          {spent(DETECTOR.stem)}
  mask AP               {last(DETECTOR, 'coco/segm_mAP'):6.3f}
  both by ONNX Runtime    {onnx:<15} {spent('export')}
  everything                            {(time.monotonic() - started) / 60:6.1f} min

checkpoints  {classifier}
             {detector}
curves       {curves}
pictures     {pictures}/ ({NUM_PICTURES}; left: truth, right: prediction)
             {DEMO}/onnx/pictures/ (by ONNX Runtime)
its errors   {page} (open it in a browser)
The same AP again: python tools/test.py {DETECTOR} {detector}
In your browser:   python tools/deployment/web.py {DEMO}/{DETECTOR.stem}.onnx \\
                       --out {DEMO}/page --examples {DATA}/val/00000?.jpg --serve''')


if __name__ == '__main__':
    main()

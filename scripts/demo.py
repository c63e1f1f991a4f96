"""From handwritten digits to a trained Mask R-CNN with a ResT backbone, on a CPU.

Runs the commands that a user would type, one after the other, and shows the results. After an
interruption, the same command continues: steps that are complete are not repeated.
"""
import json
import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

from mmrest.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
WORK = Path('work_dirs')
DEMO = WORK / 'demo'
CLASSIFIER = Path('configs/classification/rest_lite_digits.py')
DETECTOR = Path('configs/mask_rcnn/rest_lite_fpn_digits.py')
NUM_PICTURES = 12
SHOWN = re.compile(r'(Iter\((?:train|val|test)\).*|Saving checkpoint.*|resumed .*)')


class Usage:
    """Minutes and peak memory of each step, in a file that outlives interruptions."""

    def __init__(self):
        self.path = DEMO / 'usage.json'
        self.steps = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, step: str, seconds: float, memory: int) -> None:
        so_far = self.steps.get(step, dict(seconds=0, memory=0))
        self.steps[step] = dict(
            seconds=so_far['seconds'] + seconds, memory=max(so_far['memory'], memory))
        write_whole(self.path, json.dumps(self.steps).encode())


def run(title: str, step: str, command: List[str], usage: Usage) -> None:
    """Run a command, show its progress and write its output to a log."""
    log = DEMO / f'{step}.log'
    print(f'\n{title}\n$ {shlex.join(["python", *command])}\n  (whole log: {log})')
    process = subprocess.Popen([sys.executable, *command],
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT,
                               text=True)
    since = time.monotonic()
    with log.open('a') as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            now = time.monotonic()
            if now - since > 5:
                usage.add(step, now - since, _peak_memory(process.pid))
                since = now
            shown = SHOWN.search(line)
            if shown:
                print('  ' + re.sub(r' {2,}', '  ', shown[1]))
    code = process.wait()
    usage.add(step, time.monotonic() - since, 0)
    if code:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-30:])
        raise SystemExit(f'{tail}\nThe step above ended with exit code {code}.')


def _peak_memory(pid: int) -> int:
    """Peak memory of a process in bytes; 0 where there is no /proc."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0
    peak = re.search(r'VmHWM:\s*(\d+) kB', status)
    return int(peak[1]) * 1024 if peak else 0


def newest_checkpoint(folder: Path) -> Optional[Path]:
    """Return the latest checkpoint that is complete."""
    checkpoints = sorted(
        folder.glob('iter_*.pth'), key=lambda path: -int(path.stem.split('_')[1]))
    return next((path for path in checkpoints if zipfile.is_zipfile(path)), None)


def train(title: str, config: Path, usage: Usage) -> Path:
    """Train a config to its end, resuming if possible; returns the last checkpoint."""
    from mmengine.config import Config
    folder = WORK / config.stem
    last = folder / f'iter_{Config.fromfile(config).max_iters}.pth'
    newest = newest_checkpoint(folder)
    if newest == last:
        print(f'\n{title}\n  done before: {last}')
        return last
    command = ['tools/train.py', str(config)]
    if newest is not None:
        command += ['--resume', str(newest)]
    run(title, config.stem, command, usage)
    return last


def test(title: str, config: Path, checkpoint: Path, usage: Usage) -> Dict[str, float]:
    """Return the metrics of a checkpoint by tools/test.py, which saves predictions in DEMO."""
    folder = DEMO / f'test_{config.stem}'
    predictions = DEMO / f'{config.stem}.pkl'

    def results():
        return sorted(
            path for path in folder.glob('*/*.json')
            if path.stat().st_mtime > checkpoint.stat().st_mtime)

    if not results() or not predictions.exists():
        command = ['tools/test.py', str(config), str(checkpoint)]
        command += ['--work-dir', str(folder), '--out', str(predictions)]
        run(title, f'test_{config.stem}', command, usage)
    return json.loads(results()[-1].read_text())


def draw_curves(path: Path) -> None:
    """Plot losses and accuracies of both trainings over their iterations."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    panels = [
        (CLASSIFIER, 'classifier: loss', ['loss']),
        (CLASSIFIER, 'classifier: top-1 of held-out digits, %', ['accuracy/top1']),
        (DETECTOR, 'Mask R-CNN: losses', ['loss', 'loss_cls', 'loss_bbox', 'loss_mask']),
        (DETECTOR, 'Mask R-CNN: AP on held-out digits',
         ['coco/bbox_mAP', 'coco/segm_mAP']),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (config, title, keys) in zip(axes.flat, panels):
        records = {}
        for scalars in sorted((WORK / config.stem).glob('*/vis_data/scalars.json')):
            for line in scalars.read_text().splitlines():
                record = json.loads(line)
                for key in keys:
                    if key in record:
                        # A resumed run repeats steps: the later record counts.
                        records.setdefault(key, {})[record['step']] = record[key]
        for key, values in records.items():
            steps = sorted(values)
            marker = 'o' if '/' in key else None
            axis.plot(steps, [values[s] for s in steps], marker=marker, label=key)
        axis.set(title=title, xlabel='iteration')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pictures(folder: Path, predictions: Path) -> List[Path]:
    """Draw truth (left) and predictions (right) of the first images, enlarged 4 times."""
    import cv2
    import numpy as np
    import torch
    from mmdet.datasets import CocoDataset
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.config import Config
    from mmengine.fileio import load
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData
    from pycocotools import mask as mask_utils
    scale = 4

    def instances(boxes, masks, labels, **fields):
        large = np.array([cv2.resize(m, None, fx=scale, fy=scale) > 0 for m in masks])
        return InstanceData(
            bboxes=torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4) * scale,
            labels=torch.as_tensor(labels, dtype=torch.long),
            masks=torch.as_tensor(large).bool(),
            **fields)

    init_default_scope('mmdet')
    cfg = Config.fromfile(DETECTOR).val_dataloader.dataset
    cfg.pop('type')
    dataset = CocoDataset(**dict(cfg, pipeline=[]))
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.5)
    visualizer.dataset_meta = dataset.metainfo
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for predicted in load(predictions)[:NUM_PICTURES]:
        info = next(i for i in dataset if i['img_id'] == predicted['img_id'])
        image = cv2.cvtColor(cv2.imread(info['img_path']), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        real = info['instances']
        found = predicted['pred_instances']
        sample = DetDataSample(
            gt_instances=instances([r['bbox'] for r in real],
                                   [mask_utils.decode(r['mask']) for r in real],
                                   [r['bbox_label'] for r in real]),
            pred_instances=instances(
                found['bboxes'], [mask_utils.decode(m) for m in found['masks']],
                found['labels'],
                scores=found['scores']))
        paths.append(folder / (Path(info['img_path']).stem + '.png'))
        visualizer.add_datasample(
            paths[-1].stem, image, sample, pred_score_thr=0.5, out_file=str(paths[-1]))
    return paths


def main() -> None:
    os.chdir(ROOT)
    sys.stdout.reconfigure(line_buffering=True)
    DEMO.mkdir(parents=True, exist_ok=True)
    usage = Usage()
    data = Path('data/digits')
    if not data.exists():
        run('1. Data: handwritten digits on textured backgrounds (half a minute)', 'data',
            ['tools/dataset_converters/digits_to_coco.py', str(data)], usage)
    train_title = '2. The backbone learns digits as a classifier'
    classifier = train(train_title, CLASSIFIER, usage)
    detector = train('3. Mask R-CNN starts from it', DETECTOR, usage)
    top1 = test('4. Classifier on digits held out', CLASSIFIER, classifier, usage)
    ap = test('5. Mask R-CNN on 200 images of digits held out', DETECTOR, detector, usage)
    curves = DEMO / 'curves.png'
    draw_curves(curves)
    pictures = draw_pictures(DEMO / 'pictures', DEMO / f'{DETECTOR.stem}.pkl')

    def spent(*steps):
        used = [usage.steps[step] for step in steps if step in usage.steps]
        minutes = sum(step['seconds'] for step in used) / 60
        memory = max((step['memory'] for step in used), default=0) / 2**30
        return f'{minutes:6.1f} min  {memory:5.2f} GiB'

    print(f'''
On digits that no training image shows              time    peak memory
  classification top-1  {top1['accuracy/top1']:6.1f} %        {spent(CLASSIFIER.stem)}
  box AP                {ap['coco/bbox_mAP']:6.3f}          {spent(DETECTOR.stem)}
  mask AP               {ap['coco/segm_mAP']:6.3f}
  everything                            {spent(*usage.steps)}

checkpoints  {classifier}
             {detector}
curves       {curves}
pictures     {pictures[0].parent}/ ({len(pictures)}; left: truth, right: prediction)
The same AP again: python tools/test.py {DETECTOR} {detector}''')


if __name__ == '__main__':
    main()

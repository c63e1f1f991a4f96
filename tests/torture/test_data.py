"""COCO data with faults: training continues, or an error names the file."""
import json

import pytest

from ..tiny_data import DETECTOR_OPTIONS, write_detector
from .training import Run


def train(folder, *options):
    run = Run(folder, 'detector.py', '--work-dir', 'out', '--cfg-options', *DETECTOR_OPTIONS,
              *options)
    return run.wait(), run.text()


@pytest.mark.slow
def test_broken_images_do_not_end_a_run(tmp_path):
    """Four of them, one of each kind, in 12 epochs of 6 images."""
    write_detector(tmp_path)
    paths = [tmp_path / f'data/coco/train2017/{i}.png' for i in range(4)]
    paths[0].unlink()
    paths[1].write_bytes(b'')
    paths[2].write_bytes(b'no image')
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    code, log = train(tmp_path, 'train_cfg.max_epochs=12')
    assert code == 0 and (tmp_path / 'out/epoch_12.pth').exists(), log[-3000:]
    for i in range(4):
        assert f"img_path='data/coco/train2017/{i}.png' cannot be read" in log
    code, log = train(tmp_path, 'train_dataloader.dataset.pipeline.0.at_most=0')
    assert code == 1 and 'at_most=0 files may be skipped' in log


@pytest.mark.slow
def test_a_run_on_odd_objects_stays_finite(tmp_path):
    faults = (dict(bbox=[200, 200, 20, 20]), dict(bbox=[-10, -10, 40, 40]),
              dict(bbox=[5, 5, 0, 0], area=0),
              dict(iscrowd=1, segmentation=dict(counts=[0, 10, 6134], size=[64, 96])),
              dict(category_id=99), dict(bbox=[0, 0, 1e6, 1e6]), dict(bbox=[float('nan')] * 4))

    def change(content):
        for thing, fields in zip(content['annotations'], faults):
            thing.update(fields)

    write_detector(tmp_path, change)
    code, log = train(tmp_path, '--no-check')
    assert code == 0, log[-3000:]
    scalars, = (tmp_path / 'out').glob('*/vis_data/scalars.json')
    losses = [json.loads(line).get('loss') for line in scalars.read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 6 and all(0 < loss < 100 for loss in losses)

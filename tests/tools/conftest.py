"""Four small images as COCO, and calls of scripts on them."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset

from ..tiny_data import write_coco2017
from ..torture.training import Run

ROOT = Path(__file__).parents[2]
SMALL = [
    '--cfg-options', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1',
    'train_dataloader.dataset.pipeline.2.scales=[(128,96)]',
    'model.test_cfg.rcnn.score_thr=0.',  # an untrained model is sure of nothing
    'val_dataloader.dataset.pipeline.1.scale=(128,96)',
    'test_dataloader.dataset.pipeline.1.scale=(128,96)'
] + [
    f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
]


@pytest.fixture(scope='session')
def coco(tmp_path_factory):
    """A folder with data/coco in it: two images per split."""
    folder = tmp_path_factory.mktemp('project')
    write_coco2017(folder, num_images=2, names=CocoDataset.METAINFO['classes'], shape=(96, 128),
                   ending='jpg')
    return folder


def call(script, *args, cwd):
    """Run a script in a process of its own, with one thread: another test runs beside it."""
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, text=True,
                          capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='1'))


def run(script, *args, cwd, package=None, code=0):
    """Run our script, or that of a package, in a process that starts fast; its output."""
    tools = ROOT / 'tools'
    if package is not None:
        tools = Path(find_spec(package).origin).parent / '.mim/tools'
    process = Run(cwd, *args, script=tools / script)
    assert process.wait(300) == code, process.text()[-3000:]
    return process.text()


def run_main(tool, folder, monkeypatch, *args):
    """Run a script's ``main`` in a folder; returns the JSON in its outputs, by path."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', [tool.__name__, *map(str, args)])
    tool.main()
    return predictions(folder)


def predictions(folder):
    """The JSON that infer.py or run_onnx.py wrote, by path."""
    found = folder / 'outputs/predictions'
    return {path.relative_to(found).as_posix(): json.loads(path.read_text())
            for path in found.rglob('*.json')}

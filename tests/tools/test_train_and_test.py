"""tools/train.py and tools/test.py on the COCO config, with four small images."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/mask_rcnn/rest_small_fpn_1x_coco.py'
STOCK = Path(mmdet.__file__).parent / '.mim/tools'
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


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """A folder with data/coco in it: two images of a rectangle per split."""
    folder = tmp_path_factory.mktemp('project')
    data = folder / 'data/coco'
    (data / 'annotations').mkdir(parents=True)
    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    for split in ('train2017', 'val2017'):
        (data / split).mkdir()
        images, annotations = [], []
        for i in range(2):
            image = np.full((96, 128, 3), 60, np.uint8)
            image[20:70, 30:90] = 200
            cv2.imwrite(str(data / split / f'{i}.jpg'), image)
            images.append(dict(id=i, file_name=f'{i}.jpg', height=96, width=128))
            annotations.append(
                dict(id=i + 1, image_id=i, category_id=1, bbox=[30, 20, 60, 50], area=3000,
                     iscrowd=0, segmentation=[[30, 20, 90, 20, 90, 70, 30, 70]]))
        (data / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return folder


def call(script, *args, cwd):
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, text=True,
                          capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='2'))


def metrics(folder):
    path, = folder.glob('*/*.json')
    return json.loads(path.read_text())


def test_train_then_test_as_the_stock_tools_do(coco):
    done = call(ROOT / 'tools/train.py', CONFIG, '--work-dir', 'out', *SMALL, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert "ResT(arch='small') starts from random weights" in done.stdout + done.stderr
    checkpoint = coco / 'out/epoch_1.pth'
    scalars, = (coco / 'out').glob('*/vis_data/scalars.json')
    losses = [json.loads(line).get('loss') for line in scalars.read_text().splitlines()]
    assert all(np.isfinite(loss) for loss in losses if loss is not None)
    assert any(losses)
    for script, folder in ((ROOT / 'tools/test.py', 'ours'), (STOCK / 'test.py', 'stock')):
        done = call(script, CONFIG, checkpoint, '--work-dir', folder, '--out',
                    f'{folder}.pkl', *SMALL, cwd=coco)
        assert done.returncode == 0, done.stderr
        assert (coco / f'{folder}.pkl').stat().st_size
    ours, stock = metrics(coco / 'ours'), metrics(coco / 'stock')
    assert ours['coco/bbox_mAP'] == stock['coco/bbox_mAP']
    done = call(STOCK / 'train.py', CONFIG, '--work-dir', 'stock_train', *SMALL, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert (coco / 'stock_train/epoch_1.pth').exists()


def test_what_is_missing_is_said_in_one_sentence(tmp_path, coco):
    done = call(ROOT / 'tools/train.py', CONFIG, cwd=tmp_path)
    sentence, = done.stderr.strip().splitlines()
    assert done.returncode == 1 and 'data/coco/annotations/instances_train2017.json' in sentence
    assert not list(tmp_path.iterdir())

    options = ['--work-dir', 'elsewhere', '--cfg-options',
               'train_dataloader.dataset.ann_file=annotations/other.json']
    done = call(ROOT / 'tools/train.py', *options[:2], CONFIG, *options[2:], cwd=coco)
    sentence, = done.stderr.strip().splitlines()
    assert 'needs data/coco/annotations/other.json, which is not there' in sentence

    for args, word in ((['no.py'], "config='no.py'"), ([CONFIG, 'no.pth'], "'no.pth'")):
        done = call(ROOT / 'tools/test.py', *args, cwd=coco)
        sentence, = done.stderr.strip().splitlines()
        assert done.returncode == 1 and word in sentence and 'no such file' in sentence


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_help_is_the_stock_tools(script, tmp_path):
    ours, stock = (call(folder / script, '--help', cwd=tmp_path)
                   for folder in (ROOT / 'tools', STOCK))
    assert ours.returncode == 0 and ours.stdout == stock.stdout

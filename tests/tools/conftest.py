"""Four small images as COCO, and calls of scripts on them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

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

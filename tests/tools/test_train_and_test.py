"""tools/train.py, tools/test.py, mim and mmdet's inferencer, on a few small images."""
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch

from .conftest import ROOT, SMALL, call

CONFIG = ROOT / 'configs/mask_rcnn/rest_small_fpn_1x_coco.py'
STOCK = Path(mmdet.__file__).parent / '.mim/tools'


def mim(*args, cwd):
    command = [Path(sys.executable).with_name('mim'), *map(str, args)]
    env = dict(os.environ, LC_ALL='C.UTF-8')
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)


def metrics(folder):
    path, = folder.glob('*/*.json')
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def checkpoint(coco):
    done = call(ROOT / 'tools/train.py', CONFIG, '--work-dir', 'out', *SMALL, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert "ResT(arch='small') starts from random weights" in done.stdout + done.stderr
    return coco / 'out/epoch_1.pth'


def test_train_then_test_as_the_stock_tools_do(coco, checkpoint):
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


def test_resume_and_scaled_lr(coco, checkpoint):
    done = call(ROOT / 'tools/train.py', CONFIG, '--work-dir', 'more', '--resume', checkpoint,
                '--auto-scale-lr', *SMALL, 'train_cfg.max_epochs=2', cwd=coco)
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert 'resumed epoch: 1, iter: 1' in log
    assert 'Scaling the original LR by 0.125' in log  # 2 images of 16
    assert (coco / 'more/epoch_2.pth').exists() and not (coco / 'more/epoch_1.pth').exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('launch, options, words', [
    ([], ['--amp', *SMALL], 'AmpOptimWrapper'),
    (['-m', 'torch.distributed.run', '--standalone'],
     ['--launcher', 'pytorch', *SMALL, 'sync_bn=torch'], 'SyncBatchNorm'),
])
def test_amp_and_sync_bn(coco, launch, options, words):
    """Both refuse a CPU; SyncBN needs a launcher, too."""
    command = [sys.executable, *launch, ROOT / 'tools/train.py', CONFIG]
    done = subprocess.run(
        [*command, '--work-dir', 'gpu', *options], cwd=coco, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert words in done.stdout + done.stderr
    assert (coco / 'gpu/epoch_1.pth').exists()


def test_mim_trains_and_tests_our_config(coco, checkpoint):
    done = mim('train', 'mmrest', CONFIG, '--work-dir', 'mim_train', *SMALL, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert (coco / 'mim_train/epoch_1.pth').exists()
    done = mim('test', 'mmrest', CONFIG, '-C', checkpoint, '--work-dir', 'mim_test', *SMALL,
               cwd=coco)
    assert done.returncode == 0, done.stderr
    assert 'coco/segm_mAP' in metrics(coco / 'mim_test')


def test_mim_of_mmdet_tests_our_config(coco, checkpoint):
    package, = packages_distributions()['mmdet']  # onedl-mmdetection, or OpenMMLab's mmdet
    done = mim('test', package, CONFIG, '-C', checkpoint, '--work-dir', 'by_mim',
               *SMALL, cwd=coco)
    assert done.returncode == 0, done.stderr
    assert 'coco/segm_mAP' in metrics(coco / 'by_mim')


def test_mim_finds_our_models(tmp_path):
    done = mim('search', 'mmrest', '--json', 'found.json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'found.json').read_text())
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts and 'digits' not in path.stem}
    assert set(found['config'].values()) == configs


def test_det_inferencer_takes_our_config(coco, checkpoint):
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(str(CONFIG), str(checkpoint), device='cpu', show_progress=False)
    inferencer.model.test_cfg.rcnn.score_thr = 0.  # an untrained model is sure of nothing
    image = str(coco / 'data/coco/val2017/0.jpg')
    result = inferencer(image, return_datasamples=True)['predictions'][0].pred_instances
    assert len(result.bboxes) == len(result.masks) > 0
    boxes = result.bboxes
    assert (boxes >= 0).all() and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= 96).all()


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

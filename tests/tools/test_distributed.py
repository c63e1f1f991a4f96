"""Two processes on a CPU, through torchrun."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.fsdp
from torch.testing import assert_close

from ..models.models import MODELS
from .conftest import ROOT, SMALL
from .ddp_gradients import batch, classifier
from .strategies import STRATEGIES, Model
from .strategies import train as train_alone

HERE = Path(__file__).parent
ON_CPU = [
    'env_cfg.dist_cfg.backend=gloo', 'model_wrapper_cfg.type=MMDistributedDataParallel',
    'model_wrapper_cfg.device_ids=None', 'model_wrapper_cfg.broadcast_buffers=False'
]


def two_processes(*command, cwd):
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         *map(str, command)],
        cwd=cwd, text=True, capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='1'))


def train(config, work_dir, *options, cwd):
    return two_processes(
        HERE / 'cpu_process.py', ROOT / 'tools/train.py', ROOT / 'configs' / config,
        '--launcher', 'pytorch', '--work-dir', work_dir, *SMALL, *ON_CPU,
        'train_cfg.max_epochs=2', *options, cwd=cwd)


@pytest.mark.parametrize('kind', ['retinanet', 'mask_rcnn'])
def test_every_parameter_takes_part(kind, coco, many):
    """DistributedDataParallel stops at the second step if one has no gradient."""
    if kind == 'mask_rcnn' and many(True, False):
        pytest.skip('long version only: --torture')
    done = train(f'{kind}/rest_lite_fpn_1x_coco.py', f'two_{kind}',
                 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', cwd=coco)
    assert done.returncode == 0, done.stderr[-3000:]
    scalars, = (coco / f'two_{kind}').glob('*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in scalars.read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert 'bucket view strides' not in done.stderr


def test_a_level_that_nobody_uses_is_noticed(coco, many):
    if many(True, False):
        pytest.skip('long version only: --torture')
    done = train('retinanet/rest_lite_fpn_1x_coco.py', 'unused',
                 'model.backbone.out_indices=[0,1,2,3]', 'model.neck.start_level=1',
                 'model.neck.in_channels=[64,128,256,512]',
                 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', cwd=coco)
    assert done.returncode
    assert 'parameters that were not used in producing loss' in done.stderr


def test_gradients_are_those_of_the_joined_batch(tmp_path):
    config = ROOT / 'configs/classification/rest_lite_8xb256_in1k.py'
    out = tmp_path / 'gradients.pth'
    done = two_processes(HERE / 'ddp_gradients.py', config, out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    model = classifier(config)
    images, samples = batch()
    model(images, samples, mode='loss')['loss'].backward()
    two = torch.load(out, weights_only=True)
    assert len(two) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert_close(
            two[name], p.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f'{n}: {m}')
    assert two['head.fc.weight'].abs().max() > 1e-4


@pytest.mark.parametrize('name', [cls.__name__ for cls in MODELS])
@pytest.mark.parametrize('kind', STRATEGIES)
def test_strategies_of_flexible_runner_train_as_one_process(kind, name, tmp_path, many):
    if kind == 'DDPStrategy' and many(True, False):
        pytest.skip('long version only: --torture')
    if kind == 'FSDPStrategy' and not hasattr(torch.distributed.fsdp, 'fully_shard'):
        pytest.skip('on a CPU it needs torch 2.6')
    out = tmp_path / 'weights.pth'
    done = two_processes(
        HERE / 'cpu_process.py', HERE / 'strategies.py', name, kind, out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    want = train_alone(name, None, str(tmp_path / 'alone'), 4)
    torch.manual_seed(0)
    before = dict(Model(name).named_parameters())
    got = torch.load(out, weights_only=True)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert_close(got[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}')
    assert max((want[key] - before[key]).abs().max() for key in want) > 0.01

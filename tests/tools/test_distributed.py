"""Two processes on a CPU, started as by torchrun."""
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ..models.models import MODELS
from ..torture.training import Run
from .conftest import ROOT, SMALL
from .strategies import STRATEGIES, Model
from .strategies import train as train_alone

HERE = Path(__file__).parent
ON_CPU = [
    'env_cfg.dist_cfg.backend=gloo', 'model_wrapper_cfg.type=MMDistributedDataParallel',
    'model_wrapper_cfg.device_ids=None', 'model_wrapper_cfg.broadcast_buffers=False'
]


class Rank:
    """Makes a process one of two, on a CPU: MMEngine's launcher wants a GPU."""

    def __init__(self, rank, port):
        self.env = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1',
                        MASTER_PORT=port)

    def __call__(self):
        os.environ.update({name: str(value) for name, value in self.env.items()})
        torch.cuda.set_device = lambda device: None


def two_processes(script, *args, cwd):
    """Exit codes and output of both."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    both = [Run(cwd, *args, script=script, fate=Rank(rank, port)) for rank in range(2)]
    return [run.wait(300) for run in both], '\n'.join(run.text()[-3000:] for run in both)


@pytest.mark.parametrize('kind, levels', [
    ('retinanet', 3), pytest.param('mask_rcnn', 4, marks=pytest.mark.slow)])
def test_every_parameter_takes_part(kind, levels, coco):
    """DistributedDataParallel stops at the second step if one has no gradient.

    The config is ours with narrow stages, of which the neck takes the last ``levels``.
    """
    config = coco / f'{kind}.py'
    arch = dict(_delete_=True, embed_dims=[8, 16, 24, 32], depths=(1, 1, 1, 1),
                num_heads=(1, 2, 2, 4), sr_ratios=(8, 4, 2, 1))
    model = dict(backbone=dict(arch=arch), neck=dict(in_channels=arch['embed_dims'][-levels:]))
    base = str(ROOT / f'configs/{kind}/rest_lite_fpn_1x_coco.py')
    config.write_text(f'_base_ = {base!r}\nmodel = {model}')
    codes, output = two_processes(
        ROOT / 'tools/train.py', config, '--launcher', 'pytorch', '--work-dir', f'two_{kind}',
        *SMALL, *ON_CPU, 'train_cfg.max_epochs=2',
        'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', cwd=coco)
    assert codes == [0, 0], output
    scalars, = (coco / f'two_{kind}').glob('*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in scalars.read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert 'bucket view strides' not in output


@pytest.mark.parametrize('name', [cls.__name__ for cls in MODELS])
@pytest.mark.parametrize('kind', STRATEGIES)
def test_strategies_of_flexible_runner_train_as_one_process(kind, name, tmp_path):
    out = tmp_path / 'weights.pth'
    codes, output = two_processes(HERE / 'strategies.py', name, kind, out, cwd=tmp_path)
    assert codes == [0, 0], output
    want = train_alone(name, None, str(tmp_path / 'alone'), 4)
    torch.manual_seed(0)
    before = dict(Model(name).named_parameters())
    got = torch.load(out, weights_only=True)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert_close(got[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}')
    assert max((want[key] - before[key]).abs().max() for key in want) > 0.01

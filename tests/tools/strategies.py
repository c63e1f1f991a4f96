"""Trains two steps by FlexibleRunner with a strategy, in each of two processes."""
import sys

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from torch.utils.data import Dataset

from mmrest import ResT


class Images(Dataset):
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(i))


class Model(BaseModel):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs, mode='tensor'):
        features = self.backbone(torch.stack(inputs))
        return dict(loss=sum(x.square().mean() for x in features))


def train(backbone, strategy, work_dir):
    torch.manual_seed(0)
    dataloader = dict(
        dataset=Images(), batch_size=2 if strategy else 4, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False))
    runner = FlexibleRunner(
        model=Model(backbone), strategy=strategy, work_dir=work_dir,
        train_dataloader=dataloader, train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=None, logger=None, timer=None), log_level='ERROR',
        cfg=Config(dict(env_cfg=dict(dist_cfg=dict(backend='gloo')))))
    runner.train()
    return runner

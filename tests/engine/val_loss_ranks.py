"""Two processes share images unequally: what ValLossHook makes of their losses."""
import json
import sys
from types import SimpleNamespace

import torch
from mmengine.config import ConfigDict
from mmengine.dist import all_reduce, get_rank, init_dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from torch import nn

from mmrest.engine import ValLossHook
from mmrest.errors import UserError

VALUES = [1., 2., 4., 8., 16.]


class Numbers(torch.utils.data.Dataset):
    """Each image is its number."""

    def __init__(self, count, pipeline=()):
        self.count, self.pipeline = count, pipeline

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return dict(inputs=torch.tensor([VALUES[i]]), data_samples=i)


class Model(BaseModel):
    """The mean of a batch, and a loss for which all processes meet in each batch."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        self.scale.weight.data.fill_(3.)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'loss' and not self.training
        met = torch.ones(1)
        all_reduce(met)
        mean = self.scale(torch.stack(inputs)).mean()
        return dict(loss_a=mean, loss_b=[mean, met], acc=met)


def stand_in(model, count, batch_size):
    """What the hook sees of a Runner."""
    loader = ConfigDict(
        dataset=dict(type=Numbers, count=count), batch_size=batch_size, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), drop_last=True)
    return SimpleNamespace(cfg=ConfigDict(val_dataloader=loader), model=model.eval(), seed=0,
                           log_processor=SimpleNamespace(custom_cfg=[]))


def validate(model, count, batch_size):
    hook, metrics = ValLossHook(), dict(first=0.)
    runner = stand_in(model, count, batch_size)
    hook.before_val(runner)
    hook.after_val_epoch(runner, metrics)
    return metrics


if __name__ == '__main__':
    init_dist('pytorch', backend='gloo')
    model = MMDistributedDataParallel(Model())
    found = [validate(model, 5, size) for size in (1, 2, 3)]
    try:
        validate(model, 1, 1)
    except UserError as error:
        found.append(str(error))
    with open(f'{sys.argv[1]}{get_rank()}.json', 'w') as file:
        json.dump(found, file)
    torch.distributed.destroy_process_group()

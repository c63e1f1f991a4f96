"""Trains by FlexibleRunner with a strategy, in each of two processes, and saves the weights."""
import sys

import torch
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

import mmrest

STRATEGIES = dict(
    DDPStrategy=dict(model_wrapper=dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)),
    # Each layer is a unit, whose parameters are there when it is called.
    FSDPStrategy=dict(model_wrapper=dict(
        type='MMFullyShardedDataParallel', device_id=torch.device('cpu'),
        auto_wrap_policy=lambda module, recurse, nonwrapped_numel: recurse or isinstance(
            module, (nn.Linear, nn.Conv2d, nn.LayerNorm)))))


def images():
    generator = torch.Generator().manual_seed(0)
    return [dict(inputs=torch.randn(3, 64, 96, generator=generator)) for _ in range(4)]


class Model(BaseModel):

    def __init__(self, name):
        super().__init__()
        arch = dict(embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), sr_ratios=(8, 4))
        self.backbone = getattr(mmrest, name)(arch, out_indices=None, norm_eval=True)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)

    def forward(self, inputs, mode='tensor'):
        features = self.backbone(torch.stack(inputs))
        return dict(loss=sum(x.square().mean() for x in features))


def train(name, strategy, work_dir, batch_size):
    torch.manual_seed(0)
    runner = FlexibleRunner(
        model=Model(name), strategy=strategy, work_dir=work_dir,
        train_dataloader=dict(
            dataset=images(), batch_size=batch_size, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=None, logger=None), log_level='ERROR',
        launcher='pytorch' if batch_size < 4 else 'none',
        env_cfg=dict(dist_cfg=dict(backend='gloo')))
    runner.train()
    model = runner.strategy.model
    with FSDP.summon_full_params(model):
        return {name.replace('_fsdp_wrapped_module.', '').replace('module.', ''):
                p.detach().clone() for name, p in model.named_parameters()}


if __name__ == '__main__':
    name, kind, out = sys.argv[1:]
    state = train(name, dict(type=kind, **STRATEGIES[kind]), f'{out}_log', 2)
    if torch.distributed.get_rank() == 0:
        torch.save(state, out)
    torch.distributed.destroy_process_group()

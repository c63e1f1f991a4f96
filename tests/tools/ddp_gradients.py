"""Writes the gradients of two processes with half a batch each to a file."""
import sys

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample


def classifier(config):
    """The config's model, with a deterministic forward pass."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(norm_eval=True, drop_path_rate=0.)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double()
    model.init_weights()
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 40, 56, generator=generator, dtype=torch.float64)
    return images, [DataSample().set_gt_label(label) for label in (3, 1, 4, 1)]


if __name__ == '__main__':
    config, out = sys.argv[1:]
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    model = MMDistributedDataParallel(classifier(config))
    images, samples = batch()
    half = slice(2 * rank, 2 * rank + 2)
    losses = model(images[half], samples[half], mode='loss')
    losses['loss'].backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters()}, out)
    torch.distributed.destroy_process_group()

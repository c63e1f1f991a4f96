"""What people do to the modules of a whole backbone: hooks, LoRA, pruning, sharding.

test_modules_are_called.py holds blocks against plain restatements.
"""
import copy
from collections import Counter

import pytest
import torch
import torch.distributed.fsdp
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from .. import golden
from .models import ARCH, MODELS, build, image

every_model = pytest.mark.parametrize('cls', MODELS)
every_size = pytest.mark.parametrize('size', [96, 512])


def called(model):
    return [(name, module) for name, module in model.named_modules()
            if name and not isinstance(module, nn.ModuleList)]


@every_model
@every_size
@pytest.mark.filterwarnings('ignore:Full backward hook')  # transform_conv's unit vectors
def test_hooks_on_every_module(cls, size):
    """Each is called as often backward as forward, with a gradient, and nearly all once."""
    model, x = build(cls).train(), image(1, 3, size, size)
    calls, want, largest = [], model(x), []
    golden.loss(want).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, module in called(model):
        module.register_forward_hook(lambda *args, name=name: calls.append((name, 'forward')))
        module.register_full_backward_hook(
            lambda *args, name=name: calls.append((name, 'backward')))
        module.register_full_backward_hook(
            lambda module, into, out: largest.append(out[0].abs().max().item()))
    model.zero_grad()
    golden.loss(model(x)).backward()
    forward, backward = (
        Counter(name for name, way in calls if way == each) for each in ('forward', 'backward'))
    assert forward == backward and set(forward) == {name for name, _ in called(model)}
    assert {name.split('.')[-1] for name, count in forward.items() if count > 1} <= {
        'act', 'drop_path', 'dropout'}  # two ReLUs of the stem, two branches of a block
    assert len(largest) == sum(backward.values()) and all(largest)
    scale = max(grad.abs().max() for grad in grads.values())
    for name, p in model.named_parameters():
        assert_close(p.grad, grads[name], rtol=1e-9, atol=1e-12 * scale.item())


@every_model
def test_a_hook_on_any_module_changes_the_features(cls):
    model, x = build(cls), image(1, 3, 96, 96)
    want = model(x)[-1]
    beside_the_trunk = [cls.stage_names(i)[2] for i in range(3)]
    for name, module in called(model):
        hook = module.register_forward_hook(
            lambda module, args, out: out * (0.5 + image(*out.shape).abs()))
        changed = (model(x)[-1] - want).abs().max()
        hook.remove()
        assert (changed > 1e-6) == (name not in beside_the_trunk), name


def spectral(module):
    parametrizations.spectral_norm(module)


def weight(module):
    parametrizations.weight_norm(module)


def pruned(module):
    prune.l1_unstructured(module, 'weight', 0.3)


class Square(nn.Module):

    def forward(self, weight):
        return weight * weight.abs()


def parametrized(module):
    parametrize.register_parametrization(module, 'weight', Square())


@every_model
@every_size
@pytest.mark.parametrize('change', [spectral, weight, pruned, parametrized])
def test_changed_weights_of_every_layer(change, size, cls):
    """The features are those of the weights that the change makes; all of them train."""
    model, plain = build(cls), build(cls)
    layers, same = (
        [module for module in each.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        for each in (model, plain))
    for module in layers:
        change(module)
    model.eval()
    with torch.no_grad():
        for module, other in zip(layers, same):
            other.weight.copy_(module.weight)
    x = image(1, 3, size, size)
    for got, want in zip(model(x), plain(x)):
        assert_close(got, want, rtol=1e-9, atol=1e-9)
    golden.loss(model.train()(x)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name


@every_model
@pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, 'fully_shard'), reason='needs torch 2.6')
def test_fsdp2_of_single_layers(cls):
    """It gathers the parameters of a layer when the layer is called."""
    model, x = build(cls), image(1, 3, 96, 96)
    golden.loss(model(x)).backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1, ))
        for _, layer in called(model):
            if any(True for _ in layer.parameters(recurse=False)):
                torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        model.zero_grad()
        golden.loss(model(x)).backward()
        got = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    scale = max(grad.abs().max() for grad in want.values()).item()
    for name, grad in want.items():
        assert_close(got[name], grad, rtol=1e-9, atol=1e-12 * scale)


@every_model
@pytest.mark.parametrize('drop_rate', [0., 0.3])
def test_lora_of_mmpretrain(drop_rate, cls):
    """Its gradients are the slopes; merged into the weights it gives the same features."""
    mmpretrain = pytest.importorskip('mmpretrain.models')
    targets = [r'.*\.q', r'.*\.kv', r'.*\.proj', r'.*fc1', r'.*fc2']
    model = mmpretrain.LoRAModel(
        dict(type=cls.__name__, arch=ARCH), alpha=8, rank=2, drop_rate=drop_rate,
        targets=[dict(type=target) for target in targets]).double()
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(params) == 2 * 5 * sum(ARCH['depths'])
    plain, x = build(cls), image(1, 3, 96, 128)
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if 'lora' in name:
                nn.init.normal_(p, std=0.1)
            else:
                p.copy_(plain.get_parameter(name.replace('original_layer.', '')))

    def loss():
        torch.manual_seed(1)  # for dropout
        return golden.loss(model(x))

    model.train()
    model.module.apply(lambda m: m.eval() if isinstance(m, nn.BatchNorm2d) else None)
    grads = torch.autograd.grad(loss(), list(params.values()))
    for (name, p), grad in zip(params.items(), grads):
        direction, values = torch.randn_like(p), []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                p += step * direction
                values.append(loss())
            p += 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        assert_close(slope, (grad * direction).sum(), rtol=1e-4, atol=1e-4, msg=name)
    model.eval()
    merged = copy.deepcopy(model)
    for module in merged.modules():
        if type(module).__name__ == 'LoRALinear':
            with torch.no_grad():
                module.original_layer.weight += module.scaling * (
                    module.lora_up.weight @ module.lora_down.weight)
                module.lora_up.weight.zero_()
    for got, want, other in zip(merged(x), model(x), plain(x)):
        assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert (got - other).abs().max() > 0.01

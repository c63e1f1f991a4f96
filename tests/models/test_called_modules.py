"""Each module is called once a forward pass, on the whole tensor, and its weights only there.

So hooks, LoRA, pruning, parametrizations, other layers and sharding work on any of them.
"""
from collections import Counter

import pytest
import torch
import torch.distributed.fsdp
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from mmrest import EMSA

from .. import golden
from .models import build, every_model, image, randomize


def called(model):
    return {name: module for name, module in model.named_modules()
            if name and not isinstance(module, nn.ModuleList)}


def gradients(model, x):
    model.zero_grad()
    golden.loss(model(x)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def check_gradients(got, want):
    scale = max(grad.abs().max() for grad in want.values()).item()
    assert_close(got, want, rtol=1e-9, atol=1e-12 * scale)


@every_model
@pytest.mark.filterwarnings('ignore:Full backward hook')  # transform_conv's unit vectors
def test_hooks_on_every_module(cls):
    """Each is called as often backward as forward, with a gradient, and nearly all once."""
    model, x = build(cls).train(), image(1, 3, 96, 96)
    want = gradients(model, x)
    forward, backward, largest = [], [], []
    for name, module in called(model).items():
        module.register_forward_hook(lambda *args, name=name: forward.append(name))
        module.register_full_backward_hook(lambda *args, name=name: backward.append(name))
        module.register_full_backward_hook(
            lambda module, into, out: largest.append(out[0].abs().max().item()))
    check_gradients(gradients(model, x), want)
    calls = Counter(forward)
    assert calls == Counter(backward) and calls.keys() == called(model).keys()
    assert {name.split('.')[-1] for name, count in calls.items() if count > 1} <= {
        'act', 'drop_path', 'dropout'}  # two ReLUs of the stem, two branches of a block
    assert len(largest) == len(backward) and all(largest)


@every_model
def test_fsdp2_of_single_layers(cls):
    """It gathers the parameters of a layer while the layer is called, and only then."""
    model, x = build(cls), image(1, 3, 64, 96)
    want = gradients(model, x)
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1, ))
        for layer in called(model).values():
            if any(True for _ in layer.parameters(recurse=False)):
                torch.distributed.fsdp.fully_shard(
                    layer, mesh=mesh, reshard_after_forward=True)
        got = {name: grad.full_tensor() for name, grad in gradients(model, x).items()}
    finally:
        torch.distributed.destroy_process_group()
    check_gradients(got, want)


def plain_attention(attn, x, hw):
    """Figure 3: the convolution is applied to the scores."""
    q, k, v = attn.project(x, hw)
    scores = attn.transform_conv(q @ k.transpose(-2, -1) * q.shape[-1]**-0.5)  # (B, h, N, M)
    out = F.instance_norm(scores.softmax(-1)) @ v
    return attn.proj(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.filterwarnings('ignore:Full backward hook')  # the unit vectors need no gradient
def test_transform_conv_is_called_on_unit_vectors():
    """So hooks see (1, h, h + 1, 1), and they and more layers do to the scores what they do."""
    module, shapes, found = EMSA(16, 4, 2), [], []
    conv = nn.Sequential(module.transform_conv, nn.Conv2d(4, 4, 1))
    module.transform_conv = conv
    randomize(module).double()
    conv.register_forward_pre_hook(lambda module, args: (2 * args[0], ))
    conv.register_forward_hook(lambda module, args, out: 3 * out)
    conv.register_full_backward_hook(lambda module, into, out: shapes.append(out[0].shape))
    for attend in (EMSA.forward, plain_attention):
        x = image(2, 35, 16).requires_grad_()
        out = attend(module, x, (5, 7))
        golden.loss([out]).backward()
        found.append([out, x.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    for got, want in zip(*found):
        assert_close(got, want)
    assert shapes == [(1, 4, 5, 1), (2, 4, 35, 12)]

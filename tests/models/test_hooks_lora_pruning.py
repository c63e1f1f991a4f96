"""What people do to the modules of a backbone: hooks, LoRA, pruning, other layers, sharding.

It works because each module is called, once a forward pass and on the whole tensor.
"""
from collections import Counter

import pytest
import torch
import torch.distributed.fsdp
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from mmrest import EMSA, ResT

from .. import golden
from .models import ARCH, build, every_model, image, randomize

# At 132 pixels its hidden layer has more than 2**21 elements: 0.1.0 computed it in blocks.
WIDE = dict(
    embed_dims=(8, ), depths=(1, ), num_heads=(2, ), sr_ratios=(4, ), mlp_ratios=(256, ))


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


# Hooks


@every_model
@pytest.mark.parametrize('arch, size', [(ARCH, 96), (WIDE, 132)])
@pytest.mark.filterwarnings('ignore:Full backward hook')  # transform_conv's unit vectors
def test_hooks_on_every_module(arch, size, cls):
    """Each is called as often backward as forward, with a gradient, and nearly all once."""
    model, x = build(cls, arch, out_indices=None).train(), image(1, 3, size, size)
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
def test_a_hook_on_any_module_changes_the_features(cls):
    model, x = build(cls), image(1, 3, 64, 64)
    want = model(x)[-1]
    beside_the_trunk = [cls.stage_names(i)[2] for i in range(3)]
    for name, module in called(model).items():
        hook = module.register_forward_hook(
            lambda module, args, out: out * (0.5 + image(*out.shape).abs()))
        changed = (model(x)[-1] - want).abs().max()
        hook.remove()
        assert (changed > 1e-6) == (name not in beside_the_trunk), name


# Changed weights


class Square(nn.Module):

    def forward(self, weight):
        return weight * weight.abs()


CHANGES = dict(
    spectral_norm=parametrizations.spectral_norm,
    weight_norm=parametrizations.weight_norm,
    old_spectral_norm=nn.utils.spectral_norm,
    old_weight_norm=nn.utils.weight_norm,
    pruned=lambda module: prune.l1_unstructured(module, 'weight', 0.3),
    parametrized=lambda module: parametrize.register_parametrization(
        module, 'weight', Square()),
)


@every_model
@pytest.mark.parametrize('kind', CHANGES)
@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
def test_changed_weights_of_every_layer(kind, cls):
    """The features are those of the weights that the change makes; all of them train."""
    model, plain, x = build(cls), build(cls), image(1, 3, 64, 96)
    layers, same = (
        [module for module in each.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        for each in (model, plain))
    with torch.no_grad():
        for module in layers:
            CHANGES[kind](module)
            for p in module.parameters():
                p *= 1.3 if p.ndim > 1 else 1
        model.eval()(x)  # the old ones compute their weights in a call
        for module, other in zip(layers, same):
            assert (other.weight - module.weight).abs().max() > 1e-3
            other.weight.copy_(module.weight)
    for got, want in zip(model(x), plain(x)):
        assert_close(got, want, rtol=1e-9, atol=1e-9)
    for name, grad in gradients(model.train(), x).items():
        assert grad is not None, name


@every_model
def test_lora_of_mmpretrain(cls):
    """Features are those of the merged weights W + s U D; dU is s dW D^T and dD is s U^T dW."""
    mmpretrain = pytest.importorskip('mmpretrain.models')
    targets = [r'.*\.q', r'.*\.kv', r'.*\.proj', r'.*fc1', r'.*fc2']
    model = mmpretrain.LoRAModel(
        dict(type=cls.__name__, arch=ARCH), alpha=8, rank=2,
        targets=[dict(type=target) for target in targets]).double().eval()
    merged, x = build(cls), image(1, 3, 64, 96)
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if 'lora' in name:
                nn.init.normal_(p, std=0.1)
            else:
                p.copy_(merged.get_parameter(name.replace('original_layer.', '')))
    loras = {name: module for name, module in model.module.named_modules()
             if type(module).__name__ == 'LoRALinear'}
    assert len(loras) == 5 * sum(ARCH['depths'])
    before = merged(x)
    with torch.no_grad():
        for name, lora in loras.items():
            merged.get_submodule(name).weight += lora.scaling * (
                lora.lora_up.weight @ lora.lora_down.weight)
    for got, want, other in zip(model(x), merged(x), before):
        assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert (got - other).abs().max() > 0.01
    grads, merged_grads, want = gradients(model, x), gradients(merged, x), {}
    for name, lora in loras.items():
        grad = lora.scaling * merged_grads[f'{name}.weight']
        want[f'module.{name}.lora_up.weight'] = grad @ lora.lora_down.weight.T
        want[f'module.{name}.lora_down.weight'] = lora.lora_up.weight.T @ grad
    check_gradients({name: grad for name, grad in grads.items() if grad is not None}, want)


@every_model
def test_fsdp2_of_single_layers(cls):
    """It gathers the parameters of a layer when the layer is called."""
    model, x = build(cls), image(1, 3, 64, 96)
    want = gradients(model, x)
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1, ))
        for layer in called(model).values():
            if any(True for _ in layer.parameters(recurse=False)):
                torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        got = {name: grad.full_tensor() for name, grad in gradients(model, x).items()}
    finally:
        torch.distributed.destroy_process_group()
    check_gradients(got, want)


# Other modules in their place, against plain restatements


def plain_ffn(mlp, x):
    return mlp.fc2(mlp.act(mlp.fc1(x)))


def plain_attention(attn, x, hw):
    """Figure 3: the convolution is applied to the scores."""
    q, k, v = attn.project(x, hw)
    scores = attn.transform_conv(q @ k.transpose(-2, -1) * q.shape[-1]**-0.5)  # (B, h, N, M)
    out = F.instance_norm(scores.softmax(-1)) @ v
    return attn.proj(out.transpose(1, 2).reshape(x.shape))


def check_same(module, function, plain, x):
    """Outputs and all gradients of two training steps, and what the steps leave behind."""
    found, state = [], {name: value.clone() for name, value in module.state_dict().items()}
    for run in (function, plain):
        module.load_state_dict(state)
        found.append([])
        for seed in range(2):
            torch.manual_seed(seed)  # for dropout
            leaf = x.clone().requires_grad_()
            out = run(module, leaf)
            found[-1] += [out, *torch.autograd.grad(
                golden.loss([out]), [leaf, *module.parameters()])]
        found[-1] += [value.clone() for value in module.state_dict().values()]
    for got, want in zip(*found):
        assert_close(got, want)
    return found[0][0]


@pytest.mark.parametrize('name, replace', [
    ('act', lambda act: nn.PReLU()),
    ('act', lambda act: nn.Sequential(act, nn.Dropout(0.3))),
    ('fc1', lambda fc: nn.utils.spectral_norm(fc)),  # a call changes its buffer
    ('fc2', lambda fc: nn.Sequential(nn.Dropout(0.3), fc)),
], ids=['prelu', 'dropout_after', 'spectral_norm', 'dropout_before'])
def test_replaced_modules_of_the_ffn(name, replace):
    mlp = ResT(WIDE, out_indices=None).stage1[0].mlp
    setattr(mlp, name, replace(getattr(mlp, name)))
    x = image(1, 33 * 33, 8)
    check_same(randomize(mlp).double().train(), lambda mlp, x: mlp(x), plain_ffn, x)


@pytest.mark.filterwarnings('ignore:Full backward hook')  # the unit vectors need no gradient
@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
@pytest.mark.parametrize('change', [
    nn.utils.spectral_norm,
    nn.utils.weight_norm,
    lambda conv: nn.Sequential(conv, nn.Conv2d(4, 4, 1)),
], ids=['spectral_norm', 'weight_norm', 'two_layers'])
def test_transform_conv_is_called_on_unit_vectors(change):
    """So hooks see (1, h, h + 1, 1), and still do to the scores what they do."""
    torch.manual_seed(0)
    module, x, shapes = EMSA(16, 4, 2), image(2, 35, 16), []
    want = randomize(module).double()(x, (5, 7)).detach()
    module.transform_conv = change(module.transform_conv).double()

    def run(module, x):
        return module(x, (5, 7))

    def plain(module, x):
        return plain_attention(module, x, (5, 7))

    out = check_same(module, run, plain, x)
    conv = module.transform_conv
    conv.register_forward_pre_hook(lambda module, args: (2 * args[0], ))
    conv.register_forward_hook(lambda module, args, out: 3 * out)
    conv.register_full_backward_hook(lambda module, into, out: shapes.append(out[0].shape))
    hooked = check_same(module, run, plain, x)
    assert shapes == 2 * [(1, 4, 5, 1)] + 2 * [(2, 4, 35, 12)]
    assert (hooked - out).abs().max() > 0.01 and (hooked - want).abs().max() > 0.01

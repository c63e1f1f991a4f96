"""Each module in a block is called, once a forward pass and on the whole tensor.

So hooks see whole tensors, and what changes a module (LoRA, pruning, weight_norm, dropout,
another activation) changes the output and the gradients as it does in a plain restatement.
"""
import warnings

import pytest
import torch
import torch.distributed.fsdp
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from benchmarks.published import Attention
from mmrest import EMSA, ResT

# Of 33 x 33 tokens the hidden layer has more than 2**21 elements: 0.1.0 computed it in blocks.
HW = (33, 33)
ARCH = dict(
    embed_dims=(8, ), depths=(1, ), num_heads=(2, ), sr_ratios=(4, ), mlp_ratios=(256, ))


class LoRA(nn.Module):
    """The base layer and a low-rank one beside it, as PEFT's."""

    def __init__(self, base, dropout=0.):
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(dropout)
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)
        else:
            self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
            self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(self.dropout(x)))


# Each returns what takes the module's place.
CHANGES = dict(
    nothing=lambda module: module,
    dropout=lambda module: nn.Sequential(module, nn.Dropout(0.3)),
    prelu=lambda module: nn.PReLU(),
    lora=lambda module: LoRA(module),
    lora_dropout=lambda module: LoRA(module, 0.3),
    spectral_norm=parametrizations.spectral_norm,
    old_spectral_norm=nn.utils.spectral_norm,
    weight_norm=parametrizations.weight_norm,
    old_weight_norm=nn.utils.weight_norm,
    prune=lambda module: prune.l1_unstructured(module, 'weight', 0.5),
)


def change(parent, name, kind):
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*weight_norm', FutureWarning)
        setattr(parent, name, CHANGES[kind](getattr(parent, name)))


def draw(module):
    """Weights large enough for every module to change the output."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.double().train()


def block(name='fc1', kind='nothing'):
    torch.manual_seed(0)
    model = ResT(ARCH, out_indices=None)
    change(model.stage1[0].mlp, name, kind)
    return draw(model).stage1[0]


def attention(kind='nothing'):
    torch.manual_seed(0)
    module = EMSA(16, 4, 2)
    change(module, 'transform_conv', kind)
    return draw(module)


def draw_input(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def loss(out):
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def steps(module, function, x, hw):
    """Outputs and gradients of two training steps, and the state dict after them."""
    found = []
    for i in range(2):
        x = x.detach().requires_grad_()
        torch.manual_seed(i)  # for dropout
        out = function(module, x, hw)
        names, params = zip(*module.named_parameters())
        grads = torch.autograd.grad(loss(out), [x, *params], allow_unused=True)
        found.append(dict(zip(('out', 'x', *names), (out, *grads))))
        with torch.no_grad():
            for p, grad in zip(params, grads[1:]):
                p -= 1e-3 * grad
    return found + [module.state_dict()]


def check(got, want):
    for one, other in zip(got, want):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert value is not None, name
            assert_close(one[name], value, msg=lambda words, name=name: f'{name}: {words}')


def call(module, x, hw):
    return module(x, hw)


# The FFN


def plain_block(block, x, hw):
    """Equation (5), module by module."""
    x = x + block.attn(block.norm1(x), hw)
    return x + block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize('name, kind', [
    ('act', 'dropout'), ('act', 'prelu'), ('fc1', 'lora_dropout'), ('fc1', 'spectral_norm'),
    ('fc1', 'old_spectral_norm'), ('fc1', 'weight_norm'), ('fc1', 'prune'), ('fc2', 'lora'),
    ('fc2', 'spectral_norm'), ('fc2', 'old_weight_norm'),
])
def test_changes_of_the_ffn(name, kind):
    x = draw_input(1, HW[0] * HW[1], 8)
    check(*(steps(block(name, kind), function, x, HW) for function in (call, plain_block)))


def test_gradients_through_dropout_are_the_slopes():
    """They are the slopes of what the forward pass computed, with its random numbers."""
    module = block('act', 'dropout')
    x = draw_input(1, HW[0] * HW[1], 8)

    def run():
        torch.manual_seed(1)
        return loss(module(x, HW))

    params = [*module.norm2.parameters(), *module.mlp.parameters()]
    for p, grad in zip(params, torch.autograd.grad(run(), params)):
        direction = torch.randn_like(p)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p += step * direction
                values.append(run())
                p -= step * direction
        slope = (values[0] - values[1]) / 2e-5
        assert_close(slope, (grad * direction).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name, width', [
    ('norm1', 8), ('norm2', 8), ('mlp', 8), ('mlp.fc1', 2048), ('mlp.act', 2048),
    ('mlp.fc2', 8),
])
def test_hooks_in_a_block_see_whole_tensors_once(name, width):
    torch.manual_seed(0)
    model = ResT(ARCH, out_indices=None)
    outs, grads = [], []
    module = model.stage1[0].get_submodule(name)
    module.register_forward_hook(lambda module, args, out: outs.append(out))
    model(torch.randn(1, 3, 4 * HW[0], 4 * HW[1]))[0].square().sum().backward()
    module.register_full_backward_hook(lambda module, into, out: grads.append(out[0]))
    model.zero_grad()
    model(torch.randn(1, 3, 4 * HW[0], 4 * HW[1]))[0].square().sum().backward()
    assert len(outs) == 2 and len(grads) == 1
    for tensor in (*outs, *grads):
        assert tensor.shape == (1, HW[0] * HW[1], width)
    assert all(out.requires_grad for out in outs) and grads[0].any()


def test_a_loss_on_what_a_hook_saw_trains_the_layers_before():
    model, outs = ResT(ARCH, out_indices=None), []
    model.stage1[0].mlp.act.register_forward_hook(lambda module, args, out: outs.append(out))
    model(torch.randn(1, 3, 4 * HW[0], 4 * HW[1]))
    outs[0].square().mean().backward()
    assert model.stage1[0].mlp.fc1.weight.grad.any()


def test_a_hook_may_change_all_tokens_together():
    def centre(module, args, out):
        return out - out.mean(1, keepdim=True)

    x = draw_input(1, HW[0] * HW[1], 8)
    modules = [block(), block()]
    for module in modules:
        for part in (module.norm2, module.mlp.fc1, module.mlp.act):
            part.register_forward_hook(centre)
    check(steps(modules[0], call, x, HW), steps(modules[1], plain_block, x, HW))


# transform_conv


def plain_attention(attn, x, hw):
    """Figure 3: the convolution is applied to the scores."""
    q, k, v = attn.project(x, hw)
    scores = attn.transform_conv(q @ k.transpose(-2, -1) * q.shape[-1]**-0.5)  # (B, h, N, M)
    out = F.instance_norm(scores.softmax(-1)) @ v
    return attn.proj(out.transpose(1, 2).reshape(x.shape))


def test_the_plain_attention_is_the_published_one():
    module, x = attention(), draw_input(2, 35, 16)
    port = Attention(16, 4, 2).double()
    port.load_state_dict(module.state_dict())
    assert_close(plain_attention(module, x, (5, 7)), port(x, 5, 7))


@pytest.mark.parametrize('kind', [
    'lora', 'spectral_norm', 'old_spectral_norm', 'weight_norm', 'old_weight_norm', 'prune'])
def test_changes_of_transform_conv(kind):
    x = draw_input(2, 35, 16)
    got, want = (steps(attention(kind), function, x, (5, 7))
                 for function in (call, plain_attention))
    check(got, want)
    assert (got[0]['out'] - attention()(x, (5, 7))).abs().max() > 0.01


@pytest.mark.filterwarnings('ignore:Full backward hook')  # the unit vectors need no gradient
def test_hooks_on_transform_conv_are_called():
    x = draw_input(2, 35, 16)
    found, shapes = [], []
    for function in (call, plain_attention):
        module = attention()
        module.transform_conv.register_forward_pre_hook(lambda module, args: (2 * args[0], ))
        module.transform_conv.register_forward_hook(lambda module, args, out: 3 * out)
        module.transform_conv.register_full_backward_hook(
            lambda module, into, out: shapes.append(out[0].shape))
        found.append(steps(module, function, x, (5, 7)))
    check(*found)
    assert shapes == 2 * [(1, 4, 5, 1)] + 2 * [(2, 4, 35, 12)]


@pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, 'fully_shard'), reason='needs torch 2.6')
def test_fsdp_of_single_layers():
    """FSDP2 gathers the parameters of a layer when it is called."""
    module, x = attention(), draw_input(2, 35, 16)
    want = steps(module, call, x, (5, 7))[0]
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = attention()
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1, ))
        for layer in module.children():
            torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        out = module(x, (5, 7))
        loss(out).backward()
        grads = {name: p.grad.full_tensor() for name, p in module.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    assert_close(out, want['out'])
    assert_close(grads, {name: want[name] for name in grads})


# pa_conv


def test_a_backward_hook_on_pa_conv():
    image = draw_input(2, 3, 40, 56)
    grads, seen = [], []
    for hooked in (False, True):
        torch.manual_seed(0)
        model = draw(ResT(ARCH, out_indices=None))
        if hooked:
            model.stem.pos.pa_conv.register_full_backward_hook(
                lambda module, into, out: seen.append((into[0], out[0])))
        model(image)[0].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for got, want in zip(*grads):
        assert_close(got, want, rtol=0, atol=0)
    (into, out), = seen
    assert into.shape == out.shape == (2, 8, 10, 14)
    assert into.any() and out.any()

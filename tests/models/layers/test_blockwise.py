import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmrest.models.layers import blockwise, by_blocks


@pytest.fixture
def module():
    torch.manual_seed(0)
    layers = nn.LayerNorm(6), nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)
    return nn.Sequential(*layers).double()


def run(function, module, x):
    module.zero_grad()
    x = x.detach().requires_grad_()
    out = function(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out, x.grad, *(p.grad for p in module.parameters())]


def blocks(module, seen=None):
    """The module by blocks, whose lengths are noted."""
    seen = [] if seen is None else seen

    def hidden(tokens):
        seen.append(len(tokens))
        return module[:-1](tokens)

    return lambda x: by_blocks(hidden, [*module[:-1].parameters()], module[-1], x)


@pytest.mark.parametrize('bias', [True, False])
def test_blocks_give_what_the_whole_gives(bias, module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 10 * 24)
    module[-1] = nn.Linear(24, 7, bias=bias).double()
    x = torch.randn(3, 6, 11, dtype=torch.double).transpose(1, 2)  # 33 tokens, not contiguous
    seen = []
    got = run(blocks(module, seen), module, x)
    assert seen == [8, 8, 8, 9] * 2  # forward, and again in backward
    for a, b in zip(got, run(module, module, x)):
        assert_close(a, b)


@pytest.mark.parametrize('frozen', [[0], [1], [3], [0, 1, 3]])
def test_frozen_parameters_get_no_gradient(frozen, module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 24)
    for i in frozen:
        module[i].requires_grad_(False)
    x = torch.randn(2, 5, 6, dtype=torch.double)
    got = run(blocks(module), module, x)
    assert all((p.grad is None) == (i in frozen) for i in (0, 1, 3)
               for p in module[i].parameters())
    for a, b in zip(got, run(module, module, x)):
        assert a is b is None or assert_close(a, b) is None


def test_nothing_of_the_hidden_layer_is_kept(module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 10 * 24)
    x = torch.randn(1, 40, 6, dtype=torch.double, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.shape) or t, lambda t: t):
        blocks(module)(x)
    last, params = module[-1], module[:-1].parameters()
    assert kept == [x.shape, last.weight.shape, last.bias.shape, *(p.shape for p in params)]


@pytest.mark.parametrize('enabled', [True, False])
def test_autocast_holds_in_backward_too(module, enabled, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 24 * 4)
    module.float()
    x = torch.randn(2, 5, 6)

    def inside(function):
        def run_inside(x):
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
                return function(x)
        return run_inside

    got = run(inside(blocks(module)), module, x)
    want = run(inside(module), module, x)
    assert got[0].dtype == want[0].dtype == (torch.bfloat16 if enabled else torch.float32)
    bounds = dict(rtol=0.02, atol=0.02) if enabled else dict()  # sums of rounded parts
    for a, b in zip(got, want):
        assert a.dtype == b.dtype
        assert_close(a, b, **bounds)


def test_small_inputs_and_graphs_go_whole(module, monkeypatch):
    x, seen = torch.randn(2, 5, 6, dtype=torch.double), []
    blocks(module, seen)(x)
    assert seen == [2]  # images: as it came
    monkeypatch.setattr(blockwise, 'BLOCK', 24)
    module.requires_grad_(False)  # a trace takes them for constants
    traced = torch.jit.trace(blocks(module), x)
    longer = torch.randn(2, 9, 6, dtype=torch.double)
    assert_close(traced(longer), module(longer))


class Doubled(nn.Linear):

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('change', [
    lambda last: setattr(last, '__class__', Doubled),
    lambda last: last.register_forward_hook(lambda module, args, out: 2 * out),
    lambda last: last.register_forward_pre_hook(lambda module, args: (2 * args[0], )),
    lambda last: last.register_full_backward_hook(lambda module, into, out: (2 * into[0], )),
    lambda last: nn.utils.parametrizations.weight_norm(last),
])
def test_a_last_layer_of_its_own_kind_goes_whole(change, module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 24)
    change(module[-1])
    x, seen = torch.randn(2, 5, 6, dtype=torch.double), []
    got = run(blocks(module, seen), module, x)
    assert seen == [2]
    for a, b in zip(got, run(module, module, x)):
        assert_close(a, b)

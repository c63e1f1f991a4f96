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


def spy(module, seen):
    def function(tokens):
        seen.append(len(tokens))
        return module(tokens)
    return function


def test_blocks_give_what_the_whole_gives(module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 10 * 24)
    x = torch.randn(3, 6, 11, dtype=torch.double).transpose(1, 2)  # 33 tokens, not contiguous
    seen, params = [], list(module.parameters())
    got = run(lambda x: by_blocks(spy(module, seen), x, 24, params), module, x)
    assert seen == [10, 10, 10, 3] * 2  # forward, and again in backward
    for a, b in zip(got, run(module, module, x)):
        assert_close(a, b)


def test_frozen_parameters_get_no_gradient(module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 24)
    module[1].requires_grad_(False)
    x = torch.randn(2, 5, 6, dtype=torch.double)
    params = list(module.parameters())
    got = run(lambda x: by_blocks(module, x, 24, params), module, x)
    assert module[1].weight.grad is None
    for a, b in zip(got, run(module, module, x)):
        assert a is b is None or assert_close(a, b) is None


def test_nothing_of_the_hidden_layer_is_kept(module, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 10 * 24)
    x = torch.randn(1, 40, 6, dtype=torch.double, requires_grad=True)
    params = list(module.parameters())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.shape) or t, lambda t: t):
        by_blocks(module, x, 24, params)
    assert kept == [x.shape, *(p.shape for p in params)]


@pytest.mark.parametrize('enabled', [True, False])
def test_autocast_holds_in_backward_too(module, enabled, monkeypatch):
    monkeypatch.setattr(blockwise, 'BLOCK', 24 * 4)
    module.float()
    x = torch.randn(2, 5, 6)
    params = list(module.parameters())

    def inside(function):
        def run_inside(x):
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
                return function(x)
        return run_inside

    got = run(inside(lambda x: by_blocks(module, x, 24, params)), module, x)
    want = run(inside(module), module, x)
    assert got[0].dtype == want[0].dtype == (torch.bfloat16 if enabled else torch.float32)
    bounds = dict(rtol=0.02, atol=0.02) if enabled else dict()  # sums of rounded parts
    for a, b in zip(got, want):
        assert a.dtype == b.dtype
        assert_close(a, b, **bounds)


def test_small_inputs_and_graphs_go_whole(module, monkeypatch):
    x, params = torch.randn(2, 5, 6, dtype=torch.double), list(module.parameters())
    seen = []
    by_blocks(spy(module, seen), x, 24, params)
    assert seen == [2]  # images: as it came
    monkeypatch.setattr(blockwise, 'BLOCK', 24)
    module.requires_grad_(False)  # a trace takes them for constants
    traced = torch.jit.trace(lambda x: by_blocks(module, x, 24, params), x)
    longer = torch.randn(2, 9, 6, dtype=torch.double)
    assert_close(traced(longer), module(longer))

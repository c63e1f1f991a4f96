"""What torch.jit.trace, torch.fx, torch.func and counters of FLOPs make of a backbone.

tests/ops/test_compile_export.py has torch.compile and torch.export.
"""
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import fx, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmrest import EMSA

from .. import golden
from .models import build, every_model, image

SIZES = [(1, 3, 64, 96), (2, 3, 97, 131), (1, 3, 32, 192), (3, 3, 33, 1)]


def check_other_sizes(function, model):
    for shape in SIZES:
        x = image(*shape, seed=1)
        for got, want in zip(function(x), model(x)):
            assert_close(got, want, rtol=1e-9, atol=1e-9)


# torch.jit.trace


def trace(module, *inputs, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('error', torch.jit.TracerWarning)
        return torch.jit.trace(module, inputs, **kwargs)


@every_model
def test_a_trace_takes_other_sizes_and_is_saved_and_loaded(cls):
    model, file = build(cls), io.BytesIO()
    torch.jit.save(trace(model, image(1, 3, 64, 96)), file)
    file.seek(0)
    check_other_sizes(torch.jit.load(file), model)


def rewritten(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, scale=None):
    """As mmdeploy's, which divides by what PyTorch multiplies by."""
    scale = query.shape[-1]**0.5 if scale is None else scale
    return (query / scale @ key.transpose(-2, -1)).softmax(-1) @ value


@every_model
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_graphs_have_plain_attention(cls, device, monkeypatch):
    """Eagerly, the stage of one head is PyTorch's attention, and so are all of ResTv2."""
    model, x = build(cls), image(1, 3, 64, 96)
    want = model(x)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', rewritten)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', device == 'cuda')
    for got, other in zip(trace(model, x, check_trace=False)(x), want):
        assert_close(got, other)


# torch.fx


@every_model
@pytest.mark.parametrize('training', [False, True])
def test_fx_traces_it_as_it_is(cls, training):
    model = build(cls, drop_path_rate=0.5).train(training)
    graph = fx.symbolic_trace(model)
    nodes = [node for node in graph.graph.nodes if node.name.startswith('emsa_attention')]
    assert len(nodes) == 5
    if training:
        torch.manual_seed(0)
        got = graph(image(2, 3, 64, 96))
        torch.manual_seed(0)
        for one, other in zip(got, model(image(2, 3, 64, 96))):
            assert_close(one, other)
    else:
        check_other_sizes(graph, model)


@every_model
def test_efficient_conv_bn_eval_of_mmengine(cls):
    """It traces while the model trains, and drop path must stop in validation."""
    model, x = build(cls, drop_path_rate=0.5), image(2, 3, 64, 96)
    want = model(x)
    parent = nn.ModuleDict(dict(backbone=model)).train()
    turn_on_efficient_conv_bn_eval(parent, 'backbone')
    for got, other in zip(model.eval()(x), want):
        assert_close(got, other)


# torch.func


def loss_of(model):
    buffers = dict(model.named_buffers())
    return lambda params, x: golden.loss(functional_call(model, (params, buffers), (x, )))


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


@every_model
def test_gradients_per_sample(cls):
    model, x = build(cls), image(3, 3, 40, 56)
    loss = loss_of(model)

    def one(params, x):
        return loss(params, x[None])

    got = vmap(grad(one), in_dims=(None, 0))(parameters(model), x)
    for i in range(3):
        model.zero_grad()
        golden.loss(model(x[i:i + 1])).backward()
        scale = max(p.grad.abs().max().item() for p in model.parameters())
        assert_close({name: grad[i] for name, grad in got.items()},
                     {name: p.grad for name, p in model.named_parameters()},
                     rtol=1e-7, atol=1e-12 * scale)


@every_model
def test_forward_derivatives(cls):
    model = build(cls)
    x, direction = image(1, 3, 40, 56).requires_grad_(), image(1, 3, 40, 56, seed=1)
    _, got = jvp(lambda x: golden.loss(model(x)), (x, ), (direction, ))
    gradient, = torch.autograd.grad(golden.loss(model(x)), x)
    assert_close(got, (gradient * direction).sum())


def test_other_backends_say_what_torch_func_needs():
    module, x = EMSA(16, 2, backend='chunked'), torch.randn(1, 12, 16)
    with pytest.raises(RuntimeError, match="torch.func needs backend='reference' or 'auto'"):
        grad(lambda x: module(x, (3, 4)).sum())(x)


# FLOPs


@every_model
def test_counters_of_flops_agree(cls):
    """mmengine's and fvcore's trace the model, torch's sees operators. mmengine's and
    fvcore's count norms, too."""
    model, x = build(cls), image(1, 3, 128, 160)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    counted = FlopAnalyzer(model, (x, )).unsupported_ops_warnings(False).by_operator()
    norms = counted['layer_norm'] + counted['batch_norm']
    assert counter.get_total_flops() == 2 * (sum(counted.values()) - norms)

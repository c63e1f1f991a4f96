"""What torch.compile and torch.export make of EMSA and of the backbones."""
import itertools

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.testing import assert_close

from mmrest import ResT, ResTV2
from mmrest.ops import emsa_attention
from mmrest.ops.emsa import attention

from .. import golden
from ..models.models import TINY, build, every_model, image
from .test_emsa import DEVICE, draw, published, results

# torch.compile


@pytest.mark.parametrize('cls, steps', [(ResT, (14, 10)), (ResTV2, (32, 16))])
def test_backbones_compile_whole_and_once_for_ten_sizes(cls, steps):
    """The second size may compile again, for dynamic sizes. The eight after it may not.

    Of ResTv2 with odd sizes, up-sampled values are cropped, which is another graph.
    """
    torch._dynamo.reset()
    model = build(cls, dict(TINY, depths=(1, 1)), out_indices=None)
    graphs, counts = [], []
    compiled = torch.compile(
        model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for i in range(10):
        x = image(2, 3, 64 + steps[0] * i, 96 + steps[1] * i)
        assert_close(compiled(x), model(x))
        counts.append(len(graphs))
    assert counts[1] == counts[-1] <= 2


@pytest.mark.parametrize('compiler', [
    'aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
@pytest.mark.parametrize('backend, dtype', [('auto', torch.double), ('triton', torch.float)])
def test_compiled_emsa_gives_the_same(backend, dtype, compiler):
    torch._dynamo.reset()
    inputs = [x.detach().to(DEVICE) for x in draw(1, 2, 21, 6, 8, dtype)]

    def function(*inputs):
        return emsa_attention(*inputs, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    assert_close(results(compiled, inputs), results(function, inputs))


@every_model
@pytest.mark.slow
def test_compiled_backbones_train_with_dynamic_sizes(cls):
    torch._dynamo.reset()
    model = build(cls, dict(TINY, depths=(1, 1)), out_indices=None).train()
    compiled = torch.compile(model, backend='aot_eager', dynamic=True)
    for shape in ((2, 3, 64, 96), (2, 3, 97, 131)):
        grads = []
        for function in (compiled, model):
            model.zero_grad()
            golden.loss(function(image(*shape))).backward()
            grads.append([p.grad for p in model.parameters()])
        scale = max(grad.abs().max().item() for grad in grads[1])
        assert_close(*grads, rtol=1e-7, atol=1e-12 * scale)


SHORT = [(torch.float32, True, True), (torch.bfloat16, False, False)]


@pytest.mark.parametrize('dtype, mixed, normalize', [
    pytest.param(*case, marks=[] if case in SHORT else pytest.mark.slow)
    for case in itertools.product((torch.float32, torch.bfloat16), (True, False), (True, False))
])
@pytest.mark.parametrize('backend', ['chunked', 'triton'])
def test_custom_operators_pass_opcheck(backend, dtype, mixed, normalize):
    q, k, v, mix, _ = (x.detach().to(DEVICE) for x in draw(1, 2, 7, 3, 4, dtype))
    forward, backward = (getattr(attention.BACKENDS[backend], f'{backend}_{way}')
                         for way in ('forward', 'backward'))
    args = (q, k, v, mix if mixed else None, 0.5, normalize, 1e-5)
    torch.library.opcheck(forward, args)
    torch.library.opcheck(backward, (q, *forward(*args), *args[:-1]))


@pytest.mark.parametrize('backend, blocks', [('auto', 1), ('reference', 0)])
def test_compiled_rest_has_the_operator_and_no_map(backend, blocks):
    """In stage 2: the attention of stage 1 is PyTorch's. The reference shows that the test
    sees a map."""
    arch = dict(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2), sr_ratios=(8, 4))
    model, graphs = ResT(arch, out_indices=None, backend=backend), []
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(
        fw_compiler=lambda graph, inputs: graphs.append(graph) or make_boxed_func(graph)))
    sum(out.sum() for out in compiled(torch.randn(1, 3, 64, 96))).backward()
    maps = {(384, 6), (96, 6)}  # N x M of each stage
    for graph, operator in zip(graphs, ('emsa_chunked', 'emsa_chunked_backward'), strict=True):
        calls = [node for node in graph.graph.nodes
                 if str(node.target) == f'mmrest.{operator}.default']
        assert len(calls) == blocks
        seen = {tuple(node.meta['val'].shape[-2:]) for node in graph.graph.nodes
                if isinstance(node.meta.get('val'), torch.Tensor)}
        assert bool(maps & seen) == (backend == 'reference'), maps & seen


def test_the_warning_is_no_graph_break():
    """Dynamo knows a tensor's device, so this calls what emsa_attention calls on CUDA."""
    torch._dynamo.reset()
    attention._warn_once.cache_clear()

    def function(x):
        attention._warn(f'no kernels for {x.dtype}')
        return 2 * x

    compiled = torch.compile(function, fullgraph=True, backend='eager')
    with pytest.warns(UserWarning, match='no kernels for torch.float32') as warned:
        for size in (3, 4, 5):
            assert_close(compiled(torch.ones(size)), torch.full((size, ), 2.))
    assert len(warned) == 1


# torch.export


class Attention(nn.Module):

    def forward(self, *inputs):
        return emsa_attention(*inputs)


not_on_floor = pytest.mark.skipif(
    torch.__version__ < '2.8', reason='torch 2.7 hides from Dynamo that it exports')
strictly = pytest.mark.parametrize('strict', [False, pytest.param(True, marks=not_on_floor)])


def check_needs_no_mmrest(exported):
    """In the graph and the graphs inside it."""
    names = {str(node.target) for module in exported.graph_module.modules()
             if hasattr(module, 'graph') for node in module.graph.nodes
             if node.op == 'call_function'}
    assert names and not [name for name in names if 'mmrest' in name]


@strictly
def test_exported_emsa_runs_without_mmrest(strict):
    """strict=True runs dynamo, as torch.compile does, which must not share its choice."""
    model, inputs = Attention(), [x.detach() for x in draw(2, 2, 21, 6, 4)]
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(*inputs)
    B, N, M = (torch.export.Dim(name, min=1, max=9999) for name in 'BNM')
    exported = torch.export.export(model, tuple(inputs), strict=strict, dynamic_shapes=(
        (dict(enumerate((B, None, N))), dict(enumerate((B, None, M))),
         dict(enumerate((B, None, M))), None, None), ))
    check_needs_no_mmrest(exported)
    for shape in [(1, 2, 1, 3, 4), (3, 2, 77, 19, 4)]:
        inputs = [x.detach() for x in draw(*shape)]
        assert_close(exported.module()(*inputs), published(*inputs))


@every_model
@strictly
def test_exported_backbones_run_without_mmrest(strict, cls):
    model, x = build(cls, TINY, out_indices=None), image(1, 3, 32, 48)
    exported = torch.export.export(model, (x, ), strict=strict)
    check_needs_no_mmrest(exported)
    assert_close(exported.module()(x), model(x))

"""What torch.compile, torch.export and torch.onnx make of EMSA."""
import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmrest import ResT
from mmrest.ops import emsa_attention
from mmrest.ops.emsa import attention, chunked

from .test_emsa import DEVICE, TORCH, draw, fused, needs_triton, published, results

needs_custom_op = pytest.mark.skipif(
    TORCH < (2, 4), reason='needs torch.library.custom_op and opcheck of torch 2.4')
needs_export = pytest.mark.skipif(
    TORCH < (2, 7), reason='needs torch.compiler.is_exporting of torch 2.7')
ARCH = dict(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2), sr_ratios=(8, 4))


@needs_custom_op
@pytest.mark.parametrize('backend', ['auto', 'chunked'])
def test_compiles_whole_and_once_for_ten_sizes(backend):
    """The second size may compile again, for dynamic sizes. The eight after it may not."""
    torch._dynamo.reset()

    def function(*inputs):
        return emsa_attention(*inputs, backend=backend)

    graphs = []
    compiled = torch.compile(
        function, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for i in range(10):
        inputs = draw(2, 4, 36 + 5 * i, 9 + 2 * i, 8)
        for got, want in zip(results(compiled, inputs), results(published, inputs)):
            assert_close(got, want)
    assert len(graphs) <= 2


@needs_custom_op
def test_inductor_gives_the_same():
    torch._dynamo.reset()
    inputs = draw(1, 2, 21, 6, 4)
    compiled = torch.compile(emsa_attention, fullgraph=True)
    for got, want in zip(results(compiled, inputs), results(published, inputs)):
        assert_close(got, want)


@needs_custom_op
@needs_triton
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_custom_operators_pass_opcheck(dtype):
    q, k, v, mix, _ = (x.detach().to(DEVICE) for x in draw(1, 2, 7, 3, 4, dtype))
    for m, normalize, (forward, backward) in itertools.product(
        (mix, None), (True, False),
        ((chunked.chunked_forward, chunked.chunked_backward),
         (fused.triton_forward, fused.triton_backward))):
        args = (q, k, v, m, 0.5, normalize, 1e-5)
        torch.library.opcheck(forward, args)
        torch.library.opcheck(backward, (q, *forward(*args), q, k, v, m, 0.5, normalize))


def operators(graph_module):
    """Names of the operators in a graph and in the graphs inside it."""
    return {str(node.target) for module in graph_module.modules() if hasattr(module, 'graph')
            for node in module.graph.nodes if node.op == 'call_function'}


def compile_and_record(model, image):
    """Forward and backward graph as torch.compile gives them to its backend."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    graphs = []

    def record(graph_module, inputs):
        graphs.append(graph_module)
        return make_boxed_func(graph_module.forward)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=record))
    sum(out.sum() for out in compiled(image)).backward()
    return graphs


@needs_custom_op
@pytest.mark.parametrize('arch, backend, blocks', [('lite', 'auto', 6), (ARCH, 'reference', 0)])
def test_compiled_rest_has_the_operator_and_no_map(arch, backend, blocks):
    """All but the two blocks of stage 1, whose attention is PyTorch's. The reference shows
    that the test sees a map."""
    model = ResT(arch, out_indices=None, backend=backend)
    forward, backward = compile_and_record(model, torch.randn(1, 3, 64, 96))
    maps = {(384, 6), (96, 6), (24, 6), (6, 6)}  # N x M of each stage
    for graph, operator in (
            (forward, 'emsa_chunked'), (backward, 'emsa_chunked_backward')):
        calls = [node for node in graph.graph.nodes
                 if str(node.target) == f'mmrest.{operator}.default']
        assert len(calls) == blocks
        seen = {tuple(node.meta['val'].shape[-2:]) for node in graph.graph.nodes
                if isinstance(node.meta.get('val'), torch.Tensor)}
        assert bool(maps & seen) == (backend == 'reference'), maps & seen


class Attention(nn.Module):

    def forward(self, *inputs):
        return emsa_attention(*inputs)


@needs_export
@pytest.mark.parametrize('strict', [False, True])
def test_exported_graphs_run_without_mmrest(strict):
    """strict=True runs dynamo, as torch.compile does, which must not share its choice."""
    model, inputs = Attention(), [x.detach() for x in draw(2, 2, 21, 6, 4)]
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(*inputs)
    B, N, M = (torch.export.Dim(name, min=1, max=9999) for name in 'BNM')
    exported = torch.export.export(model, tuple(inputs), strict=strict, dynamic_shapes=(
        (dict(enumerate((B, None, N))), dict(enumerate((B, None, M))),
         dict(enumerate((B, None, M))), None, None), ))
    assert not [name for name in operators(exported.graph_module) if 'mmrest' in name]
    for shape in [(1, 2, 1, 3, 4), (3, 2, 77, 19, 4)]:
        inputs = [x.detach() for x in draw(*shape)]
        assert_close(exported.module()(*inputs), published(*inputs))


@needs_export
@pytest.mark.parametrize('strict', [False, True])
def test_an_exported_rest_runs_without_mmrest(strict):
    model, image = ResT(ARCH, out_indices=(1, )).eval(), torch.randn(1, 3, 32, 48)
    exported = torch.export.export(model, (image, ), strict=strict)
    assert not [name for name in operators(exported.graph_module) if 'mmrest' in name]
    assert_close(exported.module()(image)[0], model(image)[0])


@needs_export
def test_onnx_export_runs_without_mmrest():
    pytest.importorskip('onnxscript')
    inputs = [x.detach() for x in draw(2, 2, 21, 6, 4, torch.float)]
    program = torch.onnx.export(Attention().eval(), tuple(inputs), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {''}


def test_traced_attention_takes_other_sizes():
    traced = torch.jit.trace(Attention(), tuple(x.detach() for x in draw(2, 2, 21, 6, 4)))
    inputs = [x.detach() for x in draw(1, 2, 5, 2, 4)]
    assert_close(traced(*inputs), published(*inputs))


@needs_custom_op
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

"""The attention that exported files have, run by ONNX Runtime without an export."""
import pytest
import torch
from torch.testing import assert_close

from mmrest.deploy import emsa_onnx
from mmrest.ops import emsa_attention

onnx = pytest.importorskip('onnx')
helper = pytest.importorskip('onnx.helper')
onnxruntime = pytest.importorskip('onnxruntime')
OPSET = 18


def make(mix, normalize, eps=1e-5):
    """A graph of the attention alone."""
    names = ['q', 'k', 'v'] + ['mix'] * mix
    node = helper.make_node(emsa_onnx.function_name(mix, normalize), names, ['out'],
                            domain=emsa_onnx.DOMAIN, eps=eps)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * (
        2 if name == 'mix' else 4)) for name in names]
    out = helper.make_tensor_value_info('out', onnx.TensorProto.FLOAT, [None] * 4)
    model = helper.make_model(
        helper.make_graph([node], 'g', inputs, [out]), ir_version=10,
        opset_imports=[helper.make_opsetid(*domain) for domain in (
            ('', OPSET), (emsa_onnx.DOMAIN, 1))])
    return emsa_onnx.fill(model)


# M a power of two and not; blocks of one query, of some, that fit N and not, and one block.
@pytest.mark.parametrize('block', [1, 700, 2**20])
@pytest.mark.parametrize(
    'B, h, N, M, d', [(2, 3, 35, 12, 5), (1, 2, 16, 8, 4), (3, 1, 1, 1, 2)])
@pytest.mark.parametrize('mix', [False, True])
@pytest.mark.parametrize('normalize', [False, True])
def test_equal_to_the_equations(B, h, N, M, d, mix, normalize, block, monkeypatch):
    monkeypatch.setattr(emsa_onnx, 'BLOCK', block)
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, h, n, d) for n in (N, M, M))
    weight = torch.randn(h, h)
    inputs = dict(q=q, k=d**-0.5 * k, v=v, **(dict(mix=weight) if mix else {}))
    session = onnxruntime.InferenceSession(make(mix, normalize).SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    found, = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    wanted = emsa_attention(
        q.double(), k.double(), v.double(), weight.double() if mix else None,
        normalize=normalize, backend='reference')
    assert_close(torch.from_numpy(found).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mix', [False, True])
@pytest.mark.parametrize('normalize', [False, True])
def test_standard_operators_and_a_body_without_names_of_sizes(mix, normalize):
    model = make(mix, normalize)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    assert [item.domain for item in model.opset_import] == ['']
    scan, = (node for node in model.graph.node if node.op_type == 'Scan')
    body, = (a.g for a in scan.attribute if a.name == 'body')
    for value in (*body.input, *body.output, *body.value_info):
        assert not any(size.dim_param for size in value.type.tensor_type.shape.dim)
    inside = {name for node in body.node for name in node.output} | {x.name for x in body.input}
    assert {name for node in body.node for name in node.input} <= inside
    constants = [(node.name, a.name) for graph in (model.graph, body) for node in graph.node
                 if node.op_type == 'Constant' for a in node.attribute]
    assert len(constants) > 4 and {name for _, name in constants} == {'value'}


def test_constants_become_tensors_of_their_kind():
    graph = helper.make_graph([
        helper.make_node('Constant', [], [name], **{name: value})
        for name, value in (('value_float', 0.5), ('value_floats', [0.5]), ('value_int', 7),
                            ('value_ints', [7, 8]))], 'g', [], [])
    emsa_onnx.make_tensors(graph)
    found = [onnx.numpy_helper.to_array(node.attribute[0].t) for node in graph.node]
    assert [(x.dtype.name, x.tolist()) for x in found] == [
        ('float32', 0.5), ('float32', [0.5]), ('int64', 7), ('int64', [7, 8])]

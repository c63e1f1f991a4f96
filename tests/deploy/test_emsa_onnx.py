"""The attention that exported files have, run by ONNX Runtime without an export."""
import pytest
import torch
from torch.testing import assert_close

from mmrest.deploy import emsa_onnx
from mmrest.ops import emsa_attention

onnx = pytest.importorskip('onnx')
parser = pytest.importorskip('onnx.parser')
onnxruntime = pytest.importorskip('onnxruntime')


def make(mix, normalize):
    """A graph of the attention alone."""
    name = emsa_onnx.function_name(mix, normalize)
    names, size = ['q', 'k', 'v'] + ['mix'] * mix, dict(mix='?, ?')
    inputs = ', '.join(f'float[{size.get(name, "?, ?, ?, ?")}] {name}' for name in names)
    return emsa_onnx.fill(parser.parse_model(f'''
        <ir_version: 10, opset_import: ["": 18, "{emsa_onnx.DOMAIN}": 1]>
        g ({inputs}) => (float[?, ?, ?, ?] out) {{
            out = {emsa_onnx.DOMAIN}.{name} <eps = 1e-5> ({', '.join(names)})
        }}'''))


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
def test_the_body_of_the_scan_has_no_names_of_sizes_or_of_values_outside(mix, normalize):
    model = make(mix, normalize)
    scan, = (node for node in model.graph.node if node.op_type == 'Scan')
    body, = (a.g for a in scan.attribute if a.name == 'body')
    for value in (*body.input, *body.output, *body.value_info):
        assert not any(size.dim_param for size in value.type.tensor_type.shape.dim)
    inside = {name for node in body.node for name in node.output} | {x.name for x in body.input}
    assert {name for node in body.node for name in node.input} <= inside
    assert {a.name for graph in (model.graph, body) for node in graph.node
            if node.op_type == 'Constant' for a in node.attribute} == {'value'}

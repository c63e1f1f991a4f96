"""tools/deployment/export_onnx.py, compared with ONNX Runtime, and graphs of torch.export."""
import importlib
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from mmrest import ResT

from .conftest import ROOT

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch.export, 'Dim', None), 'DYNAMIC'),
    reason='torch before 2.6 cannot export dynamic sizes')
ARCH = dict(embed_dims=(16, 32), depths=(1, 2), num_heads=(1, 2), sr_ratios=(4, 2))
CLASSIFIER = str(ROOT / 'configs/classification/rest_lite_digits.py')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    return importlib.import_module('export_onnx')


def draw(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope='module')
def graph(tmp_path_factory):
    """The backbone as ONNX, written by the script's own function."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    tool = importlib.import_module('export_onnx')
    rest = draw(ResT(ARCH, out_indices=(0, 1)))
    path = tmp_path_factory.mktemp('onnx') / 'rest.onnx'
    errors = tool.export(tool.Backbone(rest), ['a', 'b'], dict(channel_order='RGB'), path)
    monkeypatch.undo()
    return rest, path, errors


@pytest.mark.parametrize('shape', [(1, 3, 64, 64), (4, 3, 97, 131), (2, 3, 33, 300)])
def test_onnx_runtime_agrees_at_other_sizes(graph, shape):
    import onnxruntime
    rest, path, errors = graph
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == ['a', 'b']
    image = torch.randn(shape)
    with torch.no_grad():
        wanted = rest(image)
    for got, want in zip(session.run(None, dict(image=image.numpy())), wanted):
        assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-4)
    assert 0 < errors[0] <= 1e-4 and 0 < errors[1] <= 1e-4


def test_the_graph_has_no_norm_of_training_mode(graph):
    import onnx
    model = onnx.load(str(graph[1]))
    onnx.checker.check_model(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds['Softmax'] == 3 and kinds['LayerNormalization']
    assert not {'InstanceNormalization', 'BatchNormalization', 'Loop', 'If'} & set(kinds)
    assert not any('training_mode' in [a.name for a in node.attribute]
                   for node in model.graph.node)
    assert {p.key: p.value for p in model.metadata_props}['channel_order'] == 'RGB'
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(size.dim_param) for size in sizes] == [True, False, True, True]


def test_torch_export_has_no_norm_of_training_mode():
    dynamic = torch.export.Dim.DYNAMIC
    rest = draw(ResT(ARCH, out_indices=(0, 1)))
    program = torch.export.export(
        rest, (torch.randn(2, 3, 64, 96), ),
        dynamic_shapes=dict(x={0: dynamic, 2: dynamic, 3: dynamic}))
    names = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert any('softmax' in name for name in names)
    assert not any('instance_norm' in name for name in names)
    for node in program.graph.nodes:
        if 'batch_norm' in str(node.target):
            assert node.args[5] is False  # training
    image = torch.randn(3, 3, 75, 130)
    for got, want in zip(program.module()(image), rest(image)):
        assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_graph_that_disagrees_is_not_written(tool, tmp_path, monkeypatch):
    other = torch.nn.Conv2d(3, 1, 1).eval()
    write = torch.onnx.export
    monkeypatch.setattr(torch.onnx, 'export', lambda _, *args, **kwargs: write(
        tool.Backbone(other).eval(), *args, **kwargs))
    path = tmp_path / 'other.onnx'
    path.write_bytes(b'before')
    with pytest.raises(ValueError, match='not written: ONNX Runtime is .* off'):
        tool.export(tool.Backbone(torch.nn.Conv2d(3, 1, 1)).eval(), ['out'], {}, path)
    assert path.read_bytes() == b'before' and list(tmp_path.iterdir()) == [path]


def test_a_whole_classifier_from_its_config(tool, tmp_path, capsys):
    import onnxruntime
    from mmengine.config import Config

    from mmrest.apis import build_model, read_config
    small = dict(arch=dict(ARCH), init_cfg=None, out_indices=(1, ))
    config = tmp_path / 'small.py'
    cfg = Config.fromfile(CLASSIFIER)
    cfg.model.backbone.update(small)
    cfg.model.head.in_channels = 32
    cfg.dump(config)
    model = draw(build_model(read_config(str(config))))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    tool.main([str(config), str(tmp_path / 'weights.pth'), str(tmp_path / 'out/c.onnx')])
    assert 'classifier, logits' in capsys.readouterr().out
    session = onnxruntime.InferenceSession(
        str(tmp_path / 'out/c.onnx'), providers=['CPUExecutionProvider'])
    image = torch.randn(5, 3, 48, 80)
    with torch.no_grad():
        want = model(image, mode='tensor')
    got, = session.run(None, dict(image=image.numpy()))
    assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)
    meta = session.get_modelmeta().custom_metadata_map
    assert meta['channel_order'] == 'RGB' and meta['mean'].startswith('[123.675')


def test_parts_that_are_not_there_are_refused(tool, tmp_path):
    detector = str(ROOT / 'configs/mask_rcnn/rest_lite_fpn_digits.py')
    with pytest.raises(SystemExit, match="part='classifier'"):
        tool.main([detector, 'none.pth', str(tmp_path / 'x.onnx'), '--part', 'classifier'])
    with pytest.raises(SystemExit, match='none.pth.*no such file'):
        tool.main([CLASSIFIER, 'none.pth', str(tmp_path / 'x.onnx')])

"""Whole models as ONNX files: written by our own function, run by ONNX Runtime and OpenVINO."""
import importlib
import json
import sys

import pytest
import torch
from mmseg.structures import SegDataSample
from PIL import Image
from torch.testing import assert_close

from mmrest import ResT, ResTV2
from mmrest.apis import build_model, read_config
from mmrest.deploy import describe, export, verify
from mmrest.deploy.export import FAMILIES as CHECKS
from mmrest.errors import MissingPackageError, UserError
from mmrest.models.layers import EMSA

from .models import CASCADES, DENSE, FAMILIES, ROOT, build, config, sharpen

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnx.parser')
onnxruntime = pytest.importorskip('onnxruntime')
MUTATIONS = importlib.import_module('tests.deploy.mutations').MUTATIONS  # needs onnx
EXPORT = sys.modules['mmrest.deploy.export']  # the module, not the function of that name
MASK_RCNN = ('mask_rcnn', 'ResT')
# Exports take a minute: `make test` has the one with the most in it.
OTHERS = [(family, backbone) for family in FAMILIES for backbone in ('ResT', 'ResTV2')
          if (family, backbone) != MASK_RCNN
          and (backbone == 'ResTV2' or family not in (*DENSE, *CASCADES))]
MASKS = ('boxes', 'scores', 'labels', 'masks')
SIZES = ((2, 64, 96), (1, 200, 90), (3, 53, 77))  # beside those of verify.py


@pytest.fixture(scope='module', params=[MASK_RCNN, *(
    pytest.param(pair, marks=pytest.mark.slow) for pair in OTHERS)], ids='-'.join)
def exported(request, tmp_path_factory):
    """A small model: its family, itself, its file, and the errors that export returned."""
    family, backbone = request.param
    model = build(family, backbone)
    path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
    to_onnx = EXPORT.to_onnx

    def and_keep(*args):
        proto = to_onnx(*args)
        onnx.save(proto, str(path.with_name('probes.onnx')))
        return proto

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EXPORT, 'to_onnx', and_keep)
        return family, model, path, export(model, path, describe(config(family, backbone)))


def check(model, run):
    """Compare ``run(images)`` with mm at each size."""
    for shape in SIZES:
        images = verify.pictures(shape, first=9)
        outputs = run(images.numpy())
        assert all(len(output) == shape[0] for output in outputs)
        errors = CHECKS[type(model).__name__][1](model, images, outputs)
        assert errors.get('boxes', 1) > 0


def test_onnx_runtime_agrees_at_other_sizes(exported):
    _, model, path, errors = exported
    assert errors.get('boxes', 1) > 0
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    check(model, lambda image: session.run(None, dict(image=image)))


def test_openvino_agrees(exported):
    openvino = pytest.importorskip('openvino')
    _, model, path, _ = exported
    compiled = openvino.Core().compile_model(
        path, 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    check(model, lambda image: list(compiled(image).values()))


def test_the_interface(exported):
    family, model, path, _ = exported
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto, full_check=True)
    assert [item.domain for item in proto.opset_import] == ['']
    assert {node.domain for node in proto.graph.node} == {''}
    assert {a.name for node in proto.graph.node if node.op_type == 'Constant'
            for a in node.attribute} <= {'value'}  # as tools for float16 need it
    scans = sum(node.op_type == 'Scan' for node in proto.graph.node)
    assert scans == sum(isinstance(module, EMSA) for module in model.modules())
    image, = proto.graph.input
    kind = image.type.tensor_type
    assert image.name == 'image' and kind.elem_type == onnx.TensorProto.UINT8
    assert [bool(size.dim_param) for size in kind.shape.dim] == [True, False, True, True]
    kinds = {out.name: out.type.tensor_type.elem_type for out in proto.graph.output}
    assert not {'proposals', 'objectness'} & set(kinds)  # which were for the check alone
    assert tuple(kinds) == dict(
        classifier=('logits', ), semantic_fpn=('labels', ), upernet=('labels', ),
        mask_rcnn=MASKS, cascade_mask_rcnn=MASKS).get(family, MASKS[:3])
    assert kinds.get('labels', onnx.TensorProto.INT64) == onnx.TensorProto.INT64
    meta = {prop.key: json.loads(prop.value) for prop in proto.metadata_props if (
        prop.key != 'channel_order')}
    assert meta['mean'] == [123.675, 116.28, 103.53] and meta['precision'] == 'float32'
    if family in ('mask_rcnn', 'faster_rcnn', 'retinanet'):
        assert meta['classes'] == list('0123456789')
        assert meta['test_size']['scale'] == [128, 128]
    # Nobody learns where it was exported.
    content = path.read_bytes()
    assert b'mmrest' not in content and b'site-packages' not in content
    # The model itself is not changed.
    assert {m.backend for m in model.modules() if isinstance(m, EMSA)} == {'auto'}


@pytest.mark.slow
def test_a_segmenter_slides_where_there_is_no_mm(tmp_path, monkeypatch):
    """The file, run by run_onnx.py on a picture of 2 x 3 crops: mm's classes."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    run_onnx = importlib.import_module('run_onnx')
    cfg = config('semantic_fpn')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 128), stride=(64, 86))
    torch.manual_seed(0)
    model = sharpen(build_model(cfg))
    path = tmp_path / 'slide.onnx'
    errors = export(model, path, describe(cfg))
    assert errors['pictures'] == 6 and errors['pixels wrong'] <= 1e-4
    onnx_model = run_onnx.load(str(path))
    assert onnx_model.slide == dict(crop_size=[96, 128], stride=[64, 86], align_corners=False)
    image = verify.pictures((1, 120, 170))
    sample, = verify.predict(model, image, SegDataSample)
    labels = onnx_model(Image.fromarray(image[0].permute(1, 2, 0).numpy()))['labels']
    assert (labels == sample.pred_sem_seg.data[0].numpy()).mean() > 0.9999
    assert labels.max() > 0


@pytest.mark.parametrize('mutate', MUTATIONS)
def test_faults_in_the_graph_are_refused(exported, mutate, monkeypatch):
    family, model, path, _ = exported
    if family != 'mask_rcnn':
        pytest.skip('the faults are those of Mask R-CNN')
    if type(model.backbone) is ResT:  # of ResTV2, a stride off by one shows at larger sizes
        monkeypatch.setattr(verify, 'SIZES', ((1, 97, 131), ))  # small, and so quick
    proto = onnx.load(str(path.with_name('probes.onnx')))
    _, network, check = EXPORT.resolve(model, False)
    mutate(proto)
    size = '1x97x131' if len(verify.SIZES) == 1 else r'\dx\d+x\d+'
    with pytest.raises(UserError, match=f"not written: at {size}, ONNX disagrees with mm's"):
        EXPORT.compare(proto.SerializeToString(), model, network, check, ())


@pytest.mark.parametrize('kind', [pytest.param(ResT, marks=pytest.mark.slow), ResTV2])
def test_a_backbone_alone(kind, tmp_path):
    torch.manual_seed(0)
    rest = kind(dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(4, 2)),
                out_indices=(0, 1)).eval()
    path = tmp_path / 'new/backbone.onnx'
    errors = export(sharpen(rest), path, backbone=True)
    assert 0 < errors['features'] <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == ['stage1', 'stage2']
    image = torch.randn(2, 3, 53, 77)
    found = session.run(None, dict(image=image.numpy()))
    with torch.no_grad():
        for got, want in zip(found, rest(image)):
            assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)


NOTHING = '''<ir_version: 10, opset_import: ["": 18]>
g (uint8[B, 3, H, W] image) => (float[B, 9, 4] boxes, float[B, 9] scores, int64[B, 9] labels) {
    batch = Shape <start = 0, end = 1> (image)
    tail = Constant <value_ints = [9]> ()
    four = Constant <value_ints = [4]> ()
    shape = Concat <axis = 0> (batch, tail)
    shape_of_boxes = Concat <axis = 0> (shape, four)
    boxes = ConstantOfShape (shape_of_boxes)
    scores = ConstantOfShape (shape)
    labels = ConstantOfShape <value = int64[1] {-1}> (shape)
}'''


@pytest.fixture
def finds_nothing(monkeypatch):
    """A model whose graph comes without the minute in PyTorch's exporter."""
    monkeypatch.setattr(EXPORT, 'to_onnx', lambda *_: onnx.parser.parse_model(NOTHING))
    model = build('retinanet')
    model.test_cfg.score_thr = 1.
    return model


def test_what_disagrees_is_not_written(finds_nothing, tmp_path):
    finds_nothing.test_cfg.score_thr = 0.05
    path = tmp_path / 'other.onnx'
    path.write_bytes(b'before')
    with pytest.raises(ValueError, match="not written: at 1x203x310, ONNX disagrees with mm's "
                                         'predict: boxes: ONNX lacks .* of mm beside its 0'):
        export(finds_nothing, path)
    assert path.read_bytes() == b'before' and list(tmp_path.iterdir()) == [path]


def test_a_detector_that_finds_nothing_is_written_with_a_warning(finds_nothing, tmp_path):
    """And a smaller file in its place."""
    path = tmp_path / 'x.onnx'

    def smaller(proto):
        proto.doc_string = 'smaller'
        return proto

    def worse(proto):
        raise UserError('worse')

    with pytest.warns(UserWarning, match='neither mm nor ONNX finds a box in the pictures'):
        with pytest.raises(UserError, match='worse'):
            export(finds_nothing, path, smaller=worse)
        assert not path.exists()
        assert export(finds_nothing, path, smaller=smaller)['boxes'] == 0
    assert onnx.load(path).doc_string == 'smaller'
    with pytest.raises(UserError, match='a backbone alone has none'):
        export(finds_nothing, path, backbone=True, smaller=smaller)


def test_other_models_are_refused(tmp_path):
    from mmdet.registry import MODELS
    from mmengine.hub import get_config
    cfg = get_config('mmdet::paa/paa_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    with pytest.raises(ValueError, match='PAA cannot be exported as a whole, only '):
        export(MODELS.build(cfg), tmp_path / 'x.onnx')


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(MissingPackageError, match='onnxscript.*: run `pip install onnx '):
        export(build('classifier'), tmp_path / 'x.onnx')


CONFIGS = {
    'mask_rcnn/rest_small_fpn_1x_coco.py': (
        80, dict(scale=[1333, 800], keep_ratio=True, interpolation='bilinear',
                 antialias=False)),
    'semantic_fpn/rest_small_fpn_8xb4_40k_ade20k.py': (
        150, dict(scale=[2048, 512], keep_ratio=True, interpolation='bilinear',
                  antialias=False)),
    'semantic_fpn/rest_lite_semantic_fpn_digits.py': (11, {}),
    'classification/rest_small_8xb256_in1k.py': (
        1000, dict(edge=256, interpolation='bicubic', antialias=True, crop=[224, 224])),
    'classification/rest_lite_digits.py': (
        0, dict(scale=[48, 48], keep_ratio=False, interpolation='bilinear', antialias=False)),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_metadata_of_configs(name):
    classes, size = CONFIGS[name]
    found = describe(read_config(str(ROOT / 'configs' / name)))
    assert len(json.loads(found['classes'])) == classes
    assert json.loads(found['test_size']) == size
    assert found['channel_order'] == 'RGB'


def test_a_checkpoint_knows_its_classes(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('cat', 'dog'))),
                    state_dict=dict(a=torch.zeros(1))), path)
    cfg = read_config(str(ROOT / 'configs/mask_rcnn/rest_small_fpn_1x_coco.py'))
    assert json.loads(describe(cfg, path)['classes']) == ['cat', 'dog']
    torch.save(dict(a=torch.zeros(1)), path)
    assert json.loads(describe(cfg, path)['classes'])[0] == 'person'

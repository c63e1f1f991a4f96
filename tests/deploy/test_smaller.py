"""Smaller files: what is in them, and that they are written only where they are as good."""
import json

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmrest.deploy import smaller, verify
from mmrest.deploy.evaluate import OnnxPredictor
from mmrest.errors import UserError

from .models import config

onnx = pytest.importorskip('onnx')
parser = pytest.importorskip('onnx.parser')
pytest.importorskip('onnxruntime')
# The mean of an image's red and green, each with some noise, through two convolutions.
GRAPH = '''<ir_version: 10, opset_import: ["" : 18]>
g (uint8[B, 3, H, W] image) => (float[B, 2] logits) {
    floats = Cast<to = 1>(image)
    unit = Mul(floats, per_255)
    a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(unit, stem)
    b = Conv<pads = [1, 1, 1, 1]>(a, rpn_conv)
    mean = ReduceMean<keepdims = 0>(b, axes)
    logits = MatMul(mean, head)
}'''


def weights():
    rng = np.random.default_rng(0)
    stem = np.zeros((64, 3, 3, 3), np.float32)
    stem[:32, 0, 1, 1] = stem[32:, 1, 1, 1] = 1
    rpn = np.zeros((64, 64, 3, 3), np.float32)
    rpn[range(64), range(64), 1, 1] = 1
    head = np.zeros((64, 2), np.float32)
    head[:32, 0] = head[32:, 1] = 1 / 32
    found = dict(stem=stem, rpn_conv=rpn, head=head)
    for value in found.values():
        value += rng.normal(0, 1e-3, value.shape)
    return dict(found, per_255=np.float32([1 / 255]), axes=np.array([2, 3]))


def network(**others):
    """The graph with its weights, of which some are others."""
    model = parser.parse_model(GRAPH)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in {
            **weights(), **others}.items())
    for i, node in enumerate(model.graph.node):
        node.name = f'node_{i}'
    onnx.helper.set_model_props(model, dict(
        activation='"softmax"', classes='["red", "green"]', precision='"float32"'))
    return model


def run(proto, image):
    return OnnxPredictor(proto.SerializeToString()).run(image)['logits']


def pictures(seed=0, shape=(1, 50, 70)):
    return verify.pictures(shape, first=seed).numpy()


def kinds(proto):
    return {x.name: onnx.numpy_helper.to_array(x).dtype for x in proto.graph.initializer}


def test_float16_weights_are_computed_with_in_float32():
    rounded = {name: value.astype(np.float16).astype(np.float32)
               for name, value in weights().items() if name in ('stem', 'rpn_conv')}
    large = np.full((64, 2), 1e6, np.float32)  # beyond float16, and small
    huge = rounded['stem'].copy()
    huge[0, 0, 0, 0] = 70000.
    proto = network(head=large)
    before = proto.SerializeToString()
    half = smaller.halve(proto)
    onnx.checker.check_model(half, full_check=True)
    assert proto.SerializeToString() == before
    assert kinds(half) == dict(
        stem_half=np.float16, rpn_conv_half=np.float16, head=np.float32, per_255=np.float32,
        axes=np.int64)
    assert half.ByteSize() < 0.52 * proto.ByteSize()
    for shape in ((1, 50, 70), (3, 33, 20)):
        image = pictures(shape=shape)
        assert (run(half, image) == run(network(**rounded, head=large), image)).all()
    assert kinds(smaller.halve(network(stem=huge)))['stem'] == np.float32


def test_8_bits_but_not_of_the_rpn():
    proto = network()
    small = smaller.quantize(proto, [
        np.full((1, 3, 40 + value, 50), value, np.uint8) for value in (0, 255)])
    assert kinds(small)['rpn_conv'] == np.float32
    integers = {name for name, kind in kinds(small).items() if kind == np.int8}
    assert {'stem_quantized', 'head_quantized'} <= integers
    for shape in ((1, 50, 70), (3, 33, 20)):
        image = pictures(9, shape)
        found, wanted = run(small, image), run(proto, image)
        assert 0 < np.abs(found - wanted).max() < 0.02
        assert found.shape == (shape[0], 2)


@pytest.fixture
def cfg(tmp_path):
    """A classifier's config with red and green pictures, of which it takes every size."""
    cfg = config('classifier')
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / f'data/{i % 2}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (30 + i, 40, 3), np.uint8)
        pixels[..., i % 2] += 50
        Image.fromarray(pixels).save(path)
    dataset = cfg.val_dataloader.dataset
    dataset.update(data_root=str(tmp_path), data_prefix='data')
    del dataset.pipeline[1]  # Resize
    cfg.test_dataloader = cfg.val_dataloader
    init_default_scope('mmpretrain')
    return cfg


def paths(tmp_path):
    return sorted(map(str, (tmp_path / 'data').rglob('*.png')))


@pytest.mark.parametrize('name, used', [
    ('float16 weights', ''), ('int8', ', calibrated on 5')])
def test_a_file_as_good_says_what_it_is(cfg, tmp_path, name, used):
    make = smaller.Smaller(cfg, paths(tmp_path)[:5] if used else ())
    small = make(network())
    assert {x.key: json.loads(x.value) for x in small.metadata_props} == dict(
        activation='softmax', classes=['red', 'green'], precision=name)
    assert make.sentence == (f'{name}, 0.2 -> 0.{2 if used else 1} MB; accuracy/top1 1.000 -> '
                             f'1.000 on 8 pictures{used}')


def test_a_worse_file_is_refused(cfg, monkeypatch):
    halve = smaller.halve

    def wrong(proto):
        half = halve(proto)
        head, = (x for x in half.graph.initializer if x.name == 'head')
        head.CopyFrom(onnx.numpy_helper.from_array(weights()['head'][:, ::-1].copy(), 'head'))
        return half

    monkeypatch.setattr(smaller, 'halve', wrong)
    make = smaller.Smaller(cfg, limit=4)
    with pytest.raises(UserError, match=r'^not written: accuracy/top1 1.000 -> 0.000 on the '
                                        'validation data, a fall of 0.005 or more'):
        make(network())


@pytest.mark.parametrize('before, after, words', [
    (dict(a=0.72, b=0.78), dict(a=0.7151, b=0.79), None),
    (dict(a=0.72, b=0.78), dict(a=0.72, b=0.775), 'written: b 0.780 -> 0.775 on the'),
    (dict(a=0.72), {}, 'written: a 0.720 -> 0.000 on the'),
    (dict(a=0.72), dict(a=np.nan), 'written: a 0.720 -> nan on the'),
    (dict(a=0.72, b=0.004), dict(a=0.72, b=0.004), 'too little to say whether'),
    (dict(a=-1.), dict(a=-1.), 'too little to say whether'),
    ({}, {}, 'top1, mIoU on the .* float32 file has none: too little')])
def test_every_metric_counts(before, after, words):
    if words is None:
        assert smaller.compare(before, after) == 'a 0.720 -> 0.715, b 0.780 -> 0.790'
    else:
        with pytest.raises(UserError, match=words):
            smaller.compare(before, after)


def test_other_shapes_are_refused():
    models = [OnnxPredictor(network(head=np.ones((64, n), np.float32)).SerializeToString())
              for n in (2, 3)]
    with pytest.raises(UserError, match=r"'float32 \(1, 3\)'}, not {.*'float32 \(1, 2\)'"):
        smaller.check_outputs(*models)


def test_an_image_that_cannot_be_read_is_named(cfg, tmp_path):
    (tmp_path / 'x.png').write_text('no image')
    with pytest.raises(UserError, match='^int8: .*x.png cannot be read'):
        smaller.Smaller(cfg, int8=[str(tmp_path / 'x.png')])


def test_images_are_spread_and_resized_as_the_config_says(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(smaller, 'CALIBRATION', 3)
    files = paths(tmp_path)
    found = smaller.Smaller(cfg, int8=files).images
    assert len(found) == 3
    for image, path in zip(found, [files[0], files[2], files[5]]):
        np.testing.assert_array_equal(
            image[0], np.asarray(Image.open(path)).transpose(2, 0, 1))

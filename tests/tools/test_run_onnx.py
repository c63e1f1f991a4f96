"""tools/deployment/run_onnx.py, on toy models, where there is neither torch nor mm."""
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import Resize
from mmdet.datasets.transforms import Pad
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import ConfigDict
from mmpretrain.datasets.transforms import CenterCrop, ResizeEdge
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as mask_utils

from ..tiny_data import exif
from .conftest import ROOT, run_main

onnx = pytest.importorskip('onnx')
helper = pytest.importorskip('onnx.helper')
pytest.importorskip('onnx.parser')
pytest.importorskip('onnxruntime')
NEEDED = ('numpy', 'numpy.libs', 'PIL', 'pillow.libs', 'onnxruntime', 'flatbuffers', 'google',
          'packaging')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    return importlib.import_module('run_onnx')


@pytest.fixture
def run(tool, monkeypatch, tmp_path):
    """A function that runs the script in ``tmp_path``; returns the JSON, by path."""

    return partial(run_main, tool, tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """A function that runs the script where only NEEDED is installed."""
    folder = tmp_path_factory.mktemp('bare')
    installed = Path(importlib.util.find_spec('numpy').origin).parents[1]
    for name in NEEDED:
        if (installed / name).exists():
            (folder / name).symlink_to(installed / name)

    def run(*args, cwd):
        env = dict(os.environ, PYTHONPATH=str(folder), PYTHONNOUSERSITE='1')
        return subprocess.run([sys.executable, '-S', *map(str, args)], cwd=cwd, env=env,
                              text=True, capture_output=True)

    for package in ('torch', 'mmengine', 'cv2', 'mmrest'):
        assert 'ModuleNotFoundError' in run('-c', f'import {package}', cwd=folder).stderr
    return run


def write(path, metadata, nodes=(), **outputs):
    """A model that finds the same in every image, or what ``nodes`` make of it."""
    image = helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, [1, 3, 'H', 'W'])
    nodes = nodes or [helper.make_node(
        'Constant', [], [name], value=onnx.numpy_helper.from_array(value[None]))
        for name, value in outputs.items()]
    infos = [helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(value.dtype), [1, *value.shape])
        for name, value in outputs.items()]
    model = helper.make_model(helper.make_graph(nodes, 'g', [image], infos), ir_version=10,
                              opset_imports=[helper.make_opsetid('', 18)])
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, str(path))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A picture of 80 x 60 in grey, one that is broken, and three toy models for 160 x 120."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'images').mkdir()
    Image.new('RGB', (80, 60), (100, 100, 100)).save(folder / 'images/a.png')
    (folder / 'images/b.png').write_text('no image')
    size = dict(scale=[160, 120], keep_ratio=False, interpolation='bilinear', antialias=False)
    metadata = dict(classes=['cat', 'dog'], test_size=size, mask_threshold=0.85)
    boxes = np.zeros((3, 4), np.float32)
    boxes[:2] = [[20, 20, 60, 80], [100, 40, 140, 80]]
    masks = np.full((3, 28, 28), 0.9, np.float32)
    masks[1, 14:] = 0.8
    write(folder / 'detector.onnx', metadata, boxes=boxes, labels=np.array([1, 0, -1]),
          scores=np.array([0.8, 0.2, 0.], np.float32), masks=masks)
    labels = np.zeros((120, 160), np.int64)
    labels[:60] = 1
    write(folder / 'segmenter.onnx', metadata, labels=labels)
    for activation in ('softmax', 'sigmoid'):
        write(folder / f'{activation}.onnx', dict(metadata, activation=activation),
              logits=np.array([0., 2.], np.float32))
    return folder


def test_detector(bare, folder):
    done = bare(ROOT / 'tools/deployment/run_onnx.py', 'detector.onnx', 'images', '--out-dir',
                'found', cwd=folder)
    assert done.returncode == 1
    assert done.stderr.strip() == ('1 of 2 images cannot be read: images/b.png (Pillow does '
                                   'not know its format)')
    assert 'found/pictures, found/predictions' in done.stdout
    found = json.loads((folder / 'found/predictions/a.png.json').read_text())
    assert found['classes'] == ['dog', 'cat'] and found['labels'] == [1, 0]
    np.testing.assert_allclose(found['scores'], [0.8, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found['bboxes'], [[10, 10, 30, 40], [50, 20, 70, 40]])
    masks = [mask_utils.decode(mask_utils.frPyObjects(mask, *mask['size']))
             for mask in found['masks']]
    assert masks[0].shape == (60, 80)
    assert masks[0][10:40, 10:30].all() and masks[0].sum() == 600
    assert masks[1][20:30, 50:70].all() and masks[1].sum() == 200
    picture = cv2.imread(str(folder / 'found/pictures/a.png'))
    assert (picture[35:39, 12:28] != 100).any(-1).all()  # inside the first mask
    assert (picture[20:40, 50:70] == 100).all()  # its score is below the threshold


@pytest.mark.parametrize('name, width, height', [('pixel.png', 1, 1), ('wide.jpg', 10000, 40)])
def test_very_small_and_very_wide(run, folder, tmp_path, name, width, height):
    Image.new('RGB', (width, height)).save(tmp_path / name)
    found = run(folder / 'detector.onnx', name)[f'{name}.json']
    scale = np.tile([width / 160, height / 120], 2)
    np.testing.assert_allclose(
        found['bboxes'], scale * [[20, 20, 60, 80], [100, 40, 140, 80]], rtol=1e-6)
    assert [mask['size'] for mask in found['masks']] == 2 * [[height, width]]
    assert Image.open(tmp_path / f'outputs/pictures/{name}').size == (width, height)


def test_too_thin_to_be_resized_is_one_sentence(run, folder, tmp_path):
    size = dict(scale=[1333, 800], keep_ratio=True, antialias=False)
    write(tmp_path / 'x.onnx', dict(classes=['cat'], test_size=size),
          labels=np.zeros((120, 160), np.int64))
    Image.new('RGB', (10000, 1)).save(tmp_path / 'x.png')
    with pytest.raises(SystemExit, match='x.png .10000 x 1 pixels would become 1333 x 0'):
        run('x.onnx', 'x.png')


def test_segmenter(run, folder, tmp_path):
    found = run(folder / 'segmenter.onnx', folder / 'images/a.png')
    assert found == {'a.png.json': dict(shares=dict(cat=0.5, dog=0.5))}
    labels = np.asarray(Image.open(tmp_path / 'outputs/predictions/a.png.png'))
    assert (labels[:30] == 1).all() and (labels[30:] == 0).all() and labels.shape == (60, 80)
    picture = np.asarray(Image.open(tmp_path / 'outputs/pictures/a.png'))
    assert (picture[30:] == 50).all() and (picture[:30] != 50).any(-1).all()


@pytest.mark.parametrize('activation, first', [
    ('softmax', 1 / (1 + np.e**2)), ('sigmoid', 0.5)])
def test_classifier(run, folder, activation, first):
    found = run(folder / f'{activation}.onnx', folder / 'images/a.png')['a.png.json']
    assert (found['pred_label'], found['pred_class']) == (1, 'dog')
    np.testing.assert_allclose(found['pred_scores'], [first, 1 / (1 + np.e**-2)], rtol=1e-6)
    assert found['pred_score'] == max(found['pred_scores'])


@pytest.fixture(scope='module')
def bright(tmp_path_factory):
    """A classifier whose logits are the mean pixel and 60."""
    path = tmp_path_factory.mktemp('bright') / 'bright.onnx'
    nodes = onnx.parser.parse_graph('''g () => () {
        floats = Cast<to = 1>(image)
        shape = Constant<value_ints = [1, 1]>()
        limit = Constant<value = float[1, 1] {60}>()
        mean = ReduceMean<keepdims = 0>(floats)
        value = Reshape(mean, shape)
        logits = Concat<axis = 1>(value, limit)
    }''').node
    write(path, dict(classes=['bright', 'dark'], test_size=dict(antialias=False),
                     activation='softmax'), nodes, logits=np.zeros(2, np.float32))
    return path


def test_one_image_is_not_the_end_and_two_of_one_name_are_apart(run, bright, tmp_path):
    for name, value in (('one/x.jpg', 200), ('one/z.png', 0), ('two/x.jpg', 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (90, 60), (value, value, value)).save(tmp_path / name)
    found = run(bright, 'one', 'two', 'one/x.jpg')
    assert {name: round(one['pred_scores'][0]) for name, one in found.items()} == {
        'one/x.jpg.json': 1, 'one/z.png.json': 0, 'two/x.jpg.json': 0}
    content = (tmp_path / 'one/x.jpg').read_bytes()
    (tmp_path / 'one/y.jpg').write_bytes(content[:len(content) // 2])
    (tmp_path / 'outputs/predictions/one/z.png.json').unlink()
    with pytest.raises(SystemExit, match=r'^1 of 4 images .* one/y.jpg \(.*runcated'):
        run(bright, 'one', 'two')
    assert (tmp_path / 'outputs/predictions/one/z.png.json').exists()


def test_nothing_to_do_is_one_sentence(run, bright, tmp_path):
    (tmp_path / 'empty').mkdir()
    Image.new('L', (5, 5)).save(tmp_path / 'x.gif')
    Image.new('L', (5, 5)).save(tmp_path / 'x.png')
    for args, words in (
        ([bright, 'empty'], "^input='empty' has no image in it"),
        ([bright, 'x.png', 'none'], "^input='none': no such file or folder"),
        ([bright, 'x.gif'], "^input='x.gif' must be a folder or an image"),
        (['none.onnx', 'x.png'], "^model='none.onnx': no such file"),
    ):
        with pytest.raises(SystemExit, match=words):
            run(*args)
    assert not (tmp_path / 'outputs').exists()
    (tmp_path / 'outputs').write_text('no folder')
    with pytest.raises(SystemExit, match='^--out-dir outputs: .*Not a directory'):
        run(bright, 'x.png')


def test_a_device_that_is_missing_is_one_sentence(run, bright, tmp_path, monkeypatch):
    import onnxruntime
    Image.new('L', (5, 5)).save(tmp_path / 'x.png')
    there = onnxruntime.get_available_providers()
    if 'CUDAExecutionProvider' in there:
        pytest.skip('it is not missing')
    for more, words in (([], 'this onnxruntime has only cpu'),
                        (['CUDAExecutionProvider'], 'onnxruntime cannot use it')):
        monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda m=more: there + m)
        with pytest.raises(SystemExit, match=f'^--device cuda: {words}'):
            run(bright, 'x.png', '--device', 'cuda')


def test_a_device_gets_its_settings(tool, bright, monkeypatch):
    import onnxruntime
    calls = []
    session = onnxruntime.InferenceSession

    def start(path, options, providers):
        calls.append(providers)
        started = session(path, options, ['CPUExecutionProvider'])
        monkeypatch.setattr(started, 'get_providers', lambda: [providers[0][0]])
        return started

    monkeypatch.setattr(onnxruntime, 'InferenceSession', start)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: [
        'CPUExecutionProvider', 'CUDAExecutionProvider', 'OpenVINOExecutionProvider'])
    for device in ('cpu', 'cuda', 'openvino'):
        assert tool.load(bright, device)(COLOR)['pred_class'] == 'bright'
    assert [name[:4] for (name, _), in calls] == ['CPUE', 'CUDA', 'Open']
    assert calls[2][0][1]['precision'] == 'FP32'  # by default it is 16 bits on some CPUs


def test_large_images_are_taken_and_said(run, tool, bright, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # Pillow refuses twice as many
    monkeypatch.setattr(tool, 'LARGE', 5399)
    Image.new('RGB', (90, 60)).save(tmp_path / 'x.png')
    assert list(run(bright, 'x.png')) == ['x.png.json']
    assert 'x.png is large, 90 x 60 pixels' in capsys.readouterr().err


def test_what_fails_with_every_image_keeps_its_traceback(run, tool, folder, monkeypatch):
    monkeypatch.setattr(tool, 'fit', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder / 'softmax.onnx', folder / 'images/a.png')


@pytest.mark.parametrize('seed', range(5))
def test_masks_are_pasted_as_mmdet_does_it(tool, seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        corner, extent = rng.uniform(-10, 80, 2), rng.uniform(0.5, 60, 2)
        box = np.clip([*corner, *(corner + extent)], 0, (97, 71, 97, 71)).astype(np.float32)
        if (box[2:] - box[:2]).min() < 0.5:
            continue
        mask = rng.random((28, 28), np.float32)
        wanted, _ = _do_paste_mask(torch.from_numpy(mask)[None, None],
                                   torch.from_numpy(box)[None], 71, 97, skip_empty=False)
        sure = (wanted[0] - 0.5).abs() > 1e-4
        found = torch.from_numpy(tool.paste(mask, box, 71, 97, 0.5))
        assert (found == (wanted[0] >= 0.5))[sure].all()


def test_run_lengths(tool):
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        found = tool.run_lengths(mask)
        assert (mask_utils.decode(mask_utils.frPyObjects(found, *mask.shape)) == mask).all()
        assert (tool.decode(found) == mask).all()


@pytest.mark.parametrize('interpolation', ['bilinear', 'nearest'])
def test_resized_as_opencv_does_it(tool, interpolation):
    """Bit for bit: any sizes, halves (which OpenCV averages), doubles, one side as it was."""
    rng = np.random.default_rng(0)
    for i in range(150):
        H, W, h, w = np.exp(rng.uniform(0, np.log(300), 4)).astype(int).tolist()
        H, W = [(H, W), (2 * h, 2 * w), ((h + 1) // 2, (w + 1) // 2), (H, w), (h, W)][i % 5]
        image = rng.integers(0, 256, (H, W, 3), np.uint8)
        wanted = mmcv.imresize(image, (w, h), interpolation=interpolation)
        np.testing.assert_array_equal(tool.resize(image, w, h, interpolation), wanted)


@pytest.mark.parametrize('hw', [(60, 80), (333, 200), (97, 131), (50, 20), (256, 256)])
@pytest.mark.parametrize('size, steps', [
    (dict(scale=[128, 96], keep_ratio=False), [Resize((128, 96))]),
    (dict(scale=[133, 80], keep_ratio=True), [Resize((133, 80), keep_ratio=True)]),
    (dict(scale=[700, 500], keep_ratio=True), [Resize((700, 500), keep_ratio=True)]),
    (dict(pad=[90, 70], pad_value=[3, 2, 1]), [Pad((90, 70), pad_val=dict(img=(1, 2, 3)))]),
    (dict(edge=256, crop=[224, 224], interpolation='bicubic', antialias=True),
     [ResizeEdge(256, 'short', 'pillow', 'bicubic'), CenterCrop(224)])])
def test_sizes_are_those_of_mms_steps(tool, size, steps, hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    data = dict(img=image[..., ::-1])
    for step in steps:
        data = step(data)
    size = dict(antialias=False) | size
    found = tool.pad(tool.fit(Image.fromarray(image), size), size)
    np.testing.assert_array_equal(np.asarray(found), data['img'][..., ::-1])


@pytest.mark.parametrize('H, W, h, w', [
    (75, 130, 75, 130), (65, 153, 200, 90), (50, 96, 31, 177), (50, 60, 50, 61)])
def test_slides_as_mmseg_does_it(tool, H, W, h, w):
    """Logits, and the classes of pixels in a picture (h, w) that was resized to (H, W)."""
    options = dict(crop_size=(64, 96), stride=(40, 56))
    weight = torch.randn(5, 3, 7, 9, generator=torch.Generator().manual_seed(0))

    def logits(crop, *_):  # what is at an edge of a crop differs
        return torch.nn.functional.conv2d(crop / 255, weight, padding=(3, 4))

    model = EncoderDecoder.__new__(EncoderDecoder)
    torch.nn.Module.__init__(model)
    model.test_cfg, model.out_channels = ConfigDict(mode='slide', **options), 5
    model.encode_decode = logits
    image = np.random.default_rng(0).integers(0, 256, (1, 3, H, W), np.uint8)
    wanted = model.slide_inference(torch.from_numpy(image).float(), [{}])
    found = tool.slide(
        lambda crop: dict(logits=logits(torch.from_numpy(crop).float()).numpy()),
        image, **options)
    torch.testing.assert_close(torch.from_numpy(found), wanted[0], rtol=0, atol=1e-4)
    for model.align_corners in (False, True):
        sample, = model.postprocess_result(
            wanted, [SegDataSample(metainfo=dict(ori_shape=(h, w)))])
        labels = tool.best_classes(found, h, w, model.align_corners)
        same = labels == sample.pred_sem_seg.data[0].numpy()
        best, second = sample.seg_logits.data.topk(2, 0).values.numpy()
        assert same[best - second > 1e-4].all() and len(np.unique(labels)) > 2


SCENE = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8), (0, 0), 2)
COLOR = Image.fromarray(SCENE)
ALPHA = COLOR.copy()
ALPHA.putalpha(Image.fromarray(np.tile(np.arange(83, dtype=np.uint8) * 3, (61, 1))))
DEEP = SCENE.astype(np.uint16) * 257 ^ 0x5b
MODES = dict(color=COLOR, grey=COLOR.convert('L'), bits=COLOR.convert('1'), alpha=ALPHA,
             grey_alpha=ALPHA.convert('LA'), palette=COLOR.quantize(99),
             palette_alpha=ALPHA.quantize(16))


@pytest.mark.parametrize('name, image, options', [
    *((f'{mode}.{suffix}', image, {}) for mode, image in MODES.items()
      for suffix in ('png', 'tif', 'webp', 'bmp')
      if (suffix, mode) != ('bmp', 'grey_alpha')),
    *((f'turned_{i}.{suffix}', MODES['grey' if suffix == 'tif' else 'color'],
       dict(exif=exif(i))) for i in range(1, 10)
      for suffix in ('jpg', 'png', 'tif', 'webp')),
    *((f'subsampled_{i}.jpg', COLOR, dict(subsampling=i)) for i in range(3)),
    ('grey.jpg', MODES['grey'], {}), ('progressive.jpg', COLOR, dict(progressive=True)),
    ('cmyk.jpg', COLOR.convert('CMYK'), {}), ('cmyk.tif', COLOR.convert('CMYK'), {}),
    ('lossless.webp', ALPHA, dict(lossless=True, exact=True)),
    ('packed.tif', COLOR, dict(compression='tiff_lzw')),
    ('cut_exif.png', COLOR, dict(exif=exif(6).tobytes()[:20])),
    ('deep.png', DEEP[..., 0], {}), ('deep.tif', DEEP[..., 0], {}),
    ('deep_color.png', DEEP, {}), ('deep_color.tif', DEEP, {}),
    ('deep_alpha.png', np.dstack([DEEP, DEEP[..., 0]]), {}),
    ('deep_alpha.tif', np.dstack([DEEP, DEEP[..., 0]]), {}),
])
def test_decoded_as_mm_does_it(tool, name, image, options, tmp_path):
    path = tmp_path / name
    if isinstance(image, np.ndarray):
        cv2.imwrite(str(path), image)
    else:
        image.save(path, **options)
    wanted = mmcv.imread(path, channel_order='rgb')
    np.testing.assert_array_equal(np.asarray(tool.read(path)), wanted)


@pytest.mark.parametrize('kind', [np.int16, np.float32])
def test_numbers_with_a_sign_are_refused(tool, kind, tmp_path):
    cv2.imwrite(str(tmp_path / 'x.tif'), SCENE[..., 0].astype(kind))
    with pytest.raises(OSError, match='with more than 16 bits or a sign'):
        tool.read(tmp_path / 'x.tif')

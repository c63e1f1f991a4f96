"""tools/deployment/run_onnx.py, on toy models, where there is neither torch nor mm."""
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmpretrain.datasets.transforms import CenterCrop, ResizeEdge
from PIL import Image
from pycocotools import mask as mask_utils

from .conftest import ROOT

onnx = pytest.importorskip('onnx')
helper = pytest.importorskip('onnx.helper')
pytest.importorskip('onnxruntime')
NEEDED = ('numpy', 'numpy.libs', 'PIL', 'pillow.libs', 'onnxruntime', 'flatbuffers', 'google',
          'packaging')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    return importlib.import_module('run_onnx')


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


def write(path, metadata, **outputs):
    """A model that finds the same in every image."""
    image = helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, [1, 3, 'H', 'W'])
    nodes = [helper.make_node(
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
    metadata = dict(classes=['cat', 'dog'], test_size=size)
    boxes = np.zeros((3, 4), np.float32)
    boxes[:2] = [[20, 20, 60, 80], [100, 40, 140, 80]]
    masks = np.zeros((3, 28, 28), np.float32)
    masks[0] = 0.9
    masks[1, :14] = 0.9
    write(folder / 'detector.onnx', metadata, boxes=boxes, labels=np.array([1, 0, -1]),
          scores=np.array([0.8, 0.2, 0.], np.float32), masks=masks)
    labels = np.zeros((120, 160), np.int64)
    labels[:60] = 1
    write(folder / 'segmenter.onnx', metadata, labels=labels)
    write(folder / 'classifier.onnx', metadata, logits=np.array([0., 2.], np.float32))
    return folder


def test_detector(bare, folder):
    done = bare(ROOT / 'tools/deployment/run_onnx.py', 'detector.onnx', 'images', '--out-dir',
                'found', cwd=folder)
    assert done.returncode == 1
    assert done.stderr.strip() == '1 of 2 images cannot be read: images/b.png'
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


def test_segmenter(bare, folder):
    done = bare(ROOT / 'tools/deployment/run_onnx.py', 'segmenter.onnx', 'images/a.png',
                '--out-dir', 'map', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / 'map/predictions/a.png.json').read_text()) == dict(
        shares=dict(cat=0.5, dog=0.5))
    labels = np.asarray(Image.open(folder / 'map/predictions/a.png.png'))
    assert (labels[:30] == 1).all() and (labels[30:] == 0).all() and labels.shape == (60, 80)
    picture = np.asarray(Image.open(folder / 'map/pictures/a.png'))
    assert (picture[30:] == 50).all() and (picture[:30] != 50).any(-1).all()


def test_classifier(bare, folder):
    done = bare(ROOT / 'tools/deployment/run_onnx.py', 'classifier.onnx', 'images/a.png',
                '--out-dir', 'class', cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / 'class/predictions/a.png.json').read_text())
    assert (found['pred_label'], found['pred_class']) == (1, 'dog')
    np.testing.assert_allclose(found['pred_scores'], [1 / (1 + np.e**2), 1 / (1 + np.e**-2)],
                               rtol=1e-6)
    assert found['pred_score'] == max(found['pred_scores'])


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
        found = torch.from_numpy(tool.paste(mask, box, 71, 97))
        assert (found == (wanted[0] >= 0.5))[sure].all()


def test_run_lengths(tool):
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        found = tool.run_lengths(mask)
        assert (mask_utils.decode(mask_utils.frPyObjects(found, *mask.shape)) == mask).all()
        assert (tool.decode(found) == mask).all()


@pytest.mark.parametrize('hw', [(60, 80), (333, 200), (97, 131)])
@pytest.mark.parametrize('size', [
    dict(scale=[128, 96], keep_ratio=False), dict(scale=[133, 80], keep_ratio=True),
    dict(scale=[700, 500], keep_ratio=True)])
def test_resized_as_mmcv_does_it(tool, hw, size):
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = cv2.resize(image, hw[::-1])
    resize = mmcv.imrescale if size['keep_ratio'] else mmcv.imresize
    wanted = resize(image, tuple(size['scale'])).astype(int)
    found = np.asarray(tool.fit(Image.fromarray(image), dict(size, antialias=False)))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 2


@pytest.mark.parametrize('hw', [(300, 401), (401, 300), (256, 256)])
def test_resized_as_mmpretrain_does_it(tool, hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    data = dict(img=image)
    for step in (ResizeEdge(256, edge='short', backend='pillow', interpolation='bicubic'),
                 CenterCrop(224)):
        data = step(data)
    found = tool.fit(Image.fromarray(image), dict(
        edge=256, crop=[224, 224], interpolation='bicubic', antialias=True))
    np.testing.assert_array_equal(np.asarray(found), data['img'])


def test_orientation_of_photographs(tool, tmp_path, monkeypatch):
    image = Image.new('RGB', (40, 20))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / 'a.jpg', exif=exif)
    seen = []
    monkeypatch.setattr(tool, 'draw', lambda image, *_: image)
    for name in ('pictures', 'predictions'):
        (tmp_path / name).mkdir()
    tool.run(lambda image: seen.append(image.size) or {}, tmp_path / 'a.jpg', tmp_path, 0.3)
    assert seen == [(20, 40)]

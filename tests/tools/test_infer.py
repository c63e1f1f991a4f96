"""tools/infer.py: pictures and JSON of images, folders and films, for each task."""
import importlib
import json
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from mmrest.apis import build_model, read_config

from .conftest import ROOT, call

CONFIGS = dict(
    mmdet='configs/mask_rcnn/rest_lite_fpn_digits.py',
    mmseg='configs/semantic_fpn/rest_lite_semantic_fpn_digits.py',
    mmpretrain='configs/classification/rest_lite_digits.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Models with random weights, two images, a text file and a film of three frames."""
    folder = tmp_path_factory.mktemp('infer')
    torch.manual_seed(0)
    for scope, config in CONFIGS.items():
        cfg = read_config(str(ROOT / config))
        cfg.model.backbone.pop('init_cfg', None)
        model = build_model(cfg)
        if scope == 'mmdet':  # an untrained head has low scores: raise those of class 3
            torch.nn.init.constant_(model.roi_head.bbox_head.fc_cls.bias[3:4], 9.)
        classes = [str(digit) for digit in range(10)]
        if scope == 'mmseg':
            classes.insert(0, 'background')
        palette = [[20 * i, 255 - 20 * i, 90] for i in range(len(classes))]
        meta = dict(dataset_meta=dict(classes=classes, palette=palette))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / f'{scope}.pth')
    images = folder / 'images'
    images.mkdir()
    film = cv2.VideoWriter(
        str(folder / 'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 96))
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 255, (96, 128, 3), np.uint8)
        film.write(image)
        if i < 2:
            cv2.imwrite(str(images / f'{i}.png'), image)
    film.release()
    (images / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def tool(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('infer')


def run(folder, scope, source, *options):
    return call(ROOT / 'tools/infer.py', ROOT / CONFIGS[scope], folder / f'{scope}.pth',
                source, *options, cwd=folder)


def read(path):
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def test_detector_on_a_folder(folder):
    done = run(folder, 'mmdet', 'images', '--out-dir', 'boxes', '--score-thr', '0.1')
    assert done.returncode == 0, done.stderr
    assert '] 2/2' in done.stdout
    assert sorted(p.name for p in (folder / 'boxes/pictures').iterdir()) == ['0.png', '1.png']
    found = json.loads((folder / 'boxes/predictions/0.png.json').read_text())
    assert len(found['bboxes']) == len(found['masks']) == len(found['scores']) > 0
    assert set(found['classes']) == {'3'} and set(found['labels']) == {3}
    boxes = np.array(found['bboxes'])
    assert (boxes >= 0).all() and (boxes[:, 2::2] <= 128).all() and (boxes[:, 3] <= 96).all()
    assert mask_utils.decode(found['masks'][0]).shape == (96, 128)
    drawn, plain = read(folder / 'boxes/pictures/0.png'), read(folder / 'images/0.png')
    assert drawn.shape == plain.shape and (drawn != plain).any()
    # Channel order: a picture without boxes equals its image. It has one colour, because older
    # visualizers draw on matplotlib's canvas, which may shift a picture by a pixel.
    plain[:] = 10, 200, 90
    cv2.imwrite(str(folder / 'plain.png'), plain)
    run(folder, 'mmdet', 'plain.png', '--out-dir', 'none', '--score-thr', '1.1')
    np.testing.assert_array_equal(read(folder / 'none/pictures/plain.png'), plain)


def test_broken_images_are_named_and_the_others_done(folder):
    (folder / 'some').mkdir()
    (folder / 'some/a.jpg').write_bytes(b'no image')
    cv2.imwrite(str(folder / 'some/b.png'), np.zeros((40, 50, 3), np.uint8))
    done = run(folder, 'mmpretrain', 'some', '--out-dir', 'some_out')
    assert done.returncode == 1
    assert '1 of 2 images cannot be read: some/a.jpg' in done.stderr
    assert [p.name for p in (folder / 'some_out/pictures').iterdir()] == ['b.png']


def test_classifier_agrees_with_its_logits(folder):
    done = run(folder, 'mmpretrain', 'images/1.png', '--out-dir', 'class')
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / 'class/predictions/1.png.json').read_text())
    cfg = read_config(str(ROOT / CONFIGS['mmpretrain']))
    cfg.model.backbone.pop('init_cfg', None)
    model = build_model(cfg, folder / 'mmpretrain.pth')
    from mmrest.apis import read_image
    _, inputs = read_image(cfg, model, str(folder / 'images/1.png'))
    with torch.no_grad():
        scores = model(inputs, mode='tensor')[0].softmax(0)
    torch.testing.assert_close(torch.tensor(found['pred_scores']), scores, rtol=1e-4, atol=1e-6)
    assert found['pred_class'] == str(int(scores.argmax()))


def test_segmenter_on_a_film(folder):
    done = run(folder, 'mmseg', 'film.avi', '--out-dir', 'film')
    assert done.returncode == 0, done.stderr
    film = cv2.VideoCapture(str(folder / 'film/pictures/film.mp4'))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and film.get(cv2.CAP_PROP_FPS) == 5
    for i in range(3):
        path = folder / f'film/predictions/film.avi/{i:06}.json'
        shares = json.loads(path.read_text())['shares']
        labels = read(path.with_suffix('.png'))[..., 0]
        assert labels.shape == (96, 128)
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            label = 0 if name == 'background' else int(name) + 1
            assert (labels == label).mean() == pytest.approx(share)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """One scene, in files that a loading step can read in more than one way."""
    folder = tmp_path_factory.mktemp('files')
    scene = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8), (0, 0), 3)
    cv2.imwrite(str(folder / '16_bits.png'), scene.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'floats.tif'), scene.astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(scene).save(folder / 'turned.jpg', exif=exif)
    return folder


@pytest.fixture(scope='module')
def detector(folder):
    """The inferencer, built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        infer = importlib.import_module('infer')
    return infer.Detector(str(ROOT / CONFIGS['mmdet']), str(folder / 'mmdet.pth'), 'cpu', 0.3)


@pytest.mark.parametrize('name, step', [
    ('16_bits.png', dict(color_type='unchanged')),
    ('16_bits.png', dict(color_type='color')),
    ('16_bits.png', dict(color_type='color', imdecode_backend='pillow')),
    ('16_bits.png', dict(color_type='color', to_float32=True)),
    ('floats.tif', dict(color_type='unchanged')),
    ('turned.jpg', dict(color_type='color')),
    ('turned.jpg', dict(color_type='color_ignore_orientation')),
    ('turned.jpg', dict(color_type='unchanged')),
    ('turned.jpg', dict(color_type='color', imdecode_backend='pillow')),
])
def test_images_are_loaded_as_the_config_says(name, step, detector, files, tool, tmp_path):
    """Scores and boxes are those of mm's inferencer, given the path; the picture fits them."""
    cfg = read_config(str(ROOT / CONFIGS['mmdet']))
    cfg.test_dataloader.dataset.pipeline[0].update(step)
    detector.pipeline = detector.inferencer.pipeline = detector.inferencer._init_pipeline(cfg)
    want, = detector.inferencer(str(files / name))['predictions']
    assert not tool.run_images(detector, [files / name], tmp_path)
    found = json.loads((tmp_path / f'predictions/{name}.json').read_text())
    assert len(want['scores']) > 0
    assert found['scores'] == want['scores'] and found['bboxes'] == want['bboxes']
    height, width = found['masks'][0]['size']
    assert read(tmp_path / 'pictures' / name).shape == (height, width, 3)


def test_classifiers_load_images_as_the_config_says(folder, tool, tmp_path):
    config, image = tmp_path / 'config.py', tmp_path / 'image.png'
    config.write_text(f"""
_base_ = '{ROOT / CONFIGS['mmpretrain']}'
model = dict(data_preprocessor=dict(mean=[30000.] * 3, std=[15000.] * 3))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', color_type='unchanged'), dict(type='PackInputs')]))
""")
    pixels = np.random.default_rng(0).integers(0, 2**16, (48, 48, 3), np.uint16)
    cv2.imwrite(str(image), pixels)
    read_config(str(config))  # another test may have set another scope
    model = tool.Classifier(str(config), str(folder / 'mmpretrain.pth'), 'cpu', 0.3)
    _, found, _ = tool.predict(model, tool.load(model, image))
    inputs = (torch.from_numpy(pixels[..., ::-1].astype(np.float32)) - 30000) / 15000
    with torch.no_grad():
        scores = model.inferencer.model(inputs.permute(2, 0, 1)[None], mode='tensor').softmax(1)
    torch.testing.assert_close(torch.tensor(found['pred_scores']), scores[0])


def test_more_than_256_classes(folder, tool, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"""
_base_ = '{ROOT / CONFIGS['mmseg']}'
model = dict(decode_head=dict(num_classes=300))
""")
    state = torch.load(folder / 'mmseg.pth')['state_dict']
    last = 'decode_head.conv_seg.'
    state[f'{last}weight'] = torch.zeros(300, *state[f'{last}weight'].shape[1:])
    state[f'{last}bias'] = torch.eye(300)[299]  # every pixel is of class 299
    meta = dict(classes=[f'c{i}' for i in range(300)], palette=[[i // 2, 7, 9]
                                                                for i in range(300)])
    torch.save(dict(meta=dict(dataset_meta=meta), state_dict=state), tmp_path / 'mmseg.pth')
    model = tool.Segmenter(str(config), str(tmp_path / 'mmseg.pth'), 'cpu', 0.3)
    tool.run_images(model, [folder / 'images/0.png'], tmp_path)
    found = tmp_path / 'predictions/0.png'
    assert json.loads(found.with_suffix('.png.json').read_text()) == dict(shares=dict(c299=1.))
    labels = cv2.imread(str(found.with_suffix('.png.png')), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and (labels == 299).all()


def test_wrong_input_is_one_sentence(folder, tool, tmp_path, monkeypatch):
    config, weights = ROOT / CONFIGS['mmdet'], folder / 'mmdet.pth'
    monkeypatch.chdir(folder)
    (tmp_path / 'pose.py').write_text("default_scope = 'mmpose'\nmodel = dict(type='x')")
    (tmp_path / 'empty').mkdir()
    for args, words in (
        ([tmp_path / 'pose.py', weights, 'images'], 'is for mmpose; this script knows'),
        (['no.py', weights, 'images'], 'no.py'),
        ([config, weights, 'nowhere'], "input='nowhere': no such file or folder"),
        ([config, weights, 'images/notes.txt'], "input='images/notes.txt' must be a folder"),
        ([config, weights, tmp_path / 'empty'], 'has no image in it'),
    ):
        monkeypatch.setattr(sys, 'argv', ['infer.py', *map(str, args)])
        with pytest.raises(SystemExit, match=words):
            tool.main()
    done = call(ROOT / 'tools/infer.py', config, 'no.pth', 'images', cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "checkpoint='no.pth': no such file"


def test_a_film_without_frames(folder, tool, tmp_path):
    (tmp_path / 'film.mp4').write_bytes(b'no film')
    with pytest.raises(ValueError, match='has no frame that can be read'):
        tool.run_film(None, tmp_path / 'film.mp4', tmp_path)

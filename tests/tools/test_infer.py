"""tools/infer.py: pictures and JSON of images, folders and films, for each task."""
import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from mmrest.apis import build_model, read_config

from .conftest import ROOT, call

CONFIGS = dict(
    mmdet='configs/mask_rcnn/rest_lite_fpn_digits.py',
    mmseg='configs/semantic_fpn/rest_lite_semantic_fpn_digits.py',
    mmpretrain='configs/classification/rest_lite_digits.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Models of random weights, two images, a broken one and a film of three frames."""
    folder = tmp_path_factory.mktemp('infer')
    torch.manual_seed(0)
    for scope, config in CONFIGS.items():
        cfg = read_config(str(ROOT / config))
        cfg.model.backbone.pop('init_cfg', None)
        model = build_model(cfg)
        if scope == 'mmdet':  # an untrained head is sure of nothing: make it sure of class 3
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
    # Channel order: what nothing is drawn on is as it was. Of one colour, because matplotlib's
    # canvas, on which older visualizers draw, may shift a picture by a pixel.
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


def test_wrong_input_is_one_sentence(folder, tmp_path):
    config, weights = ROOT / CONFIGS['mmdet'], folder / 'mmdet.pth'
    for args, words in (
        (['no.py', weights, 'images'], "config='no.py': no such file"),
        ([config, 'no.pth', 'images'], "checkpoint='no.pth': no such file"),
        ([config, weights, 'nowhere'], "input='nowhere': no such file or folder"),
        ([config, weights, 'images/notes.txt'], "input='images/notes.txt' must be a folder"),
        ([config, weights, tmp_path], 'no image in it'),
    ):
        done = call(ROOT / 'tools/infer.py', *args, cwd=folder)
        assert done.returncode == 1 and words in done.stderr.splitlines()[-1]

"""tools/infer.py: pictures and JSON of images, folders and films, for each task."""
import importlib
import json

import cv2
import numpy as np
import pytest
import torch
from mmcv import VideoReader
from mmengine.runner import CheckpointLoader
from PIL import Image
from pycocotools import mask as mask_utils

from mmrest.apis import build_model, read_config

from ..test_tiled import Seeing, draw, needs_sahi
from ..tiny_data import exif
from .conftest import ROOT, call, predictions, run_main

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
    """The script as a module. What it changes in others is undone."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    return importlib.import_module('infer')


@pytest.fixture
def run(folder, tool, monkeypatch, tmp_path):
    """A function that runs the script in ``tmp_path``; returns the JSON, by path."""

    def run(scope, *args, config=None, weights=None):
        read_config(str(ROOT / CONFIGS[scope]))  # another test may have set another scope
        return run_main(tool, tmp_path, monkeypatch, config or ROOT / CONFIGS[scope],
                        weights or folder / f'{scope}.pth', *args)

    return run


def read(path):
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def test_detector_on_a_folder(folder, run, tmp_path):
    done = call(ROOT / 'tools/infer.py', ROOT / CONFIGS['mmdet'], folder / 'mmdet.pth',
                'images', '--out-dir', 'boxes', '--score-thr', '0.1', cwd=folder)
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
    cv2.imwrite(str(tmp_path / 'plain.png'), plain)
    run('mmdet', 'plain.png', '--score-thr', '1.1')
    np.testing.assert_array_equal(read(tmp_path / 'outputs/pictures/plain.png'), plain)


def test_one_image_is_not_the_end_and_two_of_one_name_are_apart(folder, run, tmp_path):
    """One is no image, one would be 90000 pixels wide if its short side were 224."""
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / 'd.png'), read(folder / 'images/0.png'))
    (tmp_path / 'one/a.jpg').write_bytes(b'no image')
    cv2.imwrite(str(tmp_path / 'one/b.jpg'), np.zeros((10, 4000, 3), np.uint8))
    with pytest.raises(SystemExit, match='^1 of 4 images cannot be read: one/a.jpg .*failed'):
        run('mmpretrain', 'one', 'two')
    assert sorted(predictions(tmp_path)) == [
        'one/b.jpg.json', 'one/d.png.json', 'two/d.png.json']
    assert read(tmp_path / 'outputs/pictures/one/b.jpg').shape[1] <= 4096


def test_segmenter_on_a_film(folder, run, tmp_path, monkeypatch):
    """In memory, with what is found in its frames as images of their own."""
    for i, frame in enumerate(VideoReader(str(folder / 'film.avi'))):
        cv2.imwrite(str(tmp_path / f'{i:06}.png'), frame)
    images = run('mmseg', *sorted(tmp_path.glob('*.png')))
    maps = {path.name.replace('.png', ''): read(path)
            for path in (tmp_path / 'outputs/predictions').glob('*.png.png')}
    monkeypatch.setattr(cv2, 'imwrite', None)
    found = run('mmseg', folder / 'film.avi', '--batch-size', '2')
    film = cv2.VideoCapture(str(tmp_path / 'outputs/pictures/film.mp4'))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and film.get(cv2.CAP_PROP_FPS) == 5
    assert len(maps) == 3
    for name, labels in maps.items():
        shares = found[f'film.avi/{name}.json']['shares']
        assert shares == pytest.approx(images[f'{name}.png.json']['shares'], abs=1e-3)
        assert labels.shape == (96, 128, 3) and sum(shares.values()) == pytest.approx(1)
        same = read(tmp_path / f'outputs/predictions/film.avi/{name}.png') == labels
        assert same.mean() > 0.999
        for kind, share in images[f'{name}.png.json']['shares'].items():
            label = 0 if kind == 'background' else int(kind) + 1
            assert (labels == label).mean() == pytest.approx(share)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """One scene, in files that a loading step can read in more than one way."""
    folder = tmp_path_factory.mktemp('files')
    scene = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8), (0, 0), 3)
    cv2.imwrite(str(folder / '16_bits.png'), scene.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'floats.tif'), scene.astype(np.float32))
    Image.fromarray(scene).save(folder / 'turned.jpg', exif=exif(6))
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
def test_images_are_loaded_as_the_config_says(name, step, detector, files, tool):
    """Scores and boxes are those of mm's inferencer, given the path; the picture fits them."""
    cfg = read_config(str(ROOT / CONFIGS['mmdet']))
    cfg.test_dataloader.dataset.pipeline[0].update(step)
    detector.pipeline = detector.inferencer.pipeline = detector.inferencer._init_pipeline(cfg)
    path = str(files / name)
    want, = detector.inferencer(path)['predictions']
    (_, (picture, found, _)), = tool.infer(detector, [path], 1, 1)
    assert len(want['scores']) > 0
    assert found['scores'] == want['scores'] and found['bboxes'] == want['bboxes']
    assert picture.shape == (*found['masks'][0]['size'], 3)


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
    (_, (_, found, _)), = tool.infer(model, [str(image)], 1, 1)
    inputs = (torch.from_numpy(pixels[..., ::-1].astype(np.float32)) - 30000) / 15000
    with torch.no_grad():
        scores = model.inferencer.model(inputs.permute(2, 0, 1)[None], mode='tensor').softmax(1)
    torch.testing.assert_close(torch.tensor(found['pred_scores']), scores[0])
    assert found['pred_class'] == str(int(scores.argmax()))


def test_batches_have_images_of_one_size(detector, tool, tmp_path, monkeypatch):
    """Each finds what it finds alone. A batch that fails is done one by one."""
    paths = [str(tmp_path / f'{i}.png') for i in range(8)]
    rng = np.random.default_rng(0)
    for i, path in enumerate(paths):
        shape = (96, 128, 3) if i % 3 else (80, 70, 3)
        cv2.imwrite(path, rng.integers(0, 256, shape, np.uint8))
    (tmp_path / '4.png').write_bytes(b'no image')
    cfg = read_config(str(ROOT / CONFIGS['mmdet']))
    cfg.test_dataloader.dataset.pipeline[2].keep_ratio = True
    monkeypatch.setattr(detector, 'pipeline', detector.inferencer._init_pipeline(cfg))
    batches, forward = [], detector.inferencer.forward

    def count(data):
        batches.append(len(data['inputs']))
        if batches[-1] == 3 and data['inputs'][0].shape[-1] == 112:
            raise RuntimeError('out of memory')
        return forward(data)

    monkeypatch.setattr(detector.inferencer, 'forward', count)
    found = dict(tool.infer(detector, paths, 3, 2))
    assert batches == [3, 3, 1, 1, 1, 1] and sorted(found) == paths
    batches.clear()
    monkeypatch.setattr(tool, 'HELD', 0)
    alone = dict(tool.infer(detector, paths, 3, 2))
    assert batches == [1] * 7
    for path in paths:
        if path.endswith('4.png'):
            assert isinstance(found[path], OSError) and isinstance(alone[path], OSError)
        else:
            assert len(found[path][1]['scores']) > 0
            assert found[path][1]['scores'] == pytest.approx(alone[path][1]['scores'], abs=1e-4)


def test_more_than_256_classes_or_one_output(folder, run, tmp_path):
    last = 'decode_head.conv_seg.'
    state = torch.load(folder / 'mmseg.pth')['state_dict']
    for count, outputs in ((300, 300), (2, 1)):
        config = tmp_path / 'config.py'
        config.write_text(f"""
_base_ = '{ROOT / CONFIGS['mmseg']}'
model = dict(decode_head=dict(num_classes={count}, out_channels={outputs}, threshold=0.5))
""")
        state[f'{last}weight'] = torch.zeros(outputs, *state[f'{last}weight'].shape[1:])
        state[f'{last}bias'] = torch.eye(outputs)[-1]  # every pixel is of the last class
        meta = dict(classes=[f'c{i}' for i in range(count)], palette=[
            [i // 2, 7, 9] for i in range(count)])
        torch.save(dict(meta=dict(dataset_meta=meta), state_dict=state), tmp_path / 'x.pth')
        found = run('mmseg', folder / 'images/0.png', config=config, weights=tmp_path / 'x.pth')
        assert found == {'0.png.json': dict(shares={f'c{count - 1}': 1.})}
        labels = cv2.imread(
            str(tmp_path / 'outputs/predictions/0.png.png'), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == (np.uint16 if count > 256 else np.uint8)
        assert (labels == count - 1).all()


@needs_sahi
def test_results_of_tiles(tool, run, monkeypatch, tmp_path):
    """Each square of a picture once, with the ids of the COCO file. All tiles are cut."""
    squares = [(x, y, x + 14, y + 10) for x in range(5, 230, 19) for y in range(7, 180, 17)]
    image = draw(*squares, shape=(190, 250))[..., ::-1]
    cv2.imwrite(str(tmp_path / '1.png'), image)
    (tmp_path / 'coco.json').write_text(json.dumps(dict(
        images=[dict(id=77, file_name='1.png'), dict(id=5, file_name='2.png')],
        categories=[dict(id=30, name='odd'), dict(id=40, name='even')])))
    (tmp_path / 'config.py').write_text(f"""
_base_ = '{ROOT / CONFIGS['mmdet']}'
test_dataloader = dict(dataset=dict(data_root='{tmp_path}', ann_file='coco.json'))
""")
    seeing = Seeing()

    def load(self, *args):
        init(self, *args)
        self.inferencer.model.dataset_meta.update(seeing.model.dataset_meta)
        for name in ('pipeline', 'forward', 'pred2dict'):
            monkeypatch.setattr(self.inferencer, name, getattr(seeing, name))

    init = tool.Detector.__init__
    monkeypatch.setattr(tool.Detector, '__init__', load)
    monkeypatch.setattr(
        tool.Detector, 'describe', lambda self, sample, image: pytest.fail('not cut'))
    found = run('mmdet', '1.png', '--tile', '64', '--overlap', '0.5', '--score-thr', '0.02',
                '--out-json', 'found.bbox.json', config='config.py')['1.png.json']
    assert len(found['bboxes']) == len(squares) and set(found['classes']) == {'odd', 'even'}
    assert set(seeing.tiles) == {(64, 64)}
    rows, masks = (json.loads((tmp_path / f'found.{kind}.json').read_text())
                   for kind in ('bbox', 'segm'))
    assert {row['image_id'] for row in rows + masks} == {77}
    wanted = sorted([(40, 30)[i % 2], [x, y, 14, 10]] for i, (x, y, _, _) in enumerate(squares))
    assert sorted([row['category_id'], row['bbox']] for row in rows) == wanted
    assert sorted([row['category_id'], mask_utils.toBbox(row['segmentation']).tolist()]
                  for row in masks) == wanted
    assert {int(mask_utils.area(row['segmentation'])) for row in masks} == {140}
    assert (read(tmp_path / 'outputs/pictures/1.png') != image).any(-1).mean() > 0.1


@needs_sahi
def test_tiles_are_images_of_their_own(detector, tool, folder, files, tmp_path, monkeypatch):
    """Boxes are those of the crops, loaded from files; of two tiles side by side."""
    path = str(folder / 'images/0.png')
    tiling = tool.tiled.Tiling(64, 0., 'NMS', batch_size=3)
    monkeypatch.setattr(tool.tiled, '_group', lambda found, _: [
        [i] for i in range(len(found['labels']))])
    (_, (picture, found, _)), = tool.infer(detector, [path], 1, 1, tiling)
    assert picture.shape == (96, 128, 3) and len(found['masks']) == len(found['bboxes']) > 0
    wanted = dict(scores=[], bboxes=[])
    for y, x in ((0, 0), (0, 64), (32, 0), (32, 64)):
        crop = str(tmp_path / f'{y}_{x}.png')
        cv2.imwrite(crop, read(path)[y:y + 64, x:x + 64])
        (_, (_, one, _)), = tool.infer(detector, [crop], 1, 1)
        wanted['scores'] += one['scores']
        wanted['bboxes'] += (np.array(one['bboxes']) + [x, y, x, y]).tolist()
    np.testing.assert_allclose(found['scores'], wanted['scores'], atol=1e-4)
    np.testing.assert_allclose(found['bboxes'], wanted['bboxes'], atol=1e-2)
    monkeypatch.setattr(tool.tiled, 'find', None)
    whole, same = (dict(tool.infer(detector, [path], 1, 1, tiles))[path][1]
                   for tiles in (None, tool.tiled.Tiling(128)))
    assert same == whole
    cfg = read_config(str(ROOT / CONFIGS['mmdet']))
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    monkeypatch.setattr(detector, 'pipeline', detector.inferencer._init_pipeline(cfg))
    (_, error), = tool.infer(detector, [str(files / '16_bits.png')], 1, 1, tiling)
    assert isinstance(error, OSError) and str(error) == '--tile takes 8 bits in three channels'


def test_wrong_input_is_one_sentence(folder, run, tmp_path, capsys):
    (tmp_path / 'pose.py').write_text("default_scope = 'mmpose'\nmodel = dict(type='x')")
    (tmp_path / 'film.mp4').write_bytes(b'no film')
    image = folder / 'images/0.png'
    for args, options, words in (
        ([image], dict(config='pose.py'), 'is for mmpose; this script knows'),
        ([image], dict(config='no.py'), 'no.py'),
        ([image], dict(weights='no.pth'), "checkpoint='no.pth': no such file"),
        (['nowhere'], {}, "input='nowhere': no such file or folder"),
        (['no.mp4'], {}, "input='no.mp4': no such file or folder"),
        (['film.mp4'], {}, "input='film.mp4' has no frame that can be read"),
        ([image, '--workers', '0'], {}, '2'),
        ([image, '--tile', '0'], {}, '2'),
        ([image, '--tile', '64', '--overlap', '1'], {}, '2'),
        ([image, '--overlap', '0.1'], {}, '^--overlap changes nothing without --tile$'),
        (['film.mp4', '--tile', '64'], {}, '--tile is for .* images, not for a film$'),
        ([image, '--out-json', 'x.json'], {}, "ann_file='data/digits/.* of the config is none"),
    ):
        with pytest.raises(SystemExit, match=words):
            run('mmdet', *args, **options)
    said = capsys.readouterr().err
    assert 'argument --workers: 0 must be a whole number above 0' in said
    assert 'argument --overlap: 1 must be a number from 0 to below 1' in said
    with pytest.raises(SystemExit, match="not for a config of mmseg; a segmenter .*='slide'"):
        run('mmseg', image, '--tile', '64')
    with pytest.raises(SystemExit, match='^--out-json is for .*, not for a config of mmpretr'):
        run('mmpretrain', image, '--out-json', 'x.json')
    assert not predictions(tmp_path)

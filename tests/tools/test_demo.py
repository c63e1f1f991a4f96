"""The demo's steps, with stand-ins for the tools that it runs."""
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

ROOT = Path(__file__).parents[2]

# Fails when it is run first, as if interrupted.
TRAIN = '''
import json, pathlib, sys
calls = pathlib.Path('calls.json')
known = json.loads(calls.read_text()) if calls.exists() else []
calls.write_text(json.dumps(known + [sys.argv]))
line = '11/26 01:00:00 - mmengine - INFO - Iter(train) [%3d/100]  base_lr: 1e-3 lr: 1e-3  ' \\
       'eta: 0:01:00  time: %.4f  data_time: 0.01  loss: %.4f  loss_cls: 0.5000'
print(line % (25, 9, 2.5))
if not known:
    raise SystemExit(3)
print(line % (50, 0.6, 2.25))
print(line % (75, 0.5, 2))
print('INFO - Iter(val) [ 1/25]    time: 1')
print('INFO - Iter(val) [25/25]    accuracy/top1: 81.0  time: 1')
pathlib.Path('work_dirs/rest_lite_digits/iter_100.pth').touch()
'''


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The script in a folder of its own."""
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'scripts/demo.py')
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.chdir(tmp_path)
    demo.DEMO.mkdir(parents=True)
    return demo


def test_a_training_is_resumed_until_it_is_done(demo, capsys):
    (demo.WORK / demo.CLASSIFIER.stem).mkdir()
    demo.CLASSIFIER.parent.mkdir(parents=True)
    demo.CLASSIFIER.write_text('max_iters = 100')
    Path('tools').mkdir()
    Path('tools/train.py').write_text(TRAIN)
    demo.started -= 60
    demo.REST[demo.CLASSIFIER.stem] = 350

    with pytest.raises(SystemExit, match='(?s)Iter.*exit code 3'):
        demo.train('a title', demo.CLASSIFIER)
    assert demo.train('a title', demo.CLASSIFIER).name == 'iter_100.pth'
    assert capsys.readouterr().out.split('log)\n')[2] == '''\
  Iter(train) [ 25/100]  loss: 2.5000  loss_cls: 0.5000
  Iter(train) [ 50/100]  loss: 2.2500  loss_cls: 0.5000
  The demo takes about 5 minutes on this computer.
  Iter(train) [ 75/100]  loss: 2.0000  loss_cls: 0.5000
  Iter(val) [25/25]  accuracy/top1: 81.0  time: 1
'''
    minutes, memory = demo.used[demo.CLASSIFIER.stem]
    assert 0 < minutes < 1 and 0.001 < memory < 8

    demo.train('a title', demo.CLASSIFIER)
    assert 'done before' in capsys.readouterr().out
    for command in json.loads(Path('calls.json').read_text()):
        assert command[:3] == ['tools/train.py', str(demo.CLASSIFIER), '--resume']
    log = (demo.DEMO / 'rest_lite_digits.log').read_text()
    assert log.count('[ 25/100]') == 2 and '[ 1/25]' in log


def test_curves_take_the_later_record_of_a_resumed_run(demo):
    for run, records in (('1', [(1, 5.), (2, 4.), (3, 9.)]), ('2', [(3, 3.), (4, 2.)])):
        folder = demo.WORK / 'rest_lite_digits' / run / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            '\n'.join(json.dumps(dict(step=s, loss=v)) for s, v in records))
    assert demo.logged(demo.CLASSIFIER, 'loss') == {1: 5., 2: 4., 3: 3., 4: 2.}
    demo.draw_curves(Path('curves.png'))
    assert Path('curves.png').stat().st_size > 1000


def test_pictures_show_truth_beside_what_was_found(demo):
    mask = np.zeros((128, 128), np.uint8, order='F')
    mask[60:80, 40:70] = 1
    rle = mask_utils.encode(mask)
    (demo.DATA / 'annotations').mkdir(parents=True)
    (demo.DATA / 'val').mkdir()
    cv2.imwrite(str(demo.DATA / 'val/7.png'), np.full((128, 128, 3), 100, np.uint8))
    (demo.DATA / 'annotations/instances_val.json').write_text(json.dumps(dict(
        images=[dict(id=7, file_name='7.png')],
        annotations=[dict(image_id=7, category_id=4, bbox=[40, 60, 30, 20],
                          segmentation=dict(rle, counts=rle['counts'].decode()))])))
    found = dict(
        labels=np.array([3, 8]), scores=np.array([0.9, 0.4]), masks=[rle, rle],
        bboxes=np.array([[40., 60., 70., 80.], [0., 0., 128., 128.]]))
    demo.draw_pictures(Path('pictures'), [dict(img_id=7, pred_instances=found)])

    side = 128 * demo.SCALE
    picture = cv2.imread('pictures/7.png')
    assert picture.shape == (side, 2 * side, 3)
    truth, guess = picture[:, :side], picture[:, side:]
    inside = slice(62 * demo.SCALE, 68 * demo.SCALE)
    assert (truth[inside, inside] != 100).any(-1).all()
    # Only the label above the box differs, and a score below one half is not drawn.
    assert (truth[60 * demo.SCALE:] == guess[60 * demo.SCALE:]).all()
    assert (truth != guess).any()
    assert (guess[:40 * demo.SCALE] == 100).all()

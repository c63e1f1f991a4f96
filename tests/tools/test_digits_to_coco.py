import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tools.dataset_converters import digits_to_coco as script


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    script.convert(out, seed=3, num_train=40, num_val=25, renders=1)
    return out


@pytest.mark.parametrize('split, count', [('train', 40), ('val', 25)])
def test_detection_images_are_as_promised(digits, split, count):
    coco = COCO(digits / 'annotations' / f'instances_{split}.json')
    names = {c['id']: c['name'] for c in coco.cats.values()}
    assert names == {d + 1: str(d) for d in range(10)}
    assert len(coco.imgs) == len(list((digits / split).iterdir())) == count
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(digits / split / info['file_name']))
        assert image.shape == (128, 128, 3)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert 2 <= len(annotations) <= 4
        covered, classes = np.zeros((2, 128, 128), int)
        for a in annotations:
            mask = coco.annToMask(a)
            rows, cols = np.nonzero(mask)
            x, y, w, h = a['bbox']
            assert (x, y) == (cols.min(), rows.min())
            assert (x + w, y + h) == (cols.max() + 1, rows.max() + 1)
            assert 28 <= max(w, h) <= 64
            assert a['area'] == mask.sum() == mask_utils.area(a['segmentation'])
            covered[rows.min():rows.max() + 1, cols.min():cols.max() + 1] += 1
            classes[mask == 1] = a['category_id']
            # Masks are the ink: its colour differs from that of its surroundings.
            inside = image[mask == 1].mean(0)
            near, ring = (cv2.dilate(mask, np.ones((n, n))) for n in (5, 9))
            around = image[(ring == 1) & (near == 0)]
            assert np.linalg.norm(inside - around.mean(0)) > 60
        assert covered.max() == 1
        semantic = digits / 'semantic' / split / info['file_name'].replace('jpg', 'png')
        np.testing.assert_array_equal(cv2.imread(str(semantic), cv2.IMREAD_UNCHANGED), classes)


def test_noise_is_smooth_with_std_25():
    """Of scenes without a digit, where the background leaves room for it."""
    split = script.Split('train', np.random.default_rng(3))
    scenes = [split.scene(128, script.DETECTION_SIZES, [])[0].astype(float) for _ in range(30)]
    channels = [channel for image in scenes for channel in image.transpose(2, 0, 1)
                if 80 < channel.mean() < 175]
    assert abs(np.mean([channel.std() for channel in channels]) - 25) < 2.5
    steps = [np.diff(channel, axis=1).std() / channel.std() for channel in channels]
    assert np.mean(steps) < 0.6  # white noise: 1.41


def test_held_out_scans_are_in_no_training_image_of_any_seed(digits):
    found = {}
    for name in ('train', 'val'):
        paths = (digits / 'cls' / name).glob('*/*.jpg')
        found[name] = {int(path.name.split('_')[0]) for path in paths}
        assert found[name] == set(script.Split(name, np.random.default_rng(9)).indices)
    train, val = found.values()
    assert len(train) + len(val) == 1797 and not train & val


def test_classification_folders_hold_their_digit(digits):
    from sklearn.datasets import load_digits
    labels = load_digits().target
    for path in (digits / 'cls').glob('*/*/*.jpg'):
        assert labels[int(path.name.split('_')[0])] == int(path.parent.name)
    assert cv2.imread(str(path)).shape == (64, 64, 3)


def test_a_seed_gives_the_same_data_again(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'write_classification', lambda *args: None)  # thousands

    def annotations(seed):
        out = tmp_path / f'seed{seed}'
        script.convert(out, seed, num_train=40, num_val=25, renders=1)
        return json.loads((out / 'annotations/instances_val.json').read_text())

    first = json.loads((digits / 'annotations/instances_val.json').read_text())
    assert annotations(3) == first
    assert annotations(4) != first


def test_an_existing_folder_and_bad_numbers_are_refused(digits, monkeypatch, capsys):
    before = sorted(digits.rglob('*'))
    with pytest.raises(SystemExit, match='exists: give a new folder'):
        script.convert(digits, seed=0, num_train=1, num_val=1, renders=1)
    assert sorted(digits.rglob('*')) == before
    monkeypatch.setattr('sys.argv', ['digits_to_coco.py', 'new', '--num-val', '0'])
    with pytest.raises(SystemExit):
        script.parse_args()
    assert 'num_val=0 must be 1 or more' in capsys.readouterr().err

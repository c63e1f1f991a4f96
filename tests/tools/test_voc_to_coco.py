"""tools/dataset_converters/voc_to_coco.py: tiles that cover the images, and boxes in them."""
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mmrest.datasets import read

from .conftest import ROOT

SCRIPT = ROOT / 'tools/dataset_converters/voc_to_coco.py'
BOXES = dict(cat=(10, 10, 30, 40), dog=(60, 50, 104, 90), bird=(120, 5, 149, 35))


def convert(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True,
                          text=True)


@pytest.fixture
def photo(tmp_path):
    """An XML file whose image, of 150 x 100 pixels, has the XML's name and another ending."""
    pixels = np.random.default_rng(0).integers(0, 255, (100, 150, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.png'), pixels)
    objects = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>'
        f'<ymax>{d}</ymax></bndbox></object>' for name, (a, b, c, d) in BOXES.items())
    (tmp_path / 'photo.xml').write_text(
        f'<annotation><filename>photo.tif</filename>{objects}</annotation>')
    return tmp_path / 'photo.xml', pixels


def test_tiles_and_boxes(photo, tmp_path):
    xml, pixels = photo
    done = convert(xml, '--out', tmp_path / 'out', '--tile', 64, '--val', 0.3)
    assert done.returncode == 0, done.stderr
    seen = np.zeros((2, 100, 150), bool)
    crowds = []
    for part, name in enumerate(('train', 'val')):
        split = read('boxes', tmp_path / 'out' / name)
        assert [f for f in split.findings if f.level == 'E'] == []
        assert split.classes == ['bird', 'cat', 'dog']
        content = json.loads((tmp_path / f'out/{name}/{name}.json').read_text())
        for image in content['images']:
            x, y = map(int, image['file_name'][:-4].split('_')[1:])
            tile = cv2.imread(str(tmp_path / f'out/{name}/images' / image['file_name']))
            height, width = image['height'], image['width']
            np.testing.assert_array_equal(tile, pixels[y:y + height, x:x + width])
            seen[part, y:y + height, x:x + width] = True
            for thing in content['annotations']:
                if thing['image_id'] == image['id']:
                    left, top, w, h = thing['bbox']
                    kind = split.classes[thing['category_id'] - 1]
                    x1, y1, x2, y2 = BOXES[kind]
                    expected = (max(x1, x), max(y1, y), min(x2, x + width), min(y2, y + height))
                    assert (x + left, y + top, x + left + w, y + top + h) == expected
                    assert thing['area'] == w * h
                    assert thing['iscrowd'] == (2 * w * h < (x2 - x1) * (y2 - y1))
                    crowds.append(thing['iscrowd'])
    # Every pixel is in one part, left of column 105 or right of it.
    assert seen[0, :, :105].all() and seen[1, :, 105:].all() and not (seen[0] & seen[1]).any()
    assert 0 in crowds and 1 in crowds


def test_one_class_and_no_validation(photo, tmp_path):
    done = convert(photo[0], '--out', tmp_path / 'out', '--one-class', 'pet')
    assert done.returncode == 0, done.stderr
    split = read('boxes', tmp_path / 'out/train')
    assert split.counts == dict(pet=3) and set(split.sizes.values()) == {(150, 100)}
    assert not (tmp_path / 'out/val').exists()


def test_what_is_refused(photo, tmp_path):
    (tmp_path / 'lost.xml').write_text('<annotation><filename>no.png</filename></annotation>')
    for args, words in (([tmp_path / 'lost.xml', '--out', tmp_path / 'x'], 'no image no.png'),
                        ([photo[0], '--out', tmp_path], 'exists: give a new folder'),
                        ([photo[0], '--out', tmp_path / 'x', '--val', 1], 'less than 1')):
        done = convert(*args)
        assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
        assert not (tmp_path / 'x').exists()

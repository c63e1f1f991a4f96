"""tools/dataset_converters/to_coco.py and tile_coco.py, and training on what they write."""
import json

import pytest

from .. import tiny_data
from ..torture.training import Run
from .conftest import ROOT

CONVERTERS = ROOT / 'tools/dataset_converters'


def run(folder, script, *args):
    process = Run(folder, *args, script=script)
    return process.wait(300), process.text()


@pytest.mark.parametrize('kind, task', [
    ('labelme', 'masks'), pytest.param('voc', 'boxes', marks=pytest.mark.slow),
    pytest.param('yolo', 'boxes', marks=pytest.mark.slow)])
def test_photographs_are_found_from_conversion_to_pictures(kind, task, tmp_path):
    photos = getattr(tiny_data, f'write_{kind}')(tmp_path / 'far/photos')
    val = ['--val', 0.25] if kind == 'labelme' else []
    script = CONVERTERS / 'to_coco.py'
    code, text = run(tmp_path, script, kind, 'far/photos', '--out', 'coco', *val)
    assert code == 0 and 'coco/val.json: 1 images, 2 objects, 0 crowds' in text, text
    assert not list((tmp_path / 'coco').glob('*.partial'))
    (tmp_path / 'work').mkdir()
    for script, args, words in (
            ('own_data.py', ['--task', task, '--train', '../coco/train.json', '--val',
                             '../coco/val.json', '--out', 'pets.py', '--backbone', 'rest_lite',
                             '--light', '--iters', 2, '--batch-size', 1], 'Train it'),
            ('train.py', ['pets.py'], 'Saving checkpoint at 2 iterations'),
            ('test.py', ['pets.py', 'work_dirs/pets/iter_2.pth'], 'coco/bbox_mAP'),
            ('infer.py', ['pets.py', 'work_dirs/pets/iter_2.pth',
                          next(path.parent for path in sorted(photos.rglob('*.[jp][pn]g'))),
                          '--out-dir', 'found'], '')):
        code, text = run(tmp_path / 'work', ROOT / 'tools' / script, *args)
        assert code == 0 and words in text, text[-3000:]
    assert list((tmp_path / 'work/found/pictures').iterdir())


def test_tiles_by_the_script(tmp_path):
    """Of 4 photographs, 3 x 2 tiles each: x from 0, 24, 48, y from 0, 16. In both rows, a
    third of the cat (x from 8 to 32) is in the second tile; all other pieces are over half."""
    file = tiny_data.write_coco(tmp_path / 'pets') / 'labels.json'
    script = CONVERTERS / 'tile_coco.py'
    code, text = run(tmp_path, script, file, '--tile', 48, '--overlap', 0.2, '--out', 'tiles')
    assert code == 0, text
    assert text.endswith('tiles/labels.json: 24 images, 24 objects, 8 crowds\n')
    code, text = run(tmp_path, ROOT / 'tools/own_data.py', '--task', 'masks',
                     '--train', 'tiles', '--val', 'tiles/labels.json')
    assert code == 0 and 'E ' not in text, text
    assert len(json.loads((tmp_path / 'tiles/labels.json').read_text())['images']) == 24


@pytest.mark.parametrize('script, args, words', [
    ('to_coco.py', ['voc', 'no', '--out', 'out'], 'no: no such file or folder'),
    ('to_coco.py', ['yolo', '.', '--out', 'out'], '. has no data.yaml, classes.txt and no obj'),
    ('to_coco.py', ['voc', '.', '--out', 'out'], 'no photograph of voc in .'),
    ('tile_coco.py', ['no', '--tile', '9', '--out', 'out'], "No such file or directory: 'no'"),
    ('tile_coco.py', ['no', '--tile', '0', '--out', 'out'], '--tile=0 must be 1 or more')])
def test_mistakes_are_said_in_one_sentence(script, args, words, tmp_path):
    code, text = run(tmp_path, CONVERTERS / script, *args)
    assert code == 1 and words in text.strip().splitlines()[-1] and 'Traceback' not in text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('out')]

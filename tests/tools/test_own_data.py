"""tools/own_data.py, the converters before it, and training on what they write."""
import pytest

from .. import tiny_data
from .conftest import run
from .test_train_and_test import mim

PACKAGES = dict(boxes='mmdet', masks='mmdet', classes='mmpretrain', segments='mmseg')
QUICK = [('boxes', 'stock'), ('segments', 'ours')]


@pytest.mark.parametrize('task, script', QUICK + [
    pytest.param(task, script, marks=pytest.mark.slow) for task in tiny_data.WRITE
    for script in ('stock', 'ours', 'mim') if (task, script) not in QUICK])
def test_a_written_config_trains_from_another_folder(task, script, tmp_path):
    for name, seed in (('train', 0), ('val', 100)):
        tiny_data.WRITE[task](tmp_path / name, seed)
    light = ['--light'] if PACKAGES[task] == 'mmdet' else []
    text = run('own_data.py', '--task', task, '--train', 'train', '--val', 'val', '--out',
               'configs/pets.py', '--backbone', 'rest_lite', '--iters', 2, '--batch-size', 2,
               *light, cwd=tmp_path)
    assert 'the training: 2 iterations' in text and 'Train it' in text
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    command = [tmp_path / 'configs/pets.py', '--work-dir', 'out']
    if script == 'mim':
        mim('train', 'mmrest', *command, cwd=elsewhere)
    else:
        run('train.py', *command, cwd=elsewhere,
            package=PACKAGES[task] if script == 'stock' else None)
    assert (elsewhere / 'out/iter_2.pth').exists()


@pytest.mark.parametrize('kind, task', [
    ('labelme', 'masks'), pytest.param('voc', 'boxes', marks=pytest.mark.slow),
    pytest.param('yolo', 'boxes', marks=pytest.mark.slow)])
def test_photographs_are_found_from_conversion_to_pictures(kind, task, tmp_path):
    photos = getattr(tiny_data, f'write_{kind}')(tmp_path / 'far/photos')
    val = ['--val', 0.25] if kind == 'labelme' else []
    text = run('dataset_converters/to_coco.py', kind, 'far/photos', '--out', 'coco', *val,
               cwd=tmp_path)
    assert 'coco/val.json: 1 images, 2 objects, 0 crowds' in text
    (tmp_path / 'work').mkdir()
    folder = next(path.parent for path in sorted(photos.rglob('*.[jp][pn]g')))
    for script, args, words in (
            ('own_data.py', ['--task', task, '--train', '../coco/train.json', '--val',
                             '../coco/val.json', '--out', 'pets.py', '--backbone', 'rest_lite',
                             '--light', '--iters', 2, '--batch-size', 1], 'Train it'),
            ('train.py', ['pets.py'], 'Saving checkpoint at 2 iterations'),
            ('test.py', ['pets.py', 'work_dirs/pets/iter_2.pth'], 'coco/bbox_mAP'),
            ('infer.py', ['pets.py', 'work_dirs/pets/iter_2.pth', folder], '')):
        assert words in run(script, *args, cwd=tmp_path / 'work')
    assert list((tmp_path / 'work/outputs/pictures').iterdir())


def test_tiles_by_the_script(tmp_path):
    """Of 4 photographs, 3 x 2 tiles each: x from 0, 24, 48, y from 0, 16. In both rows, a
    third of the cat (x from 8 to 32) is in the second tile; all other pieces are over half."""
    file = tiny_data.write_coco(tmp_path / 'pets') / 'labels.json'
    text = run('dataset_converters/tile_coco.py', file, '--tile', 48, '--overlap', 0.2,
               '--out', 'tiles', cwd=tmp_path)
    assert text.endswith('tiles/labels.json: 24 images, 24 objects, 8 crowds\n')
    text = run('own_data.py', '--task', 'masks', '--train', 'tiles', '--val',
               'tiles/labels.json', cwd=tmp_path)
    assert 'an epoch: 24 images' in text and 'E ' not in text and 'Train it' not in text


OWN_DATA = 'own_data.py --task boxes --out out.py --val good --train'
TO_COCO, TILE_COCO = (f'dataset_converters/{name}_coco.py --out out' for name in ('to', 'tile'))


@pytest.mark.parametrize('command, words', [
    (f'{OWN_DATA} bad', 'E bad/labels.json: 1.png: not found in bad/images\n'
     '1 errors in the data: no config is written'),
    (f'{OWN_DATA} good --model mask-rcnn', "model='mask-rcnn' for task='boxes' must be one of"),
    (f'{OWN_DATA} good --load-from no.pth', "checkpoint='no.pth': no such file"),
    (f'{TO_COCO} voc no', 'no: no such file or folder'),
    (f'{TO_COCO} voc .', 'no photograph of voc in .'),
    (f'{TILE_COCO} no --tile 9', "No such file or directory: 'no'")])
def test_mistakes_are_said_in_one_sentence(command, words, tmp_path):
    for name, seed in (('good', 0), ('bad', 100)):
        tiny_data.write_coco(tmp_path / name, seed)
    (tmp_path / 'bad/images/1.png').unlink()
    script, *args = command.split()
    text = run(script, *args, cwd=tmp_path, code=1)
    assert words in text and 'Traceback' not in text
    assert not list(tmp_path.glob('out*'))

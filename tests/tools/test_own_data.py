"""tools/own_data.py, and training on what it writes, from other folders."""
from importlib.util import find_spec
from pathlib import Path

import pytest

from .. import tiny_data
from ..torture.training import Run
from .conftest import ROOT
from .test_train_and_test import mim

TOOL = ROOT / 'tools/own_data.py'
PACKAGES = dict(boxes='mmdet', masks='mmdet', classes='mmpretrain', segments='mmseg')


def own_data(folder, task, *options):
    """Write data and run the tool on it."""
    for name, seed in (('train', 0), ('val', 100)):
        if not (folder / name).exists():
            tiny_data.WRITE[task](folder / name, seed)
    process = Run(folder, '--task', task, '--train', 'train', '--val', 'val', *options,
                  script=TOOL)
    return process.wait(), process.text()


QUICK = [('boxes', 'stock'), ('segments', 'ours')]


@pytest.mark.parametrize('task, script', QUICK + [
    pytest.param(task, script, marks=pytest.mark.slow) for task in tiny_data.WRITE
    for script in ('stock', 'ours', 'mim') if (task, script) not in QUICK])
def test_a_written_config_trains_from_another_folder(task, script, tmp_path):
    light = ['--light'] if PACKAGES[task] == 'mmdet' else []
    code, text = own_data(tmp_path, task, '--out', 'configs/pets.py', '--backbone', 'rest_lite',
                          '--iters', 2, '--batch-size', 2, *light)
    assert code == 0 and 'the training: 2 iterations' in text, text
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    config = tmp_path / 'configs/pets.py'
    if script == 'mim':
        mim('train', 'mmrest', config, '--work-dir', 'out', cwd=elsewhere)
    else:
        tools = ROOT / 'tools' if script == 'ours' else Path(
            find_spec(PACKAGES[task]).origin).parent / '.mim/tools'
        process = Run(elsewhere, config, '--work-dir', 'out', script=tools / 'train.py')
        assert process.wait(300) == 0, process.text()[-3000:]
    assert (elsewhere / 'out/iter_2.pth').exists()


def test_without_out_it_checks(tmp_path):
    code, text = own_data(tmp_path, 'boxes')
    assert code == 0 and 'an epoch: 4 images' in text and 'Train it' not in text
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {'train', 'val'}


def test_errors_end_it_and_nothing_is_written(tmp_path):
    tiny_data.write_coco(tmp_path / 'train')
    (tmp_path / 'train/images/1.png').unlink()
    code, text = own_data(tmp_path, 'boxes', '--out', 'pets.py')
    assert code == 1 and not (tmp_path / 'pets.py').exists()
    *_, finding, last = text.strip().splitlines()
    assert finding == 'E train/labels.json: 1.png: not found in train/images'
    assert last == '1 errors in the data: no config is written'


def test_mistakes_are_said_in_one_sentence(tmp_path):
    for options, words in (
            (['--model', 'mask-rcnn'], "model='mask-rcnn' for task='boxes' must be one of f"),
            (['--load-from', 'no.pth'], "checkpoint='no.pth': no such file")):
        code, text = own_data(tmp_path, 'boxes', '--out', 'pets.py', *options)
        assert code == 1 and words in text.strip().splitlines()[-1], text

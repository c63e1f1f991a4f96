"""What importing mmrest needs and says."""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mmrest

from .tiny_data import write_classes

ROOT = Path(__file__).parents[1]


def python(code, cwd=None):
    return subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize('before, words', [
    ("import sys; sys.modules['mmengine'] = None", 'pip install onedl-mmengine'),
    ("import torch; torch.__version__ = type(torch.__version__)('2.6.1+cu126')",
     'mmrest needs torch 2.7 or newer, and this is torch 2.6.1+cu126'),
])
def test_what_it_needs_is_said_in_a_sentence(before, words):
    done = python(f'{before}; import mmrest')
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith('ImportError') and words in last


def copy_checkout(target):
    return shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(
        '.*venv*', '.git', '.setup', '.mim', 'data', 'work_dirs', 'build', '*.egg-info'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel that was built from the sdist of a copy of the checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    copy_checkout(folder / 'copy')
    build = 'from setuptools import build_meta; print(build_meta.build_{}({!r}))'
    sdist = subprocess.run([sys.executable, '-c', build.format('sdist', str(folder))],
                           cwd=folder / 'copy', capture_output=True, text=True, check=True)
    with tarfile.open(folder / sdist.stdout.splitlines()[-1]) as archive:
        archive.extractall(folder / 'unpacked')
    source, = (folder / 'unpacked').iterdir()
    wheel = subprocess.run([sys.executable, '-c', build.format('wheel', str(folder))],
                           cwd=source, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(folder / wheel.stdout.splitlines()[-1])


def test_a_wheel_from_the_sdist_has_what_mim_looks_for(wheel):
    names = wheel.namelist()
    got = {name.split('.mim/')[1] for name in names if '.mim/' in name}
    want = {str(path.relative_to(ROOT)) for folder in ('configs', 'tools')
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}
    assert got == want | {'model-index.yml'}
    assert {'mmrest/models/rest.py', 'mmrest/py.typed', 'mmrest/deploy/web/page/index.html',
            'mmrest/deploy/web/page/worker.js'} <= set(names)
    assert not any(word in name for name in names for word in ('tests', 'scripts', 'demo'))


def test_mim_runs_an_installed_config_by_name(wheel, tmp_path):
    wheel.extractall(tmp_path / 'site')  # as pip does; found before the editable install
    for split in ('train', 'val'):
        write_classes(tmp_path / 'data' / split, names='0123456789', shape=(48, 48))
    options = ['--work-dir', 'out', '--cfg-options', 'train_cfg.max_iters=2'] + [
        f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False', 'dataset.data_root=data')
    ]

    def mim(*args):
        done = subprocess.run(
            [Path(sys.executable).with_name('mim'), *args, *options], cwd=tmp_path, text=True,
            capture_output=True, env=dict(os.environ, PYTHONPATH=str(tmp_path / 'site')))
        assert done.returncode == 0, done.stderr
        assert f"codebase mmrest, will use {tmp_path / 'site'}" in done.stdout
        return done.stdout

    log = mim('train', 'mmrest', 'rest_lite_digits.py')
    assert 'Training finished successfully' in log
    log = mim('test', 'mmrest', 'rest_lite_digits.py', '-C', 'out/iter_2.pth')
    assert 'Testing finished successfully' in log
    logs = (tmp_path / 'out').glob('*/*.json')
    assert any('accuracy/top1' in path.read_text() for path in logs)


EDITABLE = '''
import pathlib, sys
from setuptools import build_meta

def refuse(*args):
    raise OSError(22, 'A required privilege is not held by the client', None, 1314)

if sys.argv[1] == 'refused':
    pathlib.Path.symlink_to = refuse
build_meta.build_editable('.')
'''


def test_an_editable_install_copies_where_links_are_refused(tmp_path):
    """As Windows does. The next install replaces what this one left."""
    mim = copy_checkout(tmp_path / 'copy') / 'mmrest/.mim'
    for links in ('allowed', 'refused', 'allowed', 'refused'):
        (tmp_path / 'copy/configs' / links).touch()
        done = subprocess.run([sys.executable, '-c', EDITABLE, links], cwd=tmp_path / 'copy',
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('Repeat the installation') == (links == 'refused')
        assert {path.name for path in mim.iterdir()} == {'configs', 'tools', 'model-index.yml'}
        assert all(path.is_symlink() == (links == 'allowed') for path in mim.iterdir())
        assert (mim / 'configs' / links).exists() and (mim / 'model-index.yml').stat().st_size
    (tmp_path / 'copy/configs/new').touch()
    assert not (mim / 'configs/new').exists()


def test_the_workflow_installs_as_the_readme_says():
    ci = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    steps = [step.get('run') for step in ci['jobs']['install']['steps']]
    readme = (ROOT / 'README.md').read_text()
    line, = re.findall('^pip install torch torchvision .*', readme, re.MULTILINE)
    assert line in steps and 'python -m mmrest.collect_env' in steps


def test_the_version_is_in_the_change_log_and_the_citation():
    assert f'\n## {mmrest.__version__}\n' in (ROOT / 'CHANGELOG.md').read_text()
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mmrest.__version__
    people = citation['preferred-citation']['authors']
    assert [person['family-names'] for person in people] == ['Zhang', 'Yang']

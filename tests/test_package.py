"""What importing mmrest needs and says."""
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import mmrest

ROOT = Path(__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_without_mmengine_it_says_what_to_install():
    done = python("import sys; sys.modules['mmengine'] = None; import mmrest")
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError') and 'pip install onedl-mmengine' in last


def test_the_backbone_needs_torch_and_mmengine_only():
    blocked = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'torchvision', 'sklearn')
    code = f'import sys; sys.modules.update(dict.fromkeys({blocked})); import torch, mmrest;'
    done = python(code + "print(len(mmrest.ResT('lite')(torch.zeros(2, 3, 32, 32))))")
    assert done.stdout.strip() == '4', done.stderr


def test_public_names():
    assert set(mmrest.__all__) == {'EMSA', 'ResT', '__version__'}
    assert all(hasattr(mmrest, name) for name in mmrest.__all__)


def test_a_wheel_from_the_sdist_has_what_mim_looks_for(tmp_path):
    shutil.copytree(ROOT, tmp_path / 'copy', symlinks=True, ignore=shutil.ignore_patterns(
        '.*venv*', '.git', '.setup', '.mim', 'data', 'work_dirs', 'build', '*.egg-info'))
    build = 'from setuptools import build_meta; print(build_meta.build_{}({!r}))'
    sdist = subprocess.run([sys.executable, '-c', build.format('sdist', str(tmp_path))],
                           cwd=tmp_path / 'copy', capture_output=True, text=True, check=True)
    with tarfile.open(tmp_path / sdist.stdout.splitlines()[-1]) as archive:
        archive.extractall(tmp_path / 'unpacked')
    source, = (tmp_path / 'unpacked').iterdir()
    wheel = subprocess.run([sys.executable, '-c', build.format('wheel', str(tmp_path))],
                           cwd=source, capture_output=True, text=True, check=True)
    names = zipfile.ZipFile(tmp_path / wheel.stdout.splitlines()[-1]).namelist()
    got = {name.split('.mim/')[1] for name in names if '.mim/' in name}
    want = {str(path.relative_to(ROOT)) for folder in ('configs', 'tools')
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}
    assert got == want | {'model-index.yml'}
    assert 'mmrest/models/rest.py' in names and not any('tests' in name for name in names)


def test_the_editable_install_leads_to_the_checkout():
    mim = Path(mmrest.__file__).parent / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).resolve() == ROOT / name

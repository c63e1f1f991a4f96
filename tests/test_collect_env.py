"""What `python -m mmrest.collect_env` says."""
import runpy
import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

import mmcv
import pytest
import torch

import mmrest
from mmrest import collect_env


def test_it_prints_versions_and_the_backend(monkeypatch, capsys):
    monkeypatch.setenv('MMREST_ATTENTION_BACKEND', 'chunked')
    monkeypatch.delitem(sys.modules, 'mmrest.collect_env')  # or runpy warns
    runpy.run_module('mmrest.collect_env', run_name='__main__')
    out = capsys.readouterr().out
    lines = dict(line.split(': ', 1) for line in out.splitlines() if ': ' in line)
    assert lines['mmrest'] == mmrest.__version__ and lines['PyTorch'] == torch.__version__
    name, number = lines['MMDetection'].split()
    assert name in ('onedl-mmdetection', 'mmdet') and version(name) == number
    assert lines['Backend'] == "Attention runs on 'chunked', because it was asked for."
    monkeypatch.setattr(collect_env, 'packages_distributions', dict)
    assert collect_env.collect_env()['MMDetection'] == 'not installed'
    monkeypatch.setenv('MMREST_ATTENTION_BACKEND', 'cudnn')
    runpy.run_module('mmrest.collect_env', run_name='__main__')
    assert "\nBackend: none: backend='cudnn' must be 'auto' or" in capsys.readouterr().out


def extension(file):
    module = ModuleType('mmcv._ext')
    module.__file__ = file
    return module


@pytest.mark.parametrize('module, words', [
    (extension('mmcv/_ext.cpython-311-x86_64-linux-gnu.so'), 'compiled'),
    (extension('mmcv/_ext.py'), "torchvision's, by mmcv_ops (0.1.0)"),
    (None, 'none, this is mmcv-lite'),  # None makes the import fail
])
def test_operators_of_mmcv(module, words, monkeypatch):
    monkeypatch.setattr(collect_env, 'version', {'mmcv-torchvision-ops': '0.1.0'}.get)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', module)
    assert collect_env.describe_operators() == words


def test_operators_that_do_not_fit(monkeypatch, tmp_path):
    (tmp_path / '_ext.so').write_bytes(b'no library')
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path)])
    found = collect_env.describe_operators()
    assert found.startswith(f'they cannot be loaded ({tmp_path}/_ext.so: ')
    monkeypatch.setattr(collect_env, 'import_module', lambda name: import_module('no_mmcv'))
    assert collect_env.describe_operators() == "none (No module named 'no_mmcv')"

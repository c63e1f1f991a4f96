"""The set-up script against a stand-in for uv, and the lists that it installs."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import setuptools  # noqa: F401  has distutils

import mmrest

ROOT = Path(__file__).parents[1]
STAMP = '.venv/.setup-complete'

# Records every call. As uv it makes environments with itself as their Python; as Python it
# makes one with itself as uv.
STUB = """\
#!/bin/bash
echo "${{0##*/}} $* | $MAX_JOBS | $UV_DEFAULT_INDEX" >>'{calls}'
{extra}
case "$*" in
  'venv '*)
    mkdir -p "${{!#}}/bin"
    cp '{stub}' "${{!#}}/bin/python"
    echo 'version_info = {version}' >"${{!#}}/pyvenv.cfg"
    ;;
  '-m venv '*)
    mkdir -p "${{!#}}/bin"
    cp '{stub}' "${{!#}}/bin/python"
    cp '{stub}' "${{!#}}/bin/uv"
    ;;
  *'config list') printf "global.index-url='https://mirror/simple'\\n" ;;
esac
exit 0
"""
TOOLS = ['bash', 'cat', 'cksum', 'cp', 'dirname', 'flock', 'getconf', 'grep', 'head', 'make',
         'mkdir', 'mv', 'rm', 'sed', 'sleep', 'tail']


class Project:
    """A copy of the files that the set-up reads, and a PATH with nothing but stubs."""

    def __init__(self, folder):
        self.root, self.bin, self.log = folder / 'a project', folder / 'bin', folder / 'log'
        for name in ('requirements', 'scripts', 'mmcv_ops'):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ('Makefile', 'setup.py'):
            shutil.copy(ROOT / name, self.root)
        self.log.touch()
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def stub(self, name='uv', version='3.11.7', extra=''):
        path = self.bin / name
        path.write_text(STUB.format(calls=self.log, stub=path, version=version, extra=extra))
        path.chmod(0o755)

    def start(self, **variables) -> subprocess.Popen:
        return subprocess.Popen(
            ['make', 'setup'], cwd=self.root, env=dict(PATH=str(self.bin), **variables),
            stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)

    def succeed(self, **variables):
        """The calls that a set-up makes."""
        self.log.write_text('')
        process = self.start(**variables)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and (self.root / STAMP).exists(), err
        return self.log.read_text()

    def refuse(self, *words, **variables):
        process = self.start(**variables)
        _, err = process.communicate(timeout=60)
        assert process.returncode and all(word in err for word in words), err
        assert not (self.root / STAMP).exists()


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.stub()
    return project


@pytest.fixture
def ready(project):
    project.succeed()
    return project


def test_steps(project):
    calls = project.succeed()
    assert 'uv venv --python >=3.11,<3.13 .venv' in calls and 'pip wheel' not in calls
    assert re.search('--no-deps .* -r requirements/onedl.txt ./mmcv_ops', calls)
    assert calls.index('./mmcv_ops') < calls.index('-e .') < calls.index('import cv2')


def test_a_second_call_does_nothing(ready):
    (ready.bin / 'uv').unlink()
    process = ready.start()
    assert process.communicate(timeout=60) == ('', '') and process.returncode == 0


@pytest.mark.parametrize('name', ['requirements/onedl.txt', 'setup.py', 'scripts/setup_env.sh',
                                  'mmcv_ops/mmcv/_ext.py'])
def test_a_changed_input_or_folder_redoes_it(ready, name):
    with (ready.root / name).open('a') as file:
        file.write('# changed\n')
    (ready.root / '.venv/left-over').touch()
    assert 'uv venv' in ready.succeed()
    assert not (ready.root / '.venv/left-over').exists()
    ready.root = ready.root.rename(ready.root.parent / 'elsewhere')
    assert 'uv venv' in ready.succeed()


def test_a_named_python(ready):
    assert 'uv venv --python python3.12 .venv' in ready.succeed(PYTHON='python3.12')
    assert ready.succeed(PYTHON='python3.12') == ready.succeed() == ''
    ready.stub(version='3.13.0')
    ready.refuse('PYTHON=other must be a Python >=3.11,<3.13', PYTHON='other')


def test_compiled_mmcv(ready):
    calls = ready.succeed(MMCV='compiled', MAX_JOBS='3')
    assert './mmcv_ops' not in calls
    assert 'mmcv' not in (ready.root / '.setup/pins.txt').read_text()
    assert re.search(r'pip wheel .*--no-build-isolation .* onedl-mmcv==2.3.6 \| 3 \|', calls)
    assert '--find-links .setup/mmcv-torch==2.10.0 onedl-mmcv==2.3.6' in calls
    assert ready.succeed(MMCV='compiled') == ''
    assert './mmcv_ops' in ready.succeed()
    assert ' mmcv==2.1.0 |' in ready.succeed(MMCV='compiled', STACK='openmmlab')


def test_openmmlab_is_another_environment(ready):
    calls = ready.succeed(STACK='openmmlab')
    assert 'uv venv --python >=3.10,<3.12 .venv-openmmlab' in calls
    assert '-r requirements/openmmlab.txt' in calls and './mmcv_ops' in calls
    assert ready.succeed() == ready.succeed(STACK='openmmlab') == ''


def test_refusals(project):
    (project.root / '.venv').mkdir()
    project.refuse('There is a .venv here', 'move it away')
    project.refuse("STACK=other must be 'onedl' or 'openmmlab'", STACK='other')
    project.refuse("MMCV=lite must be 'torchvision' or 'compiled'", MMCV='lite')
    assert project.log.read_text() == '' and not (project.root / '.setup').exists()


def test_without_uv_it_installs_its_own(project):
    (project.bin / 'uv').unlink()
    project.refuse('Needed: uv, or a python3 with venv')
    project.stub('python3')
    calls = project.succeed()
    assert 'python -m pip install uv==' in calls
    assert 'uv venv --python >=3.11,<3.13 .venv |  | https://mirror/simple' in calls
    assert 'https://mine' in project.succeed(PYTHON='other', UV_DEFAULT_INDEX='https://mine')


def start_slowly(project, seconds):
    """A set-up that installs its packages now."""
    project.stub(extra=f'[[ $* != *onedl.txt* ]] || sleep {seconds}')
    process = project.start()
    end = time.monotonic() + 20
    while 'onedl.txt' not in project.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def test_failure(project):
    project.stub(extra='[[ $* != *onedl.txt* ]] || { echo no room; exit 1; }')
    project.refuse('no room', 'the same command starts it again')


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGINT])
def test_interruption(project, sent):
    process = start_slowly(project, 60)
    os.killpg(process.pid, sent)
    assert process.wait(20) and not (project.root / STAMP).exists()
    project.stub()
    project.succeed()


def test_two_calls_at_once(project):
    first, second = start_slowly(project, 0.5), project.start()
    out, _ = second.communicate(timeout=20)
    assert first.wait(20) == second.returncode == 0
    assert 'waiting' in out and 'Setting up' not in out
    assert project.log.read_text().count('uv venv') == 1


def read_pins(file, *lines):
    """Package -> version or None, from requirements such as ``name==1.0 ; marker``."""
    lines += tuple((ROOT / 'requirements' / file).read_text().splitlines())
    found = (re.match(r'([\w.-]+)(?:==([\w.]+))?', line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


@pytest.mark.parametrize('stack, extras', [
    ('onedl', 'onedl demo tools docs test'), ('openmmlab', 'openmmlab demo')])
def test_what_is_asked_for_is_pinned(stack, extras):
    from distutils.core import run_setup
    setup = run_setup(str(ROOT / 'setup.py'), stop_after='init')
    assert setup.get_version() == mmrest.__version__
    lines = (line for extra in extras.split() for line in setup.extras_require[extra])
    wanted, pins = read_pins(f'{stack}.in', *lines), read_pins(f'{stack}.txt')
    assert None not in pins.values()
    assert all(pins[name] == (version or pins[name]) for name, version in wanted.items())


def test_the_environment_lacks_only_what_is_excluded():
    check = subprocess.run([sys.executable, '-m', 'pip', 'check'], text=True, stdout=PIPE)
    lacks = re.sub(r'No broken .*|.* requires (\S+), which is not .*', r'\1', check.stdout)
    assert set(lacks.split()) <= read_pins('excluded.txt').keys()

"""The set-up script against a stand-in for uv, and the lists that it installs."""
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
STAMP = '.venv/.setup-complete'

# Records every call. As uv it makes environments with itself as their Python; as Python it
# makes one with itself as uv.
STUB = """\
#!/bin/bash
echo "${{0##*/}} $* | $MAX_JOBS | $UV_DEFAULT_INDEX" >>'{calls}'
{extra}
case "$*" in
  'venv '* | '-m venv '*)
    mkdir -p "${{!#}}/bin"
    cp '{stub}' "${{!#}}/bin/python"
    cp '{stub}' "${{!#}}/bin/uv"
    ;;
  *'config list') printf "global.index-url='https://mirror/simple'\\n" ;;
  '-c '*) echo 2.10.0 ;;
esac
exit 0
"""
TOOLS = ['bash', 'cat', 'cksum', 'cp', 'dirname', 'getconf', 'grep', 'head', 'make', 'mkdir',
         'sed', 'tail']


class Project:
    """A copy of the files that the set-up reads, and a PATH with nothing but stubs."""

    def __init__(self, folder):
        self.root, self.bin, self.calls = folder / 'a project', folder / 'bin', folder / 'calls'
        for name in ('requirements', 'scripts', 'mmcv_ops'):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ('Makefile', 'pyproject.toml', 'setup.py'):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.stub()

    def stub(self, name='uv', extra=''):
        path = self.bin / name
        path.write_text(STUB.format(calls=self.calls, stub=path, extra=extra))
        path.chmod(0o755)

    def set_up(self, **variables):
        self.calls.write_text('')
        return subprocess.run(['make', 'setup'], cwd=self.root, capture_output=True, text=True,
                              env=dict(PATH=str(self.bin), **variables), timeout=60)

    def succeed(self, **variables):
        """The calls that a set-up makes."""
        done = self.set_up(**variables)
        assert done.returncode == 0 and (self.root / STAMP).exists(), done.stderr
        # one line, or none where nothing was to do
        assert re.fullmatch(r'(Setting up .* done in \d+ s\.\n)?', done.stdout)
        return self.calls.read_text()

    def refuse(self, *words, **variables):
        done = self.set_up(**variables)
        assert done.returncode and all(word in done.stderr for word in words), done.stderr
        assert not (self.root / STAMP).exists()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def ready(project):
    project.succeed()
    return project


def test_steps(project):
    calls = project.succeed()
    assert 'uv venv --clear --python >=3.11,<3.13 .venv' in calls and 'pip wheel' not in calls
    assert re.search('--no-deps .* -r requirements/onedl.txt ./mmcv_ops -e .', calls)
    assert calls.index('-e .') < calls.index('import cv2')


@pytest.mark.parametrize('name', ['requirements/onedl.txt', 'pyproject.toml', 'setup.py',
                                  'scripts/setup_env.sh', 'mmcv_ops/mmcv/_ext.py'])
def test_only_a_changed_input_or_folder_redoes_it(ready, name):
    assert ready.succeed() == ''
    with (ready.root / name).open('a') as file:
        file.write('# changed\n')
    assert 'uv venv' in ready.succeed()
    ready.root = ready.root.rename(ready.root.parent / 'elsewhere')
    assert 'uv venv' in ready.succeed()


def test_a_named_python(ready):
    assert 'uv venv --clear --python python3.12 .venv' in ready.succeed(PYTHON='python3.12')
    assert ready.succeed(PYTHON='python3.12') == ready.succeed() == ''


def test_compiled_mmcv(ready):
    calls = ready.succeed(MMCV='compiled', MAX_JOBS='3')
    assert re.search(r'pip uninstall .* mmcv-torchvision-ops', calls)
    assert re.search(r'pip wheel .*--no-build-isolation .* onedl-mmcv==2.3.6 \| 3 \|', calls)
    assert '--find-links .setup/mmcv-2.10.0 onedl-mmcv==2.3.6' in calls
    assert ready.succeed(MMCV='compiled') == ''
    assert 'pip wheel' not in ready.succeed()


@pytest.mark.parametrize('stack, pins', [('openmmlab', 'openmmlab'), ('floor', 'onedl')])
def test_other_stacks_are_other_environments(ready, stack, pins):
    calls = ready.succeed(STACK=stack)
    assert f'--python >=3.11,<3.13 .venv-{stack}' in calls
    assert f'-r requirements/{pins}.txt' in calls
    assert ready.succeed() == ready.succeed(STACK=stack) == ''
    # what pyproject.toml asks for is what the floor tests
    floor, = (line.removeprefix('torch>=') for line in PROJECT['dependencies'])
    assert (f' torch=={floor}.' in calls) == (stack == 'floor')


def test_refusals(project):
    (project.root / '.venv').mkdir()
    project.refuse('There is a .venv here', 'move it away')
    project.refuse("STACK=other must be 'onedl'", STACK='other')
    project.refuse("MMCV=lite must be 'torchvision' or 'compiled'", MMCV='lite')
    assert project.calls.read_text() == '' and not (project.root / '.setup').exists()


def test_without_uv_it_installs_its_own(project):
    (project.bin / 'uv').unlink()
    project.refuse('Needed: uv, or a python3 with venv')
    project.stub('python3')
    calls = project.succeed()
    assert 'python -m pip install uv==' in calls
    assert 'uv venv --clear --python >=3.11,<3.13 .venv |  | https://mirror/simple' in calls
    assert 'https://mine' in project.succeed(PYTHON='other', UV_DEFAULT_INDEX='https://mine')


def test_failure(project):
    project.stub(extra='[[ $* != *onedl.txt* ]] || { echo no room; exit 1; }')
    project.refuse('no room', 'the same command starts it again')
    project.stub()
    project.succeed()


def read_pins(file, *lines):
    """Package -> version or None, from requirements such as ``name==1.0 ; marker``."""
    lines += tuple((ROOT / 'requirements' / file).read_text().splitlines())
    found = (re.match(r'([\w.-]+)(?:==([\w.]+))?', line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


@pytest.mark.parametrize('stack, extras', [
    ('onedl', 'onedl demo tools tiles docs test'), ('openmmlab', 'openmmlab demo')])
def test_what_is_asked_for_is_pinned(stack, extras):
    from packaging.requirements import Requirement
    optional = PROJECT['optional-dependencies']
    lines = [line for extra in extras.split() for line in optional[extra]]
    wanted, pins = read_pins(f'{stack}.in', *lines), read_pins(f'{stack}.txt')
    assert None not in pins.values()
    assert all(pins[name] == (version or pins[name]) for name, version in wanted.items())
    asked = map(Requirement, lines + PROJECT['dependencies'])
    assert all(pins[one.name] in one.specifier for one in asked)


def test_the_environment_lacks_only_what_is_excluded():
    check = subprocess.run([sys.executable, '-m', 'pip', 'check'], text=True,
                           stdout=subprocess.PIPE)
    lacks = re.sub(r'No broken .*|.* requires (\S+), which is not .*', r'\1', check.stdout)
    assert set(lacks.split()) <= read_pins('excluded.txt').keys()

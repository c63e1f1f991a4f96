"""The set-up script against stand-ins for Python and the compiler."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import setuptools  # noqa: F401  has distutils

ROOT = Path(__file__).parents[1]
STAMP = '.venv/.setup-complete'

# A Python that records every call, answers the script's question about itself,
# makes an environment out of itself, and hands out mmcv.
STUB_PYTHON = """\
#!/bin/bash
echo "$* | $MAX_JOBS | $CXXFLAGS | $PIP_FIND_LINKS" >>'{calls}'
{extra}
folder="$*"
folder=${{folder#* -[dw] }}
folder=${{folder%% *}}
case "$*" in
  *'import os, sysconfig'*) echo {answer} ;;
  '-m venv '*)
    venv=${{!#}}
    mkdir -p $venv/bin $venv/lib/python3/site-packages/torch/include
    cp '{path}' $venv/bin/python
    ;;
  *--no-binary*)
    mkdir -p "$folder/mmcv" && touch "$folder/mmcv/setup.py"
    tar -czf "$folder/mmcv.tar.gz" -C "$folder" mmcv
    ;;
  *'-m pip download'* | *'-m pip wheel'*)
    mkdir -p "$folder" && touch "$folder/mmcv.whl"
    ;;
esac
exit 0
"""
# fmt: off
TOOLS = [
    'awk', 'bash', 'cat', 'chmod', 'cksum', 'cp', 'date', 'dirname', 'find', 'flock',
    'getconf', 'grep', 'gzip', 'make', 'mkdir', 'mv', 'nproc', 'rm', 'sleep', 'tail',
    'tar', 'touch', 'uname',
]
# fmt: on


class Project:
    """A copy of the project's set-up files, and a PATH with nothing but stubs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'a project'
        self.bin = folder / 'bin'
        self.calls_file = folder / 'calls'
        for name in ('requirements', 'scripts/setup_env.sh', 'setup.py', 'Makefile'):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target)
            else:
                shutil.copy(ROOT / name, target)
        self.bin.mkdir()
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, tool
            (self.bin / tool).symlink_to(path)
        self.before = self.files()

    def files(self) -> set:
        return {p.relative_to(self.root) for p in self.root.rglob('*')}

    def write(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def add_python(
        self, version='3.11.7', missing='-', name='python3', extra=''
    ) -> None:
        path = self.bin / name
        answer = f'{version} {missing} {path}'
        text = STUB_PYTHON.format(
            calls=self.calls_file, path=path, answer=answer, extra=extra
        )
        self.write(name, text)

    def add_compiler(self, name='g++', status=0) -> None:
        self.write(name, f'#!/bin/bash\nexit {status}\n')

    def environment(self, **variables) -> dict:
        return {'PATH': str(self.bin), 'HOME': str(self.root.parent), **variables}

    def start(self, **variables) -> subprocess.Popen:
        return subprocess.Popen(
            ['make', 'setup'],
            cwd=self.root,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, **variables) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.root / 'scripts/setup_env.sh'],
            cwd='/',
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    @property
    def calls(self) -> str:
        return self.calls_file.read_text() if self.calls_file.exists() else ''

    def forget_calls(self) -> None:
        self.calls_file.unlink()


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def ready(project) -> Project:
    """A project whose set-up has gone through."""
    project.add_python()
    project.add_compiler()
    result = project.run()
    assert result.returncode == 0, result.stderr
    assert (project.root / STAMP).exists()
    return project


def wait_for(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def check_refusal(project, *words, **variables) -> None:
    result = project.run(**variables)
    assert result.returncode != 0
    assert result.stdout == ''
    assert result.stderr.count('\n') == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert project.files() == project.before


def test_no_python(project):
    project.add_compiler()
    check_refusal(project, 'Python 3.11 or 3.12', 'none was found', 'apt install')


@pytest.mark.parametrize('version', ['3.9.2', '3.13.0'])
def test_unfit_python(project, version):
    project.add_compiler()
    project.add_python(version, 'version')
    check_refusal(project, f'python3 is {version}', 'apt install python3.11')


def test_python_that_only_exists(project):
    project.add_compiler()
    project.write('python3', '#!/bin/bash\necho no such version >&2\nexit 127\n')
    check_refusal(project, 'none was found')
    project.add_python('3.12.4', name='python3.12')
    assert project.run().returncode == 0
    assert '3.12.4' in (project.root / STAMP).read_text()


def test_python_without_venv(project):
    project.add_compiler()
    project.add_python(missing='venv')
    check_refusal(project, 'ensurepip', 'apt install python3.11-venv')


def test_python_without_headers(project):
    project.add_compiler()
    project.add_python('3.12.1', 'header')
    check_refusal(project, 'Python.h', 'apt install python3.12-dev')


def test_named_python(project):
    project.add_compiler()
    project.add_python()
    project.add_python('3.10.1', 'version', name='other')
    check_refusal(project, 'other is 3.10.1', PYTHON='other')
    check_refusal(project, 'PYTHON=nothing does not run', PYTHON='nothing')


def test_no_compiler(project):
    project.add_python()
    check_refusal(project, 'C++17', 'none was found', 'apt install g++')


def test_old_compiler(project):
    project.add_python()
    project.add_compiler(status=1)
    check_refusal(project, '(g++) does not compile C++17', 'apt install g++')


def test_foreign_environment(project):
    project.add_python()
    project.add_compiler()
    (project.root / '.venv/bin').mkdir(parents=True)
    project.before = project.files()
    check_refusal(project, '.venv', 'move it away')


def test_this_python_and_compiler(project):
    """The questions that the stubs answer are put to the real ones too."""
    project.write('g++', f'#!/bin/bash\nexec {shutil.which("g++")} "$@"\n')
    text = (project.root / 'scripts/setup_env.sh').read_text()
    question = re.search(r"\"\$1\" -c '\n(.*?)\n'", text, re.S).group(1)
    this = '.'.join(map(str, sys.version_info[:2]))
    answer = subprocess.check_output([sys.executable, '-c', question, '3.9', this], text=True)
    version, missing, path = answer.split(maxsplit=2)
    assert version == '.'.join(map(str, sys.version_info[:3]))
    assert missing == '-'
    assert '.venv' not in path
    project.add_python()
    assert project.run().returncode == 0


def test_steps(project):
    project.add_python()
    project.add_compiler()
    result = project.run()
    assert result.returncode == 0, result.stderr
    steps = re.findall(r'^\[(\d)/6\]', result.stdout, re.M)
    assert steps == list('123456')
    calls = project.calls
    assert calls.index('requirements/torch.txt') < calls.index('mmcv==2.3.6')
    assert calls.index('import mmcv.ops') < calls.index('-e .')
    installed = (project.root / '.setup/setup.log').read_text()
    assert '-r requirements/build.txt' in installed


def test_openmmlab_is_another_environment(ready):
    ready.forget_calls()
    result = ready.run(STACK='openmmlab')
    assert result.returncode == 0, result.stderr
    assert '-m venv .venv-openmmlab' in ready.calls and '-m venv .venv |' not in ready.calls
    assert '-r requirements/openmmlab/torch.txt' in ready.calls
    assert ' mmcv==2.1.0 ' in ready.calls and 'onedl-mmcv' not in ready.calls
    assert (ready.root / '.venv-openmmlab/.setup-complete').exists()
    assert (ready.root / STAMP).exists()
    ready.forget_calls()
    assert ready.run().returncode == ready.run(STACK='openmmlab').returncode == 0
    assert ready.calls == ''


def test_openmmlab_wants_an_older_python(project):
    project.add_python('3.12.1', 'version')
    project.add_compiler()
    check_refusal(project, 'Python 3.10 or 3.11 is needed', 'python3 is 3.12.1',
                  STACK='openmmlab')
    check_refusal(project, "STACK=other must be 'onedl' or 'openmmlab'", STACK='other')


def test_second_call_starts_no_python(ready):
    ready.forget_calls()
    ready.write('python3', '#!/bin/bash\nexit 1\n')
    begin = time.monotonic()
    result = ready.run()
    assert time.monotonic() - begin < 1
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert ready.calls == ''


@pytest.mark.parametrize(
    'name', ['requirements/torch.txt', 'setup.py', 'scripts/setup_env.sh']
)
def test_changed_input_redoes(ready, name):
    ready.forget_calls()
    with (ready.root / name).open('a') as file:
        file.write('# changed\n')
    (ready.root / '.venv/left-over').touch()
    assert ready.run().returncode == 0
    assert '-m venv .venv' in ready.calls
    assert not (ready.root / '.venv/left-over').exists()


def test_moved_project_redoes(ready):
    ready.root = ready.root.rename(ready.root.parent / 'elsewhere')
    ready.forget_calls()
    assert ready.run().returncode == 0
    assert '-m venv .venv' in ready.calls


def test_other_python_redoes(ready):
    ready.add_python('3.12.1', name='python3.12')
    ready.forget_calls()
    assert ready.run(PYTHON='python3').returncode == 0
    assert '-m venv' not in ready.calls
    assert ready.run(PYTHON='python3.12').returncode == 0
    assert '-m venv' in ready.calls
    ready.forget_calls()
    assert ready.run().returncode == 0
    assert ready.calls == ''


def test_compiled_mmcv_is_kept(ready):
    wheels = list((ready.root / '.setup/wheels').glob('*py3.11-torch2.10.0*/*.whl'))
    assert len(wheels) == 1
    shutil.rmtree(ready.root / '.venv')
    ready.forget_calls()
    assert ready.run().returncode == 0
    assert '-m pip download' not in ready.calls
    # Another Python gets its own.
    ready.add_python('3.12.1', name='python3.12')
    assert ready.run(PYTHON='python3.12').returncode == 0
    assert '-m pip download' in ready.calls


def test_mmcv_is_compiled(project):
    project.add_compiler()
    no_wheel = '[[ $* != *--only-binary* ]] || exit 1'
    interrupted = f'{no_wheel}; [[ $* != *"pip wheel"* ]] || exit 1'
    project.add_python(extra=interrupted)
    assert project.run(MAX_JOBS='3').returncode == 1
    assert len(list(project.root.glob('.setup/build/*/setup.py'))) == 1

    project.forget_calls()
    project.add_python(extra=no_wheel)
    result = project.run(MAX_JOBS='3', CXXFLAGS='-march=native')
    assert result.returncode == 0, result.stderr
    assert 'compiling it with 3 job(s)' in result.stdout
    assert '--no-binary' not in project.calls
    assert '| 3 | -O2 -DNDEBUG -march=native -g0 |' in project.calls
    assert len(list(project.root.glob('.setup/wheels/*/mmcv.whl'))) == 1
    assert list(project.root.glob('.setup/build/*')) == []


def test_mmcv_that_does_not_load_is_compiled(project):
    project.add_compiler()
    does_not_load = """
    [[ $* != *"pip wheel"* ]] || touch compiled
    [[ $* != *"import mmcv.ops"* || -e compiled ]] || exit 1
    """
    project.add_python(extra=does_not_load)
    result = project.run(PIP_FIND_LINKS='../wheels other')
    assert result.returncode == 0, result.stderr
    assert '--only-binary' in project.calls
    assert '| ../wheels other' in project.calls
    assert '-m pip wheel' in project.calls


def test_failure(project):
    project.add_compiler()
    extra = '[[ $* != *torch.txt* ]] || { echo no room; exit 1; }'
    project.add_python(extra=extra)
    result = project.run()
    assert result.returncode == 1
    assert 'no room' in result.stderr
    assert 'failed at step 2 of 6 (PyTorch' in result.stderr.splitlines()[-1]
    assert not (project.root / STAMP).exists()
    project.add_python()
    assert project.run().returncode == 0


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGINT])
def test_interrupted(project, sent):
    project.add_compiler()
    project.add_python(extra='[[ $* != *torch.txt* ]] || sleep 60')
    process = project.start()
    wait_for(lambda: 'torch.txt' in project.calls)
    os.killpg(process.pid, sent)
    assert process.wait(20) != 0
    process.stdout.close()
    assert (project.root / '.venv').exists()
    assert not (project.root / STAMP).exists()
    (project.root / '.venv/left-over').touch()
    project.add_python()
    assert project.run().returncode == 0
    assert (project.root / STAMP).exists()
    assert not (project.root / '.venv/left-over').exists()


def test_two_calls_at_once(project):
    project.add_compiler()
    project.add_python(extra='[[ $* != *torch.txt* ]] || sleep 0.5')
    first = project.start()
    wait_for(lambda: 'torch.txt' in project.calls)
    second = project.run()
    assert first.wait(20) == 0
    first.stdout.close()
    assert second.returncode == 0
    assert 'waiting' in second.stdout
    assert '[1/6]' not in second.stdout
    assert project.calls.count('-m venv .venv') == 1


def read_pins(name: str) -> dict:
    text = (ROOT / 'requirements' / name).read_text()
    lines = [line.split(';')[0].strip() for line in text.splitlines()]
    return split_pins(line for line in lines if line[:1].isalpha())


def split_pins(requirements) -> dict:
    pairs = [re.split('([=<>].*)', requirement) for requirement in requirements]
    return {pair[0].lower(): ''.join(pair[1:]) for pair in pairs}


@pytest.mark.parametrize('stack, extras', [
    ('', ['onedl', 'demo', 'tools', 'docs', 'test']), ('openmmlab/', ['openmmlab'])])
def test_requirements_are_pinned(stack, extras):
    pins = read_pins(f'{stack}constraints.txt')
    wanted = {**read_pins(f'{stack}build.txt'), **read_pins(f'{stack}torch.txt')}
    from distutils.core import run_setup
    setup = run_setup(str(ROOT / 'setup.py'), stop_after='init')
    for extra in extras:
        wanted.update(split_pins(setup.extras_require[extra]))
    for package, version in wanted.items():
        assert pins[package].startswith('=='), package
        if version.startswith('=='):
            assert version == pins[package]


def test_no_machine_in_requirements():
    for path in (ROOT / 'requirements').rglob('*.txt'):
        assert not re.search(r'://|--|file:|@', path.read_text()), path


def test_version():
    found = subprocess.check_output(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, text=True
    )
    import mmrest

    assert found.split()[-1] == mmrest.__version__

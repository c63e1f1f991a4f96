"""Scripts in processes that start fast, and what may happen to them."""
import errno
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
import zipfile
from pathlib import Path

import torch
from mmengine.hooks import checkpoint_hook

ROOT = Path(__file__).parents[2]
# Forked from a server that has imported everything: a run starts in a second.
PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(
    ['mmpretrain.models', 'mmpretrain.datasets', 'mmdet.models', 'mmdet.datasets',
     'mmdet.evaluation', 'mmdet.visualization', 'mmpretrain.visualization', 'mmseg.models',
     'mmseg.datasets', 'mmseg.evaluation', 'mmseg.visualization', 'mmrest',
     'tests.quick_configs'])


class Run:
    """A script with ``args`` in ``folder``; ``fate`` is called in its process first."""

    def __init__(self, folder, *args, script=ROOT / 'tools/train.py', fate=None):
        self.log = folder / f'{time.monotonic_ns()}.txt'
        argv = [str(arg) for arg in (script, *args)]
        self.process = PROCESSES.Process(
            target=_run, args=(str(folder), str(self.log), argv, fate))
        self.process.start()

    def until(self, words, timeout=60):
        """Wait for words in the output; returns False if the process ends without them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            over = not self.process.is_alive()
            if words in self.text():
                return True
            if over:
                return False
            time.sleep(0.005)
        raise TimeoutError(f'{words!r} after {timeout} s in {self.text()[-3000:]}')

    def wait(self, timeout=120):
        """Wait for the end; returns the exit code, negative for a signal."""
        self.process.join(timeout)
        assert not self.process.is_alive(), self.text()[-3000:]
        return self.process.exitcode

    def text(self):
        return self.log.read_text() if self.log.exists() else ''


def _run(folder, log, argv, fate):
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    sys.path.insert(0, os.path.dirname(argv[0]))
    sys.argv = argv
    if fate is not None:
        fate()
    runpy.run_path(argv[0], run_name='__main__')


# What may happen to a process: called in it before the script.


def die_at(end, after):
    """SIGKILL before or after a rename to a file name with this ending."""
    replace = os.replace

    def deadly(source, target, **kwargs):
        last = str(target).endswith(end)
        if after or not last:
            replace(source, target, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly


def limit_files(size, kill):
    """A write past ``size`` bytes of a file fails, or kills the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)


def die_naming(kill):
    """SIGKILL, or an error, when last_checkpoint is open and still empty."""
    def deadly(path, *args):
        file = open(path, *args)  # noqa: SIM115
        if not str(path).endswith('last_checkpoint'):
            return file
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint_hook.open = deadly


# Checkpoints


def check_whole(path):
    """Check that a checkpoint has the bytes that were written, and can be read."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, path
    torch.load(path, weights_only=False)


def content(path):
    """The state of a training in a checkpoint: weights, optimizer, schedule, epoch."""
    checkpoint = torch.load(path, map_location='cpu', weights_only=False)
    place = {key: checkpoint['meta'][key] for key in ('epoch', 'iter')}
    return dict(
        place=place, **{k: checkpoint[k] for k in ('state_dict', 'optimizer',
                                                   'param_schedulers')})


def distance(a, b):
    """Largest absolute difference of two states' weights."""
    a, b = a['state_dict'], b['state_dict']
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def same(a, b):
    """Equal to the last bit, through all dicts and lists."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b

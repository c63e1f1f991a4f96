"""Two processes train together on a CPU, and one of them is killed."""
import os
import signal
import subprocess
import sys
import time

import pytest

from . import test_training
from .training import ROOT, check_whole

HERE = ROOT / 'tests/tools'
OPTIONS = ['env_cfg.dist_cfg.backend=gloo', 'model_wrapper_cfg.type=MMDistributedDataParallel',
           'model_wrapper_cfg.device_ids=None', 'model_wrapper_cfg.broadcast_buffers=False',
           'train_cfg.max_epochs=1000']


def start(folder, launcher):
    """Start two workers, under torchrun or on their own; returns the started processes."""
    script = [HERE / 'cpu_process.py', ROOT / 'tools/train.py', 'classifier.py', '--launcher',
              'pytorch', '--work-dir', 'out', '--cfg-options', *OPTIONS]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    out = os.open(folder / 'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if launcher:
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                   '--nproc_per_node=2', *map(str, script)]
        return [subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)]
    env.update(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    return [subprocess.Popen([sys.executable, *map(str, script)], cwd=folder, stdout=out,
                             stderr=out, env=dict(env, RANK=str(i), LOCAL_RANK=str(i)))
            for i in range(2)]


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def rank_of(pid):
    """The RANK that torchrun gave to a child of its own, or None."""
    with open(f'/proc/{pid}/environ', 'rb') as file:
        for entry in file.read().split(b'\0'):
            if entry.startswith(b'RANK='):
                return int(entry[len('RANK='):])


def children(pid):
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(child) for child in file.read().split()]


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.parametrize('launcher, victim', [(False, 1), (False, 0), (True, 1), (True, 0)])
def test_the_other_worker_ends(launcher, victim, tmp_path, many):
    if (launcher, victim) != (False, 1) and not many(False, True):
        pytest.skip('long version only: --torture')
    test_training.classifier(tmp_path)
    processes = start(tmp_path, launcher)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / 'out/epoch_3.pth').exists():
            assert time.monotonic() < end, (tmp_path / 'log.txt').read_text()[-3000:]
            assert all(p.poll() is None for p in processes), (
                tmp_path / 'log.txt').read_text()[-3000:]
            time.sleep(0.05)
        if launcher:
            workers = {rank_of(pid): pid for pid in children(processes[0].pid)}
        else:
            workers = {i: p.pid for i, p in enumerate(processes)}
        os.kill(workers[victim], signal.SIGKILL)
        killed = time.monotonic()
        survivor = workers[1 - victim]
        while alive(survivor):
            assert time.monotonic() - killed < 60, 'the other worker hangs'
            time.sleep(0.05)
        print(f'the other worker ended after {time.monotonic() - killed:.1f} s')
        process = processes[0] if launcher else processes[1 - victim]
        assert process.wait(60) not in (0, None)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    checkpoints = list((tmp_path / 'out').glob('*.pth'))
    assert len(checkpoints) >= 2
    for path in checkpoints:
        check_whole(path)

"""Measure time and memory of mmrest beside the port of the published model and mmdet's models.

    python benchmarks/run.py        # on a CPU, 20 minutes on two cores
    python benchmarks/run.py --gpu  # what needs an NVIDIA GPU

If mmrest and the port disagree, nothing is measured. Each model has a process of its own; those
of a column of a table are all started, then take turns. The results are written to
benchmarks/results/ after each column, the tables and the chart at the end (benchmarks/page.py).
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import page, plan  # noqa: E402
from mmrest.files import write_whole  # noqa: E402


class Failure(Exception):
    """A model that cannot be measured, and why."""


class Worker:
    """A process of benchmarks/measure.py."""

    def __init__(self, case):
        self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.measure', json.dumps(case)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def turn(self):
        """Seconds of a step."""
        with suppress(BrokenPipeError):  # answer says why
            self.process.stdin.write('\n')
            self.process.stdin.flush()
        return self.answer()

    def end(self):
        """The other metrics."""
        self.process.stdin.close()
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()]
        raise Failure(f'killed by signal {-code} (9: out of memory)' if code < 0 else
                      lines[-1] if lines else f'exit code {code}')


def take_turns(cases, turns):
    """Measure models beside each other.

    Args:
        cases (list[dict]): See benchmarks/measure.py. They differ in ``model``.
        turns (int): Their number.

    Returns:
        dict[str, dict | Failure]: Of each model, ``seconds`` of each turn, and the other
        metrics.
    """
    workers = {case['model']: Worker(case) for case in cases}
    found = {model: dict(seconds=[]) for model in workers}
    try:
        for number in range(turns + 2):
            for model, worker in workers.items():
                if isinstance(found[model], Failure):
                    continue
                try:
                    if number == 0:
                        worker.answer()  # built
                    elif number <= turns:
                        found[model]['seconds'].append(worker.turn())
                    else:
                        found[model].update(worker.end())
                except Failure as failure:
                    found[model] = failure
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    return found


def run(columns, path, where):
    """Measure all columns, and write all results to ``path`` after each."""
    results, device, start = [], path.stem.replace('gpu', 'cuda'), time.monotonic()
    for column in columns:
        case = column._asdict()
        turns, models = case.pop('turns'), case.pop('models')
        found = take_turns([dict(case, device=device, model=model) for model in models], turns)
        for model, metrics in found.items():
            if not isinstance(metrics, Failure):
                results.append(dict(case, model=model, **metrics))
                metrics = page.cost(metrics)
            seconds = time.monotonic() - start
            print(f'{seconds:5.0f} s  {page.title(column)}, {model}: {metrics}', flush=True)
        write_whole(path, page.dump(where, results))


def whereabouts(device):
    """Machine, versions, commit and date."""
    import torch
    machine = torch.cuda.get_device_name() if device == 'cuda' else (
        f'{cpu_name()}, {torch.get_num_threads()} threads')
    versions = {name: import_module(name).__version__
                for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmrest')}
    return dict(machine=machine, date=str(date.today()), commit=commit(),
                python=platform.python_version(), **versions)


def cpu_name():
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return (names or [platform.machine()])[0]


def commit():
    """The commit that is measured, with a + if the code differs from it."""
    def git(*args):
        return subprocess.run(['git', *args], cwd=ROOT, text=True, capture_output=True)

    changed = git('diff', '--quiet', 'HEAD', '--', 'mmrest', 'configs', 'benchmarks/*.py')
    return (git('rev-parse', '--short=12', 'HEAD').stdout.strip() or 'unknown') + (
        '+' if changed.returncode else '')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpu', action='store_true')
    args = parser.parse_args()
    import torch

    from benchmarks.agreement import check
    from mmrest.engine import cpu_has_bfloat16
    name, device = ('gpu', 'cuda') if args.gpu else ('cpu', 'cpu')
    if args.gpu and not torch.cuda.is_available():
        raise SystemExit('--gpu: PyTorch finds no CUDA device')
    columns = plan.columns(name)
    if not args.gpu and not cpu_has_bfloat16():
        columns = [column for column in columns if column.precision != 'bfloat16']
        print('bfloat16 is not measured: this CPU has no instructions for it')
    where = whereabouts(device)
    print(f"{where['machine']}; torch {where['torch']}, commit {where['commit']}\nfeatures and "
          f'gradients differ from the published model by at most {check(device):.1e} of the '
          'largest value', flush=True)
    run(columns, page.RESULTS / f'{name}.json', where)
    page.write()


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', str(os.cpu_count()))
    main()

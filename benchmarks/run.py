"""Measure time and memory of mmrest, the port of the published model and mmdet's backbones.

    python benchmarks/run.py --select cpu  # a quarter of an hour on two cores
    python benchmarks/run.py --select all  # the same, and what takes longer on a CPU (hours)
    python benchmarks/run.py --select gpu  # what needs an NVIDIA GPU
    python benchmarks/run.py --page        # fill in docs/benchmarks.md again, measure nothing

If mmrest and the port disagree, nothing is measured. Each measurement is a process of its own,
and the models of a table take turns. Rows are written to benchmarks/results/ after each turn,
the tables and the chart of docs/benchmarks.md at the end.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import page, rows  # noqa: E402

RESULTS = ROOT / 'benchmarks/results'
SEED = 0
TIMEOUT = 7200  # seconds of one process


class Group(NamedTuple):
    """The models of one table. Ratios are to the first."""
    models: Tuple[str, ...]
    case: dict
    rounds: int = 3


def group(kind, models, batch, height, width, device='cpu', precision='float32', part='',
          rounds=3, **more):
    case = dict(kind=kind, part=part, device=device, batch=batch, height=height, width=width,
                precision=precision, seed=SEED, **more)
    return Group(tuple(models), case, rounds)


def growth(models, part, device='cpu', precision='float32', limit=2., rounds=2):
    return [group('growth', models, 1, side, side, device, precision, part, rounds, limit=limit)
            for side in page.SIDES]


OURS = ('ResT-Small', 'ResT-Small, compiled')
RIVALS = ('PVT-T', 'PVTv2-B1', 'Swin-T')
RESNETS = ('R-18', 'R-50')
SMALL = ('ResT-Small', 'ResT-Lite', *RIVALS, *RESNETS)
BASE = ('ResT-Base', 'ResT-Large', 'PVT-S', 'PVTv2-B2', 'Swin-T', 'R-50')
PORT = 'ResT-Small, published'
MASK = ('Mask R-CNN ResT-Small', 'Mask R-CNN R-50')
RETINA = ('RetinaNet ResT-Small', 'RetinaNet R-50')
DEMO = ('Mask R-CNN ResT-Lite', 'Mask R-CNN R-18')
RUNTIMES = ('ResT-Small', 'ResT-Small, onnxruntime', 'ResT-Small, OpenVINO')

# The most important first: with little time left, the last groups lose their further rounds.
CPU = [
    group('training', (*OURS, *RIVALS), 1, 800, 1344, limit=8.),
    group('detector', MASK, 1, 800, 1344, limit=1.),
    group('inference', (*OURS, *SMALL[1:], PORT), 1, 800, 1344, limit=2.),
    group('training', SMALL, 4, 224, 224, limit=2.),
    group('inference', SMALL, 4, 224, 224, limit=2.),
    *growth(('ResT-Small', ), 'inference'),
    group('first_step', (*MASK, 'ResT-Small', 'PVT-T'), 1, 224, 224),
    group('loading', DEMO[:1], 8, 128, 128, rounds=1, iterations=40),
]
V2 = ('ResTv2-Tiny, published', 'ResTv2-Tiny')
LONG = [
    group('inference', V2, 1, 800, 1344, limit=5.),
    group('training', V2, 1, 800, 1344, limit=5.),
    group('training', (*SMALL[:2], PORT, *RESNETS), 1, 800, 1344, limit=5.),
    group('training', BASE, 1, 800, 1344, limit=5.),
    group('inference', BASE, 1, 800, 1344, limit=5.),
    group('training', BASE, 4, 224, 224, limit=5.),
    group('inference', BASE, 4, 224, 224, limit=5.),
    group('detector', RETINA, 1, 800, 1344, limit=5.),
    group('runtime', RUNTIMES, 1, 800, 1344, limit=5.),
    group('runtime', RUNTIMES, 1, 224, 224, limit=5.),
    group('digits', DEMO, 8, 128, 128, rounds=1),
    *growth(('ResT-Small', *RIVALS, PORT), 'inference', limit=5.),
    *growth(('ResT-Small', *RIVALS), 'training', limit=5.),
]
CUDA = dict(device='cuda', precision='bfloat16')
PORTS = (PORT, f'{PORT}, compiled')
EVERY = (*OURS, *SMALL[1:], *BASE[:-2], *PORTS)
GPU = [
    *(group('operator', ('ResT-Small', *PORTS), 8, 800, 1344, part=f'stage {stage}', limit=2.,
            **CUDA) for stage in (2, 3, 4)),
    group('training', EVERY, 8, 800, 1344, limit=5., **CUDA),
    group('inference', EVERY, 8, 800, 1344, limit=5., **CUDA),
    group('training', EVERY, 256, 224, 224, limit=5., **CUDA),
    group('inference', EVERY, 256, 224, 224, limit=5., **CUDA),
    *(group('detector', models, 2, 800, 1344, 'cuda', precision, limit=5.)
      for precision in ('float32', 'float16') for models in (MASK, RETINA)),
    *growth(('ResT-Small', *RIVALS, PORT), 'inference', **CUDA),
    *growth(('ResT-Small', *RIVALS, PORT), 'training', **CUDA),
    group('first_step', (*MASK, 'ResT-Small', 'PVT-T'), 2, 224, 224, device='cuda'),
]
PLAN = dict(cpu=CPU, long=LONG, gpu=GPU)
SELECTIONS = dict(cpu=('cpu', ), all=('cpu', 'long'), gpu=('gpu', ))
MINUTES = dict(cpu=16)  # a turn starts only if its last one, repeated, would end by then


def measure_apart(case):
    """Run :mod:`benchmarks.measure` in a process of its own.

    Returns:
        tuple[dict, str | None]: The metrics, and the error if there was one.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = dict(os.environ)
        if case['kind'] == 'first_step':  # which includes compiling
            env.update(TRITON_CACHE_DIR=cache, TORCHINDUCTOR_CACHE_DIR=cache)
        case = dict(case, started=time.time())
        command = [sys.executable, '-m', 'benchmarks.measure', json.dumps(case)]
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, timeout=TIMEOUT, text=True,
                                  capture_output=True)
        except subprocess.TimeoutExpired:
            return {}, f'no end after {TIMEOUT} s'
    if done.returncode < 0:
        return {}, f'killed by signal {-done.returncode} (9: out of memory)'
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        return {}, errors[-1] if errors else f'exit code {done.returncode}'
    return json.loads(done.stdout.splitlines()[-1]), None


def run(selection, groups, path, where, minutes=None):
    """Measure all groups in rounds, and write all rows to ``path`` after each group's turn."""
    found, processes, failures, duration = {}, {}, {}, {}
    start = time.monotonic()
    for number in range(max(group.rounds for group in groups)):
        for index, (models, task, rounds) in enumerate(groups):
            begin = time.monotonic()
            late = minutes is not None and (
                begin - start + duration.get(index, 0) > 60 * minutes)
            if number >= rounds or late:
                continue
            for model in models:
                key = index, model
                if key in failures:
                    continue
                metrics, failure = measure_apart(dict(task, model=model))
                for metric, values in metrics.items():
                    found.setdefault(key, {}).setdefault(metric, []).extend(values)
                processes[key] = processes.get(key, 0) + 1
                if failure is not None:
                    failures[key] = failure
                result = failure or ', '.join(
                    f'{metric} {values[-1]:.4g}' for metric, values in metrics.items())
                print(f"{time.monotonic() - start:6.0f} s  round {number + 1}  {task['kind']} "
                      f"{task['part']} {task['batch']}x{task['height']}x{task['width']} "
                      f'{model}: {result}', flush=True)
            duration[index] = time.monotonic() - begin
            rows.write(path, [
                row for i, model in processes for row in rows.make(
                    selection, dict(groups[i].case, model=model), where,
                    found.get((i, model), {}), processes[i, model], failures.get((i, model)))
            ])


def whereabouts(device):
    """A value for each of rows.WHERE."""
    import torch
    machine = torch.cuda.get_device_name() if device == 'cuda' else (
        f'{cpu_name()}, {torch.get_num_threads()} threads')
    versions = {name: import_module(name).__version__
                for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmrest')}
    return dict(date=str(date.today()), commit=commit(), machine=machine,
                python=platform.python_version(), **versions)


def cpu_name():
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()


def commit():
    """The commit that is measured, with a + if the code differs from it."""
    def git(*args):
        return subprocess.run(['git', *args], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)

    found = git('rev-parse', '--short=12', 'HEAD')
    if found.returncode:
        return 'unknown'
    code = ('mmrest', 'configs', 'tools', 'benchmarks/*.py')
    changed = git('diff', '--quiet', 'HEAD', '--', *code)
    return found.stdout.strip() + ('+' if changed.returncode else '')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--select', choices=SELECTIONS)
    what.add_argument('--page', action='store_true', help='measure nothing')
    args = parser.parse_args()
    if args.select:
        import torch

        from benchmarks.agreement import check
        device = 'cuda' if args.select == 'gpu' else 'cpu'
        if device == 'cuda' and not torch.cuda.is_available():
            raise SystemExit('--select gpu: PyTorch finds no CUDA device')
        error = check(device)
        where = whereabouts(device)
        print(f"{where['machine']}; torch {where['torch']}, Python {where['python']}; commit "
              f"{where['commit']}, {where['date']}\nfloat64 features and gradients differ from "
              f'the published model by at most {error:.1e} of the largest value', flush=True)
        for selection in SELECTIONS[args.select]:
            run(selection, PLAN[selection], RESULTS / f'{selection}.csv', where,
                MINUTES.get(selection))
    page.write(PLAN, RESULTS, ROOT / 'docs/benchmarks.md')


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', str(os.cpu_count()))
    main()

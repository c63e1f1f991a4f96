"""Time and memory of mmrest beside the published formulation, in one run.

    python benchmarks/emsa.py            # what this machine can do, CPU or GPU
    python benchmarks/emsa.py --runs 7   # more runs

First both are held against each other: no figure is printed while they disagree. Then every
measurement is a process of its own, the two formulations by turns, and the table shows medians
and ratios. Memory is the growth of the peak over weights and inputs: of the resident set on a
CPU, of what torch has allocated on a GPU.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.published import PublishedResT, attention  # noqa: E402
from mmrest import ResT  # noqa: E402
from mmrest.ops import emsa_attention  # noqa: E402

# name: what runs, batch and image size, whether backward too; operators by their stage.
CPU_CASES = {
    'inference': ('backbone', (1, 800, 1344), False),
    'forward + backward': ('backbone', (1, 800, 1344), True),
}
GPU_CASES = {
    'emsa_attention, stage 2': ('operator', (8, 2, 100 * 168, 25 * 42, 64), True),
    'emsa_attention, stage 3': ('operator', (8, 4, 50 * 84, 25 * 42, 64), True),
    'emsa_attention, stage 4': ('operator', (8, 8, 25 * 42, 25 * 42, 64), True),
    'training step, 8 x 800x1344': ('backbone', (8, 800, 1344), True),
    'training step, 256 x 224x224': ('backbone', (256, 224, 224), True),
}
GROWTH_SIDES = (256, 512, 1024, 2048)


def build(impl, kind, shape, device, dtype):
    """The function to time, and the tensors whose gradients it makes."""
    torch.manual_seed(0)
    if kind == 'operator':
        B, h, N, M, d = shape
        q = torch.randn(B, N, h, d, device=device, dtype=dtype).transpose(1, 2)
        k, v = torch.randn(2, B, M, h, d, device=device, dtype=dtype).transpose(2, 3).unbind()
        mix, bias = torch.randn(h, h, device=device, dtype=dtype), torch.zeros(
            h, device=device, dtype=dtype)
        inputs = [x.requires_grad_() for x in (q, k, v, mix, bias)]
        if impl == 'mmrest':
            return lambda: emsa_attention(*inputs), inputs
        function = torch.compile(attention) if impl == 'compiled' else attention
        return lambda: function(*inputs[:3], inputs[3][:, :, None, None], inputs[4]), inputs
    B, H, W = shape
    model = ResT('small', drop_path_rate=0.) if impl == 'mmrest' else PublishedResT('small')
    model.to(device)
    image = torch.randn(B, 3, H, W, device=device)
    forward = torch.compile(model) if impl == 'compiled' else model

    def run():
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            return forward(image)

    return run, list(model.parameters())


def measure(impl, kind, shape, backward, device, runs):
    """Seconds of each run, and bytes at the peak above weights and inputs."""
    dtype = torch.float32 if device == 'cpu' else torch.bfloat16
    function, leaves = build(impl, kind, shape, device, dtype)

    def step():
        with torch.set_grad_enabled(backward):
            out = function()
        if backward:
            outs = out if isinstance(out, tuple) else (out, )
            torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])
            for leaf in leaves:
                leaf.grad = None
        if device == 'cuda':
            torch.cuda.synchronize()

    if device == 'cpu':
        base = resident('VmRSS')
        step()
    else:
        for _ in range(3):  # compiles
            step()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resident('VmHWM') if device == 'cpu' else torch.cuda.max_memory_allocated()
    return dict(seconds=seconds, bytes=peak - base)


def resident(field):
    """Bytes of this process's memory, now (VmRSS) or at the peak (VmHWM).

    ru_maxrss is no peak of a child: it starts at the size of its parent.
    """
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {field}')


def measure_apart(impl, *args):
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, '--measure', json.dumps([impl, *args])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(device):
    """Stop unless both compute the same features and image gradient; the largest error."""
    torch.manual_seed(0)
    published, ours = PublishedResT('small').to(device), ResT('small').to(device)
    state = {
        name: torch.randn_like(value) * 0.1 + value if value.is_floating_point() else value
        for name, value in published.state_dict().items() if 'running' not in name
    }
    published.load_state_dict(state, strict=False)
    ours.load_state_dict({('norm4.' + name[5:] if name.startswith('norm.') else name): value
                          for name, value in published.state_dict().items()})
    for model in (published.eval(), ours.eval()):
        model.double()
    # Two images: of one, PyTorch's BatchNorm gives the published layouts a wrong gradient.
    image = torch.randn(2, 3, 200, 264, device=device, dtype=torch.double, requires_grad=True)
    outs = []
    for model in (published, ours):
        features = model(image)
        grad, = torch.autograd.grad(sum(x.square().mean() for x in features), image)
        outs.append([*features, grad])
    for got, want in zip(outs[1], outs[0]):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * want.abs().max().item())
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*outs))


def roofline(kind, shape):
    """Least seconds that an H200 (790 TFLOP/s, 4.3 TB/s) needs for forward + backward.

    Seven matrix products of N M d a head, or every input, output and gradient moved once.
    """
    B, h, N, M, d = shape
    flops = 7 * 2 * B * h * N * M * d
    moved = 2 * B * h * d * (4 * N + 4 * M)
    return max(flops / 790e12, moved / 4.3e12)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=3, help='timed runs in each process')
    parser.add_argument('--rounds', type=int, default=3, help='processes of each formulation')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    machine = torch.cuda.get_device_name() if device == 'cuda' else (
        f'{cpu_name()}, {torch.get_num_threads()} threads')
    print(f'{machine}; torch {torch.__version__}, Python {platform.python_version()}; '
          f'{date.today()}')
    print(f'float64 features and gradients against the published model: '
          f'at most {check(device):.1e} off, relative to the largest')
    cases = CPU_CASES if device == 'cpu' else GPU_CASES
    impls = ['published', 'mmrest'] + (['compiled'] if device == 'cuda' else [])
    print(f'median of {args.rounds} processes x {args.runs} runs; ratios to published\n')
    print('| work | formulation | s | ratio | spread | MB | ratio |')
    print('|---|---|---|---|---|---|---|')
    for name, (kind, shape, backward) in cases.items():
        rounds = [{impl: measure_apart(impl, kind, shape, backward, device, args.runs)
                   for impl in impls} for _ in range(args.rounds)]
        base = None
        for impl in impls:
            seconds = [s for found in rounds for s in found[impl]['seconds']]
            median = statistics.median(seconds)
            memory = statistics.median(found[impl]['bytes'] for found in rounds)
            base = base or (median, memory)
            note = ''
            if kind == 'operator' and impl == 'mmrest':
                note = f', {roofline(kind, shape) / median:.0%} of the roofline'
            print(f'| {name}{note} | {impl} | {median:.4g} | {median / base[0]:.3f} '
                  f'| {min(seconds):.4g} to {max(seconds):.4g} | {memory / 1e6:.0f} '
                  f'| {memory / base[1]:.3f} |', flush=True)
    sizes = [measure_apart('mmrest', 'backbone', (1, side, side), False, device, 1)['bytes']
             for side in GROWTH_SIDES]
    for side, size in zip(GROWTH_SIDES, sizes):
        print(f'\ninference, {side}x{side}: {size / 1e6:.0f} MB', end='')
    print(f'\nexponent of memory in pixels, {GROWTH_SIDES[0]} to {GROWTH_SIDES[-1]}: '
          f'{exponent([side**2 for side in GROWTH_SIDES], sizes):.3f}')


def exponent(xs, ys):
    """Slope of the line through the logarithms."""
    logs = [torch.tensor(values, dtype=torch.double).log() for values in (xs, ys)]
    x, y = (values - values.mean() for values in logs)
    return ((x @ y) / (x @ x)).item()


def cpu_name():
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', str(os.cpu_count()))
    main()

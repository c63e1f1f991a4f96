"""One measurement, in a process of its own: `python -m benchmarks.measure CASE`, CASE in JSON.

A case names its ``kind`` (a key of KINDS), ``model``, ``device``, ``batch``, ``height``,
``width``, ``precision`` and ``seed``, and ``part`` where the kind has parts. The last line that
is printed is a JSON object: from each metric to the values that were measured.

Seconds are of single runs after a warm-up; bytes are the growth of the peak over weights and
input: of the resident set on a CPU, of what torch has allocated on a GPU.
"""
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import COMPILED, DETECTORS, REST, ROOT, backbone, detector
from benchmarks.published import NUM_HEADS, SR_RATIOS, attention
from mmrest.ops import emsa_attention

DIGITS = {  # the classifier, and the detector that starts from it
    'Mask R-CNN ResT-Lite': ('rest_lite_digits', 'rest_lite_fpn_digits'),
    'Mask R-CNN R-18': ('resnet18_digits', 'resnet18_fpn_digits'),
}
AUTOCAST = dict(bfloat16=torch.bfloat16, float16=torch.float16)
H200 = dict(flops=790e12, bytes=4.3e12)  # a second, in 16 bits


def memory(field, file='/proc/self/status'):
    """Bytes that /proc says: VmRSS is resident now, VmHWM at the peak.

    ru_maxrss is no peak of a child: it starts at the size of its parent.
    """
    match = re.search(rf'^{field}:\s*(\d+) kB', Path(file).read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{file} has no {field}')
    return int(match[1]) * 1024


def timed(step, device, limit, max_runs=20):
    """Run ``step`` once (on a GPU three times) to warm up, then for about ``limit`` seconds."""
    cuda = device == 'cuda'
    base = torch.cuda.memory_allocated() if cuda else memory('VmRSS')
    for _ in range(3 if cuda else 1):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()  # compiling and tuning are not part of it
    seconds = []
    while len(seconds) < max_runs and sum(seconds) < limit:
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else memory('VmHWM')
    return dict(seconds=seconds, bytes=[peak - base])


def autocast(case):
    dtype = AUTOCAST.get(case['precision'])
    return torch.autocast(case['device'], dtype=dtype, enabled=dtype is not None)


def images(case):
    shape = (case['batch'], 3, case['height'], case['width'])
    return torch.randn(shape, device=case['device'])


def inference_step(case):
    model = backbone(case['model']).to(case['device'])
    model.eval()
    image = images(case)

    def step():
        with torch.no_grad(), autocast(case):
            return model(image)

    return step


def training_step(case):
    """Forward, backward from a gradient of ones at every stage, and a step of AdamW."""
    model = backbone(case['model']).to(case['device'])
    model.train()  # returns nothing where Swin is
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    image = images(case)

    def step():
        with autocast(case):
            features = model(image)
        torch.autograd.backward(features, [torch.ones_like(x) for x in features])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def detector_step(case):
    """mmdet's own training step, on random images with ten boxes and masks each."""
    from mmdet.testing import demo_mm_inputs
    model = detector(case['model']).to(case['device'])
    model.train()
    data = demo_mm_inputs(
        case['batch'], (3, case['height'], case['width']), num_items=[10] * case['batch'],
        num_classes=80, with_mask=True)
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    if case['precision'] in AUTOCAST:
        cfg.update(type='AmpOptimWrapper', dtype=case['precision'])
    optim_wrapper = build_optim_wrapper(model, cfg)

    def step():
        losses = model.train_step(data, optim_wrapper)
        if not torch.isfinite(losses['loss']):
            raise FloatingPointError(f"loss={losses['loss']}")

    return step


def count(case):
    """Parameters, and the multiply-adds of one image by torch's own counter, 2 FLOPs each.

    Nothing is computed (the meta device). ResT's equations as they stand are counted, whatever
    a backend repeats.
    """
    name = case['model'].replace(', compiled', '')
    model = backbone(name, backend='reference').to('meta')  # in train mode: eval fuses MHA
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, case['height'], case['width'], device='meta'))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dict(parameters=[parameters], multiply_adds=[counter.get_total_flops() // 2])


def inference(case):
    return {**timed(inference_step(case), case['device'], case['limit']), **count(case)}


def training(case):
    return {**timed(training_step(case), case['device'], case['limit']), **count(case)}


def growth(case):
    step = {'inference': inference_step, 'training': training_step}[case['part']](case)
    return timed(step, case['device'], case['limit'])


def detector_training(case):
    return timed(detector_step(case), case['device'], case['limit'])


def first_step(case):
    """From ``started`` (time.time() before this process) to the end of a training step."""
    step = (detector_step if case['model'] in DETECTORS else training_step)(case)
    step()
    if case['device'] == 'cuda':
        torch.cuda.synchronize()
    return dict(seconds=[time.time() - case['started']])


def operator(case):
    """Forward and backward of the attention alone, as a stage of ResT-Small calls it."""
    stage = int(case['part'].split()[-1])
    h, sr = NUM_HEADS[stage - 1], SR_RATIOS[stage - 1]
    H, W = (-(-case[side] // 2**(stage + 1)) for side in ('height', 'width'))
    B, N, M, d = case['batch'], H * W, -(-H // sr) * -(-W // sr), 64
    options = dict(device=case['device'], dtype=getattr(torch, case['precision']))
    q = torch.randn(B, N, h, d, **options).transpose(1, 2)
    k, v = torch.randn(2, B, M, h, d, **options).transpose(2, 3).unbind()
    mix, bias = torch.randn(h, h, **options), torch.zeros(h, **options)
    inputs = [x.requires_grad_() for x in (q, k, v, mix, bias)]
    function = torch.compile(attention) if case['model'] in COMPILED else attention

    def step():
        if case['model'] in REST:
            out = emsa_attention(*inputs)
        else:
            out = function(*inputs[:3], inputs[3][:, :, None, None], inputs[4])
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)

    found = timed(step, case['device'], case['limit'])
    if case['device'] == 'cuda' and 'H200' in torch.cuda.get_device_name():
        # Seven products of N M d a head; every input, output and gradient moved once.
        products = 7 * 2 * B * h * N * M * d / H200['flops']
        moved = 2 * B * h * d * (4 * N + 4 * M) / H200['bytes']
        found['roofline_seconds'] = [max(products, moved)]
    return found


def run_tool(script, *args, cwd):
    """Run one of tools/; returns seconds and the process's peak of resident memory."""
    command = [sys.executable, str(ROOT / 'tools' / script), *map(str, args)]
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # The process may end between the question and the answer.
            with contextlib.suppress(OSError, RuntimeError):
                peak = max(peak, memory('VmHWM', f'/proc/{process.pid}/status'))
            time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f'tools/{script}: ' + log.read().splitlines()[-1])
    return time.monotonic() - start, peak


def link_digits(folder):
    """The digits' data at data/digits of ``folder``, drawn first where there is none."""
    if not (ROOT / 'data/digits').exists():
        run_tool('dataset_converters/digits_to_coco.py', 'data/digits', cwd=ROOT)
    (folder / 'data').symlink_to(ROOT / 'data')


def scalars(folder, key):
    """What a training logged under ``key``, in order."""
    file, = folder.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record for record in records if key in record]


def loading(case):
    """Share of an iteration that training on digits waits for data, as mmengine logs it."""
    iterations = case['iterations']
    config = ROOT / f"configs/mask_rcnn/{DIGITS[case['model']][1]}.py"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        link_digits(folder)
        run_tool('train.py', config, '--work-dir', 'out', '--cfg-options',
                 f'train_cfg.max_iters={iterations}', 'train_cfg.val_interval=1000000',
                 'default_hooks.logger.interval=10', 'model.backbone.init_cfg=None',
                 f"randomness.seed={case['seed']}", cwd=folder)
        records = scalars(folder / 'out', 'data_time')
    records = records[1:] or records  # the first ten wait for the workers to start
    return dict(data_share=[record['data_time'] / record['time'] for record in records],
                seconds=[record['time'] for record in records])


def digits(case):
    """The demo: a classifier of digits, Mask R-CNN from it, and a test on digits held out."""
    classifier, last = DIGITS[case['model']]
    seed = f"randomness.seed={case['seed']}"
    iterations = case.get('iterations', 1100)
    cut = [f'train_cfg.max_iters={iterations}'] if 'iterations' in case else []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        link_digits(folder)
        config = ROOT / f'configs/classification/{classifier}.py'
        classifier_seconds, _ = run_tool(
            'train.py', config, '--cfg-options', seed, *cut, cwd=folder)
        checkpoint = f'work_dirs/{classifier}/iter_{iterations}.pth'
        start = [f'model.backbone.init_cfg.checkpoint={checkpoint}']
        config = ROOT / f'configs/mask_rcnn/{last}.py'
        detector_seconds, peak = run_tool(
            'train.py', config, '--cfg-options', seed, *cut, *start, cwd=folder)
        times = [r['time'] for r in scalars(folder / f'work_dirs/{last}', 'data_time')]
        run_tool('test.py', config, f'work_dirs/{last}/iter_{iterations}.pth', '--work-dir',
                 'test', '--cfg-options', *start, cwd=folder)
        file, = (folder / 'test').glob('*/*.json')
        metrics = json.loads(file.read_text())
        top1 = scalars(folder / f'work_dirs/{classifier}', 'accuracy/top1')
    found = dict(
        box_ap=[metrics['coco/bbox_mAP']], mask_ap=[metrics['coco/segm_mAP']],
        classifier_seconds=[classifier_seconds], detector_seconds=[detector_seconds],
        seconds=[statistics.median(times)], process_bytes=[peak])
    return dict(found, top1=[top1[-1]['accuracy/top1']]) if top1 else found


KINDS = dict(
    inference=inference, training=training, growth=growth, detector=detector_training,
    operator=operator, loading=loading, first_step=first_step, digits=digits)


def bound_memory():
    """Make what does not fit an error of this process, not the end of others."""
    Path('/proc/self/oom_score_adj').write_text('1000')
    available = memory('MemAvailable', '/proc/meminfo')
    limit = memory('VmSize') + int(0.9 * available)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main():
    case = json.loads(sys.argv[1])
    torch.manual_seed(case['seed'])
    if case['device'] == 'cpu' and case['kind'] not in ('loading', 'digits'):
        bound_memory()
    print(json.dumps(KINDS[case['kind']](case)))


if __name__ == '__main__':
    os.chdir(ROOT)
    main()

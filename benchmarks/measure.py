"""One measurement in its own process: `python -m benchmarks.measure CASE`, CASE in JSON.

A case has a ``kind`` (a key of KINDS), ``model``, ``device``, ``batch``, ``height``,
``width``, ``precision`` and ``seed``; some kinds need a ``part``, ``limit`` or ``iterations``
too. The last line printed is a JSON object: for each metric, the list of its values.
"""
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
from benchmarks.runtimes import RUNTIMES, export
from mmrest.ops import emsa_attention

DIGITS = {  # configs of the classifier, and of the detector that starts from its weights
    'Mask R-CNN ResT-Lite': ('rest_lite_digits', 'rest_lite_fpn_digits'),
    'Mask R-CNN R-18': ('resnet18_digits', 'resnet18_fpn_digits'),
}
AUTOCAST = dict(bfloat16=torch.bfloat16, float16=torch.float16)
H200 = dict(flops=790e12, bytes=4.3e12)  # a second, in 16 bits


def memory(field, file='/proc/self/status'):
    """Bytes of a field in /proc: VmRSS is the resident memory now, VmHWM its peak."""
    return 1024 * int(re.search(rf'^{field}:\s*(\d+) kB', Path(file).read_text(), re.M)[1])


def timed(step, case, max_runs=20):
    """Seconds of single runs, and the growth of the memory's peak over weights and input.

    ``step`` runs once to warm up (on a GPU three times), then for about ``limit`` seconds.
    """
    cuda = case['device'] == 'cuda'
    base = torch.cuda.memory_allocated() if cuda else memory('VmRSS')
    for _ in range(3 if cuda else 1):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()  # compiling and tuning do not count
    seconds = []
    while len(seconds) < max_runs and sum(seconds) < case['limit']:
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


def runtime_step(case):
    """Inference by a runtime of RUNTIMES, or by PyTorch."""
    name, comma, runtime = case['model'].partition(', ')
    if comma + runtime not in RUNTIMES:
        return inference_step(case)
    run, image = RUNTIMES[comma + runtime](export(name)), images(case).numpy()
    return lambda: run(image)


def training_step(case):
    """Forward, backward from a gradient of ones at every stage, and a step of AdamW."""
    model = backbone(case['model']).to(case['device'])
    model.train()  # Swin's returns None
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


def operator_sizes(case):
    """B, h, N, M, d of the attention in a stage of ResT-Small."""
    stage = int(case['part'].split()[-1])
    s = SR_RATIOS[stage - 1]
    H, W = (-(-case[side] // 2**(stage + 1)) for side in ('height', 'width'))
    return case['batch'], NUM_HEADS[stage - 1], H * W, -(-H // s) * -(-W // s), 64


def operator_step(case):
    """Forward and backward of the attention alone."""
    B, h, N, M, d = operator_sizes(case)
    options = dict(device=case['device'], dtype=getattr(torch, case['precision']))
    q = torch.randn(B, N, h, d, **options).transpose(1, 2)
    k, v = torch.randn(2, B, M, h, d, **options).transpose(2, 3).unbind()
    mix, bias = torch.randn(h, h, **options), torch.zeros(h, **options)
    inputs = [x.requires_grad_() for x in (q, k, v, mix, bias)]
    function = emsa_attention if case['model'] in REST else attention
    if case['model'].endswith(COMPILED):
        function = torch.compile(function)

    def step():
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)

    return step


def roofline(case):
    """Seconds that an H200 needs for the seven products, or to move each tensor once."""
    B, h, N, M, d = operator_sizes(case)
    products = 7 * 2 * B * h * N * M * d / H200['flops']
    moved = 2 * B * h * d * (4 * N + 4 * M) / H200['bytes']
    return max(products, moved)


def count(case):
    """Parameters, and the multiply-adds of one image: half of what torch's counter says.

    The model is on the meta device, so nothing is computed. ResT runs its reference backend:
    the other backends repeat some products.
    """
    name = case['model'].replace(COMPILED, '')
    model = backbone(name, backend='reference').to('meta')  # in train mode: eval fuses MHA
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, case['height'], case['width'], device='meta'))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dict(parameters=[parameters], multiply_adds=[counter.get_total_flops() // 2])


STEPS = dict(inference=inference_step, training=training_step, detector=detector_step,
             operator=operator_step, runtime=runtime_step)


def steps(case):
    """Times and memory of repeated steps."""
    kind = case['kind']
    found = timed(STEPS[case['part'] if kind == 'growth' else kind](case), case)
    if case['device'] == 'cpu' and case['model'].endswith(COMPILED):
        del found['bytes']  # includes the compiler's
    if kind in ('inference', 'training'):
        found.update(count(case))
    if kind == 'operator' and case['device'] == 'cuda' and (
            'H200' in torch.cuda.get_device_name()):
        found['roofline_seconds'] = [roofline(case)]
    return found


def first_step(case):
    """Seconds from ``started`` (before this process) to the end of a training step."""
    step = (detector_step if case['model'] in DETECTORS else training_step)(case)
    step()
    if case['device'] == 'cuda':
        torch.cuda.synchronize()
    return dict(seconds=[time.time() - case['started']])


def run_tool(script, *args, cwd):
    """Run a script of tools/. Returns seconds and the process's peak of resident bytes."""
    command = [sys.executable, str(ROOT / 'tools' / script), *map(str, args)]
    start = time.monotonic()
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f'tools/{script}: ' + log.read().splitlines()[-1])
    return time.monotonic() - start, 1024 * usage.ru_maxrss


def train(config, folder, options, case):
    """Train a config on digits in ``folder``. Returns what :func:`run_tool` does."""
    if not (ROOT / 'data/digits').exists():
        run_tool('dataset_converters/digits_to_coco.py', 'data/digits', cwd=ROOT)
    folder.mkdir()
    (folder / 'data').symlink_to(ROOT / 'data')
    options = [*options, f"randomness.seed={case['seed']}"]
    if 'iterations' in case:
        options += [f"train_cfg.max_iters={case['iterations']}",
                    'default_hooks.logger.interval=10']
    return run_tool('train.py', ROOT / 'configs' / config, '--work-dir', 'out',
                    '--cfg-options', *options, cwd=folder)


def logged(folder, key):
    """The records of a training's log that have ``key``: 'loss', or a metric of validation."""
    file, = folder.glob('out/*/vis_data/scalars.json')
    return [record for record in map(json.loads, file.read_text().splitlines())
            if key in record]


def loading(case):
    """Share of an iteration that training on digits waits for data, as mmengine logs it."""
    with tempfile.TemporaryDirectory() as folder:
        detector = Path(folder) / 'detector'
        train(f"mask_rcnn/{DIGITS[case['model']][1]}.py", detector,
              ['model.backbone.init_cfg=None'], case)
        records = logged(detector, 'loss')[1:]  # the first waits for the workers to start
    return dict(data_share=[record['data_time'] / record['time'] for record in records],
                seconds=[record['time'] for record in records])


def digits(case):
    """The demo's trainings: a classifier of digits, then Mask R-CNN from its weights."""
    first, second = DIGITS[case['model']]
    with tempfile.TemporaryDirectory() as folder:
        classifier, detector = Path(folder) / 'classifier', Path(folder) / 'detector'
        classifier_seconds, _ = train(f'classification/{first}.py', classifier, [], case)
        weights = (classifier / 'out/last_checkpoint').read_text()
        detector_seconds, peak = train(
            f'mask_rcnn/{second}.py', detector,
            [f'model.backbone.init_cfg.checkpoint={weights}'], case)
        metrics = {**logged(classifier, 'accuracy/top1')[-1],
                   **logged(detector, 'coco/bbox_mAP')[-1]}
        seconds = statistics.median(r['time'] for r in logged(detector, 'loss'))
    return dict(
        top1=[metrics['accuracy/top1']], box_ap=[metrics['coco/bbox_mAP']],
        mask_ap=[metrics['coco/segm_mAP']], classifier_seconds=[classifier_seconds],
        detector_seconds=[detector_seconds], seconds=[seconds], process_bytes=[peak])


KINDS = dict(inference=steps, training=steps, growth=steps, detector=steps, operator=steps,
             runtime=steps, first_step=first_step, loading=loading, digits=digits)


def bound_memory():
    """Let an allocation that does not fit fail here instead of killing other processes."""
    Path('/proc/self/oom_score_adj').write_text('1000')
    limit = memory('VmSize') + int(0.9 * memory('MemAvailable', '/proc/meminfo'))
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

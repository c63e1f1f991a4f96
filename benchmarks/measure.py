"""One model in its own process: `python -m benchmarks.measure CASE`, CASE in JSON.

A case has a ``model``, ``mode``, ``batch``, ``height``, ``width``, ``precision`` and
``device``. It prints JSON, a line each: first that the model is built, then for each line on
standard input the seconds of a step, at the end of the input the other metrics.
"""
import ctypes
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import COMPILED, DETECTORS, REST, backbone, detector
from mmrest.deploy import export

ONNXRUNTIME = ', onnxruntime'  # after a backbone's name: as an exported file
TURN = 0.5  # least seconds of a turn


def autocast(case):
    dtype = getattr(torch, case['precision'])
    return torch.autocast(case['device'], dtype=dtype, enabled=dtype != torch.float32)


def images(case):
    shape = (case['batch'], 3, case['height'], case['width'])
    return torch.randn(shape, device=case['device'])


def inference_step(case):
    if case['model'].endswith(ONNXRUNTIME):
        return onnxruntime_step(case)
    if case['model'] in DETECTORS:
        model, data = detector_and_data(case)
        model.eval()
        return lambda: model.test_step(data)
    model, image = backbone(case['model']).to(case['device']), images(case)
    model.eval()  # Swin's returns None

    def step():
        with torch.no_grad(), autocast(case):
            return model(image)

    return step


def onnxruntime_step(case):
    """Inference of an exported backbone, with the options of tools/deployment/run_onnx.py."""
    from onnxruntime import InferenceSession, SessionOptions
    options = SessionOptions()
    options.enable_mem_pattern = False
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'backbone.onnx')
        # The exporter's memory is not to count.
        process = multiprocessing.get_context('spawn').Process(
            target=write_onnx, args=(case, path))
        process.start()
        process.join()
        session = InferenceSession(path, options, ['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: images(case).numpy()}
    return lambda: session.run(None, inputs)


def write_onnx(case, path):
    """ResT by mmrest, for any size; another backbone by PyTorch, for the size of the case."""
    name = case['model'].removesuffix(ONNXRUNTIME)
    model = backbone(name)
    model.eval()
    if name in REST:
        export(model, path, backbone=True)
    else:
        torch.onnx.export(model, (images(case), ), path, dynamo=True, verbose=False)


def training_step(case):
    """Forward, backward from a gradient of ones at every stage, and a step of AdamW."""
    if case['model'] in DETECTORS:
        return detector_training_step(case)
    model, image = backbone(case['model']).to(case['device']), images(case)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        with autocast(case):
            features = model(image)
        torch.autograd.backward(features, [torch.ones_like(x) for x in features])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def detector_training_step(case):
    """mmdet's own training step."""
    model, data = detector_and_data(case)
    model.train()
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    optim_wrapper = build_optim_wrapper(model, cfg)

    def step():
        losses = model.train_step(data, optim_wrapper)
        if not torch.isfinite(losses['loss']):
            raise FloatingPointError(f"loss={losses['loss']}")

    return step


def detector_and_data(case):
    """A detector, and random images with ten boxes and masks each."""
    from mmdet.testing import demo_mm_inputs
    data = demo_mm_inputs(
        case['batch'], (3, case['height'], case['width']), num_items=[10] * case['batch'],
        num_classes=80, with_mask=True)
    return detector(case['model']).to(case['device']), data


STEPS = dict(inference=inference_step, training=training_step)


def count(case):
    """Parameters, and the multiply-adds of one image: half of what torch's counter says.

    The model is on the meta device, so nothing is computed. ResT runs its reference backend:
    the other backends repeat some products.
    """
    model = backbone(case['model'].removesuffix(COMPILED), backend='reference').to('meta')
    counter = FlopCounterMode(display=False)  # in train mode: eval fuses MHA
    with counter, torch.no_grad():
        model(torch.empty(1, 3, case['height'], case['width'], device='meta'))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dict(parameters=parameters, multiply_adds=counter.get_total_flops() // 2)


def turn(step, case):
    """Median seconds of some steps, after one that gets memory from the system.

    The memory is given back at the end: the other processes would not have enough.
    """
    seconds, cuda = [], case['device'] == 'cuda'
    for _ in range(100):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if cuda and len(seconds) == 1:
            torch.cuda.reset_peak_memory_stats()  # compiling and tuning do not count
        if sum(seconds[1:]) >= TURN:
            break
    torch.cuda.empty_cache() if cuda else ctypes.CDLL(None).malloc_trim(0)
    return statistics.median(seconds[1:])


def memory(case, peak=False):
    """Bytes in use or their peak: resident ones, on a GPU those of PyTorch's tensors."""
    if case['device'] == 'cuda':
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)()
    field, text = 'VmHWM' if peak else 'VmRSS', Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'^{field}:\s*(\d+) kB', text, re.M)[1])


def measure(case, turns):
    """Yield 'ready', the seconds of each of some turns, and a dict with the other metrics."""
    step = STEPS[case['mode']](case)
    before = memory(case)  # with weights and input
    yield 'ready'
    for _ in turns:
        yield turn(step, case)
    found = {}
    if case['device'] == 'cuda' or not case['model'].endswith(COMPILED):
        found['bytes'] = memory(case, peak=True) - before  # without the compiler's
    if case['model'] not in DETECTORS and not case['model'].endswith(ONNXRUNTIME):
        found.update(count(case))
    yield found


def main():
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what others print is no answer
    Path('/proc/self/oom_score_adj').write_text('1000')  # before other programs
    torch.manual_seed(0)
    for answer in measure(json.loads(sys.argv[1]), sys.stdin):
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()

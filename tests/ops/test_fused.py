"""The CUDA kernels: in Triton's interpreter where there is no GPU, and in its compiler."""
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrest import EMSA
from mmrest.ops import describe_backend, emsa_attention
from mmrest.ops.emsa import attention
from mmrest.ops.emsa.tiles import takes_wide

from .test_emsa import DEVICE, errors

triton = pytest.importorskip('triton')  # there is none for Windows and macOS
fused = attention.BACKENDS['triton']
HERE = Path(__file__).parent
# With and without the convolution over heads and the norm, as in table 6.
ABLATIONS = list(itertools.product((True, False), repeat=2))
# KB of shared memory that a program can have.
SHARED = {80: 163, 89: 99, 90: 227}


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def check(h, N, M, d, mixed=True, normalize=True, size=1., bound=5e-6, B=2):
    """Output and all gradients in float32 against the reference in float64, in units of the
    largest value."""
    torch.manual_seed(0)
    q, grad = torch.randn(2, B, N, h, d, device=DEVICE).transpose(2, 3)
    k, v = torch.randn(B, M, 2, h, d, device=DEVICE).permute(2, 0, 3, 1, 4)
    inputs = [size * q, k, v, *([torch.randn(h, h, device=DEVICE)] if mixed else [])]
    single = [x.detach().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    q, k, v, mix = single if mixed else (*single, None)
    got = fused.attention(q, k, v, mix, None, d**-0.5, normalize, 1e-5)
    want = emsa_attention(*double, normalize=normalize, backend='reference')
    names = ['out', 'dq', 'dk', 'dv', 'dmix']
    for name, x, y in zip(names, (got, *torch.autograd.grad(got, single, grad)),
                          (want, *torch.autograd.grad(want, double, grad.double()))):
        assert errors(x, y)[0] <= bound, (name, h, N, M, d, mixed, normalize)


@pytest.mark.parametrize('case', [
    (2, 33, 49, 5, True, True), (4, 17, 70, 60, True, True), (8, 19, 33, 64, True, True),
    (4, 35, 20, 128, True, False), (2, 35, 20, 40, False, True), (2, 9, 70, 96, False, False),
    *(pytest.param((h, 35, 70, d, *ablation), marks=pytest.mark.slow)
      for ablation in ABLATIONS for h, d in itertools.product(
          (2, 4, 8), (5, 16, 32, 40, 60, 64, 96, 128) if all(ablation) else (16, 96)))],
    ids=str)
def test_float32_against_float64(case):
    h, _, _, d, *_ = case
    if not fused.interpreted() and not takes_wide(h, d):
        pytest.skip('a GPU has no room for it')
    check(*case)


@pytest.mark.parametrize('h, d', [(2, 64), *(
    pytest.param(h, d, marks=pytest.mark.slow)
    for h, d in itertools.product((2, 4, 8), (16, 64, 96)) if (h, d) != (2, 64))])
def test_nearly_uniform_maps(h, d):
    """C is the difference of nearly equal numbers, in float32."""
    check(h, 33, 70, d, size=0.02, bound=2e-5)


@pytest.mark.parametrize('h, rows, cols, groups', [
    (2, 16, 16, 1), (4, 32, 16, 2),
    pytest.param(8, 32, 32, 4, marks=pytest.mark.slow)])
def test_any_tile_gives_the_same(h, rows, cols, groups, monkeypatch):
    tiles = []

    def tile(kernel, _, mixed, *args):
        tiles.append(kernel)
        of_groups = dict(G=max(mixed // groups, 1)) if kernel in ('forward', 'map') else {}
        return dict(ROWS=rows, COLS=cols, num_stages=1, **of_groups)

    monkeypatch.setattr(fused, 'tile', tile)
    check(h, rows + 1, cols + 2, 40, B=1)
    assert tiles == ['forward', 'map', 'query', 'key']
    check(h, rows + 1, cols + 2, 40, B=1, mixed=False)


@pytest.mark.parametrize('chunk, images, queries, programs', [
    (1, 1, 128, 1), (333000, 2, 300, 512),
    pytest.param(2**17, 1, 256, 512, marks=pytest.mark.slow)])
def test_chunks_and_spans_of_any_size(chunk, images, queries, programs, monkeypatch):
    """3 images of 300 queries, in pieces of an image or several at once. Two spans of keys."""
    monkeypatch.setattr(fused, 'CHUNK', chunk)
    monkeypatch.setattr(fused, 'PROGRAMS', programs)
    tile = fused.tile
    monkeypatch.setattr(fused, 'tile', lambda *args: dict(tile(*args), ROWS=128, COLS=16))
    assert fused._chunk(3, 300, 2 * 32 * 4) == (images, queries)
    check(2, 300, 20, 8, B=3)


def test_pieces_of_16_bits_add_up_in_float32(monkeypatch):
    q, grad = torch.randn(2, 1, 2, 300, 8, device=DEVICE).half()
    k, v = torch.randn(2, 1, 2, 20, 8, device=DEVICE).half()
    inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(2, 2, device=DEVICE))]

    def gradients():
        return torch.autograd.grad(emsa_attention(*inputs, backend='triton'), inputs, grad)

    whole = gradients()
    monkeypatch.setattr(fused, 'CHUNK', 1)
    for x, y in zip(gradients(), whole):
        assert x.dtype == y.dtype and errors(x, y.double())[0] <= 1e-3


def test_the_models_tensors_are_not_copied():
    module = EMSA(64, 2, 2, backend='triton').to(DEVICE)
    for x in module.project(torch.randn(2, 12, 64, device=DEVICE), (3, 4)):
        tokens = fused._tokens(x)
        assert tokens.data_ptr() == x.data_ptr() and tokens.stride() == x.stride()


def test_results_repeat():
    q, k, v = torch.randn(3, 2, 4, 33, 16, device=DEVICE)
    inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(4, 4, device=DEVICE))]
    first, second = ([out, *torch.autograd.grad(out.sin().sum(), inputs)] for out in (
        emsa_attention(*inputs, backend='triton') for _ in range(2)))
    for x, y in zip(first, second):
        assert torch.equal(x, y)


def test_which_gpus_and_tensors_the_kernels_take(monkeypatch):
    q = torch.zeros(1, 2, 3, 4)
    monkeypatch.setattr(fused, 'interpreted', lambda: False)
    with pytest.raises(RuntimeError, match="it needs tensors on an NVIDIA GPU, not on 'cpu'"):
        emsa_attention(q, q, q, backend='triton')
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    with pytest.raises(RuntimeError, match="capability 8.0 or more, unlike 'cpu'"):
        emsa_attention(q, q, q, backend='triton')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    for h, d, dtype, takes in [
            (2, 128, torch.float32, True), (8, 64, torch.float32, True),
            (8, 96, torch.bfloat16, True), (8, 65, torch.float32, False),
            (4, 129, torch.bfloat16, False), (6, 64, torch.bfloat16, False)]:
        q = torch.zeros(1, h, 3, d, dtype=dtype)
        reason = fused.why_not(q)
        assert (reason is None) == takes, (h, d, dtype)
        assert takes or f'not {h} of {d}' in reason


def test_describe_backend(monkeypatch):
    monkeypatch.delenv('MMREST_ATTENTION_BACKEND', raising=False)
    assert re.match(r"Attention runs on 'triton' on NVIDIA .* and on 'chunked' elsewhere\.",
                    describe_backend())
    monkeypatch.setattr(attention, 'NO_TRITON', 'no such package')
    assert describe_backend() == "Attention runs on 'chunked', because no such package."


# Data type, heads, channels of a head, mixed, normalize
COMPILED = [('bfloat16', h, 64, True, True) for h in (2, 8)]
SHAPES = [(2, 64), (2, 128), (4, 64), (4, 96), (8, 32), (8, 64)]  # and more, with 16 bits
ALL_COMPILED = [
    *(('bfloat16', h, d, True, True)
      for h, d in [*SHAPES, (2, 96), (4, 128), (8, 96), (8, 128)]),
    *((dtype, h, d, True, True) for dtype in ('float32', 'tf32') for h, d in SHAPES),
    *((dtype, 2, d, False, True) for dtype in ('float32', 'tf32', 'bfloat16')
      for d in (64, 128)),
    ('bfloat16', 2, 60, True, True), ('bfloat16', 4, 16, True, True),
    ('bfloat16', 8, 64, True, False), ('float16', 4, 64, True, True)]


@pytest.mark.parametrize('cases', [
    pytest.param(COMPILED, id='some'),
    pytest.param(ALL_COMPILED, id='all', marks=pytest.mark.slow)])
@pytest.mark.parametrize('capability', SHARED)
def test_kernels_compile_without_a_gpu(capability, cases):
    """For A100, RTX 4090 and H100: what launches would run, within the GPU's shared memory.

    Registers that spill would cost more than any tile gains.
    """
    env = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    done = subprocess.run([
        sys.executable, HERE / 'compile_kernels.py', str(capability), json.dumps(cases)],
        env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    spilled = 128 if triton.__version__.startswith('3.3.') else 64  # 88 bytes with 3.3.1
    assert len(found) == 5 * len(cases)
    for name, variants in found.items():
        for kernel in variants:
            assert kernel['stack'] <= spilled, (name, kernel)
            assert kernel['shared'] <= SHARED[capability] * 1024, (name, kernel)
            assert kernel['aligned'] == (' 60,' not in name), (name, kernel)

"""EMSA's attention: every backend against the published steps in float64."""
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmrest import EMSA
from mmrest.ops import choose_backend, emsa_attention
from mmrest.ops.emsa import attention, chunked

BACKENDS = ['reference', 'chunked']  # those that take float64
fused = attention.BACKENDS.get('triton')
FUSED = ['chunked', 'triton']
HALVES = [torch.bfloat16, torch.float16]
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# B, h, N, M, d: odd sizes, and every h and d of the models.
SHAPES = [(2, 2, 63, 49, 16), (1, 3, 111, 60, 60), (2, 4, 1, 49, 64), (1, 8, 63, 1, 96),
          (3, 1, 7, 4, 5), (1, 8, 1055, 60, 64), (2, 2, 1055, 49, 96)]


# Those of a 64 pixel image, where a difference of sums cancels.
SMALL = [(2, 2, 64, 4, 64), (4, 8, 4, 4, 64)]
# The kernels take 2, 4 and 8 heads. In Triton's interpreter 8 heads take long.
FUSED_SHAPES = [
    *(('chunked', shape) for shape in [*SHAPES, *SMALL]),
    *(pytest.param('triton', shape, marks=[
        pytest.mark.slow] if shape[1] == 8 and shape[3] > 1 or shape[2] > 1000 else [])
      for shape in [*SHAPES, *SMALL] if shape[1] in (2, 4, 8))]


def published(q, k, v, mix=None, bias=None, normalize=True):
    attn = q @ k.transpose(-2, -1) * q.shape[-1]**-0.5
    if mix is not None:
        attn = F.conv2d(attn, mix[:, :, None, None], bias)
    attn = attn.softmax(-1)
    return (F.instance_norm(attn) if normalize else attn) @ v


def draw(B, h, N, M, d, dtype=torch.double, seed=0):
    torch.manual_seed(seed)
    # The strides of a linear layer's output.
    q = torch.randn(B, N, h, d, dtype=dtype).transpose(1, 2)
    k, v = torch.randn(2, B, M, h, d, dtype=dtype).transpose(2, 3).unbind()
    mix, bias = torch.randn(h, h, dtype=dtype), torch.randn(h, dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, mix, bias)]


def results(function, inputs, **kwargs):
    """The output and all gradients of a sum with fixed weights."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, **kwargs)
    torch.manual_seed(1)
    weight = torch.randn(out.shape, dtype=torch.double).to(out)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shape, count, normalize', [
    *((shape, 5, True) for shape in SHAPES), ((2, 3, 17, 5, 4), 3, True),
    ((2, 3, 17, 5, 4), 4, False)])
def test_agrees_with_the_published_steps(shape, count, normalize, backend):
    """With and without mixing, its bias, and the norm."""
    inputs = draw(*shape)[:count]
    got = results(emsa_attention, inputs, normalize=normalize, backend=backend)
    for a, b in zip(got, results(published, inputs, normalize=normalize)):
        assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item() + 1e-10)


def errors(got, want):
    """Largest and RMS error, in units of the largest value wanted."""
    error = (got.double() - want).abs() / max(want.abs().max().item(), 1e-3)
    return error.max().item(), error.square().mean().sqrt().item()


def check_against_reference(got, reference, want):
    """No error is more than twice the reference's, largest and RMS."""
    for name, x, y, z in zip(('out', 'dq', 'dk', 'dv', 'dmix', 'dbias'), got, reference, want):
        if z.numel() == 1 and x.dtype != torch.float32:
            continue  # dmix of one head: the reference's error is arbitrary
        for off, allowed in zip(errors(x, z), errors(y, z)):
            assert off <= max(2 * allowed, 1e-5), (name, off, allowed)


@pytest.mark.parametrize('backend, shape', FUSED_SHAPES)
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
def test_is_no_further_off_than_twice_the_reference(shape, dtype, backend):
    inputs = [x.detach().to(DEVICE, dtype) for x in draw(*shape)]
    if backend == 'triton' and fused.why_not(inputs[0]):
        pytest.skip(fused.why_not(inputs[0]))  # on a GPU, in float32
    want = results(published, [x.double() for x in inputs])
    got = results(emsa_attention, inputs, backend=backend)
    assert {x.dtype for x in got} == {dtype}
    check_against_reference(got, results(emsa_attention, inputs, backend='reference'), want)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('backend', FUSED)
@pytest.mark.parametrize('M', [49, pytest.param(150, marks=pytest.mark.slow)])
def test_a_nearly_uniform_map_keeps_its_digits(M, backend, dtype):
    """As in an untrained network: P is 1/M up to a hundredth, which the norm enlarges."""
    q, k, v, mix, bias = (x.detach().to(DEVICE, dtype) for x in draw(1, 2, 70, M, 32))
    inputs = [q * 0.1, k * 0.1, v + 3, mix, bias]
    check_against_reference(
        results(emsa_attention, inputs, backend=backend),
        results(emsa_attention, inputs, backend='reference'),
        results(published, [x.double() for x in inputs]))


@pytest.mark.parametrize('backend, dtype', [
    ('reference', torch.double), ('chunked', torch.double), ('triton', torch.float)])
def test_any_strides(backend, dtype):
    inputs = [x.detach().to(DEVICE) for x in draw(2, 2, 31, 9, 6, dtype)]
    strange = [
        inputs[0].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        inputs[1].repeat_interleave(2, dim=3)[..., ::2],
        inputs[2][:1].expand(2, -1, -1, -1),
        inputs[3].t().contiguous().t(),
        inputs[4].repeat_interleave(3)[::3],
    ]
    bounds = dict() if dtype == torch.double else dict(rtol=1e-4, atol=1e-4)
    for got, want in zip(results(emsa_attention, strange, backend=backend),
                         results(published, [x.double() for x in strange])):
        assert_close(got, want.to(dtype), **bounds)
    # The incoming gradient may have any strides too, here 0.
    v = inputs[2].requires_grad_()
    got, want = (torch.autograd.grad(out.sum(), v)[0] for out in (
        emsa_attention(*inputs, backend=backend), published(*(x.double() for x in inputs))))
    assert_close(got, want, **bounds)


def block_of(rows, threads, monkeypatch, h=2, M=4):
    """Make each block have this many rows of h x M elements of the map."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(chunked, 'BLOCK', rows * M // threads)
    monkeypatch.setattr(chunked, 'MOST', rows * h * M)
    monkeypatch.setattr(chunked, 'ROWS', 1)
    monkeypatch.setattr(chunked, 'LEAST', 0)


# 3 images of 10 queries. A block is one query, some queries or whole images, and is cut into
# one piece for each thread where the pieces have the same length.
@pytest.mark.parametrize('rows, threads, shapes', [
    (1, 1, [(1, 1)] * 30),
    (3, 1, [(1, 3), (1, 3), (1, 3), (1, 1)] * 3),
    (100, 1, [(3, 10)]),
    (25, 1, [(2, 10), (1, 10)]),
    (25, 5, [(2, 10), (5, 2)]),
    (34, 2, [(2, 10), (2, 5)]),
    (500, 500, [(3, 10)]),
    (4, 2, [(2, 2), (2, 2), (2, 1)] * 3),
    (6, 3, [(3, 2), (1, 4)] * 3),
    (10, 16, [(1, 8), (1, 2)] * 3),
])
def test_blocks_of_any_size_give_the_same(rows, threads, shapes, monkeypatch):
    inputs = draw(3, 2, 10, 4, 5)
    want = results(published, inputs)
    block_of(rows, threads, monkeypatch)
    for a, b in zip(results(emsa_attention, inputs, backend='chunked'), want):
        assert_close(a, b)
    blocks = chunked._blocks(*inputs[:3], maps=1)
    assert [maps[0].shape[::2] for *_, maps in blocks] == shapes


@pytest.mark.parametrize('h, M, threads, rows', [
    (2, 1050, 2, 480), (4, 4097, 1, 64), (2, 8100, 2, 128), (8, 8100, 2, 128),
    (8, 8100, 64, 129), (2, 1050, 'a GPU', 7984)])
def test_blocks_of_long_keys_have_64_rows_a_thread(h, M, threads, rows, monkeypatch):
    """Up to four times MOST elements of the map; on a GPU up to 2**24."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', threads == 'a GPU')
    out, k = torch.empty(1, h, 10000, 1), torch.empty(1, h, M, 1)
    block, _, _, maps = next(chunked._blocks(out, k, k, maps=1))
    assert block.n == slice(0, rows)
    assert maps[0].numel() == h * rows * M


@pytest.fixture
def bfloat16_products(monkeypatch):
    """The types of products' factors, with products of bfloat16 whatever this CPU has."""
    monkeypatch.setattr(chunked, 'cpu_has_bfloat16', lambda: True)
    product, types = chunked._product, []
    monkeypatch.setattr(chunked, '_product', lambda a, b, *args: (
        types.append({a.dtype, b.dtype}) or product(a, b, *args)))
    return types


@pytest.mark.parametrize('mixed, normalize', [(True, True), *(
    pytest.param(*case, marks=pytest.mark.slow)
    for case in ((True, False), (False, True), (False, False)))])
@pytest.mark.parametrize('shape, rows, threads', [
    *((shape, 2**16, 1) for shape in SHAPES[:5]), ((2, 2, 255, 49, 96), 2**16, 1),
    ((1, 8, 255, 60, 64), 60, 1), ((3, 2, 77, 33, 12), 16, 2), ((2, 4, 4, 4, 64), 2**16, 2)])
def test_bfloat16_products_are_no_further_off_than_twice_the_reference(
        shape, rows, threads, mixed, normalize, bfloat16_products, monkeypatch):
    """Over eight draws: in one, the reference may be right by chance. Images are in one block,
    or in blocks that are cut for threads."""
    block_of(rows, threads, monkeypatch, h=shape[1], M=shape[3])
    found = []
    for seed in range(8):
        inputs = [x.detach().bfloat16() for x in draw(*shape, seed=seed)[:4 if mixed else 3]]
        want = results(emsa_attention, [x.double() for x in inputs], normalize=normalize,
                       backend='reference')
        got, reference = (results(emsa_attention, inputs, normalize=normalize, backend=backend)
                          for backend in ('chunked', 'reference'))
        assert {x.dtype for x in got} == {torch.bfloat16}
        found.append([(errors(x, z), errors(y, z)) for x, y, z in zip(got, reference, want)])
    assert set.union(*bfloat16_products) == {torch.bfloat16}
    # (name, draw, backend, largest and RMS error)
    names = ('out', 'dq', 'dk', 'dv', 'dmix')
    for name, off in zip(names, torch.tensor(found).transpose(0, 1)):
        (largest, allowed), (rms, rms_allowed) = off[..., 0].amax(0), off[..., 1].norm(dim=0)
        assert largest <= max(2 * allowed, 1e-5), name
        assert rms <= max(2 * rms_allowed, 1e-5), name


@pytest.mark.parametrize('dtype, wide', [
    (torch.float16, torch.float32), (torch.float32, torch.float32),
    (torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_other_types_and_cpus_have_no_products_of_bfloat16(
        dtype, wide, bfloat16_products, monkeypatch):
    if dtype == torch.bfloat16:  # a CPU without instructions for it
        monkeypatch.setattr(chunked, 'cpu_has_bfloat16', lambda: False)
    q, k, v, mix, _ = draw(1, 2, 9, 5, 4, dtype)
    emsa_attention(q, k, v, mix, backend='chunked').sum().backward()
    assert bfloat16_products == [{wide}] * 3


@pytest.mark.parametrize('backend', ['reference', *FUSED])
def test_a_map_of_one_element_is_zero(backend):
    inputs = [x.detach().to(DEVICE) for x in draw(2, 2, 1, 1, 4, torch.float)]
    out, *grads = results(emsa_attention, inputs, backend=backend)
    assert not out.any()
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize('backend', ['reference', *FUSED])
@pytest.mark.parametrize('dtype, size', [  # in float16 a score must stay below 65504
    (torch.float32, 1e4), (torch.bfloat16, 1e4), (torch.float16, 1e2)])
def test_extreme_scores_stay_finite(backend, dtype, size):
    """Maps from uniform to the last bit to one-hot."""
    inputs = [x.detach().to(DEVICE, dtype) for x in draw(1, 2, 33, 7, 16)]
    q, k, v, mix, bias = inputs
    constant = torch.ones_like(k)
    for case in ((q * size, k, v), (q * 0, k, v), (q * 1e-3, k, v), (q, constant, v),
                 (q, k, constant), (q * size, constant, v * 0)):
        for x in results(emsa_attention, (*case, mix, bias), backend=backend):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize('backend', ['reference', *FUSED])
def test_one_key_takes_all(backend):
    """P is one-hot, its mean 1/7 and its variance 6/49."""
    q, *rest = (x.detach().float().to(DEVICE) for x in draw(1, 2, 33, 7, 16))
    inputs = [1e4 * q, *rest]
    want = published(*(x.double() for x in inputs))
    assert_close(emsa_attention(*inputs, backend=backend).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend, threads', [
    ('reference', 1), ('chunked', 1), ('auto', 1), ('auto', 8), ('auto', 9)])
def test_plain_attention(backend, threads, monkeypatch):
    """PyTorch's own, except for 'reference', and on a CPU for 'chunked' and with more threads
    than its backward of two images of two heads keeps busy."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    q, k, v, _, _ = inputs = [x.to(DEVICE) for x in draw(2, 2, 9, 5, 4)]
    function, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(attention.F, 'scaled_dot_product_attention', lambda *args, **kwargs: (
        calls.append(kwargs) or function(*args, **kwargs)))
    got = results(lambda *args: emsa_attention(
        *args[:3], normalize=False, scale=0.3, backend=backend) + 0 * sum(
            x.sum() for x in args[3:]), inputs)
    ours = backend == 'reference' or DEVICE == 'cpu' and (backend == 'chunked' or threads > 8)
    assert calls == ([] if ours else [dict(scale=0.3)])
    want = results(lambda q, k, v, *rest: (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
                   + 0 * sum(x.sum() for x in rest), inputs)
    for a, b in zip(got, want):
        assert_close(a, b)


@pytest.mark.parametrize('B, N, dtype, threads, ours', [
    (1, 60, torch.bfloat16, 4, True), (1, 60, torch.bfloat16, 2, False),
    (2, 60, torch.bfloat16, 4, False), (1, 39, torch.bfloat16, 4, False),
    (1, 60, torch.float32, 4, False)])
def test_plain_attention_by_blocks(B, N, dtype, threads, ours, bfloat16_products, monkeypatch):
    """In bfloat16, if there are more threads than images times heads and a block's elements."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(chunked, 'BLOCK', 200)
    q, k, v, _, _ = draw(B, 2, N, 5, 4, dtype)
    emsa_attention(q, k, v, normalize=False)
    assert bool(bfloat16_products) == ours


@pytest.mark.parametrize('backend, seen', [
    ('reference', 2 * 6000 * 500), ('chunked', 4 * 2**18)])
def test_chunked_never_holds_a_map(backend, seen, monkeypatch):
    """Neither in forward nor in backward, where a block's four maps are one tensor. The
    reference shows that the profiler sees a map."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    monkeypatch.setattr(chunked, 'BLOCK', 2**17)
    inputs = draw(1, 2, 6000, 500, 2, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        emsa_attention(*inputs, backend=backend).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0.9 * seen < largest / 4 <= seen


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('backend', FUSED)
def test_autocast(backend, dtype):
    """No further off than twice the reference. Some gradients, as of the key's bias, are
    zero except for rounding. On a CPU, the depth-wise convolution stays in float32."""
    torch.manual_seed(0)
    module, types = EMSA(32, 4, 2).to(DEVICE), []
    module.sr.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    x = torch.randn(2, 48, 32, device=DEVICE)

    def run(backend, enabled=True):
        module.backend = backend
        module.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype, enabled=enabled):
            out = module(x, (6, 8))
        assert out.dtype == (dtype if enabled else torch.float32)
        out.float().square().sum().backward()
        return [out.detach(), *(p.grad for p in module.parameters())]

    want = run('reference', enabled=False)
    reference = run('reference')
    for got, allowed, exact in zip(run(backend), reference, want):
        check_against_reference([got], [allowed], [exact.double()])
    assert types == [torch.float32, *[torch.float32 if DEVICE == 'cpu' else dtype] * 2]


# Second derivatives


@pytest.mark.parametrize('backend, mixed, biased, normalize', [
    *itertools.product(BACKENDS, (True, ), (True, False), (True, False)),
    *itertools.product(BACKENDS, (False, ), (False, ), (True, False)),
    ('auto', True, True, True), ('auto', False, False, False)])
def test_second_derivatives(backend, mixed, biased, normalize):
    inputs = draw(1, 2, 3, 2, 1)[:3 + mixed + biased]
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's plain attention has no others
        assert torch.autograd.gradgradcheck(lambda *x: emsa_attention(
            *x, scale=0.7, normalize=normalize, backend=backend), inputs)


def penalty(q, v, mix, bias, attention, count=2):
    """A sum of ``count - 1`` further derivatives. Keys are computed from queries."""
    k = q.roll(1, 2).sin()
    loss, total = attention(q, k, v, mix, bias).square().sum(), 0
    for _ in range(count - 1):
        grads = torch.autograd.grad(loss, [x for x in (q, v, mix) if x.requires_grad],
                                    create_graph=True)
        loss = sum(grad.square().sum() for grad in grads)
        total = total + loss
    return total


@pytest.mark.parametrize('backend, kind, limit, count, frozen', [
    ('chunked', torch.double, 1e-9, 2, ()), ('chunked', torch.double, 1e-9, 3, ()),
    ('chunked', torch.double, 1e-9, 3, (0, )), ('chunked', torch.double, 1e-9, 2, (1, 2)),
    ('chunked', torch.bfloat16, 0, 2, ()), ('triton', torch.float, 1e-4, 2, ())])
def test_a_gradient_penalty(backend, kind, limit, count, frozen):
    """Its gradient, and that of a penalty on the penalty, with some inputs frozen, is off by
    no more than the limit, or twice the reference of that type."""
    q, _, v, mix, bias = (x.detach().to(DEVICE, kind) for x in draw(2, 2, 9, 9, 4))
    found = []
    # Not against the published steps: the third derivative of F.instance_norm is wrong.
    for name, dtype in ((backend, kind), ('reference', kind), ('reference', torch.double)):
        inputs = [x.detach().to(dtype).requires_grad_(i not in frozen)
                  for i, x in enumerate((q, v, mix, bias))]
        penalty(*inputs, partial(emsa_attention, backend=name), count).backward()
        found.append([x.grad for x in inputs[:3] if x.requires_grad])
    for got, reference, want in zip(*found):
        assert got.dtype == kind
        for off, allowed in zip(errors(got, want), errors(reference, want)):
            assert off <= max(2 * allowed, limit)


def test_an_ordinary_backward_keeps_no_graph():
    q, *rest = draw(1, 2, 5, 3, 2)
    kept = []
    out = emsa_attention(q, *rest, backend='chunked').sum()
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x) or x, lambda x: x):
        grad, = torch.autograd.grad(out, q, retain_graph=True)
        assert not grad.requires_grad and not kept
        grad, = torch.autograd.grad(out, q, create_graph=True)
    assert grad.requires_grad and kept


@pytest.mark.parametrize('mixed', [True, False])
def test_flops_are_those_of_the_products(mixed):
    """Per query, key and head: d for each of two products forward and, of five, backward;
    h for one mixing forward and, of three, backward. (The reference keeps the map.)"""
    q, k, v, mix, bias = draw(3, 2, 7, 5, 4)
    inputs = (q, k, v, mix, bias) if mixed else (q, k, v)
    counted = []
    for backend in ('reference', 'chunked'):
        with FlopCounterMode(display=False) as counter:
            out = emsa_attention(*inputs, backend=backend)
            forward = counter.get_total_flops()
            out.sum().backward()
        counted.append((forward, counter.get_total_flops() - forward))
    each, h = 2 * 3 * 2 * 7 * 5, 2 * mixed
    assert counted == [(each * (2 * 4 + h), each * (4 * 4 + 2 * h)),
                       (each * (2 * 4 + h), each * (5 * 4 + 3 * h))]


def test_triton_says_which_inputs_it_cannot_take():
    q, k, v, mix, bias = draw(1, 2, 5, 3, 4)
    with pytest.raises(RuntimeError, match="backend='triton' cannot run: .* not torch.float64"):
        emsa_attention(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), backend='triton')
    for h, d in [(2, 600), (3, 64), (1, 64), (16, 64)]:
        q, k, v = (torch.zeros(1, h, 3, d, device=DEVICE) for _ in range(3))
        with pytest.raises(RuntimeError, match=f'2, 4 or 8 heads of .* 128 .*, not {h} of {d}'):
            emsa_attention(q, k, v, backend='triton')


def test_triton_needs_the_package(monkeypatch):
    monkeypatch.setattr(attention, 'NO_TRITON', 'no such package')
    with pytest.raises(RuntimeError, match="backend='triton' cannot run: no such package"):
        choose_backend('triton')


def test_auto_takes_triton_on_cuda_and_chunked_elsewhere(monkeypatch):
    inputs = [x.detach().float() for x in draw(1, 2, 5, 3, 4)]
    taken = []
    for name, module in attention.BACKENDS.items():
        monkeypatch.setattr(module, 'attention', lambda *args, name=name: taken.append(name))
    emsa_attention(*inputs)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr(fused, 'interpreted', lambda: True)
    emsa_attention(*inputs)
    assert taken == ['chunked', 'triton']
    attention._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="backend='chunked': .* not torch.float64"):
        emsa_attention(*(x.double() for x in inputs))
    assert taken[2:] == ['chunked']
    monkeypatch.setattr(attention, 'NO_TRITON', 'no such package')
    with pytest.warns(UserWarning, match="backend='chunked': no such package") as warned:
        for _ in range(3):
            emsa_attention(*inputs)
        attention._warn_once.cache_clear()
        emsa_attention(*inputs[:3], normalize=False)  # plain attention needs no kernels
    assert len(warned) == 1 and taken[3:] == ['chunked'] * 3


def test_the_backend_of_an_environment_variable(monkeypatch):
    q, k, v, _, _ = draw(1, 2, 5, 3, 4)
    monkeypatch.delenv('MMREST_ATTENTION_BACKEND', raising=False)
    assert choose_backend(None) == EMSA(16, 2).backend == 'auto'
    monkeypatch.setenv('MMREST_ATTENTION_BACKEND', 'reference')
    assert choose_backend(None) == EMSA(16, 2).backend == 'reference'
    assert choose_backend('chunked') == EMSA(16, 2, backend='chunked').backend == 'chunked'
    monkeypatch.setenv('MMREST_ATTENTION_BACKEND', 'fast')
    for build in (lambda: choose_backend(None), lambda: EMSA(16, 2),
                  lambda: emsa_attention(q, k, v), lambda: choose_backend('Chunked')):
        with pytest.raises(ValueError, match="backend='(fast|Chunked)' must be 'auto'"):
            build()


@pytest.mark.parametrize('backend', ['reference', *FUSED])
def test_inputs_that_would_give_wrong_numbers(backend):
    """They would read other memory, or broadcast, or round."""
    q, k, v, mix, bias = (x.detach().float() for x in draw(2, 2, 9, 5, 4))
    for wrong, error, message in [
        (dict(q=q[:1]), ValueError, r'k of shape \(2, 2, 5, 4\) .* must be .* \(1, 2, 5, 4\)'),
        (dict(k=k[:1]), ValueError, r'k of shape \(1, 2, 5, 4\) .* must be .* \(2, 2, 5, 4\)'),
        (dict(k=k[..., :3]), ValueError, r'k of shape \(2, 2, 5, 3\)'),
        (dict(v=v[..., :1]), ValueError, r'v of shape \(2, 2, 5, 1\)'),
        (dict(v=v[:, :, :3]), ValueError, r'v of shape \(2, 2, 3, 4\)'),
        (dict(k=k[:, :, :0], v=v[:, :, :0]), ValueError, r'must have at least one key'),
        (dict(mix=mix[:1]), ValueError, r'mix of shape \(1, 2\) .* must be of shape \(2, 2\)'),
        (dict(mix=mix.to('meta')), ValueError, r"mix .* on 'meta' must be .* on 'cpu'"),
        (dict(k=k.double()), TypeError, 'must have one dtype, not .*float32, torch.float64'),
    ]:
        with pytest.raises(error, match=message):
            emsa_attention(**{**dict(q=q, k=k, v=v, mix=mix, bias=bias), **wrong},
                           backend=backend)


def test_inputs_that_no_backend_takes():
    q, k, v, mix, _ = draw(2, 2, 9, 5, 4)
    with pytest.raises(TypeError, match='floating-point dtype, not torch.int64'):
        emsa_attention(q.long(), k.long(), v.long(), mix)
    scale = torch.tensor(2., requires_grad=True)
    with pytest.raises(TypeError, match='scale must be a number, it gets no gradient'):
        emsa_attention(q, k, v, mix, scale=scale)


@pytest.mark.parametrize('backend', ['reference', *FUSED])
@pytest.mark.parametrize('shape', [(0, 2, 5, 4), (1, 2, 0, 4)])
def test_no_images_or_no_queries_give_an_empty_result(shape, backend):
    q = torch.zeros(shape, device=DEVICE, requires_grad=True)
    k = torch.zeros(shape[0], 2, 3, 4, device=DEVICE, requires_grad=True)
    out = emsa_attention(q, k, k, torch.eye(2, device=DEVICE), backend=backend)
    assert out.shape == shape
    out.sum().backward()
    assert q.grad.shape == shape and not k.grad.any()

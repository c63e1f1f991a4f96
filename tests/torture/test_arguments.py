"""Wrong arguments: an error that names the argument and its value, and never a model.

Every argument of every public callable meets every value below; `RIGHT` says which of them it
takes. An argument that the table does not know fails the test.
"""
import inspect
import math

import numpy as np
import pytest
import torch

from mmrest import EMSA, ResT
from mmrest.ops import emsa_attention

TINY = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1))
VALUES = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.5, math.nan, math.inf, -math.inf, 'x', '1', '',
    b'x', (), [], {}, (0, 1), (1, 0), (0.0, 1.0), (True, ), (-1, ), ('0', ), (None, ),
    {0: 1}, {'type': 'Constant'}, object(), print, np.float32(1), np.zeros(2), torch.zeros(2)
]


def is_int(value, least):
    return type(value) is int and value >= least


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def is_bool(value):
    return type(value) is bool


def never(value):
    return False


REST = dict(
    arch=never,
    in_channels=lambda value: is_int(value, 1),
    out_indices=lambda value: value is None or type(value) is tuple and value == (0, 1)
    and type(value[0]) is int,
    frozen_stages=lambda value: is_int(value, -1),
    norm_eval=is_bool,
    drop_path_rate=lambda value: value is None or is_number(value) and 0 <= value < 1,
    with_cp=is_bool,
    init_cfg=lambda value: type(value) in (type(None), list, tuple, dict) and (
        not value or value == {'type': 'Constant'}) and value != {},
    stem=never,
    position=never,
    attention=never,
    img_size=lambda value: is_int(value, 1),
    backend=lambda value: value is None,
    norm_in_trunk=is_bool)
MODULE = dict(
    embed_dims=lambda value: is_int(value, 1) and value % 2 == 0,
    num_heads=lambda value: is_int(value, 1),
    sr_ratio=lambda value: is_int(value, 1),
    mix_heads=is_bool,
    normalize=is_bool,
    backend=never)
FUNCTION = dict(
    q=never, k=never, v=never,
    mix=lambda value: value is None,
    bias=lambda value: value is None or isinstance(value, torch.Tensor),
    scale=lambda value: value is None or is_number(value) and value > 0,
    normalize=is_bool,
    eps=lambda value: is_number(value) and value > 0,
    backend=never)


def rest(**kwargs):
    return ResT(**dict(dict(arch=TINY, out_indices=None, position='le'), **kwargs))


def module(**kwargs):
    return EMSA(**dict(dict(embed_dims=16, num_heads=2), **kwargs))


def function(**kwargs):
    tensors = dict(
        q=torch.zeros(1, 2, 5, 4), k=torch.zeros(1, 2, 3, 4), v=torch.zeros(1, 2, 3, 4),
        mix=torch.eye(2), bias=torch.zeros(2))
    return emsa_attention(**dict(tensors, **kwargs))


CALLS = dict(ResT=(ResT, rest, REST), EMSA=(EMSA, module, MODULE),
             emsa_attention=(emsa_attention, function, FUNCTION))


def shown(value):
    """How an error may show a value: itself, a tensor's shape, the keys of a dict."""
    if isinstance(value, torch.Tensor):
        return [repr(value), str(tuple(value.shape))]
    if isinstance(value, dict):
        return [repr(value), repr([str(key) for key in value])]
    return [repr(value), repr(tuple(value))] if isinstance(value, list) else [repr(value)]


@pytest.mark.parametrize('name', CALLS)
def test_every_argument_meets_every_wrong_value(name):
    public, call, allowed = CALLS[name]
    assert set(inspect.signature(public).parameters) == set(allowed), 'a row is missing'
    failures = []
    for argument, right in allowed.items():
        for value in VALUES:
            where = f'{argument}={value!r}'
            if right(value):
                call(**{argument: value})
                continue
            try:
                call(**{argument: value})
            except (TypeError, ValueError) as error:
                words = str(error)
                if argument not in words or not any(text in words for text in shown(value)) or (
                        'must' not in words):
                    failures.append(f'{where}: {error!r}')
            except Exception as error:
                failures.append(f'{where}: {error!r}')
            else:
                failures.append(f'{where}: taken')
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize(
    'key', ['embed_dims', 'depths', 'num_heads', 'sr_ratios', 'mlp_ratios'])
def test_every_value_of_an_arch(key):
    arch = dict(TINY, mlp_ratios=(4, 0.5))
    failures = []
    for value in VALUES:
        if (is_int(value, 1) and (key != 'embed_dims' or value % 2 == 0)
                or key == 'mlp_ratios' and is_number(value) and value > 0):
            continue
        for values in (value, (value, arch[key][1])):
            if isinstance(value, (tuple, list)) and values is value and len(value) == 2:
                continue  # a pair of numbers, the next loop's matter
            try:
                ResT(dict(arch, **{key: values}), out_indices=None)
            except (TypeError, ValueError) as error:
                if key not in str(error) or 'must' not in str(error):
                    failures.append(f'{key}={values!r}: {error!r}')
            except Exception as error:
                failures.append(f'{key}={values!r}: {error!r}')
            else:
                failures.append(f'{key}={values!r}: taken')
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('kwargs, words', [
    (dict(arch={}), 'arch has the keys []'),
    (dict(arch={1: 2, 'depths': 3}), "arch has the keys ['1', 'depths']"),
    (dict(arch=dict(TINY, depths=(1, 1, 1))), 'depths=(1, 1, 1) must have one value per stage'),
    (dict(arch=dict(TINY, num_heads=(3, 2))), 'embed_dims=8 must be a multiple of num_heads=3'),
    (dict(arch=dict(TINY, mlp_ratios=(0.01, 1))), 'mlp_ratios=(0.01, 1) must leave'),
    (dict(frozen_stages=3), 'frozen_stages=3 must be from -1 (none) to 2 (every stage)'),
    (dict(out_indices=(0, 0)), 'out_indices=(0, 0) must be increasing'),
    (dict(out_indices=(0, 2)), 'out_indices=(0, 2) must be increasing stage numbers'),
    (dict(position='le', img_size=(1, 2, 3)), 'img_size=(1, 2, 3) must be'),
    (dict(backend='cuda'), "backend='cuda' must be one of"),
    (dict(stem='Rest'), "stem='Rest' must be one of ['pvt', 'resnet', 'rest']"),
])
def test_combinations_that_fit_nothing(kwargs, words):
    with pytest.raises(ValueError) as raised:
        ResT(**dict(dict(arch=TINY, out_indices=None), **kwargs))
    assert words in str(raised.value)


@pytest.mark.parametrize('image, error, words', [
    (np.zeros((1, 3, 8, 8), np.float32), TypeError, 'must be a tensor of images'),
    ([torch.zeros(3, 8, 8)], TypeError, 'must be a tensor of images'),
    (None, TypeError, 'x=None must be a tensor'),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, 'torch.uint8 must be of a'),
    (torch.zeros(1, 3, 8, 8, dtype=torch.cfloat), TypeError, 'torch.complex64 must be of a'),
    (torch.zeros(3, 8, 8), ValueError, 'x of shape (3, 8, 8) must be (B, 3, H, W)'),
    (torch.zeros(1, 1, 3, 8, 8), ValueError, 'x of shape (1, 1, 3, 8, 8) must be (B, 3, H, W)'),
    (torch.zeros(1, 4, 8, 8), ValueError, 'x of shape (1, 4, 8, 8) must be (B, 3, H, W)'),
    (torch.zeros(1, 8, 8, 3), ValueError, 'x of shape (1, 8, 8, 3) must be (B, 3, H, W)'),
    (torch.zeros(1, 3, 0, 8), ValueError, 'x of shape (1, 3, 0, 8) must be (B, 3, H, W)'),
    # PyTorch says these, by the name of its own argument.
    (torch.zeros(1, 3, 8, 8, dtype=torch.double), RuntimeError, 'type'),
    (torch.zeros(1, 3, 8, 8, device='meta'), RuntimeError, 'meta'),
])
def test_images_that_are_none(image, error, words):
    with pytest.raises(error) as raised:
        ResT(TINY, out_indices=None)(image)
    assert words in str(raised.value)


def test_tokens_that_are_none():
    attn = EMSA(16, 2)
    for x, hw, error, words in [
        (np.zeros((1, 6, 16)), (2, 3), TypeError, 'must be a tensor'),
        (torch.zeros(6, 16), (2, 3), ValueError, 'x of shape (6, 16) must be (B, N, 16)'),
        (torch.zeros(1, 6, 8), (2, 3), ValueError, 'x of shape (1, 6, 8) must be (B, N, 16)'),
        (torch.zeros(1, 6, 16), (2, 4), ValueError,
         'hw=(2, 4) must be height and width of the 6 tokens'),
        (torch.zeros(1, 6, 16), (2, 3, 1), ValueError, 'hw=(2, 3, 1) must be'),
    ]:
        with pytest.raises(error) as raised:
            attn(x, hw)
        assert words in str(raised.value)


@pytest.mark.parametrize('name', ['q', 'k', 'v', 'mix', 'bias'])
def test_tensors_of_another_kind(name):
    shape = dict(q=(1, 2, 5, 4), k=(1, 2, 3, 4), v=(1, 2, 3, 4), mix=(2, 2), bias=(2, ))[name]
    for dtype in (torch.int64, torch.bool, torch.cfloat):
        with pytest.raises(TypeError, match=rf"{name}'s dtype {dtype} must be a floating"):
            function(**{name: torch.zeros(shape, dtype=dtype)})
    if name != 'q':
        with pytest.raises(ValueError, match=rf"{name}'s device 'meta' must be .* 'cpu'"):
            function(**{name: torch.zeros(shape, device='meta')})
    for wrong in (shape[:-1], (*shape, 1), (*shape[:-1], shape[-1] + 1)):
        with pytest.raises(ValueError, match=rf'{name} of shape|of shape .* must'):
            function(**{name: torch.zeros(wrong)})


def test_no_keys_are_refused():
    with pytest.raises(ValueError, match=r'k of shape \(1, 2, 0, 4\) must'):
        function(k=torch.zeros(1, 2, 0, 4), v=torch.zeros(1, 2, 0, 4))


@pytest.mark.parametrize('backend', ['reference', 'chunked'])
@pytest.mark.parametrize('shape', [(0, 2, 5, 4), (1, 2, 0, 4)])
def test_nothing_asked_is_nothing_answered(shape, backend):
    """No images, or no queries: an empty result, as of any operator of PyTorch."""
    k = torch.zeros(shape[0], 2, 3, 4)
    out = function(q=torch.zeros(shape), k=k, v=k, backend=backend)
    assert out.shape == shape

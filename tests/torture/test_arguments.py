"""Wrong arguments and inputs end in an error: none becomes another model, or features.

Whose error it is, ours or PyTorch's, does not matter here; tests/models/test_rest.py checks the
words of ours.
"""
import math

import numpy as np
import pytest
import torch

from mmrest import EMSA, ResT

TINY = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1))
VALUES = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.5, math.nan, math.inf, 'x', '1', '', b'x', (), [],
    {}, (0, 1), (1, 0), (-1, ), (0, 2), ('0', ), (None, ), {'type': 'Constant'}, object(),
    print, np.float32(1), np.zeros(2), torch.zeros(2)
]


def rest(**kwargs):
    model = ResT(**dict(dict(arch=TINY, out_indices=None), **kwargs))
    model.init_weights()
    return model(torch.randn(2, 3, 32, 32))


def learned_position(**kwargs):
    return rest(position='le', **kwargs)


def rest_of(**kwargs):
    """The first stage has another value."""
    (key, value), = kwargs.items()
    return rest(arch=dict(TINY, **{key: (value, TINY[key][1])}))


def emsa(**kwargs):
    return EMSA(**dict(dict(embed_dims=16, num_heads=2), **kwargs))(
        torch.randn(1, 6, 16), (2, 3))


@pytest.mark.parametrize('call, argument, taken', [
    (rest, 'arch', []),
    (rest, 'in_channels', []),
    (rest, 'out_indices', [None, True, False, -1, 0, 1, (0, 1), (-1, )]),
    (rest, 'frozen_stages', [True, False, -1, 0, 1, 2]),
    (rest, 'drop_path_rate', [None, False, 0, 0.5]),
    (rest, 'init_cfg', [None, '', (), []]),
    (rest, 'stem', []),
    (rest, 'position', []),
    (rest, 'attention', []),
    (rest, 'backend', [None]),
    (learned_position, 'img_size', []),
    (rest_of, 'embed_dims', [2]),
    (rest_of, 'num_heads', [True, 1, 2]),
    (emsa, 'embed_dims', []),
    (emsa, 'num_heads', [True, 1, 2]),
    (emsa, 'backend', [None]),
])
@pytest.mark.filterwarnings('ignore:Initializing zero-element tensors')
def test_no_wrong_value_is_taken(call, argument, taken):
    found = []
    for value in VALUES:
        try:
            call(**{argument: value})
        except Exception:
            continue
        found.append(value)
    assert list(map(repr, found)) == list(map(repr, taken))


@pytest.mark.parametrize('stem', ['rest', 'resnet', 'pvt'])
@pytest.mark.parametrize('image', [
    np.zeros((1, 3, 8, 8), np.float32), [torch.zeros(3, 8, 8)], None,
    torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.cfloat),
    torch.zeros(1, 3, 8, 8, dtype=torch.double), torch.zeros(1, 3, 8, 8, device='meta'),
    torch.zeros(3, 8, 8), torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 4, 8, 8),
    torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 0, 8),
])
def test_no_wrong_image_is_taken(image, stem):
    with pytest.raises(Exception):  # noqa: B017
        ResT(TINY, out_indices=None, stem=stem).eval()(image)


@pytest.mark.parametrize('x, hw', [
    (np.zeros((1, 6, 16), np.float32), (2, 3)), (torch.zeros(6, 16), (2, 3)),
    (torch.zeros(1, 6, 8), (2, 3)), (torch.zeros(1, 6, 16), (2, 4)),
    (torch.zeros(1, 6, 16), (2, 3, 1)), (torch.zeros(1, 6, 16), 6),
])
def test_no_wrong_tokens_are_taken(x, hw):
    with pytest.raises(Exception):  # noqa: B017
        EMSA(16, 2, sr_ratio=2)(x, hw)

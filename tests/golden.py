"""Weights, images and loss of the golden files in tests/data (see their README)."""
import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'


def draw_weights(arch):
    """The golden state dict of an arch: {published name: float64 tensor}."""
    state = {}
    for name, shape in json.loads((DATA / f'rest_{arch}_keys.json').read_text()).items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(0)
            continue
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith('running_var'):
            value = 1 + 0.3 * rng.random_sample(shape)
        elif len(shape) == 1:
            is_gain = name.endswith('weight')
            value = (0.2 if is_gain else 0.1) * rng.standard_normal(shape) + is_gain
        else:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(np.asarray(value))
    return state


def draw_image(gold):
    rng = np.random.RandomState(int(gold['seed']))
    return torch.from_numpy(rng.standard_normal(tuple(gold['shape'])))


def loss(features):
    """The scalar whose gradient with respect to the image the golden files hold."""
    total = 0
    for i, x in enumerate(features):
        weight = np.random.RandomState(2000 + i).standard_normal(tuple(x.shape))
        total = total + (x * torch.from_numpy(weight).to(x)).sum() / x.numel()**0.5
    return total

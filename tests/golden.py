"""Weights, images and loss of the golden files in tests/data (see their README)."""
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

DATA = Path(__file__).parent / 'data'


def shapes(arch, family='rest'):
    """{published name: shape} of an arch, in the order of the golden gradients."""
    return json.loads((DATA / f'{family}_{arch}_keys.json').read_text())


def draw_weights(arch, family='rest'):
    """The golden state dict of an arch: {published name: float64 tensor}.

    That of 'restv2' has the norm of a classifier and the output norms of a detector.
    """
    state = {}
    for name, shape in shapes(arch, family).items():
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


def check_features(features, gold, tolerance):
    """Compare the stored values, relative to each stage's largest one."""
    for i, x in enumerate(features):
        assert tuple(x.shape) == tuple(gold[f'shape{i}'])
        got = x.detach().double().flatten()[torch.from_numpy(gold[f'idx{i}'])]
        want = torch.from_numpy(gold[f'val{i}'])
        assert_close(got, want, rtol=0, atol=tolerance * gold[f'mom{i}'][2])


def check_image_gradient(gradient, gold, tolerance):
    """Compare the stored values of the loss's gradient, relative to the largest of them."""
    got = gradient.double().flatten()[torch.from_numpy(gold['gidx'])]
    want = torch.from_numpy(gold['gval'])
    assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())


def check_parameter_gradients(model, gold, tolerance):
    """Compare norms and projections of the loss's gradients, relative to the norms."""
    gradients = {name: p.grad.double().flatten() for name, p in model.named_parameters()}
    names = [name for name in shapes('tiny', 'restv2') if name in gradients]
    assert len(names) == len(gradients) == len(gold['pgrad'])
    for name, (norm, projection) in zip(names, gold['pgrad']):
        rng = np.random.RandomState(zlib.crc32(f'grad {name}'.encode()))
        direction = torch.from_numpy(rng.standard_normal(gradients[name].numel()))
        got = torch.stack([gradients[name].norm(), gradients[name] @ direction])
        assert_close(got, got.new_tensor([norm, projection]), rtol=0, atol=tolerance * norm)

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.published import ARCHS, PublishedResT

from .. import golden


def golden_model(out_indices=(0, 1, 2, 3)):
    model = PublishedResT('lite', out_indices).double().eval()
    model.load_state_dict({
        name: value for name, value in golden.draw_weights('lite').items()
        if name in model.state_dict()})
    return model


@pytest.mark.parametrize('name', ['rest_lite_2x3x224x224_7', 'rest_lite_1x3x160x224_8'])
def test_features_logits_and_gradient_are_the_golden_ones(name):
    """A batch of 1 is run twice, as it was for the golden files: PyTorch's BatchNorm returns a
    wrong gradient of one image for the memory layouts of the published code."""
    gold = np.load(golden.DATA / f'{name}.npz')
    image = golden.draw_image(gold).requires_grad_()
    features = golden_model()(torch.cat([image, image]) if len(image) == 1 else image)
    features = [x[:len(image)] for x in features]
    for i, x in enumerate(features):
        got = x.detach().flatten()[torch.from_numpy(gold[f'idx{i}'])]
        assert_close(got, torch.from_numpy(gold[f'val{i}']), rtol=1e-9, atol=1e-9)
    weights = golden.draw_weights('lite')
    logits = features[3].mean((2, 3)) @ weights['head.weight'].T + weights['head.bias']
    assert_close(logits.detach(), torch.from_numpy(gold['logits']), rtol=1e-9, atol=1e-9)
    golden.loss(features).backward()
    got = image.grad.flatten()[torch.from_numpy(gold['gidx'])]
    want = torch.from_numpy(gold['gval'])
    assert_close(got, want, rtol=0, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_those_of_the_published_checkpoints(arch):
    shapes = json.loads((golden.DATA / f'rest_{arch}_keys.json').read_text())
    with torch.device('meta'):
        state = PublishedResT(arch).state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == {
        name: shape for name, shape in shapes.items() if not name.startswith('head.')}


def test_fewer_outputs_are_the_same_features():
    image = torch.randn(2, 3, 72, 104, dtype=torch.double)
    whole = golden_model()(image)
    for got, i in zip(golden_model((0, 2))(image), (0, 2)):
        assert_close(got, whole[i], rtol=0, atol=0)

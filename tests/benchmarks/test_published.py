import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.published import ARCHS, PublishedResT

from .. import golden


@pytest.mark.parametrize('name', ['rest_lite_2x3x224x224_7', 'rest_lite_1x3x160x224_8'])
def test_features_logits_and_gradient_are_the_golden_ones(name):
    """A batch of 1 is run twice, as it was for the golden files: PyTorch's BatchNorm returns a
    wrong gradient of one image for the memory layouts of the published code."""
    gold, weights = np.load(golden.DATA / f'{name}.npz'), golden.draw_weights('lite')
    model = PublishedResT('lite').double().eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    image = golden.draw_image(gold).requires_grad_()
    features = model(torch.cat([image, image]) if len(image) == 1 else image)
    features = [x[:len(image)] for x in features]
    golden.check_features(features, gold, 1e-9)
    logits = features[3].mean((2, 3)) @ weights['head.weight'].T + weights['head.bias']
    assert_close(logits.detach(), torch.from_numpy(gold['logits']), rtol=1e-9, atol=1e-9)
    golden.loss(features).backward()
    golden.check_image_gradient(image.grad, gold, 1e-9)


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_those_of_the_published_checkpoints(arch):
    with torch.device('meta'):
        state = PublishedResT(arch).state_dict()
    found = {name: list(value.shape) for name, value in state.items()}
    assert found == {name: shape for name, shape in golden.shapes(arch).items()
                     if not name.startswith('head.')}

"""What ResTv2 computes and refuses; test_rest.py tests what it shares with ResT."""
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.publishedv2 import AttentionV2, PublishedResTV2
from mmrest import EMSAv2, ResTV2

from .. import golden
from .models import TINY, randomize, tiny


@pytest.fixture(scope='module')
def weights():
    return {name: value for name, value in golden.draw_weights('tiny', 'restv2').items()
            if not name.startswith(('norm.', 'head.'))}  # of a classifier


@pytest.mark.parametrize(
    'name', ['restv2_tiny_1x3x160x224_32', 'restv2_tiny_1x3x97x131_42_odd'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_agrees_with_the_published_model(name, dtype, tolerance, weights):
    gold = np.load(golden.DATA / f'{name}.npz')
    model = ResTV2('tiny').to(dtype).eval()
    model.load_state_dict(weights)
    image = golden.draw_image(gold).to(dtype).requires_grad_()
    features = model(image)
    golden.check_features(features, gold, tolerance)
    golden.loss(features).backward()
    golden.check_image_gradient(image.grad, gold, tolerance)
    golden.check_parameter_gradients(model, gold, tolerance)


@pytest.mark.parametrize('backend', ['auto', 'reference', 'chunked'])
@pytest.mark.parametrize('hw, sr_ratio', [((8, 12), 4), ((7, 9), 4), ((1, 1), 8), ((5, 3), 1)])
def test_emsa_v2_is_the_published_one_at_any_size(backend, hw, sr_ratio):
    """Outputs and every gradient. Tokens of a transposed view, as some callers have them."""
    torch.manual_seed(0)
    module = EMSAv2(24, 3, sr_ratio, backend=backend).double()
    port = AttentionV2(24, 3, sr_ratio).double()
    port.load_state_dict(randomize(module).state_dict())
    tokens = torch.randn(2, 24, hw[0] * hw[1], dtype=torch.double)
    weight = torch.randn(2, hw[0] * hw[1], 24, dtype=torch.double)
    results = []
    for attend in (lambda x: module(x, hw), lambda x: port(x, *hw)):
        x = tokens.transpose(1, 2).detach().requires_grad_()
        out = attend(x)
        (out * weight).sum().backward()
        results.append([out, x.grad])
    for model, result in zip((module, port), results):
        result += [p.grad for _, p in sorted(model.named_parameters())]
    for got, want in zip(*results):
        assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('sr_ratio', [3, 7])
def test_an_odd_reduction_is_refused(sr_ratio):
    """7 x 7 pixels are reduced by 3 to 2 x 2, and those up-sampled to 6 x 6."""
    for build in (lambda: EMSAv2(24, 3, sr_ratio),
                  lambda: ResTV2(dict(TINY, sr_ratios=(sr_ratio, 1)), out_indices=None)):
        with pytest.raises(ValueError, match=f'sr_ratio={sr_ratio} must be 1 or even'):
            build()


@pytest.mark.parametrize('out_indices', [(0, 1), (1, )])
def test_a_training_step_is_the_published_ones(out_indices):
    """In train mode, BatchNorm's statistics too."""
    model = randomize(tiny(ResTV2, out_indices=out_indices)).double()
    port = PublishedResTV2(TINY, out_indices).double()
    port.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 37, 50, dtype=torch.double)
    results = []
    for network in (model, port):
        features = network(image)
        golden.loss(features).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append([*features, *(gradients[name] for name in sorted(gradients)),
                        *(value for _, value in sorted(network.named_buffers()))])
    for got, want in zip(*results):
        assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kwargs, words', [
    (dict(arch='lite'), "arch='lite' must be one of ['base', 'large', 'small', 'tiny'] or a"),
    (dict(arch=dict(TINY, num_heads=(1, 3))), '=16 must be a multiple of num_heads=3'),
    (dict(backend='fast'), "backend='fast' must be 'auto' or one of"),
])
def test_bad_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError) as raised:
        ResTV2(**dict(dict(arch=TINY, out_indices=None), **kwargs))
    assert words in str(raised.value)


def test_has_no_ablations():
    with pytest.raises(TypeError, match='stem'):
        ResTV2('tiny', stem='pvt')

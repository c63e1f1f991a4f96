"""What ResTv2 does otherwise than ResT; test_rest.py tests what they share."""
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.publishedv2 import AttentionV2, PublishedResTV2
from mmrest import EMSAv2, ResTV2

from .. import golden
from .test_rest import TINY, randomize, tiny

COUNTS = dict(tiny=29_667_120, small=40_438_320, base=55_197_552, large=85_509_312)
OF_A_CLASSIFIER = ('norm.', 'head.')


def golden_model(dtype):
    model = ResTV2('tiny').to(dtype).eval()
    model.load_state_dict({
        name: value for name, value in golden.draw_weights('tiny', 'restv2').items()
        if not name.startswith(OF_A_CLASSIFIER)})
    return model


@pytest.mark.parametrize(
    'name', ['restv2_tiny_1x3x160x224_32', 'restv2_tiny_1x3x97x131_42_odd'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_agrees_with_the_published_model(name, dtype, tolerance):
    gold = np.load(golden.DATA / f'{name}.npz')
    model = golden_model(dtype)
    image = golden.draw_image(gold).to(dtype).requires_grad_()
    features = model(image)
    golden.check_features(features, gold, tolerance)
    golden.loss(features).backward()
    golden.check_image_gradient(image.grad, gold, tolerance)
    golden.check_parameter_gradients(model, gold, tolerance)


@pytest.mark.parametrize('arch, count', COUNTS.items())
def test_parameter_counts_and_names_are_the_published_ones(arch, count):
    with torch.device('meta'):
        model = ResTV2(arch)
    assert sum(p.numel() for p in model.parameters()) == count
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in golden.draw_weights(arch, 'restv2').items()
        if not name.startswith(OF_A_CLASSIFIER)}


def test_initialisation_is_the_published_one():
    for name, module in ResTV2('tiny').named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if module.weight.numel() > 10_000:
                assert abs(module.weight.std().item() - 0.02) < 1e-3, name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert module.eps == (1e-6 if isinstance(module, nn.LayerNorm) else 1e-5), name
            assert (module.weight == 1).all() and not module.bias.any(), name


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


def test_layer_depths():
    """Tiny has blocks 1 to 11: stem 0, heads 12."""
    model = ResTV2('tiny')
    for name, depth in [('stem.proj.0.weight', 0), ('stage1.0.attn.up.0.weight', 1),
                        ('norm_1.bias', 1), ('patch_2.proj.weight', 2),
                        ('stage2.1.mlp.fc1.bias', 3), ('patch_4.pos.pa_conv.weight', 10),
                        ('norm_4.weight', 11)]:
        assert name in dict(model.named_parameters())
        assert model.get_layer_depth('backbone.' + name, 'backbone.') == (depth, 13)


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

"""What ResT and ResTV2 compute, and their options."""
import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.published import PublishedResT
from benchmarks.publishedv2 import PublishedResTV2
from mmrest import ResT, ResTV2
from mmrest.models import rest as rest_module
from mmrest.models.layers import DropPath

from .. import golden
from . import models
from .models import TINY, every_model, randomize, tiny


@pytest.mark.parametrize('cls, file, rough', [
    (ResT, 'rest_lite_2x3x224x224_7', 1e-3), (ResT, 'rest_lite_1x3x160x224_8', 1e-3),
    (ResTV2, 'restv2_tiny_1x3x160x224_32', 1e-5),
    (ResTV2, 'restv2_tiny_1x3x97x131_42_odd', 1e-5)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_agrees_with_the_published_model(cls, file, rough, dtype):
    gold, (family, arch) = np.load(golden.DATA / f'{file}.npz'), file.split('_')[:2]
    model = cls(arch).to(dtype).eval()
    weights = {model.own_name(name): value
               for name, value in golden.draw_weights(arch, family).items()}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    image = golden.draw_image(gold).to(dtype).requires_grad_()
    tolerance = 1e-9 if dtype == torch.float64 else rough
    features = model(image)
    golden.check_features(features, gold, tolerance)
    golden.loss(features).backward()
    golden.check_image_gradient(image.grad, gold, tolerance)
    if cls is ResTV2:
        golden.check_parameter_gradients(model, gold, tolerance)


@pytest.mark.parametrize('out_indices', [(0, 1, 2), (1, 2), (0, 2), (2, )])
@pytest.mark.parametrize('cls, published, options', [
    (ResT, PublishedResT, {}), (ResT, PublishedResT, dict(norm_in_trunk=True)),
    (ResTV2, PublishedResTV2, {})])
def test_a_training_step_is_the_published_ones(cls, published, options, out_indices):
    """With BatchNorm's statistics. Few sides are a multiple of a reduction."""
    arch = dict(embed_dims=(8, 16, 32), depths=(1, 2, 1), num_heads=(1, 2, 4),
                sr_ratios=(4, 2, 1))
    model = randomize(cls(arch, out_indices=out_indices, **options)).double()
    port = published(arch, out_indices, **options).double()
    port.load_state_dict(model.state_dict())
    image, results = torch.randn(2, 3, 41, 66, dtype=torch.double), []
    for network in (model, port):
        features = network(image)
        golden.loss(features).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append([*features, gradients, dict(network.named_buffers())])
    assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('cls, arch, count, num_heads, rate', [
    (ResT, 'lite', 9_995_300 + 896, (1, 2, 4, 8), 0.1),  # the first three norms are ours
    (ResT, 'small', 13_166_708 + 896, (1, 2, 4, 8), 0.1),
    (ResT, 'base', 29_558_052 + 1344, (1, 2, 4, 8), 0.2),
    (ResT, 'large', 50_907_156 + 1344, (1, 2, 4, 8), 0.3),
    (ResTV2, 'tiny', 29_667_120, (1, 2, 4, 8), 0.1),
    (ResTV2, 'small', 40_438_320, (1, 2, 4, 8), 0.2),
    (ResTV2, 'base', 55_197_552, (1, 2, 4, 8), 0.3),
    (ResTV2, 'large', 85_509_312, (2, 4, 8, 16), 0.5),
])
def test_archs_are_the_published_ones(cls, arch, count, num_heads, rate):
    with torch.device('meta'):
        model = cls(arch)
    assert sum(p.numel() for p in model.parameters()) == count
    of_a_classifier = ('head.', 'norm.') if cls is ResTV2 else ('head.', )
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        model.own_name(name): shape
        for name, shape in golden.shapes(arch, cls.__name__.lower()).items()
        if not name.startswith(of_a_classifier)}
    for i, heads in enumerate(num_heads):
        blocks = model.get_submodule(cls.stage_names(i)[1])
        assert {block.attn.num_heads for block in blocks} == {heads}
    assert blocks[-1].drop_path.drop_prob == pytest.approx(rate)


@pytest.mark.parametrize('cls, eps', [(ResT, 1e-5), (ResTV2, 1e-6)])
def test_initialisation_is_the_published_one(cls, eps):
    torch.manual_seed(0)  # trunc_normal_ in float32 gives -2 once in 2**24 weights
    arch = dict(embed_dims=(64, 64), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1))
    for name, module in cls(arch, out_indices=None).named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if module.weight.numel() > 10_000:
                assert abs(module.weight.std().item() - 0.02) < 1e-3, name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert module.eps == (eps if isinstance(module, nn.LayerNorm) else 1e-5), name
            assert (module.weight == 1).all() and not module.bias.any(), name


@every_model
@pytest.mark.parametrize('hw', [(1, 1), (1, 9), (7, 1), (33, 50), (64, 32)])
def test_any_image_size(cls, hw):
    model = randomize(tiny(cls)).double().eval()
    features = model(torch.randn(2, 3, *hw, dtype=torch.double))
    h, w = hw
    for i, x in enumerate(features):
        for _ in range(2 if i == 0 else 1):
            h, w = (h + 1) // 2, (w + 1) // 2
        assert x.shape == (2, TINY['embed_dims'][i], h, w)
        assert x.is_contiguous()
        # A LayerNorm over channels closes each stage.
        norm = getattr(model, cls.stage_names(i)[2])
        tokens = ((x - norm.bias[:, None, None]) / norm.weight[:, None, None]).flatten(2)
        assert_close(tokens.mean(1), torch.zeros_like(tokens[:, 0]), atol=1e-9, rtol=0)


@every_model
def test_a_batch_is_its_images(cls):
    """In any memory format. A NaN stays in its image, and is not hidden there."""
    model = randomize(tiny(cls)).double().eval()
    images = torch.randn(3, 3, 37, 50, dtype=torch.double)
    alone = [torch.cat(each) for each in zip(*(model(x[None]) for x in images))]
    assert_close(model(images), tuple(alone))
    images[1, 0, 3, 3] = float('nan')
    for x, want in zip(model(images), alone):
        assert x[1].isnan().any()
        assert_close(x[::2], want[::2])
    model.to(memory_format=torch.channels_last)
    image = images[:1].contiguous(memory_format=torch.channels_last)
    assert_close(model(image), tuple(x[:1] for x in alone))


@every_model
def test_no_images_give_no_features(cls):
    model = models.build(cls)
    image = torch.zeros(0, 3, 70, 100, dtype=torch.double, requires_grad=True)
    features = model(image)
    hw = [(18, 25), (9, 13), (5, 7), (3, 4)]
    assert [x.shape for x in features] == [
        (0, c, *hw) for c, hw in zip(models.ARCH['embed_dims'], hw)]
    if cls is ResTV2:
        return  # PyTorch's PixelShuffle has no gradient of an empty batch
    sum(x.sum() for x in features).backward()
    assert image.grad.shape == image.shape
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@every_model
def test_bfloat16(cls):
    """Under autocast, where it trains, and in bfloat16 as a whole."""
    model, image = randomize(tiny(cls)), torch.randn(2, 3, 40, 56)
    exact = copy.deepcopy(model).double()(image.double())
    whole = copy.deepcopy(model).bfloat16()(image.bfloat16())
    assert {x.dtype for x in whole} == {torch.bfloat16}
    with torch.autocast('cpu', torch.bfloat16):
        features = model(image)
    sum(x.float().square().mean() for x in features).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for got, want in zip((*features, *whole), exact * 2):
        assert (got.double() - want).square().mean().sqrt() < 0.1


# The layout trap: batch 1


@every_model
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'from_hwc'])
def test_gradients_at_batch_1_are_those_of_the_image_twice(cls, training, layout):
    model = randomize(tiny(cls, drop_path_rate=0.)).double().train(training)
    image = torch.randn(1, 3, 40, 56, dtype=torch.double)
    if layout == 'channels_last':
        model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout == 'from_hwc':  # as torch.from_numpy(...).permute(2, 0, 1)[None] is
        image = image[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)[None]

    def gradients(images):
        images = images.detach().requires_grad_()
        model.zero_grad()
        golden.loss([x[:1] for x in model(images)]).backward()
        return [images.grad.sum(0)] + [p.grad.clone() for p in model.parameters()]

    once = gradients(image)
    for got, want in zip(once, gradients(torch.cat([image, image]).contiguous())):
        assert_close(got, want, rtol=1e-7, atol=1e-9)
    direction = torch.randn_like(image)
    step = 1e-6
    with torch.no_grad():
        up, down = (
            golden.loss(model(image + sign * step * direction)) for sign in (1, -1))
    assert_close((once[0] * direction[0]).sum(), (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


# Options


@every_model
@pytest.mark.parametrize('out_indices, stages', [
    (None, (0, 1, 2, 3)), (0, (0, )), (-1, (3, )), ((-3, -1), (1, 3)), ([0, -2], (0, 2))])
def test_only_what_is_used_is_built_and_all_of_it_has_gradients(out_indices, stages, cls):
    arch = {key: [*values] for key, values in models.ARCH.items()}
    model = models.build(cls, arch, out_indices=out_indices)
    assert arch == {key: [*values] for key, values in models.ARCH.items()}
    assert model.out_indices == stages
    assert model.out_channels == tuple(models.ARCH['embed_dims'][i] for i in stages)
    assert model.strides == tuple(2**(i + 2) for i in stages)
    names = [cls.stage_names(i) for i in range(4)]
    assert {name.split('.')[0] for name, _ in model.named_parameters()} == {
        *(names[i][2] for i in stages), *sum((n[:2] for n in names[:stages[-1] + 1]), ())}
    image = models.image(2, 3, 64, 128)
    features, every = model(image), models.build(cls, out_indices=None)
    every.load_state_dict(model.state_dict(), strict=False)
    for x, channels, stride, i in zip(features, model.out_channels, model.strides, stages,
                                      strict=True):
        assert x.shape == (2, channels, 64 // stride, 128 // stride)
        assert_close(x, every(image)[i])
    golden.loss(features).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if not name.endswith('transform_conv.bias'):  # softmax is blind to it
            assert p.grad.any(), name


@every_model
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
def test_frozen_stages(cls, frozen_stages):
    model = tiny(cls, frozen_stages=frozen_stages, drop_path_rate=0.5)
    names = [*cls.stage_names(0), *cls.stage_names(1)]
    frozen = names[:[0, 1, 3, 6][frozen_stages + 1]]

    def training():
        return {name for name, module in model.named_children() if module.training}

    assert training() == set(names) - set(frozen)  # before the first call of train(), too
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    sum(x.square().sum() for x in model(torch.randn(2, 3, 32, 32).requires_grad_())).backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == (p.grad is not None) == (name.split('.')[0] not in frozen)
    assert training() == set(names) - set(frozen)
    for name, value in model.state_dict().items():
        learns = 'running' in name or 'num_batches' in name
        assert value.equal(before[name]) == (not learns or name.split('.')[0] in frozen), name


@every_model
def test_norm_eval_keeps_statistics(cls):
    model = tiny(cls, norm_eval=True)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 32, 32))
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.stem.training and not any(norm.training for norm in norms)
    assert model.eval() is model and not model.stem.training


@every_model
@pytest.mark.parametrize('out_indices', [None, (1, )])
def test_features_before_the_norm(out_indices, cls):
    """Normalised, they are those of a model with output norms."""
    model = models.build(cls, out_indices=out_indices)
    plain = models.build(cls, out_indices=out_indices, out_norm=False)
    state = model.state_dict()
    norms = [model.get_submodule(cls.stage_names(i)[2]) for i in model.out_indices]
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert len(state) - len(plain.state_dict()) == 2 * len(norms)
    assert plain.out_channels == model.out_channels
    image = models.image(2, 3, 45, 66)
    for x, norm, want in zip(plain(image), norms, model(image)):
        assert x.is_contiguous()
        assert_close(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), want)


@every_model
def test_gradients_have_the_strides_of_their_parameters(cls):
    """DistributedDataParallel compares them, also for dimensions of size 1."""
    model = models.build(cls).float().train()
    for size in (33, 128):
        model.zero_grad()
        golden.loss(model(torch.randn(2, 3, size, size))).backward()
        for name, p in model.named_parameters():
            assert p.grad.stride() == p.stride(), name


@every_model
def test_drop_path_rises_linearly_over_the_blocks(cls):
    def found(**kwargs):
        model = cls(dict(TINY, depths=(2, 3)), **dict(dict(out_indices=None), **kwargs))
        return [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]

    assert_close(found(drop_path_rate=0.8), [0., 0.2, 0.4, 0.6, 0.8])
    assert_close(found(drop_path_rate=0.8, out_indices=(0, )), [0., 0.2])
    assert found() == 5 * [0.]


@every_model
def test_with_cp_gives_the_same_gradients_by_checkpointing(cls, monkeypatch):
    calls, original = [], rest_module.checkpoint
    monkeypatch.setattr(rest_module, 'checkpoint', lambda *args, **kwargs: (
        calls.append(args[0]) or original(*args, **kwargs)))
    image = torch.randn(2, 3, 40, 56, dtype=torch.double)
    gradients = []
    for with_cp in (False, True):
        model = randomize(tiny(cls, with_cp=with_cp, drop_path_rate=0.5)).double()
        torch.manual_seed(3)
        golden.loss(model(image)).backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(calls) == 3 * with_cp
    assert_close(*gradients)


@pytest.mark.parametrize('kwargs, words', [
    (dict(arch='tiny'), "arch='tiny' must be one of ['base', 'large', 'lite', 'small'] or a"),
    (dict(arch=3), 'arch=3 must be one of'),
    (dict(arch=dict(TINY, depths=(1, ))), "'depths': (1,)"),
    (dict(arch=dict(TINY, depth=(1, 1))), "'depth'"),
    (dict(arch=dict(TINY, num_heads=(1, 3))), '=16 must be a multiple of num_heads=3'),
    (dict(out_indices=(0, 2)), 'out_indices=(0, 2) must be increasing, from 0 to 1'),
    (dict(out_indices=(1, 0)), 'out_indices=(1, 0) must'),
    (dict(out_indices=(-1, 0)), 'out_indices=(-1, 0) must'),
    (dict(out_indices=-3), 'out_indices=-3 must be increasing, from 0 to 1; -1 is the last'),
    (dict(norm_in_trunk=True, out_norm=False), 'needs output norms, and out_norm=False'),
    (dict(out_indices=(0, 0)), 'out_indices=(0, 0) must'),
    (dict(out_indices=()), 'out_indices=() must'),
    (dict(frozen_stages=3), 'frozen_stages=3 must be from -1 to 2'),
    (dict(frozen_stages=-2), 'frozen_stages=-2 must'),
    (dict(drop_path_rate=1.0), 'drop_path_rate=1.0 must be in [0, 1)'),
    (dict(drop_path_rate=float('nan')), 'drop_path_rate=nan must'),
    (dict(backend='fast'), "backend='fast' must be 'auto' or one of"),
])
def test_bad_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ResT(**dict(dict(arch=TINY, out_indices=None), **kwargs))


@pytest.mark.parametrize('arch, words', [
    ('lite', r"arch='lite' must be one of \['base', 'large', 'small', 'tiny'\]"),
    (dict(TINY, sr_ratios=(3, 1)), 'sr_ratio=3 must be 1 or even')])
def test_archs_that_restv2_has_not(arch, words):
    with pytest.raises(ValueError, match=words):
        ResTV2(arch, out_indices=None)


def test_numbers_of_numpy_are_numbers():
    arch = {key: np.array(values) for key, values in TINY.items()}
    model = ResT(arch, np.int64(4), np.arange(2), np.int64(1), drop_path_rate=np.float64(0.5))
    same = ResT(TINY, 4, (0, 1))
    same.load_state_dict(model.state_dict())
    image = torch.randn(1, 4, 40, 40)
    assert_close(model.eval()(image), same.eval()(image), rtol=0, atol=0)
    assert not model.stem.conv1.weight.requires_grad

"""The kinds of tests that timm and mmpretrain have for their own models, on ours.

timm: tests/test_models.py, through the adapter below. mmpretrain: the tests of its backbones in
tests/test_models/test_backbones (test_swin_transformer.py, test_convnext.py, test_resnet.py).
"""
import copy
import io

import pytest
import torch
from mmengine.registry import MODELS as REGISTRY
from torch import nn
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from .models import ARCH, MODELS, build, image

every_model = pytest.mark.parametrize('cls', MODELS)


class Timm(nn.Module):
    """timm's interface: forward_features, forward_head, feature_info, grad checkpointing."""

    def __init__(self, backbone, num_classes=10):
        super().__init__()
        self.backbone = backbone
        self.feature_info = [
            dict(num_chs=channels, reduction=stride)
            for channels, stride in zip(backbone.out_channels, backbone.strides)]
        self.num_features = backbone.out_channels[-1]
        self.head = nn.Linear(self.num_features, num_classes).double()

    def set_grad_checkpointing(self, enable=True):
        self.backbone.with_cp = enable

    def forward_features(self, x):
        return self.backbone(x)[-1]

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def classifier(cls, **kwargs):
    return Timm(build(cls, **dict(dict(out_indices=-1), **kwargs))).eval()


# timm's


@every_model
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size', [(224, 224), (192, 256), (97, 131)])
def test_forward(size, batch, cls):
    model = classifier(cls)
    x = image(batch, 3, *size)
    features = model.forward_features(x)
    assert features.shape == (batch, model.num_features, -(-size[0] // 32), -(-size[1] // 32))
    logits = model(x)
    assert logits.shape == (batch, 10) and logits.isfinite().all()
    assert_close(model.forward_head(features), logits)
    assert model.forward_head(features, pre_logits=True).shape == (batch, model.num_features)


@every_model
@pytest.mark.parametrize('batch', [1, 2])
def test_backward(batch, cls):
    model = classifier(cls).train()
    model(image(batch, 3, 128, 96)).mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), f'no gradient for {name}'


@every_model
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (-2, ), (0, )])
def test_forward_of_features_only(out_indices, cls):
    model = Timm(build(cls, out_indices=out_indices))
    outs = model.backbone(image(2, 3, 96, 128))
    assert len(outs) == len(model.feature_info) == len(out_indices)
    for out, info in zip(outs, model.feature_info):
        assert out.shape == (
            2, info['num_chs'], 96 // info['reduction'], 128 // info['reduction'])
        assert not out.isnan().any()


@every_model
def test_forward_of_a_script_by_trace(cls):
    model, x = classifier(cls), image(1, 3, 96, 96)
    assert_close(torch.jit.trace(model, x)(x), model(x))


@every_model
def test_forward_and_backward_by_fx(cls):
    model = classifier(cls)
    names, _ = get_graph_node_names(model)
    traced = create_feature_extractor(model, [names[-1]])
    x = image(2, 3, 96, 128)
    out, = traced(x).values()
    assert_close(out, model(x))
    out.mean().backward()
    for name, p in traced.named_parameters():
        assert p.grad is not None, name


@every_model
def test_grad_checkpointing(cls):
    model, x, grads = classifier(cls), image(2, 3, 64, 96), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.train()(x).mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for got, want in zip(*grads):
        assert_close(got, want, rtol=1e-9, atol=1e-12)


@every_model
def test_channels_last(cls):
    model, x = classifier(cls), image(2, 3, 96, 128)
    want = model(x)
    model.to(memory_format=torch.channels_last)
    assert_close(model(x.contiguous(memory_format=torch.channels_last)), want)


@every_model
def test_a_sample_does_not_depend_on_the_batch(cls):
    model, x = classifier(cls), image(3, 3, 96, 128)
    together = model(x)
    for i in range(3):
        assert_close(model(x[i:i + 1]), together[i:i + 1])
    x[1] = float('nan')
    assert_close(model(x)[::2], together[::2])


@every_model
def test_weights_are_saved_and_loaded(cls):
    model, other, file = classifier(cls), classifier(cls), io.BytesIO()
    for p in other.parameters():
        nn.init.zeros_(p)
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = image(1, 3, 64, 96)
    assert_close(other(x), model(x), rtol=0, atol=0)
    assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


@every_model
@pytest.mark.parametrize('in_channels', [1, 2, 4, 6, 13])
def test_input_channels(in_channels, cls):
    x = image(1, in_channels, 64, 64)
    assert classifier(cls, in_channels=in_channels)(x).isfinite().all()


# mmpretrain's


@every_model
def test_structure(cls):
    with pytest.raises(ValueError, match='arch='):
        cls('unknown')
    with pytest.raises(ValueError, match='arch='):
        cls(dict(embed_dims=(8, )))
    for arch, settings in cls.arch_zoo.items():
        with torch.device('meta'):
            model = cls(arch)
        for i, depth in enumerate(settings['depths']):
            blocks = getattr(model, cls.stage_names(i)[1])
            assert len(blocks) == depth
            assert {block.attn.num_heads for block in blocks} == {settings['num_heads'][i]}
            assert blocks[0].norm1.normalized_shape == (settings['embed_dims'][i], )


@every_model
def test_registered_as_a_backbone(cls):
    model = REGISTRY.build(dict(type=cls.__name__, arch=ARCH, out_indices=(2, 3)))
    model.init_weights()
    outs = model(torch.randn(3, 3, 64, 64))
    assert isinstance(outs, tuple) and [out.shape for out in outs] == [
        (3, ARCH['embed_dims'][2], 4, 4), (3, ARCH['embed_dims'][3], 2, 2)]


@every_model
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages, cls):
    model = build(cls, frozen_stages=frozen_stages).train()
    frozen = [name for i in range(4) for name in cls.stage_names(i)
              if i < frozen_stages or (i == 0 and frozen_stages == 0 and name == 'stem')]
    for name, module in model.named_children():
        assert module.training == (name not in frozen), name
        for p in module.parameters():
            assert p.requires_grad == (name not in frozen), name


@every_model
def test_layer_depths_cover_every_parameter(cls):
    model = build(cls)
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
              for name, _ in model.named_parameters()}
    blocks = sum(ARCH['depths'])
    assert set(depths.values()) == {(depth, blocks + 2) for depth in range(blocks + 1)}
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (blocks + 1, blocks + 2)


@every_model
@pytest.mark.parametrize('norm_eval', [False, True])
def test_batch_statistics(norm_eval, cls):
    model = build(cls, norm_eval=norm_eval).train()
    before = copy.deepcopy(model.state_dict())
    model(image(2, 3, 64, 64))
    changed = {name for name, value in model.state_dict().items()
               if not value.equal(before[name])}
    assert bool(changed) != norm_eval
    assert all('running' in name or 'num_batches' in name for name in changed)

"""Weights of published files and our own in a model; what a file that does not fit says."""
import argparse
import hashlib
import re

import pytest
import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import load_checkpoint
from torch.testing import assert_close

from mmrest import ResT, ResTV2
from mmrest.models import ResTAblation
from mmrest.models.checkpoint import load_pretrained, load_weights, safe_init_cfg
from mmrest.safe_reading import read_state_dict

from .. import golden
from .models import ARCH, build

DETECTION_NORMS = tuple(f'norm{i}.{kind}' for i in (1, 2, 3) for kind in ('weight', 'bias'))


def published(path, kind=ResT, state=None):
    """Save a small model as the published training code does: a head, and the last norm alone.

    Returns the weights by their names in the model, and saves ``state`` instead if given.
    """
    model = build(kind)
    weights = model.state_dict()
    norms = [f'{model.stage_names(i)[2]}.' for i in range(4)]
    weights = {k: v for k, v in weights.items() if not k.startswith(tuple(norms[:3]))}
    if state is None:
        state = {re.sub(f'^{norms[3]}', 'norm.', k): v for k, v in weights.items()}
        state.update({'head.weight': torch.ones(10, 48).double(), 'head.bias': torch.ones(10)})
    args = argparse.Namespace(lr=5e-4, model='rest', device='cuda')
    torch.save(dict(model=state, args=args, epoch=299, optimizer={}), path)
    return weights


def load(path, prefix=None, arch='lite', kind=ResT, **kwargs):
    cfg = dict(type='Pretrained', checkpoint=str(path))
    if prefix is not None:
        cfg['prefix'] = prefix
    model = kind(arch, init_cfg=cfg, **kwargs).double()
    model.init_weights()
    return model


def check_loaded(model, weights):
    """The model's values are the weights, and initial ones of the norms that lack there."""
    for name, value in model.state_dict().items():
        if name in weights:
            assert_close(value, weights[name], rtol=0, atol=0)
        else:
            assert name in DETECTION_NORMS and (value == name.endswith('weight')).all(), name


def test_published_file(tmp_path, log):
    """Of the published size and names; tests/configs has ResTv2's."""
    path = tmp_path / 'rest_lite.pth'
    state = {k: v for k, v in golden.draw_weights('lite').items() if k not in DETECTION_NORMS}
    published(path, state=state)
    check_loaded(load(path), {re.sub(r'^norm\.', 'norm4.', k): v for k, v in state.items()})
    line, = (line for line in log.getvalue().splitlines() if 'loaded' in line)
    assert "ResT(arch='lite'): loaded 9,995,300 of 9,996,196 parameters from" in line
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f'{path} (SHA-256 {digest}); missing' in line
    missing, unused = line.split('missing')[1].split('not used:')
    assert all(name in missing for name in DETECTION_NORMS)
    assert unused == ' head.weight, head.bias'


def test_fewer_stages_take_what_they_have(tmp_path, log):
    weights = published(tmp_path / 'rest.pth')
    check_loaded(load(tmp_path / 'rest.pth', arch=ARCH, out_indices=(1, )), weights)
    assert 'stage3.0.attn.q.weight' in log.getvalue().split('not used:')[1]


def test_the_log_of_init_weights_names_every_parameter_that_was_loaded(tmp_path):
    """Also those whose mean is as before: zeros, ones."""
    path = tmp_path / 'weights.pth'
    weights = ResT(ARCH).state_dict()
    torch.save({k: v for k, v in weights.items() if not k.startswith('norm1.')}, path)
    model = ResT(ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    infos = {}
    model._dump_init_info = lambda: infos.update(model._params_init_info)
    model.init_weights()
    for name, p in model.named_parameters():
        loaded = 'ResTWeights: load from' in infos[p]['init_info']
        assert loaded != name.startswith('norm1.'), name


def test_whole_models_refuse_a_published_file(tmp_path):
    """MMEngine's load_checkpoint, thus MMPretrain's get_model, would log and go on."""
    wrapped, bare = tmp_path / 'wrapped.pth', tmp_path / 'bare.pth'
    published(wrapped)
    torch.save(read_state_dict(wrapped), bare)
    model = torch.nn.ModuleDict(dict(backbone=ResT(ARCH), head=torch.nn.Linear(48, 10)))
    for path in (wrapped, bare):
        with pytest.raises(ValueError, match='has the names of a published file. It belongs'):
            load_checkpoint(model, str(path), map_location='cpu')
    with pytest.raises(ValueError, match='has the names of a published file'):
        load_checkpoint(model.backbone, str(wrapped), map_location='cpu')
    model.load_state_dict(model.head.state_dict(), strict=False)  # a part, on purpose
    own = model.state_dict()
    torch.save(own, bare)
    load_checkpoint(model, str(bare))
    assert_close(model.state_dict(), own)


def test_a_type_of_none_is_left_alone():
    """MMDetection's test_robustness.py writes it into the config."""
    cfg = dict(type=None, checkpoint='none.pth')
    assert ResT(ARCH, init_cfg=cfg).init_cfg == cfg
    assert safe_init_cfg([dict(type='Pretrained', checkpoint='x.pth'), cfg]) == [
        cfg, dict(type='ResTWeights', checkpoint='x.pth')]


def test_other_init_cfg_entries_are_applied_before(tmp_path):
    weights = published(tmp_path / 'rest.pth')
    init_cfg = [
        dict(type='Pretrained', checkpoint=str(tmp_path / 'rest.pth')),
        dict(type='Constant', layer='LayerNorm', val=5., bias=6.)
    ]
    model = ResT(ARCH, init_cfg=init_cfg)
    model.init_weights()
    assert (model.norm1.weight == 5).all()  # not in the file
    assert_close(model.norm4.weight.detach(), weights['norm4.weight'].float())
    assert [cfg['type'] for cfg in model.init_cfg] == ['Constant', 'ResTWeights']


def test_a_head_of_other_classes_is_refused(tmp_path):
    """tests/configs/test_zoo.py loads those that fit."""
    path = tmp_path / 'rest.pth'
    published(path)
    head = torch.nn.ModuleDict(dict(fc=torch.nn.Linear(48, 7)))
    with pytest.raises(ValueError, match=r'\(10, 48\).*\(7, 48\)'):
        WEIGHT_INITIALIZERS.build(dict(type='ResTHead', checkpoint=str(path)))(head)


# Published files of ResTv2


@pytest.mark.parametrize('layout', ['classification', 'segmentation', 'detection'])
def test_published_files_of_restv2(layout, tmp_path, log):
    """As the authors' classification, segmentation (MMSegmentation) and detection code does."""
    path, prefix = tmp_path / 'restv2.pth', None
    weights = build(ResTV2).state_dict()
    if layout == 'classification':
        published(path, ResTV2)
    elif layout == 'segmentation':
        prefix = 'backbone.'
        state = {prefix + k: v for k, v in weights.items()}
        torch.save(dict(state_dict=dict(state, **{'decode_head.x': torch.zeros(1)})), path)
    else:
        prefix = 'backbone.bottom_up.'
        published(path, state={
            prefix + re.sub('^(norm_.)', r'\1.0', k): v for k, v in weights.items()})
    model = load(path, prefix, ARCH, ResTV2)
    for name, value in model.state_dict().items():
        if layout == 'classification' and name.startswith('norm_'):
            assert (value == name.endswith('weight')).all(), name
        else:
            assert_close(value, weights[name], rtol=0, atol=0)
    line, = (line for line in log.getvalue().splitlines() if 'loaded' in line)
    missing, unused = line.split('not used: ')
    if layout == 'classification':  # a classifier's norm is another one than norm_4
        assert 'norm_4.weight, norm_4.bias' in missing
        assert set(unused.split(', ')) == {
            'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    else:
        assert unused == 'none'


@pytest.mark.parametrize('stem', ['rest', 'resnet', 'pvt'])
@pytest.mark.parametrize('in_channels', [1, 4, 6])
def test_images_of_other_channels_by_choice(in_channels, stem, tmp_path):
    """As timm's adapt_input_conv: (C, 3, k, k) is summed for one channel, or repeated."""
    path = tmp_path / 'weights.pth'
    source = ResTAblation('lite', 3, (0, ), stem=stem).eval()
    torch.save(source.state_dict(), path)
    model = ResTAblation('lite', in_channels, (0, ), stem=stem).eval()
    with pytest.raises(ValueError, match=f'{path}.* in_channels={in_channels} here, 3 in the '):
        load_pretrained(model, path)
    load_pretrained(model, path, in_channels='adapt')
    (first, rgb), *rest = source.state_dict().items()
    adapted = rgb.repeat(1, 2, 1, 1)[:, :in_channels] * 3 / in_channels
    assert_close(model.state_dict(), dict(
        rest, **{first: rgb.sum(1, True) if in_channels == 1 else adapted}))
    if in_channels != 4:
        grey = torch.rand(1, 1, 32, 40)
        assert_close(model(grey.expand(-1, in_channels, -1, -1)),
                     source(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_only_three_channels_are_adapted(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(ResT('lite', 4, (0, )).state_dict(), path)
    load_pretrained(ResT('lite', 4, (0, )), path)
    cfg = dict(type='Pretrained', checkpoint=str(path), in_channels='adapt')
    with pytest.raises(ValueError, match="in_channels=1 here, 4 in the file; in_channels='ad"):
        ResT('lite', 1, (0, ), init_cfg=cfg).init_weights()
    with pytest.raises(ValueError, match="in_channels=3 must be 'adapt' or None"):
        ResT('lite', init_cfg=dict(cfg, in_channels=3)).init_weights()


# Wrong files


DETECTION_LARGE = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 3, 16, 3),
                       num_heads=(1, 2, 4, 8), sr_ratios=(8, 4, 2, 1))


@pytest.mark.parametrize('have, want, words', [
    ((ResT, 'lite'), (ResT, 'small'), "ResT(arch='lite'), does not fit ResT(arch='small')"),
    ((ResT, 'base'), (ResT, 'small'), "ResT(arch='base'), does not fit ResT(arch='small')"),
    ((ResTV2, 'tiny'), (ResTV2, 'small'), "ResTV2(arch='tiny'), does not fit ResTV2(arch='sm"),
    ((ResTV2, 'tiny'), (ResT, 'lite'), "ResTV2(arch='tiny'), does not fit ResT(arch='lite')"),
    ((ResT, 'lite'), (ResTV2, 'tiny'), "ResT(arch='lite'), does not fit ResTV2(arch='tiny')"),
    ((ResTV2, DETECTION_LARGE), (ResTV2, 'large'), "the 'large' of ResTv2's published "
     "detection code, another network than ResTV2(arch='large'): its depths are 2 3 16 3")])
def test_another_size_is_refused_and_both_are_named(have, want, words):
    with torch.device('meta'):
        (kind, arch), (other, other_arch) = have, want
        state, model = kind(arch).state_dict(), other(other_arch)
    with pytest.raises(ValueError) as raised:
        load_weights(model, state, 'weights.pth')
    assert f"checkpoint='weights.pth', which looks like {words}" in str(raised.value)


def test_a_refused_file_changes_nothing(tmp_path):
    path = tmp_path / 'rest.pth'
    published(path)
    model = ResT(dict(ARCH, depths=(1, 1, 3, 1)),
                 init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f'{path}.*it lacks stage3.2.*'):
        model.init_weights()
    for name, value in model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_files_that_fit_nothing_are_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'layer1.0.conv1.weight': torch.zeros(64, 64, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"none of the published models.*ResT\(arch='custom'"):
        load(path, arch=ARCH)
    with pytest.raises(ValueError, match=r"prefix='backbone.'.*layer1.0.conv1.weight"):
        load(path, 'backbone.', ARCH)
    torch.save({f'backbone.{k}': v for k, v in published(path).items()}, path)
    with pytest.raises(ValueError, match="set prefix='backbone.'"):
        load(path, arch=ARCH)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='no named tensors'):
        load(path, arch=ARCH)

"""LayerDecayConstructor, beside MMPretrain's constructor for classifiers."""
import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mmrest import ResT
from mmrest.apis import build_model, read_config

from ..configs.test_configs import CONFIGS

OPTIM_WRAPPER = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0., bias_decay_mult=0.))
OURS = dict(OPTIM_WRAPPER, constructor='LayerDecayConstructor')


def groups(model, optim_wrapper):
    """Learning rate and weight decay of each parameter."""
    found = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    found = {p: (g['lr'], g['weight_decay']) for g in found for p in g['params']}
    return {name: found[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize('name, last, depths', [
    ('rest_lite', 9, {
        'stem.conv1.weight': 0, 'stage1.0.norm1.weight': 1, 'stage1.1.attn.q.weight': 2,
        'patch_embed_2.conv.weight': 3, 'stage3.1.mlp.fc1.bias': 6,
        'patch_embed_4.pos.pa_conv.weight': 7, 'norm4.weight': 8}),
    ('restv2_tiny', 12, {
        'stem.proj.0.weight': 0, 'stage1.0.attn.up.0.weight': 1, 'patch_2.proj.weight': 2,
        'stage2.1.mlp.fc1.bias': 3, 'patch_4.pos.pa_conv.weight': 10, 'norm_4.weight': 11})])
def test_same_as_mmpretrains_for_classifiers(name, last, depths):
    """The stem has depth 0, each block one more, and the head comes last."""
    cfg = read_config(str(CONFIGS / f'classification/{name}_8xb256_in1k.py'))
    with torch.device('meta'):
        model = build_model(cfg)
    theirs = dict(OPTIM_WRAPPER, constructor='LearningRateDecayOptimWrapperConstructor')
    found, want = groups(model, OURS), groups(model, theirs)
    assert found.keys() == want.keys()
    for name, values in want.items():
        assert found[name] == pytest.approx(values), name
    depths = {**{f'backbone.{k}': v for k, v in depths.items()}, 'head.fc.weight': last}
    for name, depth in depths.items():
        assert found[name][0] == pytest.approx(1e-3 * 0.8**(last - depth)), name


class Detector(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.feature = torch.nn.ModuleDict(dict(net=ResT('lite', out_indices=(1, 2))))
        self.neck = torch.nn.Linear(256, 8)


def test_any_model_and_custom_keys():
    """Two blocks in each of three stages: eight depths."""
    paramwise = dict(layer_decay_rate=0.5, custom_keys=dict(neck=dict(lr_mult=10.)))
    found = groups(Detector(), dict(OURS, paramwise_cfg=paramwise))
    for name, rate, depth in [('feature.net.stem.conv1.weight', 1e-3, 0),
                              ('feature.net.stage1.1.norm1.bias', 1e-3, 2),
                              ('feature.net.patch_embed_3.conv.weight', 1e-3, 5),
                              ('feature.net.norm3.weight', 1e-3, 6), ('neck.bias', 1e-2, 7)]:
        assert found[name] == pytest.approx((rate * 0.5**(7 - depth), 0.05)), name


def test_models_without_rest_are_refused():
    with pytest.raises(ValueError, match='Linear, has no ResT in it'):
        build_optim_wrapper(torch.nn.Linear(1, 1), OURS)

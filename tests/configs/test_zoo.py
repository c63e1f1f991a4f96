"""Every config's figures; of each family the smallest: a training step and a prediction."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import load
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmrest.apis import build_model
from tools.analysis_tools.count_flops import count

from .. import golden
from .step import build, train_and_predict
from .test_configs import ALL, CONFIGS, read

ROOT = CONFIGS.parent
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
METADATA = {
    model['Config'].replace('configs/', '', 1): model['Metadata']
    for path in load(ROOT / 'model-index.yml')['Import']
    for model in load(ROOT / path)['Models']
}
# The smallest model of each folder and backbone.
SMALLEST = {(Path(name).parent, 'restv2' in name): name for name in sorted(
    METADATA, key=lambda name: METADATA[name]['Parameters'], reverse=True)}.values()


def test_metafiles_list_every_config():
    assert set(METADATA) == {name for name in ALL if 'digits' not in name}


@pytest.mark.parametrize('name', ALL)
def test_parameters_and_weight_decay(name):
    """Norms have none, by whatever key."""
    cfg = read(name)
    # MMPretrain's ResNet reads the values of a tensor to build itself.
    with torch.device('cpu' if cfg.model.backbone.type == 'ResNet' else 'meta'):
        model = build_model(cfg)
    if name in METADATA:
        assert sum(p.numel() for p in model.parameters()) == METADATA[name]['Parameters']
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    no_biases = 'bias_decay_mult' in cfg.optim_wrapper.get('paramwise_cfg', {})
    decay = {id(p): group['weight_decay'] for group in wrapper.param_groups
             for p in group['params']}
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    for key, p in model.named_parameters():
        none = id(p) in norms or no_biases and key.endswith('bias')
        assert decay[id(p)] == (0 if none else cfg.optim_wrapper.optimizer.weight_decay), key


@pytest.mark.parametrize('name', SMALLEST)
def test_a_training_step_and_a_prediction(name):
    cfg = read(name)
    cfg.model.backbone.drop_path_rate = 0.  # a skipped block would have no gradient
    model = build(cfg)
    if cfg.default_scope == 'mmseg':  # it would pad the images to the size of its crops
        model.data_preprocessor.size = (64, 64)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    before = {k: p.detach().clone() for k, p in model.backbone.named_parameters()}
    train_and_predict(model, cfg.default_scope, 64)
    wrapper.step()
    moved = [k for k, p in model.backbone.named_parameters() if not p.equal(before[k])]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize('name, millions, rel', [
    ('retinanet/rest_small', 23.400, 1e-4), ('retinanet/rest_base', 40.496, 1e-4),
    ('mask_rcnn/rest_small', 33.3, 0.01), ('mask_rcnn/rest_base', 49.8, 0.01),
    ('mask_rcnn/restv2_tiny', 49.9, 1e-3), ('mask_rcnn/restv2_small', 60.7, 1e-3),
    ('mask_rcnn/restv2_base', 75.5, 1e-3)])
def test_detectors_have_as_many_parameters_as_the_paper_reports(name, millions, rel):
    count = METADATA[f'{name}_fpn_1x_coco.py']['Parameters']
    assert count == pytest.approx(millions * 1e6, rel=rel)


@pytest.mark.parametrize('name, shape', [
    ('retinanet/rest_lite_fpn_1x_coco.py', (800, 1280)),
    ('semantic_fpn/rest_small_fpn_8xb4_40k_ade20k.py', (512, 512)),
    ('upernet/rest_small_8xb2_160k_ade20k.py', (512, 512)),
    ('classification/restv2_tiny_8xb256_in1k.py', (224, 224))])
def test_metafiles_have_the_flops_that_the_script_measures(name, shape):
    """ResT's authors count without the attention, ResTv2's with it."""
    cfg = read(name)
    init_default_scope(cfg.default_scope)
    _, layers, total = count(cfg, shape)
    assert METADATA[name]['FLOPs'] == round(total if 'restv2' in name else layers, -7)


@pytest.mark.parametrize('family, arch, file', [
    ('rest', 'lite', 'rest_lite_2x3x224x224_7'),
    ('restv2', 'tiny', 'restv2_tiny_1x3x97x131_42_odd')])
def test_logits_are_the_published_classifiers(family, arch, file, tmp_path):
    """Backbone and head start from one file, as the authors release it."""
    gold = np.load(golden.DATA / f'{file}.npz')
    path = tmp_path / f'{family}_{arch}.pth'
    weights = golden.draw_weights(arch, family)
    weights = {k: v for k, v in weights.items() if not k.startswith('norm_')}
    torch.save({'model': weights}, path)
    cfg = read(f'classification/{family}_{arch}_8xb256_in1k.py')
    init_default_scope('mmpretrain')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg.model.head.init_cfg = dict(type='ResTHead', checkpoint=str(path))
    model = MODELS.build(cfg.model).double()
    model.init_weights()
    logits = model.eval()(golden.draw_image(gold))
    assert_close(logits, torch.from_numpy(gold['logits']), rtol=1e-9, atol=1e-9)

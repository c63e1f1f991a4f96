"""Every config: its values at full size, a training step and a prediction on small images."""
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.testing import assert_close

from .. import golden

CONFIGS = Path(__file__).parents[2] / 'configs'
WIDTHS = dict(lite=512, small=512, base=768, large=768)
ALL = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts)


def build(name, **backbone):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.update(backbone)
    package = __import__(f'{cfg.default_scope}.utils', fromlist=['register_all_modules'])
    package.register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)
    if cfg.default_scope == 'mmpretrain' and cfg.get('data_preprocessor'):
        cfg.model.data_preprocessor = cfg.data_preprocessor
    # Heads have SyncBN, which refuses a CPU.
    return cfg, revert_sync_batchnorm(MODELS.build(cfg.model))


def batch(cfg, size):
    """Two random images with a label, a class map, or boxes and masks."""
    image = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    scope = cfg.default_scope
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return dict(inputs=torch.stack([image, image]),
                    data_samples=[DataSample().set_gt_label(i) for i in (1, 2)])
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        sample = SegDataSample(
            metainfo=dict(img_shape=(size, size), ori_shape=(size, size)),
            gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, size, size))))
        return dict(inputs=[image, image], data_samples=[sample, sample.clone()])
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    meta = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1., 1.), img_id=0)
    masks = np.zeros((1, size, size), np.uint8)
    masks[0, 10:50, 20:60] = 1
    sample = DetDataSample(
        metainfo=meta,
        gt_instances=InstanceData(
            bboxes=torch.tensor([[20., 10., 60., 50.]]), labels=torch.tensor([3]),
            masks=BitmapMasks(masks, size, size)))
    return dict(inputs=[image, image], data_samples=[sample, sample.clone()])


@pytest.mark.parametrize('name', ALL)
def test_a_training_step_and_a_prediction(name):
    torch.manual_seed(0)
    always = {} if 'resnet' in name else dict(drop_path_rate=0.)  # no block left out by chance
    cfg, model = build(name, **always)
    size = 224 if 'position-le' in name else 64
    if cfg.default_scope == 'mmseg':  # would pad images to the size of its crops
        model.data_preprocessor.size = (size, size)
    model.train()
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    before = {k: p.detach().clone() for k, p in model.backbone.named_parameters()}
    data = model.data_preprocessor(batch(cfg, size), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    for key, p in model.backbone.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key
        if 'transform_conv.bias' not in key:  # its gradient is zero: softmax is blind to it
            assert p.grad.any(), key
    wrapper.step()
    moved = [k for k, p in model.backbone.named_parameters() if not p.equal(before[k])]
    assert len(moved) > 0.9 * len(before)
    model.eval()
    predictions = model.test_step(batch(cfg, size))
    assert len(predictions) == 2


@pytest.mark.parametrize('kind', ['retinanet', 'mask_rcnn'])
@pytest.mark.parametrize('arch', ['lite', 'small', 'base', 'large'])
def test_detectors_follow_the_paper(kind, arch):
    cfg = Config.fromfile(CONFIGS / f'{kind}/rest_{arch}_fpn_1x_coco.py')
    rate = 0.1 if arch in ('lite', 'small') else 0.2
    assert (cfg.model.backbone.arch, cfg.model.backbone.drop_path_rate) == (arch, rate)
    resize = next(t for t in cfg.train_dataloader.dataset.pipeline
                  if t.type == 'RandomChoiceResize')
    assert sorted(resize.scales)[0] == (1333, 480) and sorted(resize.scales)[-1] == (1333, 800)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.param_scheduler[1].milestones == [8, 11]


@pytest.mark.parametrize('name, millions', [
    ('retinanet/rest_small', 23.400), ('retinanet/rest_base', 40.496),
    ('mask_rcnn/rest_small', 33.3), ('mask_rcnn/rest_base', 49.8)])
def test_detectors_parameters_are_those_reported_by_the_paper(name, millions):
    _, model = build(f'{name}_fpn_1x_coco.py')
    rel = 1e-4 if 'retinanet' in name else 0.01
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=rel)


METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_metafiles_have_the_parameters_of_their_models(path):
    models = load(path)['Models']
    names = {str(CONFIGS.parent / model['Config']) for model in models}
    assert names == {str(p) for p in path.parent.rglob('*.py') if 'digits' not in p.stem}
    for model in models:
        _, built = build(model['Config'].replace('configs/', '', 1))
        count = sum(p.numel() for p in built.parameters())
        assert model['Metadata']['Parameters'] == count, model['Name']


@pytest.mark.parametrize('name, shape', [
    ('retinanet/rest_lite_fpn_1x_coco.py', (800, 1280)),
    ('semantic_fpn/rest_small_fpn_8xb4_40k_ade20k.py', (512, 512)),
    ('upernet/rest_small_8xb2_160k_ade20k.py', (512, 512))])
def test_metafiles_have_the_flops_that_the_script_measures(name, shape):
    model = next(m for m in load(CONFIGS / name.split('/')[0] / 'metafile.yml')['Models']
                 if m['Config'] == f'configs/{name}')
    script = CONFIGS.parent / 'tools/analysis_tools/count_flops.py'
    done = subprocess.run([sys.executable, script, CONFIGS / name, '--shape', *map(str, shape)],
                          capture_output=True, text=True, check=True)
    published = float(re.search(r'FLOPs ([\d.]+) G as published', done.stdout)[1])
    assert model['Metadata']['FLOPs'] == pytest.approx(published * 1e9, rel=1e-4)


@pytest.mark.parametrize('name', ['rest_small_fpn_8xb4_40k', 'rest_base_fpn_8xb4_40k'])
def test_semantic_fpn_follows_poolformer(name):
    cfg = Config.fromfile(CONFIGS / f'semantic_fpn/{name}_ade20k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 2e-4, 1e-4)
    schedule = cfg.param_scheduler
    assert (schedule.type, schedule.power, schedule.end) == ('PolyLR', 0.9, 40000)
    assert cfg.train_cfg.max_iters == 40000
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (4, 32)
    check_ade20k(cfg, 'semantic_fpn')


@pytest.mark.parametrize('name', ['rest_small_8xb2_160k', 'rest_base_8xb2_160k'])
def test_upernet_follows_swin(name):
    cfg = Config.fromfile(CONFIGS / f'upernet/{name}_ade20k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 1500)
    assert (decay.type, decay.power, decay.begin, decay.end) == ('PolyLR', 1., 1500, 160000)
    assert cfg.train_cfg.max_iters == 160000
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    check_ade20k(cfg, 'upernet')


def check_ade20k(cfg, head):
    assert cfg.default_scope == 'mmseg'
    arch = cfg.model.backbone.arch
    channels = [64, 128, 256, 512] if arch == 'small' else [96, 192, 384, 768]
    taker = cfg.model.neck if head == 'semantic_fpn' else cfg.model.decode_head
    assert taker.in_channels == channels
    assert cfg.model.backbone.drop_path_rate == (0.1 if arch == 'small' else 0.2)
    assert cfg.model.decode_head.num_classes == 150
    dataset = cfg.train_dataloader.dataset
    kinds = [t.type for t in dataset.pipeline]
    assert dataset.type == 'ADE20KDataset' and 'PhotoMetricDistortion' in kinds
    assert dataset.pipeline[1].reduce_zero_label
    assert dataset.pipeline[3].crop_size == cfg.model.data_preprocessor.size == (512, 512)


@pytest.mark.parametrize('arch', ['lite', 'small', 'base', 'large'])
def test_classifiers_follow_the_paper(arch):
    cfg = Config.fromfile(CONFIGS / f'classification/rest_{arch}_8xb256_in1k.py')
    assert cfg.model.backbone.arch == arch and 'drop_path_rate' not in cfg.model.backbone
    assert cfg.model.head.in_channels == WIDTHS[arch]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 5e-4, 0.05)
    assert cfg.optim_wrapper.clip_grad.max_norm == 5
    assert cfg.train_cfg.max_epochs == 300 and cfg.param_scheduler[0].end == 5
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (256, 2048)
    kinds = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert 'RandAugment' in kinds and 'RandomErasing' in kinds
    assert {a.type for a in cfg.model.train_cfg.augments} == {'Mixup', 'CutMix'}
    _, resize, crop, _ = cfg.test_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, crop.crop_size) == (256, 'short', 224)


def test_ablations_differ_in_what_they_name_alone():
    folder = CONFIGS / 'classification/ablations'
    base = Config.fromfile(folder / 'rest_lite_8xb256_100e_in1k.py')
    optimizer = base.optim_wrapper.optimizer
    assert optimizer == dict(type='SGD', lr=0.1 * 2048 / 512, momentum=0.9, weight_decay=1e-4)
    assert base.train_cfg.max_epochs == 100
    assert base.param_scheduler[0].end == 5
    assert base.param_scheduler[1].milestones == [30, 60, 90]
    kinds = [t.type for t in base.train_dataloader.dataset.pipeline]
    assert kinds == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs']
    options = []
    for path in sorted(folder.glob('rest_lite_*_8xb256*.py')):
        cfg = Config.fromfile(path)
        backbone = cfg.model.pop('backbone')
        changed = {k: v for k, v in backbone.items() if base.model.backbone.get(k) != v}
        options.append(changed)
        assert cfg.model == {k: v for k, v in base.model.items() if k != 'backbone'}
        assert cfg.optim_wrapper == base.optim_wrapper
    assert options == [
        dict(attention='emsa_no_norm'), dict(attention='emsa_plain'), dict(attention='msa'),
        dict(position='gl'), dict(position='le', img_size=224), dict(stem='pvt'),
        dict(stem='resnet')
    ]


def test_logits_are_the_published_classifiers(tmp_path):
    """Head and backbone both from a file as the authors release it."""
    gold = np.load(golden.DATA / 'rest_lite_2x3x224x224_7.npz')
    path = tmp_path / 'rest_lite.pth'
    torch.save({'model': golden.draw_weights('lite')}, path)
    cfg = Config.fromfile(CONFIGS / 'classification/rest_lite_8xb256_in1k.py')
    init_default_scope('mmpretrain')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    cfg.model.head.init_cfg = dict(type='ResTHead', checkpoint=str(path))
    model = MODELS.build(cfg.model).double()
    model.init_weights()
    logits = model.eval()(golden.draw_image(gold))
    assert_close(logits, torch.from_numpy(gold['logits']), rtol=1e-9, atol=1e-9)


def test_learning_rates_decay_with_depth():
    """By MMPretrain's constructor, as in configs/classification/README.md."""
    cfg, model = build('classification/rest_lite_8xb256_in1k.py')
    cfg.optim_wrapper.update(
        constructor='LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0., bias_decay_mult=0.))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    groups = {group['param_name']: group for group in optimizer.param_groups}
    assert len(groups) == len(list(model.parameters()))
    for name, depth, decay in [('backbone.stem.conv1.weight', 0, 0.05),
                               ('backbone.stage3.1.mlp.fc1.bias', 6, 0.),
                               ('backbone.norm4.weight', 8, 0.), ('head.fc.weight', 9, 0.05)]:
        assert groups[name]['lr'] == pytest.approx(5e-4 * 0.8**(9 - depth))
        assert groups[name]['weight_decay'] == decay

"""What the configs say, beside the papers whose recipes they are."""
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'
V2_CHANNELS = dict(tiny=[96, 192, 384, 768], small=[96, 192, 384, 768],
                   base=[96, 192, 384, 768], large=[128, 256, 512, 1024])
V2_DROP_PATH = dict(tiny=0.1, small=0.2, base=0.3)
CHANNELS = dict(lite=[64, 128, 256, 512], small=[64, 128, 256, 512],
                base=[96, 192, 384, 768], large=[96, 192, 384, 768])
DROP_PATH = dict(lite=0.1, small=0.1, base=0.2, large=0.2)
DIGITS = ['classification/rest_lite_digits.py', 'mask_rcnn/rest_lite_fpn_digits.py',
          'retinanet/rest_lite_retinanet_digits.py',
          'semantic_fpn/rest_lite_semantic_fpn_digits.py']
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
             if '_base_' not in path.parts)


@cache
def read_once(name):
    return Config.fromfile(CONFIGS / name)


def read(name):
    """A copy, which may be changed; to read a file is slow."""
    return deepcopy(read_once(name))


def kinds(loader):
    return [step.type for step in loader.dataset.pipeline]


def optimizer(cfg):
    found = cfg.optim_wrapper.optimizer
    return found.type, found.lr, found.weight_decay


@pytest.mark.parametrize('name', ALL)
def test_runs_may_be_killed_and_resumed(name):
    cfg = read(name)
    assert cfg.custom_imports.imports == ['mmrest', 'mmrest.engine']
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.type == 'CheckpointHook'
    assert checkpoint.backend_args == dict(backend='whole')
    assert cfg.default_hooks.reseed == dict(type='ReseedHook')
    # Twelve epochs on COCO keep every checkpoint; what counts iterations keeps two.
    assert checkpoint.get('max_keep_ckpts', -1) == (-1 if checkpoint.interval == 1 else 2)


def test_no_two_configs_share_a_work_dir():
    work_dirs = [Path(read(name).get('work_dir', f'work_dirs/{Path(name).stem}'))
                 for name in ALL]
    assert len(set(work_dirs)) == len(ALL)
    assert Path('work_dirs/rest_small_fpn_1x_coco') in work_dirs  # Mask R-CNN's, in the README


@pytest.mark.parametrize('kind', ['faster_rcnn', 'retinanet', 'mask_rcnn'])
@pytest.mark.parametrize('arch', CHANNELS)
def test_detectors_follow_the_paper(kind, arch):
    cfg = read(f'{kind}/rest_{arch}_fpn_1x_coco.py')
    backbone = dict(type='ResT', arch=arch, drop_path_rate=DROP_PATH[arch])
    if kind == 'retinanet':
        backbone['out_indices'] = (1, 2, 3)
    assert cfg.model.backbone == backbone
    assert cfg.model.neck.in_channels == CHANNELS[arch][-len(cfg.model.neck.in_channels):]
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.type == 'RandomChoiceResize' and resize.keep_ratio
    assert resize.scales == [(1333, short) for short in range(480, 801, 32)]
    assert optimizer(cfg) == ('AdamW', 1e-4, 0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_cfg.max_epochs == 12
    _, steps = cfg.param_scheduler
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)


@pytest.mark.parametrize('arch', ['small', 'base'])
def test_semantic_fpn_follows_poolformer(arch):
    cfg = read(f'semantic_fpn/rest_{arch}_fpn_8xb4_40k_ade20k.py')
    assert optimizer(cfg) == ('AdamW', 2e-4, 1e-4)
    decay = cfg.param_scheduler
    assert (decay.type, decay.power, decay.end) == ('PolyLR', 0.9, 40000)
    assert cfg.train_cfg.max_iters == 40000
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (4, 32)
    assert cfg.model.neck.in_channels == CHANNELS[arch]
    check_ade20k(cfg, arch)


@pytest.mark.parametrize('arch', ['small', 'base'])
def test_upernet_follows_swin(arch):
    cfg = read(f'upernet/rest_{arch}_8xb2_160k_ade20k.py')
    assert optimizer(cfg) == ('AdamW', 6e-5, 0.01)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 1500)
    assert (decay.type, decay.power, decay.begin, decay.end) == ('PolyLR', 1., 1500, 160000)
    assert cfg.train_cfg.max_iters == 160000
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    assert cfg.model.decode_head.in_channels == CHANNELS[arch]
    check_ade20k(cfg, arch)


def check_ade20k(cfg, arch):
    assert cfg.default_scope == 'mmseg'
    assert cfg.model.backbone == dict(type='ResT', arch=arch, drop_path_rate=DROP_PATH[arch])
    assert cfg.model.decode_head.num_classes == 150
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == 'ADE20KDataset'
    assert 'PhotoMetricDistortion' in kinds(cfg.train_dataloader)
    assert dataset.pipeline[1].reduce_zero_label
    assert dataset.pipeline[3].crop_size == cfg.model.data_preprocessor.size == (512, 512)
    sizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [step.scale[1] / 512 for step in sizes] == [0.5, 0.75, 1., 1.25, 1.5, 1.75]
    assert [step.prob for step in flips] == [0., 1.]


@pytest.mark.parametrize('arch', CHANNELS)
def test_classifiers_follow_the_paper(arch):
    cfg = read(f'classification/rest_{arch}_8xb256_in1k.py')
    assert cfg.model.backbone == dict(type='ResT', arch=arch, out_indices=(3, ))
    assert cfg.model.head.in_channels == CHANNELS[arch][-1]
    assert optimizer(cfg) == ('AdamW', 5e-4, 0.05)
    assert cfg.optim_wrapper.clip_grad.max_norm == 5
    assert cfg.train_cfg.max_epochs == 300 and cfg.param_scheduler[0].end == 5
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (256, 2048)
    assert {'RandAugment', 'RandomErasing'} <= set(kinds(cfg.train_dataloader))
    assert {a.type for a in cfg.model.train_cfg.augments} == {'Mixup', 'CutMix'}
    _, resize, crop, _ = cfg.test_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, crop.crop_size) == (256, 'short', 224)


@pytest.mark.parametrize('arch', V2_DROP_PATH)
def test_detectors_with_restv2_follow_rest_or_the_published_code(arch):
    backbone = dict(type='ResTV2', arch=arch, drop_path_rate=V2_DROP_PATH[arch])
    short, long = (read(f'mask_rcnn/restv2_{arch}_fpn_{times}x_coco.py') for times in (1, 3))
    for cfg in (short, long):
        assert cfg.model.backbone == backbone
        assert cfg.model.neck.in_channels == V2_CHANNELS[arch]
        assert cfg.model.data_preprocessor.bgr_to_rgb
        assert optimizer(cfg) == ('AdamW', 1e-4, 0.05)
        assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
        assert cfg.train_dataloader.batch_size == 2
    v1 = read('mask_rcnn/rest_small_fpn_1x_coco.py')
    for key in ('train_dataloader', 'param_scheduler', 'train_cfg', 'optim_wrapper'):
        assert short[key] == v1[key]
    assert long.optim_wrapper.type == 'AmpOptimWrapper'
    assert long.optim_wrapper.clip_grad == dict(max_norm=0.01)
    assert long.train_cfg.max_iters == long.param_scheduler[1].end == 270000
    assert long.param_scheduler[1].milestones == [210000, 250000]
    assert kinds(long.train_dataloader)[2:5] == [
        'RandomCrop', 'RandomChoiceResize', 'RandomFlip']
    crop = long.train_dataloader.dataset.pipeline[2]
    assert (crop.crop_type, crop.crop_size) == ('relative', (0.9, 0.9))


@pytest.mark.parametrize('arch, recipe', [
    ('tiny', ('AdamW', 6e-5, 0.01)), ('small', ('AdamW', 1.5e-4, 0.05)),
    ('base', ('AdamW', 1.5e-4, 0.05))])
def test_upernet_with_restv2_follows_the_published_code(arch, recipe):
    cfg = read(f'upernet/restv2_{arch}_8xb2_160k_ade20k.py')
    assert optimizer(cfg) == recipe
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.)
    assert cfg.model.backbone == dict(
        type='ResTV2', arch=arch, drop_path_rate=V2_DROP_PATH[arch])
    assert cfg.model.decode_head.in_channels == V2_CHANNELS[arch]
    assert cfg.model.auxiliary_head.in_channels == V2_CHANNELS[arch][2]
    assert cfg.train_cfg.max_iters == 160000


@pytest.mark.parametrize('arch', V2_CHANNELS)
def test_classifiers_with_restv2_follow_the_published_code(arch):
    cfg = read(f'classification/restv2_{arch}_8xb256_in1k.py')
    assert cfg.model.backbone == dict(type='ResTV2', arch=arch, out_indices=(3, ))
    assert cfg.model.head.in_channels == V2_CHANNELS[arch][-1]
    assert cfg.model.head.loss == dict(
        type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    assert optimizer(cfg) == ('AdamW', 1.2e-3, 0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0., bias_decay_mult=0.)
    assert cfg.optim_wrapper.clip_grad.max_norm == 1
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.end, decay.begin, decay.eta_min) == (50, 50, 1e-6)
    ema, = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', 1e-4)
    _, resize, crop, _ = cfg.test_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, crop.crop_size) == (248, 'short', 224)
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline


def test_ablations_differ_only_in_what_they_name():
    folder = 'classification/ablations'
    base = read(f'{folder}/rest_lite_8xb256_100e_in1k.py')
    assert base.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1 * 2048 / 512, momentum=0.9, weight_decay=1e-4)
    assert base.train_cfg.max_epochs == 100
    assert base.param_scheduler[0].end == 5
    assert base.param_scheduler[1].milestones == [30, 60, 90]
    assert kinds(base.train_dataloader) == [
        'LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs']
    expected = {
        'emsa-no-norm': dict(attention='emsa_no_norm'),
        'emsa-plain': dict(attention='emsa_plain'), 'msa': dict(attention='msa'),
        'position-gl': dict(position='gl'),
        'position-le': dict(position='le', img_size=224),
        'stem-pvt': dict(stem='pvt'), 'stem-resnet': dict(stem='resnet')}
    assert len(expected) + 1 == sum(name.startswith(folder) for name in ALL)
    for name, options in expected.items():
        cfg = read(f'{folder}/rest_lite_{name}_8xb256_100e_in1k.py').to_dict()
        for option in options:
            assert cfg['model']['backbone'].pop(option) == options[option]
        assert cfg['model']['backbone'].pop('type') == 'ResTAblation'
        cfg['model']['backbone']['type'] = 'ResT'
        assert cfg == base.to_dict()


@pytest.mark.parametrize('name', DIGITS)
def test_digits_configs_add_up(name):
    """Each starts from the last checkpoint of the one before and flips nothing."""
    cfg, classifier, detector = read(name), read(DIGITS[0]), read(DIGITS[1])
    if name == DIGITS[3]:
        iters = detector.train_cfg.max_iters
        assert cfg.load_from == f'work_dirs/rest_lite_fpn_digits/iter_{iters}.pth'
        assert cfg.model.neck.out_channels == detector.model.neck.out_channels
    elif name != DIGITS[0]:
        iters = classifier.train_cfg.max_iters
        last = f'work_dirs/rest_lite_digits/iter_{iters}.pth'
        assert cfg.model.backbone.init_cfg.checkpoint == last
    for statistic in ('mean', 'std'):
        assert (cfg.model.data_preprocessor[statistic]
                == classifier.model.data_preprocessor[statistic])
    assert not any('Flip' in kind for kind in kinds(cfg.train_dataloader))
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
    schedule = cfg.param_scheduler
    last = schedule[-1] if isinstance(schedule, list) else schedule
    assert last.get('end', last.get('total_steps')) == cfg.train_cfg.max_iters == cfg.max_iters
    assert cfg.default_hooks.logger.log_metric_by_epoch is False


def test_both_backbones_of_the_digits_have_the_same_recipe():
    for rest, other in (('classification/rest_lite_digits', 'classification/resnet18_digits'),
                        ('mask_rcnn/rest_lite_fpn_digits', 'mask_rcnn/resnet18_fpn_digits')):
        ours, theirs = (Config.fromfile(CONFIGS / f'{name}.py') for name in (rest, other))
        backbone = theirs.model.pop('backbone')
        assert (backbone.type, backbone.depth) == ('ResNet', 18)
        ours.model.pop('backbone')
        assert ours.to_dict() == theirs.to_dict()
    assert backbone.frozen_stages == -1
    iterations = Config.fromfile(CONFIGS / 'classification/resnet18_digits.py').max_iters
    assert backbone.init_cfg.checkpoint == f'work_dirs/resnet18_digits/iter_{iterations}.pth'

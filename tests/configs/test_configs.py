"""What the configs say, beside the papers whose recipes they are."""
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from mmrest import ResT, ResTV2

CONFIGS = Path(__file__).parents[2] / 'configs'
# Of detectors and segmenters.
DROP_PATH = dict(rest_lite=0.1, rest_small=0.1, rest_base=0.2, rest_large=0.2,
                 restv2_tiny=0.1, restv2_small=0.2, restv2_base=0.3)
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


def check_backbone(cfg, name, **others):
    """Type, arch and options, and the channels that the model's next part takes."""
    kind = ResTV2 if 'restv2' in name else ResT
    arch = name.split('_')[1]
    assert cfg.model.backbone == dict(type=kind.__name__, arch=arch, **others)
    channels = list(kind.arch_zoo[arch]['embed_dims'])
    if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
        wanted = cfg.model.neck.in_channels
        assert wanted == channels[-len(wanted):]
    elif 'decode_head' in cfg.model:
        assert cfg.model.decode_head.in_channels == channels
        assert cfg.model.auxiliary_head.in_channels == channels[2]
    else:
        assert cfg.model.head.in_channels == channels[3]


@pytest.mark.parametrize('kind, name', [
    (kind, name) for kind in ('faster_rcnn', 'retinanet', 'mask_rcnn') for name in DROP_PATH
    if kind == 'mask_rcnn' or 'restv2' not in name])
def test_detectors_follow_the_paper(kind, name):
    cfg = read(f'{kind}/{name}_fpn_1x_coco.py')
    stages = dict(out_indices=(1, 2, 3)) if kind == 'retinanet' else {}
    check_backbone(cfg, name, drop_path_rate=DROP_PATH[name], **stages)
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.type == 'RandomChoiceResize' and resize.keep_ratio
    assert resize.scales == [(1333, short) for short in range(480, 801, 32)]
    assert optimizer(cfg) == ('AdamW', 1e-4, 0.05)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.model.data_preprocessor.bgr_to_rgb
    assert cfg.train_cfg.max_epochs == 12
    _, steps = cfg.param_scheduler
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_long_schedules_of_restv2_follow_the_published_code(arch):
    short, cfg = (read(f'mask_rcnn/restv2_{arch}_fpn_{times}x_coco.py') for times in (1, 3))
    assert cfg.model == short.model
    assert optimizer(cfg) == optimizer(short)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.01)
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 270000
    assert cfg.param_scheduler[1].milestones == [210000, 250000]
    assert kinds(cfg.train_dataloader)[2:5] == [
        'RandomCrop', 'RandomChoiceResize', 'RandomFlip']
    crop = cfg.train_dataloader.dataset.pipeline[2]
    assert (crop.crop_type, crop.crop_size) == ('relative', (0.9, 0.9))


@pytest.mark.parametrize('name, recipe, warm_up, power, iters, batch', [
    ('semantic_fpn/rest_small_fpn_8xb4_40k', (2e-4, 1e-4), 0, 0.9, 40000, (4, 32)),
    ('semantic_fpn/rest_base_fpn_8xb4_40k', (2e-4, 1e-4), 0, 0.9, 40000, (4, 32)),
    ('upernet/rest_small_8xb2_160k', (6e-5, 0.01), 1500, 1., 160000, (2, 16)),
    ('upernet/rest_base_8xb2_160k', (6e-5, 0.01), 1500, 1., 160000, (2, 16)),
    ('upernet/restv2_tiny_8xb2_160k', (6e-5, 0.01), 1500, 1., 160000, (2, 16)),
    ('upernet/restv2_small_8xb2_160k', (1.5e-4, 0.05), 1500, 1., 160000, (2, 16)),
    ('upernet/restv2_base_8xb2_160k', (1.5e-4, 0.05), 1500, 1., 160000, (2, 16))])
def test_segmenters_follow_others(name, recipe, warm_up, power, iters, batch):
    """Semantic FPN follows PoolFormer, UPerNet Swin or the published code of ResTv2."""
    cfg, model = read(f'{name}_ade20k.py'), '_'.join(Path(name).name.split('_')[:2])
    check_backbone(cfg, model, drop_path_rate=DROP_PATH[model])
    assert optimizer(cfg) == ('AdamW', *recipe)
    *first, decay = cfg.param_scheduler if warm_up else [cfg.param_scheduler]
    assert [(one.type, one.end) for one in first] == [('LinearLR', warm_up)] * len(first)
    assert (decay.type, decay.power, decay.end) == ('PolyLR', power, iters)
    assert decay.get('begin', 0) == warm_up
    assert cfg.train_cfg.max_iters == iters
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == batch
    assert cfg.default_scope == 'mmseg'
    assert cfg.model.decode_head.num_classes == 150
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == 'ADE20KDataset'
    assert 'PhotoMetricDistortion' in kinds(cfg.train_dataloader)
    assert dataset.pipeline[1].reduce_zero_label
    assert dataset.pipeline[3].crop_size == cfg.model.data_preprocessor.size == (512, 512)
    sizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [step.scale[1] / 512 for step in sizes] == [0.5, 0.75, 1., 1.25, 1.5, 1.75]
    assert [step.prob for step in flips] == [0., 1.]


@pytest.mark.parametrize('name', [
    f'{kind.__name__.lower()}_{arch}' for kind in (ResT, ResTV2) for arch in kind.arch_zoo])
def test_classifiers_follow_the_papers(name):
    is_v2 = 'restv2' in name
    cfg = read(f'classification/{name}_8xb256_in1k.py')
    check_backbone(cfg, name, out_indices=(3, ))
    assert optimizer(cfg) == ('AdamW', 1.2e-3 if is_v2 else 5e-4, 0.05)
    assert cfg.optim_wrapper.clip_grad.max_norm == (1 if is_v2 else 5)
    assert cfg.train_cfg.max_epochs == 300
    warm_up, decay = cfg.param_scheduler
    assert warm_up.end == decay.begin == (50 if is_v2 else 5)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (256, 2048)
    assert {'RandAugment', 'RandomErasing'} <= set(kinds(cfg.train_dataloader))
    assert {a.type for a in cfg.model.train_cfg.augments} == {'Mixup', 'CutMix'}
    _, resize, crop, _ = cfg.test_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, crop.crop_size) == (248 if is_v2 else 256, 'short', 224)
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline
    if is_v2:
        assert cfg.model.head.loss == dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
        assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0., bias_decay_mult=0.)
        assert decay.eta_min == 1e-6
        ema, = cfg.custom_hooks
        assert (ema.type, ema.momentum) == ('EMAHook', 1e-4)


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

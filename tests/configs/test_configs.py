from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

CONFIGS = Path(__file__).parents[2] / 'configs'


def load(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    return MODELS.build(cfg.model)


def test_mask_rcnn_small_is_the_papers_recipe():
    cfg = load('mask_rcnn/rest_small_fpn_1x_coco.py')
    resize = next(t for t in cfg.train_dataloader.dataset.pipeline
                  if t.type == 'RandomChoiceResize')
    assert {long for long, _ in resize.scales} == {1333} and resize.keep_ratio
    shorts = [short for _, short in resize.scales]
    assert (min(shorts), max(shorts)) == (480, 800)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_cfg.max_epochs == 12
    steps = next(s for s in cfg.param_scheduler if s.type == 'MultiStepLR')
    assert steps.milestones == [8, 11] and steps.gamma == 0.1
    assert cfg.model.backbone == dict(type='ResT', arch='small', drop_path_rate=0.1)

    model = build(cfg)
    # 33.3M: reported by the paper's repository
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(33.3e6, rel=0.01)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    norms = {
        id(p)
        for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))
        for p in m.parameters()
    }
    for group in optimizer.param_groups:
        assert group['lr'] == 1e-4
        for p in group['params']:
            assert group['weight_decay'] == (0 if id(p) in norms else 0.05)


DIGITS = [
    'mask_rcnn/rest_lite_fpn_digits.py', 'retinanet/rest_lite_retinanet_digits.py',
    'semantic_fpn/rest_lite_semantic_fpn_digits.py'
]


@pytest.mark.parametrize('name', DIGITS)
def test_digits_configs_follow_the_classifier(name):
    classifier = load('classification/rest_lite_digits.py')
    cfg = load(name)
    if name.startswith('semantic_fpn'):  # which goes on from Mask R-CNN
        last = f'work_dirs/rest_lite_fpn_digits/iter_{load(DIGITS[0]).max_iters}.pth'
        assert cfg.load_from == last
        assert cfg.model.neck.out_channels == load(DIGITS[0]).model.neck.out_channels
    else:
        last = f'work_dirs/rest_lite_digits/iter_{classifier.max_iters}.pth'
        assert cfg.model.backbone.init_cfg.checkpoint == last
    assert cfg.model.data_preprocessor.mean == classifier.model.data_preprocessor.mean
    assert cfg.model.data_preprocessor.std == classifier.model.data_preprocessor.std


@pytest.mark.parametrize('name', ['classification/rest_lite_digits.py', *DIGITS])
def test_digits_configs_flip_nothing_and_add_up(name):
    cfg = load(name)
    kinds = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert not any('Flip' in kind for kind in kinds)
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
    schedule = cfg.param_scheduler
    last = schedule[-1] if isinstance(schedule, list) else schedule
    assert last.get('end', last.get('total_steps')) == cfg.train_cfg.max_iters
    assert cfg.default_hooks.logger.log_metric_by_epoch is False


def test_no_two_digits_configs_share_a_work_dir():
    stems = [Path(name).stem for name in ['classification/rest_lite_digits.py', *DIGITS]]
    assert len(set(stems)) == len(stems)

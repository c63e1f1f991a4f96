"""The written config: what is chosen from the data, and that every model is built from it."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmrest import ResT, ResTV2
from mmrest.apis import build_model, read_config
from mmrest.errors import UserError
from mmrest.own_data import BASES, config, make_config, read, training

from .. import tiny_data
from ..configs.step import train_and_predict

ROOT = Path(__file__).parents[2]
ALL = [(task, model) for task, models in BASES.items() for model in models]


@pytest.fixture(scope='module')
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pets')
    return {task: read(task, *(write(folder / task / name, seed)
                               for name, seed in (('train', 0), ('val', 100))))
            for task, write in tiny_data.WRITE.items()}


@pytest.fixture
def configure(splits):
    """The config for data of a task, with options of make_config."""

    def configure(task='boxes', *others, **options):
        return Config.fromstring(make_config(task, *(others or splits[task]), **options), '.py')

    return configure


def values(node, key):
    """The values of a key anywhere in a config."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == key] + values(list(node.values()), key)
    return sum((values(child, key) for child in node if isinstance(child, (dict, list))), [])


@pytest.mark.parametrize('task, model', ALL)
def test_what_is_chosen_from_the_data(task, model, splits, tmp_path):
    train, val = splits[task]
    text = make_config(task, train, val, model=model, backbone='rest_base')
    (tmp_path / 'pets.py').write_text(text)
    cfg = read_config(str(tmp_path / 'pets.py'))
    assert '\n_base_' not in text and '\n# No --test: tools/test.py takes the valid' in text
    assert cfg.custom_imports.imports == ['mmrest', 'mmrest.engine']
    heads = values(cfg.model, 'num_classes')
    assert heads and set(heads) == {2}
    for loader, split in ((cfg.train_dataloader, train), (cfg.val_dataloader, val),
                          (cfg.test_dataloader, val)):
        data = loader.dataset
        assert data.metainfo.classes == ('cat', 'dog') and data.data_root == ''
        assert f'{split.images}/' in (data.data_prefix, *values(data, 'img'),
                                      *values(data, 'img_path'))
    part = cfg.model.get('neck') if 'neck' in cfg.model else cfg.model.decode_head
    channels = part.get('in_channels') or [cfg.model.head.in_channels]
    assert channels == [96, 192, 384, 768][-len(channels):]
    base = Config.fromfile(config.CONFIGS / BASES[task][model])
    batch = cfg.train_dataloader.batch_size
    usual = base.optim_wrapper.optimizer.lr * batch / base.auto_scale_lr.base_batch_size
    rate = dict(classes=1e-4 / 32 * batch, segments=usual).get(task, 5e-4 * (batch / 2)**0.5)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch)
    hook = cfg.default_hooks.checkpoint
    assert (hook.save_best, hook.rule) == (config.RECIPES[task][2], 'greater')
    # Few images: the schedule is in iterations, and says so to all who count.
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=300)
    assert cfg.param_scheduler[-1].end == 3000 and cfg.param_scheduler[0].end == 301
    assert (hook.by_epoch, hook.interval, cfg.log_processor.by_epoch) == (False, 300, False)
    assert 'an epoch: ' in training(train, cfg)


@pytest.mark.parametrize('task, model', [
    case if case == ('boxes', 'faster-rcnn') else pytest.param(*case, marks=pytest.mark.slow)
    for case in ALL])
def test_every_model_trains(task, model, configure):
    cfg = configure(task, model=model, backbone='rest_lite')
    cfg.model.backbone.drop_path_rate = 0.
    if task == 'segments':
        cfg.model.data_preprocessor.size = (64, 64)
    init_default_scope(cfg.default_scope)
    train_and_predict(build_model(cfg), cfg.default_scope, 64)


def test_many_images_are_counted_in_epochs(splits, configure):
    train, val = splits['boxes']
    many = replace(train, sizes={str(i): (1000, 750) for i in range(1000)})
    cfg = configure('boxes', many, val)
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
    assert cfg.param_scheduler[1].milestones == [8, 11]  # as in the paper's recipe
    assert cfg.scale == (1226, 736)  # 736 is the multiple of 32 that is nearest to 750
    asked = configure('boxes', many, val, iters=50, lr=1e-3, batch_size=2)
    assert asked.train_cfg.max_iters == asked.param_scheduler[1].end == 50
    assert asked.optim_wrapper.optimizer.lr == 1e-3
    assert asked.train_dataloader.batch_size == 2


def test_light_detectors(configure):
    for task, model in ALL[:3]:
        cfg = configure(task, model=model, light=True)
        assert cfg.model.neck.out_channels == 64
        assert 256 not in values(cfg.model, 'in_channels') + values(cfg.model, 'feat_channels')


def test_a_light_detector_can_start_from_that_of_digits(configure):
    digits = read_config(str(ROOT / 'configs/mask_rcnn/rest_lite_fpn_digits.py'))
    mine, theirs = (
        {name: value.shape for name, value in build_model(cfg).state_dict().items()}
        for cfg in (configure(backbone='rest_lite', light=True), digits))
    others = [name for name, shape in mine.items() if theirs.get(name) != shape]
    assert {name.rpartition('.')[0] for name in others} == {
        'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'}


def weights(prefix='', others=(), arch='small'):
    """Zeros that take no room, by the names of a ResT."""
    with torch.device('meta'):
        state = {f'{prefix}{k}': v.shape for k, v in ResT(arch).state_dict().items()}
    return {k: torch.zeros(()).expand(shape) for k, shape in (
        *state.items(), *dict.fromkeys(others, (1, )).items())}


@pytest.mark.parametrize('task, names, expected', [
    ('boxes', ('', ['norm.x', 'head.weight']), dict(type='Pretrained')),
    ('classes', ('', ['norm.x', 'head.weight']), dict(type='Pretrained')),
    ('boxes', ('backbone.', ['head.x']), dict(type='Pretrained', prefix='backbone.')),
    ('classes', ('backbone.', ['head.x']), None),
    ('boxes', ('backbone.', ['neck.x', 'roi_head.x']), None)])
def test_what_a_checkpoint_is_for(task, names, expected, configure, tmp_path):
    """Published weights and classifiers for the backbone, detectors for the whole model."""
    path = tmp_path / 'weights.pth'
    torch.save(weights(*names), path)
    for place in (str(path), path.as_uri()):
        cfg = configure(task, load_from=place)
        if expected is None:
            assert cfg.load_from == place and 'init_cfg' not in cfg.model.backbone
        else:
            assert cfg.model.backbone.init_cfg == dict(expected, checkpoint=place)
            assert cfg.get('load_from') is None


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_checkpoint_with_another_backbone(prefix, configure, tmp_path):
    torch.save(weights(prefix, ['head.x'], 'lite'), tmp_path / 'weights.pth')
    with pytest.raises(UserError, match=r"looks like ResT\(arch='lite'\), does not fit ResT\("):
        configure('classes', load_from=str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize('task, options, words', [
    ('masks', dict(model='retinanet'), "model='retinanet' for task='masks' must be one of m"),
    ('masks', dict(backbone='swin_tiny'), "backbone='swin_tiny' must be one of rest_lite"),
    ('classes', dict(light=True), "light=True is for detectors: .*task='classes'"),
    ('classes', dict(scale=(99, 66)), 'is for detectors: leave it out'),
    ('boxes', dict(iters=0), 'iters=0 must be above 0'),
    ('boxes', dict(batch_size=-2), 'batch_size=-2 must be above 0'),
    ('boxes', dict(lr=float('nan')), 'lr=nan must be above 0'),
])
def test_options_that_there_are_not(task, options, words, configure):
    with pytest.raises(UserError, match=words):
        configure(task, **options)


@pytest.mark.parametrize('kind', [ResT, ResTV2])
def test_every_backbone_of_the_zoo(kind, configure):
    for arch, settings in kind.arch_zoo.items():
        model = configure(backbone=f'{kind.__name__.lower()}_{arch}').model
        assert model.backbone == dict(type=kind.__name__, arch=arch)
        assert tuple(model.neck.in_channels) == settings['embed_dims']


def test_box_sizes_beside_the_anchors(splits, configure):
    """Boxes of 24 x 30 px in images of 64 x 96, which are resized to a short side of 256."""
    train, cfg = splits['boxes'][0], configure()
    rows = training(train, cfg).splitlines()
    assert rows[0] == 'an epoch: 4 images, in 1 iterations of 4; the training: 3000 iterations'
    row, = (row for row in rows if '100.0%' in row)
    assert row.startswith('anchors of 128 px, stride 16') and '91 to 181 px' in row  # 107 px
    assert '\ncat      107 px      3.35' in training(train, cfg)
    cfg.scale = (48, 32)  # 13.4 px
    last = training(train, cfg).splitlines()[-1]
    assert ': cat (13 px), dog (13 px): half of the objects are below 0.7 of the small' in last


@pytest.mark.parametrize('load_from, light, hot', [
    (None, True, True), (None, False, True), ('backbone', True, False), ('model', True, True),
    ('model', False, False)])
def test_rates_of_detectors(load_from, light, hot, configure, tmp_path):
    """From nothing, or with new heads alone; trained weights take the recipe's."""
    path = load_from and str(tmp_path / 'weights.pth')
    if load_from:
        torch.save(weights(*(('backbone.', ['neck.x']) if load_from == 'model' else ())), path)
    cfg = configure(load_from=path, light=light, batch_size=8)
    assert cfg.optim_wrapper.optimizer.lr == (1e-3 if hot else 1e-4 * 8 / 16)
    assert cfg.optim_wrapper.get('clip_grad') == (dict(max_norm=5.) if hot else None)


def test_the_smallest_scale_that_shows_each_class(splits, configure):
    """Objects of 40 px in 640 x 480 have 22.4 px, 0.7 of 32, at a long side of 358."""
    train, val = splits['boxes']
    train = replace(train, sizes={str(i): (640, 480) for i in range(9)})
    for side, expected in ((40., (384, 288)), (24., (608, 456)), (9., (640, 480)),
                           (200., (352, 264))):
        train.boxes = [('cat', side, side, 640, 480), ('dog', 300., 300., 640, 480)]
        cfg = configure('boxes', train, val, light=True)
        assert tuple(cfg.scale) == expected == tuple(cfg.train_scales[0])
    asked = configure(scale=(99, 66))
    assert asked.scale == (99, 66) == asked.val_dataloader.dataset.pipeline[1].scale


def test_the_hooks_of_a_run(configure):
    for task, score in (('boxes', 'coco/bbox_mAP'), ('segments', 'mIoU')):
        assert configure(task).custom_hooks == [dict(type='ValLossHook'), dict(
            type='EarlyStoppingHook', monitor=score, rule='greater', min_delta=0., patience=5)]
    assert configure(patience=0).custom_hooks == [dict(type='ValLossHook')]


def test_names_are_text(splits, configure):
    train, val = splits['boxes']
    names = ['<scale>', "it's", '$x {y} %s', 'a"b\\n']
    cfg = configure('boxes', replace(train, classes=names), val, iters=1)
    assert cfg.classes == tuple(names) == cfg.train_dataloader.dataset.metainfo.classes
    assert all(step.get('begin', 0) < step.end for step in cfg.param_scheduler)


def test_a_third_split_and_empty_images(splits, configure):
    for task, (train, val) in splits.items():
        cfg = configure(task, train, val, train, keep_empty=task == 'masks')
        mine, theirs = (cfg[f'{name}_dataloader'].dataset for name in ('test', 'train'))
        assert mine.data_prefix == theirs.data_prefix != cfg.val_dataloader.dataset.data_prefix
        assert mine.pipeline == cfg.val_dataloader.dataset.pipeline
        if task in ('boxes', 'masks'):
            assert cfg.test_evaluator.ann_file == str(train.path.resolve()) == mine.ann_file
            assert theirs.filter_cfg.filter_empty_gt == (task == 'boxes')

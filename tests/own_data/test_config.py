"""The written config: what is chosen from the data, and that every model is built from it."""
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


@pytest.fixture(autouse=True)
def unformatted(monkeypatch):
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda code, **_: (code, True))


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
    assert '\n_base_' not in text
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
def test_every_model_trains(task, model, splits):
    cfg = Config.fromstring(make_config(
        task, *splits[task], model=model, backbone='rest_lite'), '.py')
    cfg.model.backbone.drop_path_rate = 0.
    if task == 'segments':
        cfg.model.data_preprocessor.size = (64, 64)
    init_default_scope(cfg.default_scope)
    train_and_predict(build_model(cfg), cfg.default_scope, 64)


def test_many_images_are_counted_in_epochs(splits):
    train, val = splits['boxes']
    many_sizes = {str(i): (1000, 750) for i in range(1000)}
    train = type(train)(**{**vars(train), 'sizes': many_sizes})
    cfg = Config.fromstring(make_config('boxes', train, val), '.py')
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
    assert cfg.param_scheduler[1].milestones == [8, 11]  # as in the paper's recipe
    assert cfg.scale == (1226, 736)  # 736 is the multiple of 32 that is nearest to 750
    asked = Config.fromstring(make_config('boxes', train, val, iters=50, lr=1e-3,
                                          batch_size=2), '.py')
    assert asked.train_cfg.max_iters == asked.param_scheduler[1].end == 50
    assert asked.optim_wrapper.optimizer.lr == 1e-3
    assert asked.train_dataloader.batch_size == 2


def test_light_detectors(splits):
    for task, model in ALL[:3]:
        cfg = Config.fromstring(make_config(
            task, *splits[task], model=model, light=True), '.py')
        assert cfg.model.neck.out_channels == 64
        assert 256 not in values(cfg.model, 'in_channels') + values(cfg.model, 'feat_channels')
    with pytest.raises(ValueError, match="light=True is for detectors: .*task='classes'"):
        make_config('classes', *splits['classes'], light=True)


def test_a_light_detector_can_start_from_that_of_digits(splits):
    text = make_config('boxes', *splits['boxes'], backbone='rest_lite', light=True)
    digits = read_config(str(ROOT / 'configs/mask_rcnn/rest_lite_fpn_digits.py'))
    mine, theirs = (
        {name: value.shape for name, value in build_model(cfg).state_dict().items()}
        for cfg in (Config.fromstring(text, '.py'), digits))
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
def test_what_a_checkpoint_is_for(task, names, expected, splits, tmp_path):
    """Published weights and classifiers for the backbone, detectors for the whole model."""
    path = tmp_path / 'weights.pth'
    torch.save(weights(*names), path)
    cfg = Config.fromstring(make_config(task, *splits[task], load_from=str(path)), '.py')
    if expected is None:
        assert cfg.load_from == str(path) and 'init_cfg' not in cfg.model.backbone
    else:
        assert cfg.model.backbone.init_cfg == dict(expected, checkpoint=str(path))
        assert cfg.get('load_from') is None


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_checkpoint_with_another_backbone(prefix, splits, tmp_path):
    torch.save(weights(prefix, ['head.x'], 'lite'), tmp_path / 'weights.pth')
    with pytest.raises(UserError, match=r"looks like ResT\(arch='lite'\), does not fit ResT\("):
        make_config('classes', *splits['classes'], load_from=str(tmp_path / 'weights.pth'))


def test_a_checkpoint_at_an_address(splits, tmp_path):
    torch.save(weights(), tmp_path / 'weights.pth')
    address = f'file://{tmp_path}/weights.pth'
    cfg = Config.fromstring(make_config('boxes', *splits['boxes'], load_from=address), '.py')
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=address)


def test_what_there_is_not(splits):
    for options, words in (
            (dict(model='retinanet'), "model='retinanet' for task='masks' must be one of mask"),
            (dict(backbone='rest_huge'), "backbone='rest_huge' must be one of rest_lite"),
            (dict(backbone='swin_tiny'), "backbone='swin_tiny' must be one of rest_lite")):
        with pytest.raises(ValueError, match=words):
            make_config('masks', *splits['masks'], **options)


@pytest.mark.parametrize('kind', [ResT, ResTV2])
def test_every_backbone_of_the_zoo(kind, splits):
    for arch, settings in kind.arch_zoo.items():
        name = f'{kind.__name__.lower()}_{arch}'
        text = make_config('boxes', *splits['boxes'], backbone=name)
        model = Config.fromstring(text, '.py').model
        assert model.backbone == dict(type=kind.__name__, arch=arch)
        assert tuple(model.neck.in_channels) == settings['embed_dims']


def test_box_sizes_beside_the_anchors(splits):
    """Boxes of 24 x 30 px in images of 64 x 96, which are resized to a short side of 256."""
    train, val = splits['boxes']
    cfg = Config.fromstring(make_config('boxes', train, val), '.py')
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
def test_rates_of_detectors(load_from, light, hot, splits, tmp_path):
    """From nothing, or with new heads alone; trained weights take the recipe's."""
    path = None
    if load_from:
        path = str(tmp_path / 'weights.pth')
        torch.save(weights(*(('backbone.', ['neck.x']) if load_from == 'model' else ())), path)
    cfg = Config.fromstring(make_config(
        'boxes', *splits['boxes'], load_from=path, light=light, batch_size=8), '.py')
    assert cfg.optim_wrapper.optimizer.lr == (1e-3 if hot else 1e-4 * 8 / 16)
    assert cfg.optim_wrapper.get('clip_grad') == (dict(max_norm=5.) if hot else None)


def test_the_smallest_scale_that_shows_each_class(splits):
    """Objects of 40 px in 640 x 480 have 22.4 px, 0.7 of 32, at a long side of 358."""
    train, val = splits['boxes']
    sizes = {str(i): (640, 480) for i in range(9)}
    for side, expected in ((40., (384, 288)), (24., (608, 456)), (9., (640, 480)),
                           (200., (352, 264))):
        boxes = [('cat', side, side, 640, 480), ('dog', 300., 300., 640, 480)]
        mine = type(train)(**{**vars(train), 'sizes': sizes, 'boxes': boxes})
        cfg = Config.fromstring(make_config('boxes', mine, val, light=True), '.py')
        assert tuple(cfg.scale) == expected == tuple(cfg.train_scales[0])
    asked = Config.fromstring(make_config('boxes', train, val, scale=(99, 66)), '.py')
    assert asked.scale == (99, 66) == asked.val_dataloader.dataset.pipeline[1].scale
    with pytest.raises(UserError, match='is for detectors: leave it out'):
        make_config('classes', *splits['classes'], scale=(99, 66))


def test_the_hooks_of_a_run(splits):
    for task, score in (('boxes', 'coco/bbox_mAP'), ('segments', 'mIoU')):
        hooks = Config.fromstring(make_config(task, *splits[task]), '.py').custom_hooks
        assert hooks == [dict(type='ValLossHook'), dict(
            type='EarlyStoppingHook', monitor=score, rule='greater', min_delta=0., patience=5)]
    never = make_config('boxes', *splits['boxes'], patience=0)
    assert Config.fromstring(never, '.py').custom_hooks == [dict(type='ValLossHook')]

def test_names_are_text_and_numbers_are_checked(splits):
    train, val = splits['boxes']
    names = ['<scale>', "it's", '$x {y} %s', 'a"b\\n']
    train = type(train)(**{**vars(train), 'classes': names})
    cfg = Config.fromstring(make_config('boxes', train, val, iters=1), '.py')
    assert cfg.classes == tuple(names) == cfg.train_dataloader.dataset.metainfo.classes
    assert all(step.get('begin', 0) < step.end for step in cfg.param_scheduler)
    for options in (dict(iters=0), dict(iters=-3), dict(batch_size=-2), dict(lr=float('nan'))):
        (name, value), = options.items()
        with pytest.raises(UserError, match=f'{name}={value} must be above 0'):
            make_config('boxes', train, val, **options)


def test_a_third_split_and_empty_images(splits):
    for task in splits:
        train, val = splits[task]
        text = make_config(task, train, val, train, keep_empty=task == 'masks')
        cfg = Config.fromstring(text, '.py')
        mine, theirs = (cfg[f'{name}_dataloader'].dataset for name in ('test', 'train'))
        assert mine.data_prefix == theirs.data_prefix != cfg.val_dataloader.dataset.data_prefix
        assert mine.pipeline == cfg.val_dataloader.dataset.pipeline
        assert 'No --test' not in text
        if task in ('boxes', 'masks'):
            assert cfg.test_evaluator.ann_file == str(train.path.resolve()) == mine.ann_file
            assert theirs.filter_cfg.filter_empty_gt == (task == 'boxes')
        assert 'No --test: tools/test.py takes the validation' in ' '.join(
            make_config(task, train, val).replace('\n#', '').split())

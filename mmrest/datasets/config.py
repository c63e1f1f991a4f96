"""A complete config for a data set, from one of ours."""
import inspect
import re
import statistics
import textwrap
from pathlib import Path
from typing import Optional

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import Runner

from ..errors import UserError
from ..models import ResT, ResTV2
from ..models.checkpoint import check_backbone, own_names, without_prefix
from ..safe_reading import read_state_dict
from ..version import __version__
from .split import Split

# An installation puts them here, see setup.py.
CONFIGS = Path(__file__).parents[1] / '.mim/configs'
BASES = dict(  # the first is the default
    boxes={'faster-rcnn': 'faster_rcnn/rest_small_fpn_1x_coco.py',
           'retinanet': 'retinanet/rest_small_fpn_1x_coco.py'},
    masks={'mask-rcnn': 'mask_rcnn/rest_small_fpn_1x_coco.py'},
    classes={'classifier': 'classification/rest_small_8xb256_in1k.py'},
    segments={'semantic-fpn': 'semantic_fpn/rest_small_fpn_8xb4_40k_ade20k.py',
              'upernet': 'upernet/rest_small_8xb2_160k_ade20k.py'})
# Images of a batch, epochs, and the score of the best checkpoint.
RECIPES = dict(
    boxes=(4, 12, 'coco/bbox_mAP'), masks=(4, 12, 'coco/segm_mAP'),
    classes=(32, 100, 'accuracy/top1'), segments=(4, 60, 'mIoU'))
MIN_ITERS = 3000
BACKBONES = {f'{kind.__name__.lower()}_{arch}': (kind, arch)
             for kind in (ResT, ResTV2) for arch in kind.arch_zoo}
ORDER = ('default_scope', 'custom_imports', 'load_from', 'model', 'data_preprocessor',
         'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
         'test_evaluator', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'train_cfg',
         'val_cfg', 'test_cfg', 'default_hooks')


class Writer:
    """A config whose chosen values are variables with a comment, at the top of its text."""

    def __init__(self, path: str):
        full = Config.fromfile(CONFIGS / path)
        known = ['custom_imports', *inspect.signature(Runner).parameters]
        self.cfg = ConfigDict({k: full[k] for k in known if k in full and k != 'work_dir'})
        for node in _dicts(self.cfg):
            node.pop('_scope_', None)  # the default_scope
        self.chosen = []

    def choose(self, name: str, value: object, comment: str) -> str:
        """Add a variable; returns what stands for it in the config until :meth:`text`."""
        comment = textwrap.wrap(comment, 92)
        self.chosen += [*(f'# {line}' for line in comment), f'{name} = {value}']
        return f'<{name}>'

    def text(self, head: str) -> str:
        """The content of the file."""
        keys = [key for key in ORDER if key in self.cfg]
        keys += [key for key in self.cfg if key not in keys]
        lines = [head, *self.chosen, '', '# The whole config.']
        for key in keys:
            if key in ('test_dataloader', 'test_evaluator'):
                lines.append(f'{key} = {key.replace("test", "val")}')
            elif self.cfg[key] != f'<{key}>':
                lines.append(Config({key: self.cfg[key]}).pretty_text.rstrip())
        text = '\n'.join(lines) + '\n'
        return re.sub(r"'<(\w+)>'", r'\1', text)


def make_config(task: str, train: Split, val: Split, model: Optional[str] = None,
                backbone: str = 'rest_small', load_from: Optional[str] = None,
                batch_size: Optional[int] = None, iters: Optional[int] = None,
                lr: Optional[float] = None, light: bool = False) -> str:
    """Write a config that trains a model on a data set as it is.

    Args:
        task (str): 'boxes', 'masks', 'classes' or 'segments'.
        train (Split): The training data, without errors.
        val (Split): The validation data.
        model (str, optional): See ``BASES``; by default the first there for the task.
        backbone (str): Kind and ``arch``, as in 'rest_small' or 'restv2_tiny'.
        load_from (str, optional): A checkpoint or its address: of the backbone, a classifier
            or a whole model, see :func:`~mmrest.safe_reading.read_state_dict`.
        batch_size (int, optional): Images of a batch on each GPU.
        iters (int, optional): Iterations of the training, instead of the rule.
        lr (float, optional): Learning rate, instead of the recipe's, scaled to the batch.
        light (bool): A detector with narrow heads and few proposals, for a CPU.

    Returns:
        str: The content of the file.

    Raises:
        ValueError: There is no such model for the task, or no such backbone.
        FileNotFoundError, OSError, ValueError: The checkpoint cannot be read.
    """
    model = model or next(iter(BASES[task]))
    if model not in BASES[task]:
        raise UserError(f'{model=} for {task=} must be one of {", ".join(BASES[task])}')
    default_batch, epochs, score = RECIPES[task]
    writer = Writer(BASES[task][model])
    _write_data(writer, task, train, val)
    _write_backbone(writer, backbone)
    for part in ('model', 'data_preprocessor'):
        _replace(writer.cfg.get(part, {}), 'num_classes', None, '<num_classes>')
    if light:
        _write_light(writer, task)
    _write_load_from(writer, load_from)
    batch_size = batch_size or default_batch
    _write_rate(writer, batch_size, lr)
    _write_schedule(writer, task, len(train.sizes) - train.empty, batch_size, epochs, iters)
    writer.cfg.default_hooks.checkpoint.update(
        save_best=score, rule='greater', max_keep_ckpts=2)
    command = f'--task {task} --model {model} --backbone {backbone}'
    return writer.text(f'''\
# Written by tools/own_data.py of mmrest {__version__}: {command}
# It has no _base_, and trains in any folder by tools/train.py of mmrest, `mim train mmrest` and
# the script of {writer.cfg.default_scope}. What was chosen for the data comes first.
''')


def _write_data(writer, task, train, val):
    cfg = writer.cfg
    origin = dict(classes='the folders', segments='classes.txt').get(task, 'the categories')
    writer.choose('classes', repr(tuple(train.classes)),
                  f'Names and order of {origin}, by which mm numbers the classes.')
    writer.choose('num_classes', 'len(classes)', 'Every head has it.')
    comment = 'Absolute paths, so that the file works in any folder: edit them if data moves.'
    for name, split in (('train', train), ('val', val)):
        images = writer.choose(f'{name}_images', repr(f'{split.images.resolve()}/'), comment)
        comment = ''
        mine = dict(data_root='', metainfo=dict(classes='<classes>'), data_prefix=images)
        if task == 'classes':
            mine.update(type='CustomDataset', with_label=True)
            cfg[f'{name}_dataloader'].dataset.pop('split')
        elif task == 'segments':
            maps = writer.choose(f'{name}_maps', repr(f'{split.maps.resolve()}/'), '')
            mine.update(type='BaseSegDataset', img_suffix=split.suffix, seg_map_suffix='.png',
                        data_prefix=dict(img_path=images, seg_map_path=maps))
        else:
            file = writer.choose(f'{name}_annotations', repr(str(split.path.resolve())), '')
            mine.update(data_prefix=dict(img=images), ann_file=file)
        loader = cfg[f'{name}_dataloader']
        loader.num_workers = 2
        loader.dataset.update(mine)
    write = dict(classes=_write_classes, segments=_write_segments).get(task, _write_coco)
    write(writer, train)


def _short_side(train, least, most):
    """The usual short side of the training images, as a multiple of 32 within limits."""
    usual = statistics.median(min(size) for size in train.sizes.values())
    return min(max(round(usual / 32) * 32, least), most)


def _flip(writer):
    return writer.choose('flip', 0.5, 'Share of mirrored images: 0 if left and right differ.')


def _write_coco(writer, train):
    short = _short_side(train, 256, 800)
    scale = writer.choose(
        'scale', (round(short * 1333 / 800), short), 'Long and short side at most. The short '
        'one is the usual one of the training images, but 256 to 800.')
    scales = writer.choose('train_scales', '[(scale[0], scale[1] * n // 4) for n in (3, 4, 5)]',
                           'Each training image gets one of them.')
    _, _, resize, flip, _ = writer.cfg.train_dataloader.dataset.pipeline
    resize.scales, flip.prob = scales, _flip(writer)
    writer.cfg.val_dataloader.dataset.pipeline[1].scale = scale
    writer.cfg.val_evaluator.update(ann_file='<val_annotations>', classwise=True)


def _write_classes(writer, train):
    size = writer.choose('size', _short_side(train, 64, 224),
                         'Pixels: the usual short side of the images, but 64 to 224.')
    train_set, val_set = (writer.cfg[f'{name}_dataloader'].dataset for name in ('train', 'val'))
    load, pack = train_set.pipeline[0], train_set.pipeline[-1]
    train_set.pipeline = [load, dict(type='RandomResizedCrop', scale=size),
                          dict(type='RandomFlip', prob=_flip(writer)), pack]
    edge = writer.choose('edge', 'size * 8 // 7', 'Short side before cutting to size.')
    val_set.pipeline = [load, dict(type='ResizeEdge', scale=edge, edge='short'),
                        dict(type='CenterCrop', crop_size=size), pack]
    # Mixup, CutMix and the learning rate of the recipe are for 300 epochs of ImageNet.
    del writer.cfg.model.train_cfg
    writer.cfg.optim_wrapper.optimizer.lr = 1e-4
    writer.cfg.auto_scale_lr.base_batch_size = 32
    writer.cfg.model.head.topk = (1, )
    writer.cfg.val_evaluator = [  # the second one's lists have a value for each class
        dict(type='Accuracy', topk=(1, )), dict(type='SingleLabelMetric', average=None)]


def _write_segments(writer, train):
    crop = writer.choose('crop_size', f'({_short_side(train, 64, 512)}, ) * 2',
                         'The usual short side of the images, but 64 to 512.')
    scale = writer.choose('scale', '(4 * crop_size[0], crop_size[0])',
                          'Long and short side at most, before crops of 0.5 to 2 times this.')
    _, labels, resize, cut, flip, *_ = writer.cfg.train_dataloader.dataset.pipeline
    resize.scale, cut.crop_size, flip.prob = scale, crop, _flip(writer)
    _, val_resize, val_labels, _ = writer.cfg.val_dataloader.dataset.pipeline
    val_resize.scale = scale
    labels.reduce_zero_label = val_labels.reduce_zero_label = False
    writer.cfg.model.data_preprocessor.size = crop
    norm = writer.choose('norm', "'BN'", "'SyncBN' on several GPUs.")
    _replace(writer.cfg.model, 'type', 'SyncBN', norm)


def _write_backbone(writer, name):
    """Put the backbone and its channels into the model."""
    if name not in BACKBONES:
        raise UserError(f'backbone={name!r} must be one of {", ".join(BACKBONES)}')
    kind, arch = BACKBONES[name]
    dims = kind.arch_zoo[arch]['embed_dims']
    model = writer.cfg.model
    model.backbone.update(type=kind.__name__, arch=arch)
    model.backbone.pop('drop_path_rate', None)
    if 'in_channels' in (model.get('neck') or {}):
        model.neck.in_channels = list(dims[-len(model.neck.in_channels):])
    elif 'decode_head' in model:
        model.decode_head.in_channels = list(dims)
        model.auxiliary_head.in_channels = dims[2]
    else:
        model.head.in_channels = dims[-1]


def _write_light(writer, task):
    """Narrow heads and few proposals; BatchNorm in the neck and no drop path learn faster."""
    if task not in ('boxes', 'masks'):
        raise UserError(f'light=True is for detectors: leave it out for {task=}')
    model = writer.cfg.model
    width = writer.choose('width', 64, 'Light: channels of neck and heads; 256 in the papers.')
    for part in ('neck', 'rpn_head', 'roi_head', 'bbox_head'):
        for key in ('in', 'out', 'feat', 'conv_out'):
            _replace(model.get(part, {}), f'{key}_channels', 256, width)
    model.neck.norm_cfg = dict(type='BN')
    model.backbone.drop_path_rate = 0.
    if 'roi_head' in model:
        model.roi_head.bbox_head.fc_out_channels = writer.choose('fc_width', '4 * width', '')
        number = writer.choose('proposals', 300, 'For each image; 1000 in the papers.')
        for options in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
            options.update(nms_pre=number, max_per_img=number)
        model.train_cfg.rcnn.sampler.num = writer.choose(
            'samples', 128, 'Of the proposals, to learn from; 512 in the papers.')


def _dicts(node):
    """All dicts in a config."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _dicts(child)


def _replace(config, key, old, new):
    """Set the values of a key anywhere in a config, if they are ``old`` (None: always)."""
    for node in _dicts(config):
        if key in node and old in (None, node[key]):
            node[key] = new


def _write_load_from(writer, checkpoint):
    """Start from a whole model, or from a backbone: the names in the file tell which."""
    cfg = writer.cfg
    if checkpoint is not None:
        state = read_state_dict(checkpoint)
        parts = {name.partition('.')[0] for name in state}
        with torch.device('meta'):
            backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
        prefix = 'backbone.' if 'backbone' in parts else None
        weights = own_names(backbone, without_prefix(backbone, state, checkpoint, prefix))
        check_backbone(backbone, weights, checkpoint)
        if '://' not in checkpoint:
            checkpoint = str(Path(checkpoint).resolve())
        others = parts & set(cfg.model) - {'backbone', 'data_preprocessor'}
        if 'backbone' not in parts or not others:
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=writer.choose(
                'pretrained', repr(checkpoint), 'Weights of the backbone.'))
            if 'backbone' in parts:
                cfg.model.backbone.init_cfg.prefix = 'backbone.'
            return
    cfg.load_from = writer.choose(
        'load_from', repr(checkpoint), 'A trained model. Heads with another number of classes '
        'start from scratch, and the log names them.' if checkpoint else 'No trained model, so '
        'that few images teach little: see --load-from.')


def _write_rate(writer, batch_size, lr):
    cfg = writer.cfg
    size = writer.choose('batch_size', batch_size, 'Images on each GPU.')
    base = cfg.auto_scale_lr.base_batch_size
    usual = cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.optimizer.lr = writer.choose(
        'lr', lr or f'{usual} * batch_size / {base}', 'As you asked.' if lr else
        f'The usual rate, {usual}, is for {base} images. On several GPUs: --auto-scale-lr.')
    cfg.train_dataloader.batch_size = cfg.auto_scale_lr.base_batch_size = size


def _write_schedule(writer, task, images, batch_size, epochs, iters):
    """Epochs, or iterations if the images are so few that the epochs would be over too soon."""
    cfg = writer.cfg
    rule = epochs * -(-images // batch_size)
    hook = cfg.default_hooks.checkpoint
    if iters is None and rule >= MIN_ITERS and task != 'segments':
        cfg.train_cfg.max_epochs = writer.choose(
            'max_epochs', epochs, f'At least {MIN_ITERS} iterations: {rule}.')
        if task != 'classes':
            cfg.param_scheduler[1].update(
                end='<max_epochs>', milestones=writer.choose(
                    'milestones', '[max_epochs * 2 // 3, max_epochs * 11 // 12]',
                    'The learning rate is divided by 10 after these epochs.'))
        hook.interval = 1
        return
    length = writer.choose('max_iters', iters or max(rule, MIN_ITERS), (
        'As you asked.' if iters else f'{epochs} epochs, but at least {MIN_ITERS} iterations: '
        f'{epochs} epochs are {rule}.'))
    warmup = writer.choose('warmup', 'min(500, max_iters // 10 + 1)', 'Iterations in which the '
                           'learning rate rises. It falls to 0 after them.')
    interval = writer.choose('val_interval', 'max(max_iters // 10, 1)',
                             'Iterations between tests. The best checkpoint is kept.')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=length, val_interval=interval)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warmup),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=length, eta_min=0.)]
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.default_hooks.logger.update(log_metric_by_epoch=False)
    hook.update(by_epoch=False, interval=interval)
    cfg.log_processor = dict(by_epoch=False)

"""A complete config for a data set, from one of ours."""
import inspect
import math
import statistics
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import Runner

from ..apis import dicts
from ..errors import UserError
from ..models import ResT, ResTV2
from ..models.checkpoint import check_backbone, own_names, without_prefix
from ..safe_reading import read_state_dict
from ..version import __version__
from . import templates
from .findings import Split

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
LIGHT_BATCH = 2  # learns more from as many images than 4
MIN_ITERS = 3000
ANCHOR = 32  # pixels: the smallest of our detectors
BELOW = 0.7  # of it: smaller objects are hardly found
BACKBONES = {f'{kind.__name__.lower()}_{arch}': (kind, arch)
             for kind in (ResT, ResTV2) for arch in kind.arch_zoo}
# Of a config of ours, what is not taken: it is in the templates, or of no use elsewhere.
WRITTEN = ('work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
           'test_evaluator', 'train_cfg', 'log_processor')


class Name(str):
    """The name of a knob, in place of a value: it is written without quotes."""

    __repr__ = str.__str__


class Writer:
    """A config whose chosen values are variables with a comment, its knobs, before the rest."""

    def __init__(self, path: str):
        full = Config.fromfile(CONFIGS / path)
        known = ['custom_imports', *inspect.signature(Runner).parameters]
        self.cfg = ConfigDict({k: full[k] for k in known if k in full and k not in WRITTEN})
        for node in dicts(self.cfg):
            node.pop('_scope_', None)  # the default_scope
        self.knobs: List[str] = []
        self.parts: List[str] = []

    def choose(self, name: str, code: str, comment: str = '') -> Name:
        """Add a knob with the code of its value; returns what stands for it in the config."""
        lines = textwrap.wrap(comment, 92)
        self.knobs += [*(f'# {line}' for line in lines), f'{name} = {code}']
        return Name(name)

    def text(self, head: str) -> str:
        """The content of the file."""
        lines = [head, *self.knobs, '', '# The whole config.', *self.parts]
        for key, value in self.cfg.items():
            if not isinstance(value, Name):
                lines.append(Config({key: value}).pretty_text.rstrip())
        return '\n'.join(lines) + '\n'


def dataset(task: str, split: Split, classes: Sequence[str], training: bool,
            keep_empty: bool) -> ConfigDict:
    """The dataset that the written config has for a split."""
    writer = Writer(next(iter(BASES[task].values())))
    _choose_data(writer, task, dict(train=split, val=split), classes, keep_empty)
    _choose_size(writer, task, split)
    writer.choose('batch_size', '1')
    writer.choose('sampler', 'None')
    cfg = Config.fromstring('\n'.join([*writer.knobs, *writer.parts]), '.py')
    return cfg['train_dataloader' if training else 'val_dataloader'].dataset


def make_config(task: str, train: Split, val: Split, test: Optional[Split] = None,
                model: Optional[str] = None, backbone: str = 'rest_small',
                load_from: Optional[str] = None, batch_size: Optional[int] = None,
                iters: Optional[int] = None, lr: Optional[float] = None, light: bool = False,
                keep_empty: bool = False, scale: Optional[Sequence[int]] = None,
                patience: int = 5) -> str:
    """Write a config that trains a model on a data set as it is.

    Args:
        task (str): 'boxes', 'masks', 'classes' or 'segments'.
        train (Split): The training data, without errors.
        val (Split): The validation data, which chooses the best checkpoint.
        test (Split, optional): The test data. Without it, it is the validation data.
        model (str, optional): See ``BASES``; by default the first there for the task.
        backbone (str): Kind and ``arch``, as in 'rest_small' or 'restv2_tiny'.
        load_from (str, optional): A checkpoint or its address: of the backbone, a classifier
            or a whole model, see :func:`~mmrest.safe_reading.read_state_dict`.
        batch_size (int, optional): Images of a batch on each GPU.
        iters (int, optional): Iterations of the training, instead of the rule.
        lr (float, optional): Learning rate, instead of the rule.
        light (bool): A detector with narrow heads and few proposals, for a CPU.
        keep_empty (bool): Whether a detector is trained on images without objects, too.
        scale (tuple, optional): Long and short side of a detector's images at most.
        patience (int): Ends the training after so many tests without a better one; 0: never.

    Returns:
        str: The content of the file.

    Raises:
        UserError: There is no such model for the task, or no such backbone, or a number is
            not above 0.
        FileNotFoundError, OSError, UserError: The checkpoint cannot be read.
    """
    check_options(task, model, backbone, batch_size, iters, lr, light, keep_empty, scale,
                  patience)
    model = model or next(iter(BASES[task]))
    default_batch, epochs, score = RECIPES[task]
    writer = Writer(BASES[task][model])
    splits = dict(train=train, val=val) | (dict(test=test) if test else {})
    _choose_data(writer, task, splits, train.classes, keep_empty)
    _choose_size(writer, task, train, light, scale)
    _adapt(writer, task)
    _write_backbone(writer, backbone)
    if light:
        _write_light(writer)
    start = _write_load_from(writer, load_from)
    batch_size = batch_size or (LIGHT_BATCH if light else default_batch)
    _write_rate(writer, task, batch_size, lr, start, light)
    _write_schedule(writer, task, len(train.sizes), batch_size, epochs, iters)
    _write_hooks(writer, score, patience)
    command = f'--task {task} --model {model} --backbone {backbone}'
    return writer.text(f'''\
# Written by tools/own_data.py of mmrest {__version__}: {command}
# It has no _base_, and trains in any folder by tools/train.py of mmrest, `mim train mmrest` and
# the script of {writer.cfg.default_scope}. What was chosen for the data comes first.
''')


def check_options(task, model, backbone, batch_size, iters, lr, light, keep_empty, scale,
                  patience) -> None:
    """Refuse options of :func:`make_config`, before data are read for them."""
    if model not in (None, *BASES[task]):
        raise UserError(f'{model=} for {task=} must be one of {", ".join(BASES[task])}')
    if backbone not in BACKBONES:
        raise UserError(f'{backbone=} must be one of {", ".join(BACKBONES)}')
    for name, value in dict(light=light, keep_empty=keep_empty, scale=scale).items():
        if value and task not in ('boxes', 'masks'):
            raise UserError(f'{name}={value} is for detectors: leave it out for {task=}')
    sides = dict(zip(('scale[0]', 'scale[1]'), scale or ()))
    for name, value in dict(batch_size=batch_size, iters=iters, lr=lr, **sides).items():
        if value is not None and not 0 < value < float('inf'):
            raise UserError(f'{name}={value} must be above 0')
    if patience < 0:
        raise UserError(f'{patience=} must be at least 0')


def _choose_data(writer, task, splits, classes, keep_empty):
    """Classes, and files and folders of each split."""
    origin = dict(classes='the folders', segments='classes.txt').get(task, 'the categories')
    writer.choose('classes', repr(tuple(classes)),
                  f'Names and order of {origin}, by which mm numbers the classes.')
    writer.choose('num_classes', 'len(classes)', 'Every head has it.')
    comment = 'Absolute paths, so that the file works in any folder: edit them if data moves.'
    for name, split in splits.items():
        for knob, value in _paths(task, split).items():
            writer.choose(f'{name}_{knob}', repr(value), comment)
            comment = ''
    if 'test' not in splits:
        comment = 'No --test: tools/test.py takes the validation data, which choose the best ' \
                  'checkpoint, so that new data will have lower scores.'
        for knob in _paths(task, splits['val']):
            writer.choose(f'test_{knob}', f'val_{knob}', comment)
            comment = ''
    if task in ('boxes', 'masks'):
        writer.choose('with_mask', repr(task == 'masks'))
        writer.choose('metric', "['bbox', 'segm']" if task == 'masks' else "'bbox'")
        writer.choose('keep_empty', repr(keep_empty), 'Whether images without objects are '
                      'trained on.')
    writer.parts.append(templates.DATA[task].strip())


def _paths(task, split):
    paths = dict(images=f'{split.images.resolve()}/')
    if task == 'segments':
        return paths | dict(maps=f'{split.maps.resolve()}/', suffix=split.suffix)
    return paths if task == 'classes' else paths | dict(annotations=str(split.path.resolve()))


def _short_side(train, least, most):
    """The usual short side of the training images, as a multiple of 32 within limits."""
    usual = statistics.median([min(size) for size in train.sizes.values()] or [most])
    return min(max(round(usual / 32) * 32, least), most)


def _choose_size(writer, task, train, light=False, scale=None):
    """The size of the images, and whether they are mirrored."""
    if task == 'classes':
        writer.choose('size', _short_side(train, 64, 224),
                      'Pixels: the usual short side of the images, but 64 to 224.')
        writer.choose('edge', 'size * 8 // 7', 'Short side before cutting to size.')
    elif task == 'segments':
        writer.choose('crop_size', f'({_short_side(train, 64, 512)}, ) * 2',
                      'The usual short side of the images, but 64 to 512.')
        writer.choose('scale', '(4 * crop_size[0], crop_size[0])',
                      'Long and short side at most, before crops of 0.5 to 2 times this.')
    else:
        _choose_scale(writer, train, light, scale)
    writer.choose('flip', 0.5, 'Share of mirrored images: 0 if left and right differ.')


def _choose_scale(writer, train, light, scale):
    short = _short_side(train, 256, 800)
    if scale:
        value, why = tuple(scale), 'as you asked.'
    elif light:
        value, why = smallest_scale(train), (
            'the smallest, with a short side of 256 or more, at which half of the objects of '
            f'each class have {BELOW} of the smallest anchor, or the size of the images.')
    else:
        value, why = (round(short * 1333 / 800), short), (
            'the short one is the usual one of the training images, but 256 to 800.')
    writer.choose('scale', repr(value), f'Long and short side at most: {why}')
    if light:  # with a budget for a CPU, several sizes take longer and learn less
        writer.choose('train_scales', '[scale]', 'Each training image gets one of them.')
    else:
        writer.choose('train_scales', '[(scale[0], scale[1] * n // 4) for n in (3, 4, 5)]',
                      'Each training image gets one of them.')


def smallest_scale(train: Split) -> Tuple[int, int]:
    """Long and short side at which each class is large enough for the smallest anchor."""
    sizes = list(train.sizes.values()) or [(256, 256)]
    long, short = (statistics.median(map(side, sizes)) for side in (max, min))
    low = math.ceil(256 * long / short / 32)
    for step in range(low, max(low, int(long) // 32) + 1):
        scale = 32 * step, round(32 * step * short / long)
        usual = usual_sizes(train, scale)
        if all(size >= BELOW * ANCHOR for size in usual.values()):
            break
    return scale


def usual_sizes(train: Split, scale: Sequence[int]) -> Dict[str, float]:
    """The median size of each class's boxes, root of width x height, in images of a scale."""
    sides = defaultdict(list)
    for name, w, h, *size in train.boxes:
        factor = min(max(scale) / max(size), min(scale) / min(size))
        sides[name].append((w * h)**0.5 * factor)
    return {name: statistics.median(sides[name]) for name in train.classes if sides[name]}


def _adapt(writer, task):
    """What the recipes for COCO, ImageNet and ADE20K have otherwise."""
    cfg = writer.cfg
    for part in ('model', 'data_preprocessor'):
        _replace(cfg.get(part, {}), 'num_classes', None, Name('num_classes'))
    if task == 'classes':
        # Mixup, CutMix and the learning rate of the recipe are for 300 epochs of ImageNet.
        del cfg.model.train_cfg
        cfg.optim_wrapper.optimizer.lr = 1e-4
        cfg.auto_scale_lr.base_batch_size = 32
        cfg.model.head.topk = (1, )
    elif task == 'segments':
        cfg.model.data_preprocessor.size = Name('crop_size')
        norm = writer.choose('norm', "'BN'", "'SyncBN' on several GPUs.")
        _replace(cfg.model, 'type', 'SyncBN', norm)


def _write_backbone(writer, name):
    """Put the backbone and its channels into the model."""
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


def _write_light(writer):
    """Narrow heads and few proposals; BatchNorm in the neck and no drop path learn faster."""
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


def _replace(config, key, old, new):
    """Set the values of a key anywhere in a config, if they are ``old`` (None: always)."""
    for node in dicts(config):
        if key in node and old in (None, node[key]):
            node[key] = new


def _write_load_from(writer, checkpoint):
    """Start from a whole model, or from a backbone: the names in the file tell which.

    Returns 'model', 'backbone', or None without a checkpoint.
    """
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
            return 'backbone'
    cfg.load_from = writer.choose(
        'load_from', repr(checkpoint), 'A trained model. Heads with another number of classes '
        'start from scratch, and the log names them.' if checkpoint else 'No trained model: '
        'see --load-from.')
    return 'model' if checkpoint else None


def _write_rate(writer, task, batch_size, lr, start, light):
    cfg = writer.cfg
    size = writer.choose('batch_size', batch_size, 'Images on each GPU.')
    base = cfg.auto_scale_lr.base_batch_size
    usual = cfg.optim_wrapper.optimizer.lr
    several = 'On several GPUs: --auto-scale-lr.'
    if task in ('boxes', 'masks') and (start is None or start == 'model' and light):
        code, why = '5e-4 * (batch_size / 2)**0.5', (
            f'Most of the weights start from nothing: 5e-4 for 2 images. {several}')
        cfg.optim_wrapper.clip_grad = dict(max_norm=5.)
    else:
        code, why = f'{usual} * batch_size / {base}', (
            f'The usual rate, {usual}, is for {base} images. {several}')
    cfg.optim_wrapper.optimizer.lr = writer.choose(
        'lr', lr or code, 'As you asked.' if lr else why)
    cfg.auto_scale_lr.base_batch_size = size


def _write_schedule(writer, task, images, batch_size, epochs, iters):
    """Epochs, or iterations if the images are so few that the epochs would be over too soon."""
    cfg = writer.cfg
    rule = epochs * -(-images // batch_size)
    hook = cfg.default_hooks.checkpoint
    if iters is None and rule >= MIN_ITERS and task != 'segments':
        writer.choose('max_epochs', epochs, f'At least {MIN_ITERS} iterations: {rule}.')
        schedule = templates.EPOCHS
        if task != 'classes':
            del cfg.param_scheduler
            writer.choose('milestones', '[max_epochs * 2 // 3, max_epochs * 11 // 12]',
                          'The learning rate is divided by 10 after these epochs.')
            schedule += templates.STEPS
        hook.interval = 1
    else:
        writer.choose('max_iters', iters or max(rule, MIN_ITERS), 'As you asked.' if iters else
                      f'{epochs} epochs, but at least {MIN_ITERS} iterations: {epochs} epochs '
                      f'are {rule}.')
        writer.choose('warmup', 'min(500, max_iters // 10 + 1)', 'Iterations in which the '
                      'learning rate rises. It falls to 0 after them.')
        interval = writer.choose('val_interval', 'min(max(max_iters // 10, 300), max_iters)',
                                 'Iterations between tests. The best checkpoint is kept.')
        del cfg.param_scheduler
        schedule = templates.ITERS
        cfg.default_hooks.logger.update(log_metric_by_epoch=False)
        hook.update(by_epoch=False, interval=interval)
    writer.parts.insert(0, schedule.strip())


def _write_hooks(writer, score, patience):
    """The best checkpoint, the validation loss, and an end when nothing improves."""
    cfg = writer.cfg
    cfg.default_hooks.checkpoint.update(save_best=score, rule='greater', max_keep_ckpts=2)
    cfg.custom_hooks = [dict(type='ValLossHook')]
    if patience:
        tests = writer.choose('patience', patience, 'The training ends after so many tests '
                              'without a better one.')
        cfg.custom_hooks.append(dict(
            type='EarlyStoppingHook', monitor=score, rule='greater', min_delta=0.,
            patience=tests))

"""What is in a data set, and what a model sees of it, as tables to print."""
from typing import List, Sequence

from mmengine.config import Config

from .config import ANCHOR, BELOW, usual_sizes
from .findings import Finding, Split

PARTS = 'training', 'validation', 'test'


def contents(splits: Sequence[Split]) -> str:
    """Number of images, and the objects, images or share of the pixels of each class."""
    rows = [('', *PARTS[:len(splits)]),
            ('images', *(len(s.sizes) if s.loaded else '-' for s in splits))]
    if splits[0].boxes:
        rows.append(('images without objects', *(s.empty if s.loaded else '-' for s in splits)))
    for name in dict.fromkeys(name for split in splits for name in split.classes):
        rows.append((name, *(_count(split, name) for split in splits)))
    return _align(rows)


def training(train: Split, cfg: Config) -> str:
    """The length of the training, and the sizes of the boxes beside the anchors'."""
    batch = cfg.train_dataloader.batch_size
    images = len(train.sizes)
    loop = cfg.train_cfg
    length = '{max_iters} iterations' if 'max_iters' in loop else '{max_epochs} epochs'
    lines = [f'an epoch: {images} images, in {-(-images // batch)} iterations of {batch}; '
             f'the training: {length.format(**loop)}']
    if train.left_out:
        lines.append(f'{train.left_out} images without objects are left out, and not in the '
                     'table: --keep-empty keeps them')
    head = cfg.model.get('rpn_head') or cfg.model.get('bbox_head')
    lines.append(f'learning rate {cfg.lr:.3g} for {batch} images, '
                 f'{_start(cfg)}')
    if train.boxes and head:
        lines += ['', _pyramid(train, cfg.scale, head.anchor_generator), '',
                  _classes(train, cfg.scale), *_too_small(train, cfg.scale)]
    return '\n'.join(lines)


def _too_small(train, scale):
    where = [f'{name} ({size:.0f} px)' for name, size in usual_sizes(train, scale).items()
             if size < BELOW * ANCHOR]
    what = (f'half of the objects are below {BELOW} of the smallest anchor, {ANCHOR} px, in '
            f'images of {scale[0]} x {scale[1]}, and hardly found: take a larger --scale, or '
            'cut tiles by tools/dataset_converters/tile_coco.py')
    return [str(Finding('W', train.path, where, what))] if where else []


def _start(cfg):
    if cfg.get('load_from'):
        return f'from the model of {cfg.load_from}'
    return f'from the backbone of {cfg.pretrained}' if 'pretrained' in cfg else 'from nothing'


def _classes(train, scale):
    rows = [('', 'usual size', f'of {ANCHOR} px')]
    for name, size in usual_sizes(train, scale).items():
        rows.append((name, f'{size:.0f} px', f'{size / ANCHOR:.2f}'))
    return f'each class beside the smallest anchor\n{_align(rows)}'


def _pyramid(train, scale, anchors):
    """Boxes by the level of the feature pyramid whose anchors are nearest in size."""
    sides = [(w * h)**0.5 * min(max(scale) / max(size), min(scale) / min(size))
             for _, w, h, *size in train.boxes]
    base = anchors.scales[0] if 'scales' in anchors else anchors.octave_base_scale
    rows = [('', 'boxes of', 'share')]
    low = 0.
    for stride in anchors.strides:
        high = base * stride * 2**0.5
        found = sum(low <= side < high for side in sides)
        rows.append((f'anchors of {base * stride} px, stride {stride}',
                     f'{low:.0f} to {high:.0f} px', f'{found / len(sides):.1%}'))
        low = high
    found = sum(side >= low for side in sides)
    rows.append(('larger', f'from {low:.0f} px', f'{found / len(sides):.1%}'))
    return ('size of a box: root of width x height, after the image is resized to at most '
            f'{max(scale)} x {min(scale)}\n{_align(rows)}')


def _count(split, name):
    if not split.loaded:
        return '-'
    if split.maps.name:
        return f'{split.counts[name] / max(sum(split.counts.values()), 1):.1%}'
    return split.counts[name]


def _align(rows: List[tuple]) -> str:
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    lines = [[str(first).ljust(widths[0]), *(str(c).rjust(w) for c, w in zip(row, widths[1:]))]
             for first, *row in rows]
    return '\n'.join(map('  '.join, lines))

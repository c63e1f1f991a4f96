"""Weights of ResT from one code base's layout to another's.

    published (ImageNet classifier)   <->  mmpretrain
    detectron2 (published detectors)  <->  mmdet

    python tools/model_converters/convert_checkpoint.py rest_small.pth out.pth --to mmpretrain
    python tools/model_converters/convert_checkpoint.py model_final.pth out.pth --to mmdet

What IN is, its names tell. No code in it runs. OUT ends in .pth or .safetensors. A report says
what went where, what was dropped and what a config needs; whatever cannot be mapped is
refused with exit code 1, and then nothing is written. See docs/weights.md.
"""
import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from layouts import (
    BACKBONES,
    CLASSIFIER,
    PAIRS,
    RETINANET,
    arch_name,
    backbone_arch,
    backbone_shapes,
    cell_anchors,
    module_shapes,
    recognise,
    swap_anchors,
)
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from torch import Tensor

from mmrest.models.checkpoint import read_state_dict

State = Dict[str, Tensor]

# RGB, of every config here; detectron2's defaults are BGR with the same mean and std 1.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
INPUT_BUFFERS = ('pixel_mean', 'pixel_std')
ANCHOR_BUFFERS = ('anchor_generator.cell_anchors.',
                  'proposal_generator.anchor_generator.cell_anchors.')


class Conversion:
    """One state dict on its way into another layout.

    Args:
        state (dict[str, Tensor]): What was read.
        target (str): The layout to reach.
        input_format (str, optional): 'BGR' or 'RGB': what detectron2's network is fed, BGR
            if not given. Only where the state has no ``pixel_mean``.
        pixel_std (Sequence[float], optional): detectron2's, in the order of
            ``input_format``; 1 if not given. Only where the state has no ``pixel_std``.
        cfg_options (dict): Options beside its config that mmdet's model was built with.

    Attributes:
        result (dict[str, Tensor]): By names of the target.
        report (list[str]): What went where.

    Raises:
        ValueError: Something does not map; the sentence says what.
    """

    def __init__(self, state: State, target: str, input_format: Optional[str] = None,
                 pixel_std: Optional[Sequence[float]] = None, cfg_options: dict = None):
        self.rest = dict(state)  # what no step has taken yet
        self.source, self.family = recognise(state)
        self.target = target
        self._check_direction(cfg_options or {}, input_format or pixel_std)
        self.result: State = {}
        self.moved: List[Tuple[str, str]] = []
        self.notes: Dict[str, str] = {}  # by the target's name
        self.dropped: List[str] = []
        self.assumed: List[str] = []
        if self.family is not CLASSIFIER:
            self._take_buffers(input_format, pixel_std)
        self._move_backbone()
        self._move_modules()
        if self.rest:
            raise ValueError(f'{self.source} has no {_few(self.rest)} in a {self.family.name}')
        self.num_classes = self._check_modules()
        if self.family is not CLASSIFIER:
            self._refeed()
        if self.family is RETINANET:
            self._reorder_anchors()
        self.report = self._describe()

    def _check_direction(self, cfg_options: dict, detectron2_input) -> None:
        source, target = self.source, self.target
        if PAIRS[source] != target:
            reason = f'only to {PAIRS[source]}'
            if source == target:
                reason = 'it is in that layout already'
            elif self.family is not CLASSIFIER:
                reason += ': a detector has no classification head'
            else:
                prefix = BACKBONES[source][0]
                reason += (
                    ': a classifier has no detection head. A detector starts from it with '
                    '--cfg-options model.backbone.init_cfg.type=Pretrained '
                    'model.backbone.init_cfg.checkpoint=IN'
                    + (f' model.backbone.init_cfg.prefix={prefix}' if prefix else ''))
            raise ValueError(f'a {self.family.name} in the layout {source} cannot be converted '
                             f'to {target}; {reason}')
        if detectron2_input and self.family is CLASSIFIER:
            raise ValueError('--input-format and --pixel-std are about detectron2, and neither '
                             'side of this conversion is')
        if target == 'detectron2':
            lacking = [o for o in self.family.options
                       if cfg_options.get(o.split('=')[0]) is not True]
            if lacking:
                raise ValueError(
                    "detectron2's network is another one than mmdet's unless that was trained "
                    f'with {" ".join(lacking)}, which weights do not show; if yours was, say '
                    f'so: --cfg-options {" ".join(self.family.options)}')
        elif cfg_options:
            raise ValueError('--cfg-options is for mmdet -> detectron2 only')

    def _take_buffers(self, input_format: Optional[str],
                      pixel_std: Optional[Sequence[float]]) -> None:
        """What detectron2's file says about its input decides; anchors must be known ones."""
        names = [n for n in self.rest if n in INPUT_BUFFERS or n.startswith(ANCHOR_BUFFERS)]
        buffers = {n: self.rest.pop(n).double() for n in names}
        self.input_format = input_format or 'BGR'
        self.pixel_std = tuple(pixel_std or (1., 1., 1.))
        mean, std = (buffers.get(n) for n in INPUT_BUFFERS)
        if mean is not None:
            orders = [order for order in ('BGR', 'RGB') if _close(mean, _ordered(MEAN, order))]
            if not orders:
                raise ValueError(f'pixel_mean={mean.flatten().tolist()} in the file is not '
                                 f'{MEAN}, in RGB or BGR, of the configs here: a convolution '
                                 'without bias cannot make up for that')
            self.input_format = orders[0]
            if input_format not in (None, self.input_format):
                raise ValueError(f'--input-format {input_format} contradicts pixel_mean='
                                 f'{mean.flatten().tolist()} in the file, which is '
                                 f'{self.input_format}')
        if std is not None:
            if pixel_std and not _close(std, pixel_std):
                raise ValueError(f'--pixel-std {tuple(pixel_std)} contradicts pixel_std='
                                 f'{std.flatten().tolist()} in the file')
            self.pixel_std = tuple(std.flatten().tolist())
        if self.source == 'detectron2' and (mean is None or std is None):
            self.assumed.append(
                f'assumed: input {self.input_format}, std {_numbers(self.pixel_std)}, as far '
                'as the file does not say; if not so, give --input-format and --pixel-std')
        if len(self.pixel_std) != 3 or not all(value > 0 for value in self.pixel_std):
            raise ValueError(f'pixel_std={self.pixel_std} must be three numbers above 0')
        for name, value in buffers.items():
            if name in INPUT_BUFFERS:
                self.dropped.append(f'{name}: the mm config normalises; see stem.conv1')
                continue
            sizes = self.family.anchor_sizes
            known = {str(i): cell_anchors(level) for i, level in enumerate(sizes)}
            wanted = known.get(name.rpartition('.')[2])
            if wanted is None or not _close(value, wanted):
                raise ValueError(f'{name} in the file holds other anchors than the configs '
                                 f'here have (sizes {sizes}, ratios 0.5, 1 and 2)')
            self.dropped.append(f'{name}: the mm config has the same anchors (compared)')

    def _move_backbone(self) -> None:
        (prefix, last), (new_prefix, new_last) = (
            BACKBONES[layout] for layout in (self.source, self.target))
        self.arch = backbone_arch(
            {n[len(prefix):]: v for n, v in self.rest.items() if n.startswith(prefix)})
        shapes = backbone_shapes(self.arch, self.family, self.source)
        lacking = [n for n in shapes
                   if n not in self.rest and not n.endswith('num_batches_tracked')]
        if lacking:
            raise ValueError(f'it lacks {_few(lacking)}')
        for name, shape in shapes.items():
            if name not in self.rest:
                continue
            value = self.rest.pop(name)
            if value.shape != shape:
                raise ValueError(f'{name} is {tuple(value.shape)}; in a ResT of '
                                 f'{self.arch} it is {tuple(shape)}')
            inner = name[len(prefix):]
            if inner.startswith(last + '.'):
                inner = new_last + inner[len(last):]
            self._move(name, new_prefix + inner, value)

    def _move_modules(self) -> None:
        to_mm = self.target.startswith('mm')
        lacking = []
        for published, mm in self.family.modules.items():
            old, new = (published, mm) if to_mm else (mm, published)
            for kind in ('.weight', '.bias'):
                if old + kind not in self.rest:
                    lacking.append(old + kind)
                    continue
                self._move(old + kind, new + kind, self.rest.pop(old + kind))
        if lacking:
            raise ValueError(f'it lacks {_few(lacking)}')

    def _move(self, old: str, new: str, value: Tensor) -> None:
        self.moved.append((old, new))
        self.result[new] = value.detach()

    def _check_modules(self) -> int:
        """The number of classes, on which every head must agree."""
        names = {mm: (published, mm) if self.target.startswith('mm') else (mm, published)
                 for published, mm in self.family.modules.items()}  # mm: (old, new)

        def outputs(mm: str) -> int:
            if mm not in names:
                return 0
            return self.result[f'{names[mm][1]}.weight'].shape[:1].numel()

        head, per_class = {'RetinaNet': ('bbox_head.retina_cls', 9),
                           'classifier': ('head.fc', 1)}.get(
                               self.family.name, ('roi_head.bbox_head.fc_cls', 1))
        classes, odd = divmod(outputs(head), per_class)
        if odd:
            raise ValueError(f'{names[head][0]} has {outputs(head)} outputs, not 9 anchors x '
                             'classes')
        if head == 'roi_head.bbox_head.fc_cls':
            classes -= 1  # background
        if classes < 1:
            raise ValueError(f'{names[head][0]} has no classes')
        channels = outputs('neck.lateral_convs.0.conv')
        shapes = module_shapes(self.family, self.arch['embed_dims'], channels,
                               outputs('roi_head.bbox_head.shared_fcs.0'), classes)
        for mm, shape in shapes.items():
            old, new = names[mm]
            for kind, wanted in (('weight', shape), ('bias', shape[:1])):
                got = tuple(self.result[f'{new}.{kind}'].shape)
                if got != wanted:
                    raise ValueError(
                        f'{old}.{kind} is {got}; with the {classes} classes of '
                        f'{names[head][0]} and {channels} channels of the FPN it is {wanted}')
        return classes

    def _refeed(self) -> None:
        """Fold detectron2's channel order and std into the first convolution."""
        to_mm = self.target == 'mmdet'
        name = f'{BACKBONES[self.target][0]}stem.conv1.weight'
        weight = self.result[name].double()  # (hidden, 3, 3, 3)
        scale = torch.tensor(STD, dtype=torch.double) / torch.tensor(
            _ordered(self.pixel_std, self.input_format), dtype=torch.double)  # by RGB
        if to_mm and self.input_format == 'BGR':
            weight = weight.flip(1)
        scale = scale.view(1, 3, 1, 1)
        weight = weight * scale if to_mm else weight / scale
        if not to_mm and self.input_format == 'BGR':
            weight = weight.flip(1)
        self.result[name] = weight.to(self.result[name].dtype)
        change = f'{self.input_format} / {_numbers(self.pixel_std)}', f'RGB / {_numbers(STD)}'
        self.notes[name] = 'conv1: {} -> {}'.format(*(change if to_mm else change[::-1]))

    def _reorder_anchors(self) -> None:
        for published, mm in list(self.family.modules.items())[-2:]:
            for kind in ('.weight', '.bias'):
                name = (mm if self.target == 'mmdet' else published) + kind
                self.result[name] = swap_anchors(self.result[name])
                self.notes[name] = 'anchors reordered'

    def _describe(self) -> List[str]:
        groups: Counter = Counter()
        notes: Dict[Tuple[str, str], str] = {}
        for old, new in self.moved:
            group = _group(old, self.source), _group(new, self.target)
            groups[group] += 1
            if new in self.notes:
                notes[group] = f'  ({self.notes[new]})'
        width = max(len(old) for old, _ in groups)
        lines = [f'{old:{width}}  ->  {new}  {count} tensors{notes.get((old, new), "")}'
                 for (old, new), count in groups.items()]
        lines += [f'dropped  {line}' for line in self.dropped] + self.assumed
        size = arch_name(self.arch)
        values = sum(value.numel() for value in self.result.values())
        lines.append(f'{self.family.name} of ResT(arch={size or self.arch!r}), '
                     f'{self.num_classes} classes, {self.source} -> {self.target}: '
                     f'{len(self.moved)} tensors of {values:,} values converted, '
                     f'{len(self.dropped)} dropped, none left')
        if self.target.startswith('mm'):
            lines += self._mm_needs(size)
        elif self.target == 'detectron2':
            lines.append(self._detectron2_needs())
        return lines

    def _mm_needs(self, size: str) -> List[str]:
        options = list(self.family.options)
        if self.num_classes != self.family.num_classes:
            options += [f'{o}={self.num_classes}' for o in self.family.class_options]
        lines = []
        if size and self.family.configs:
            lines.append(f'config: configs/{self.family.configs.format(size)}')
        if options:
            lines.append(f'it needs: --cfg-options {" ".join(options)}')
        return lines

    def _detectron2_needs(self) -> str:
        mean = _ordered(MEAN, self.input_format)
        node = 'RETINANET' if self.family is RETINANET else 'ROI_HEADS'
        return (f'it needs: INPUT.FORMAT {self.input_format} MODEL.PIXEL_MEAN "{list(mean)}" '
                f'MODEL.PIXEL_STD "{list(self.pixel_std)}" '
                f'MODEL.{node}.NUM_CLASSES {self.num_classes}')


def _ordered(rgb: Sequence[float], order: str) -> Tuple[float, ...]:
    """RGB to ``order``, or back."""
    return tuple(rgb)[::-1] if order == 'BGR' else tuple(rgb)


def _close(value: Tensor, wanted) -> bool:
    wanted = torch.as_tensor(wanted, dtype=torch.double).flatten()
    return value.numel() == len(wanted) and torch.allclose(
        value.flatten(), wanted, rtol=1e-5, atol=1e-3)


def _numbers(values: Sequence[float]) -> str:
    return ' '.join(f'{value:g}' for value in values)


def _group(name: str, layout: str) -> str:
    """A backbone's names by its parts, the others by their modules."""
    prefix = BACKBONES[layout][0]
    part = name[len(prefix):].split('.')[0]
    if name.startswith(prefix) and part.startswith(('stem', 'stage', 'patch_embed', 'norm')):
        return f'{prefix}{part}.*'
    return name.rpartition('.')[0] + '.*'


def _few(names) -> str:
    names = list(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def read(path: str) -> State:
    if path.endswith('.pkl'):
        raise ValueError(
            f'{path} is a pickle of NumPy arrays, which cannot be read without running what '
            'it asks for. If you trust it, save its weights as tensors first: python -c '
            '"import pickle, torch; m = pickle.load(open(\'IN.pkl\', \'rb\'), '
            'encoding=\'latin1\')[\'model\']; torch.save({\'model\': {k: torch.as_tensor(v) '
            'for k, v in m.items()}}, \'IN.pth\')"')
    return read_state_dict(path)


def write(state: State, path: Path, layout: str) -> None:
    """Write under another name, then rename: OUT is whole or as it was."""
    state = {name: value.clone(memory_format=torch.contiguous_format)
             for name, value in state.items()}
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file
            save_file(state, part)
        elif layout.startswith('mm'):
            torch.save(dict(meta={}, state_dict=state), part)
        else:
            torch.save(dict(model=state), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='IN')
    parser.add_argument('out', metavar='OUT', type=Path)
    parser.add_argument('--to', required=True, choices=list(BACKBONES))
    parser.add_argument(
        '--input-format', choices=['BGR', 'RGB'],
        help="detectron2's INPUT.FORMAT (default: as pixel_mean in the file says, or BGR)")
    parser.add_argument(
        '--pixel-std', nargs=3, type=float, metavar='STD',
        help="detectron2's MODEL.PIXEL_STD (default: as the file says, or 1 1 1)")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
        help='for mmdet -> detectron2: options that the detector was trained with')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')  # ResT says what attention it takes
    try:
        if args.out.suffix not in ('.pth', '.safetensors'):
            raise ValueError(f'OUT={str(args.out)!r} must end in .pth or .safetensors')
        if not args.out.absolute().parent.is_dir():
            raise ValueError(f'OUT={str(args.out)!r}: its folder does not exist')
        conversion = Conversion(
            read(args.checkpoint), args.to, args.input_format, args.pixel_std,
            args.cfg_options)
        write(conversion.result, args.out, args.to)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'{args.checkpoint} is not converted: {error}')
    print('\n'.join(conversion.report))
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

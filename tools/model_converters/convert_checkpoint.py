"""Convert weights of ResT and ResTv2 from one code base's layout to another's.

    published (ImageNet classifier)   <->  mmpretrain
    detectron2 (published detectors)  <->  mmdet

    python tools/model_converters/convert_checkpoint.py rest_small.pth out.pth --to mmpretrain
    python tools/model_converters/convert_checkpoint.py model_final.pth out.pth --to mmdet

The layout of IN is recognised by its names. No code in IN is run. OUT ends in .pth or
.safetensors. The report says where each parameter went, what was dropped and which options the
config needs. If something cannot be converted, nothing is written. See docs/models.md.
"""
import argparse
import io
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from layouts import (
    CLASSIFIER,
    IN_TRUNK,
    PAIRS,
    PREFIXES,
    RETINANET,
    arch_name,
    backbone_arch,
    backbone_shapes,
    cell_anchors,
    layout_name,
    module_shapes,
    recognise,
    swap_anchors,
)
from mmengine.config import DictAction
from torch import Tensor

from mmrest import ResT, ResTV2
from mmrest.apis import exit_on_user_error
from mmrest.errors import UserError
from mmrest.files import write_whole
from mmrest.safe_reading import read_state_dict

State = Dict[str, Tensor]

# RGB, in every config here. The defaults of detectron2 are BGR with the same mean, and std 1.
# ResTv2's published detectors have another input than its defaults.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
INPUTS = {ResT: ('BGR', (1., 1., 1.)), ResTV2: ('RGB', STD)}
INPUT_BUFFERS = ('pixel_mean', 'pixel_std')
ANCHOR_BUFFERS = ('anchor_generator.cell_anchors.',
                  'proposal_generator.anchor_generator.cell_anchors.')


class Conversion:
    """Converts a state dict to another layout.

    Args:
        state (dict[str, Tensor]): The weights.
        target (str): The layout to convert to.
        input_format (str, optional): 'BGR' or 'RGB': the input of detectron2's network.
            ``None`` means what ``pixel_mean`` in the state says, or that of INPUTS.
        pixel_std (Sequence[float], optional): detectron2's, in the order of
            ``input_format``. ``None`` means ``pixel_std`` in the state, or that of INPUTS.
        cfg_options (dict, optional): For mmdet to detectron2: the options that the model was
            built with in addition to its config.

    Attributes:
        result (dict[str, Tensor]): The weights by their names in the target's layout.
        report (list[str]): What was done.

    Raises:
        ValueError: Something cannot be converted.
    """

    def __init__(self, state: State, target: str, input_format: Optional[str] = None,
                 pixel_std: Optional[Sequence[float]] = None,
                 cfg_options: Optional[dict] = None):
        self.source, self.family = recognise(state)
        self.target = target
        self.kind, self.arch = backbone_arch(state, PREFIXES[self.source])
        self.options = [option for option in self.family.options
                        if option != IN_TRUNK or self.kind is ResT]
        self._check_direction(cfg_options or {}, input_format or pixel_std)
        self.to_mm = target.startswith('mm')
        self.notes: Dict[str, str] = {}  # by the target's names
        self.dropped: List[str] = []
        self.assumed: List[str] = []
        state = dict(state)
        if self.family is not CLASSIFIER:
            self._take_buffers(state, input_format, pixel_std)
        self.names = self._check_names(state)
        self.result: State = {new: state[old].detach() for old, new in self.names.items()}
        if self.family is not CLASSIFIER:
            self._convert_input()
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
                prefix = PREFIXES[source]
                reason += (
                    ': a classifier has no detection head. To start a detector from it, use '
                    '--cfg-options model.backbone.init_cfg.type=Pretrained '
                    'model.backbone.init_cfg.checkpoint=IN'
                    + (f' model.backbone.init_cfg.prefix={prefix}' if prefix else ''))
            raise UserError(f'a {self.family.name} in the layout {source} cannot be converted '
                             f'to {target}; {reason}')
        if detectron2_input and self.family is CLASSIFIER:
            raise UserError('--input-format and --pixel-std are for detectron2 only')
        if target != 'detectron2' and cfg_options:
            raise UserError('--cfg-options is for mmdet -> detectron2 only')
        options = self.options if target == 'detectron2' else ()
        lacking = [o for o in options if cfg_options.get(o.split('=')[0]) is not True]
        if lacking:
            raise UserError(
                f"detectron2's network differs from mmdet's without {' '.join(lacking)}, and "
                'weights do not show how they were trained. If yours were trained with these '
                f'options, add --cfg-options {" ".join(options)}')

    def _take_buffers(self, state: State, input_format: Optional[str],
                      pixel_std: Optional[Sequence[float]]) -> None:
        """Remove detectron2's buffers, and read from them what its network's input is."""
        names = [n for n in state if n in INPUT_BUFFERS or n.startswith(ANCHOR_BUFFERS)]
        buffers = {n: state.pop(n).double() for n in names}
        mean, std = (buffers.pop(n, None) for n in INPUT_BUFFERS)
        self.input_format = input_format or INPUTS[self.kind][0]
        self.pixel_std = tuple(pixel_std or INPUTS[self.kind][1])
        if mean is not None:
            said = f'pixel_mean={mean.flatten().tolist()} in the checkpoint'
            orders = [order for order in ('BGR', 'RGB') if _close(mean, _ordered(MEAN, order))]
            if not orders:
                raise UserError(f'{said} is not {MEAN}, in RGB or BGR, of the configs here. A '
                                 'convolution without bias cannot make up for that')
            if input_format not in (None, *orders):
                raise UserError(f'--input-format {input_format} contradicts {said}, which is '
                                 f'{orders[0]}')
            self.input_format = orders[0]
        if std is not None:
            if pixel_std and not _close(std, pixel_std):
                raise UserError(f'--pixel-std {tuple(pixel_std)} contradicts pixel_std='
                                 f'{std.flatten().tolist()} in the checkpoint')
            self.pixel_std = tuple(std.flatten().tolist())
        if len(self.pixel_std) != 3 or not all(value > 0 for value in self.pixel_std):
            raise UserError(f'pixel_std={self.pixel_std} must be three numbers above 0')
        if self.source == 'detectron2' and (mean is None or std is None):
            self.assumed.append(
                f'assumed: input {self.input_format}, std {_numbers(self.pixel_std)}, because '
                'IN does not say it; if that is wrong, give --input-format and --pixel-std')
        self.dropped += [f'{name}: the mm config normalises; see the stem'
                         for name in names if name in INPUT_BUFFERS]
        sizes = self.family.anchor_sizes
        known = {str(i): cell_anchors(level) for i, level in enumerate(sizes)}
        for name, value in buffers.items():
            wanted = known.get(name.rpartition('.')[2])
            if wanted is None or not _close(value, wanted):
                raise UserError(f'the anchors {name} in the checkpoint differ from those of '
                                 f'the configs here (sizes {sizes}, ratios 0.5, 1 and 2)')
            self.dropped.append(f'{name}: the mm config has the same anchors (compared)')

    def _check_names(self, state: State) -> Dict[str, str]:
        """The new name of each old one, once all names and shapes are the family's."""
        target = self.target
        own = backbone_shapes(self.kind, self.arch, self.family)
        shapes = {layout_name(name, self.source): shape for name, shape in own.items()}
        names = {layout_name(name, self.source): layout_name(name, target) for name in own}
        modules = {mm: (other, mm) if self.to_mm else (mm, other)  # old, new
                   for other, mm in self.family.modules.items()}
        names.update({f'{old}.{kind}': f'{new}.{kind}'
                      for old, new in modules.values() for kind in ('weight', 'bias')})
        lacking = [name for name in names
                   if name not in state and not name.endswith('num_batches_tracked')]
        if lacking:
            raise UserError(f'the checkpoint lacks {_few(lacking)}')
        surplus = [name for name in state if name not in names]
        if surplus:
            raise UserError(
                f'{self.source} has no {_few(surplus)} in a {self.family.name}')
        outputs = {mm: state[f'{old}.weight'].shape[:1].numel()
                   for mm, (old, _) in modules.items()}
        self.num_classes, weights = module_shapes(
            self.family, self.arch['embed_dims'], outputs)
        for mm, shape in weights.items():
            old = modules[mm][0]
            shapes.update({f'{old}.weight': shape, f'{old}.bias': shape[:1]})
        for name, shape in shapes.items():
            if name in state and state[name].shape != shape:
                raise UserError(
                    f'{name} is {tuple(state[name].shape)}; in a {self.family.name} with '
                    f'{self.num_classes} classes and this backbone and FPN it is '
                    f'{tuple(shape)}')
        return {old: new for old, new in names.items() if old in state}

    def _convert_input(self) -> None:
        """Put detectron2's channel order and std into the first convolution."""
        conv = 'conv1' if self.kind is ResT else 'proj.0'
        name = f'{PREFIXES[self.target]}stem.{conv}.weight'
        weight = self.result[name].double()  # (hidden, 3, 3, 3)
        rgb_std = _ordered(self.pixel_std, self.input_format)
        scale = torch.tensor([ours / theirs for ours, theirs in zip(STD, rgb_std)],
                             dtype=torch.double).view(1, 3, 1, 1)  # of channels in RGB
        bgr = self.input_format == 'BGR'
        if self.to_mm:
            weight = (weight.flip(1) if bgr else weight) * scale
        else:
            weight = weight / scale
            weight = weight.flip(1) if bgr else weight
        self.result[name] = weight.to(self.result[name].dtype)
        change = f'{self.input_format} / {_numbers(self.pixel_std)}', f'RGB / {_numbers(STD)}'
        if change[0] != change[1]:
            before, after = change if self.to_mm else change[::-1]
            self.notes[name] = f'{conv}: {before} -> {after}'

    def _reorder_anchors(self) -> None:
        for name in self.result:
            if name.startswith(('head.cls_score.', 'head.bbox_pred.', 'bbox_head.retina_')):
                self.result[name] = swap_anchors(self.result[name])
                self.notes[name] = 'anchors reordered'

    def _describe(self) -> List[str]:
        groups: Counter = Counter()
        notes: Dict[Tuple[str, str], str] = {}
        for old, new in self.names.items():
            group = _group(old, self.source), _group(new, self.target)
            groups[group] += 1
            if new in self.notes:
                notes[group] = f'  ({self.notes[new]})'
        width = max(len(old) for old, _ in groups)
        lines = [f'{old:{width}}  ->  {new}  {count} tensors{notes.get((old, new), "")}'
                 for (old, new), count in groups.items()]
        lines += [f'dropped  {line}' for line in self.dropped] + self.assumed
        size = arch_name(self.kind, self.arch)
        values = sum(value.numel() for value in self.result.values())
        lines.append(f'{self.family.name} of {self.kind.__name__}(arch={size or self.arch!r}), '
                     f'{self.num_classes} classes, {self.source} -> {self.target}: '
                     f'{len(self.names)} tensors of {values:,} values converted, '
                     f'{len(self.dropped)} dropped, none left')
        if self.to_mm:
            options = list(self.options)
            if self.num_classes != self.family.num_classes:
                options += [f'{o}={self.num_classes}' for o in self.family.class_options]
            if size and self.kind in self.family.configs:
                lines.append(f'config: configs/{self.family.configs[self.kind].format(size)}')
            if options:
                lines.append(f'it needs: --cfg-options {" ".join(options)}')
        elif self.target == 'detectron2':
            node = 'RETINANET' if self.family is RETINANET else 'ROI_HEADS'
            order = self.input_format
            lines.append(f'it needs: INPUT.FORMAT {order} '
                         f'MODEL.PIXEL_MEAN "{list(_ordered(MEAN, order))}" '
                         f'MODEL.PIXEL_STD "{list(self.pixel_std)}" '
                         f'MODEL.{node}.NUM_CLASSES {self.num_classes}')
        return lines


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
    """A line of the report: a part of the backbone, or a module outside it."""
    prefix = PREFIXES[layout]
    part = name[len(prefix):].split('.')[0]
    if name.startswith(prefix) and part.startswith(('stem', 'stage', 'patch_', 'norm')):
        return f'{prefix}{part}.*'
    return name.rpartition('.')[0] + '.*'


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def read(path: str) -> State:
    if path.endswith('.pkl'):
        raise UserError(
            f'{path} is a pickle of NumPy arrays, which cannot be read without running what '
            'it asks for. If you trust it, save its weights as tensors first: python -c '
            '"import pickle, torch; m = pickle.load(open(\'IN.pkl\', \'rb\'), '
            'encoding=\'latin1\')[\'model\']; torch.save({\'model\': {k: torch.as_tensor(v) '
            'for k, v in m.items()}}, \'IN.pth\')"')
    return read_state_dict(path)


def write(state: State, path: Path, layout: str) -> None:
    state = {name: value.clone(memory_format=torch.contiguous_format)
             for name, value in state.items()}
    if path.suffix == '.safetensors':
        from safetensors.torch import save
        return write_whole(path, save(state))
    buffer = io.BytesIO()
    torch.save(dict(meta={}, state_dict=state) if layout.startswith('mm') else
               dict(model=state), buffer)
    write_whole(path, buffer.getvalue())


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', metavar='IN')
    parser.add_argument('out', metavar='OUT', type=Path)
    parser.add_argument('--to', required=True, choices=list(PREFIXES))
    parser.add_argument(
        '--input-format', choices=['BGR', 'RGB'],
        help="detectron2's INPUT.FORMAT (default: as pixel_mean in IN says, or that of the "
             'published detectors: BGR, RGB for ResTv2)')
    parser.add_argument(
        '--pixel-std', nargs=3, type=float, metavar='STD',
        help="detectron2's MODEL.PIXEL_STD (default: as IN says, or that of the published "
             "detectors: 1 1 1, ImageNet's for ResTv2)")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
        help='for mmdet -> detectron2: options that the detector was trained with')
    args = parser.parse_args()
    if args.out.suffix not in ('.pth', '.safetensors'):
        raise UserError(f'OUT={str(args.out)!r} must end in .pth or .safetensors')
    conversion = Conversion(read(args.checkpoint), args.to, args.input_format, args.pixel_std,
                            args.cfg_options)
    write(conversion.result, args.out, args.to)
    print('\n'.join(conversion.report))
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

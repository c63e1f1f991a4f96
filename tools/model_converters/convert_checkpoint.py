"""Convert weights of ResT and ResTv2 from one code base's layout to another's.

    published (ImageNet classifier)   <->  mmpretrain
    detectron2 (published detectors)  <->  mmdet

    python tools/model_converters/convert_checkpoint.py rest_small.pth out.pth --to mmpretrain
    python tools/model_converters/convert_checkpoint.py model_final.pth out.pth --to mmdet

The layout of IN is recognised by its names. No code in IN is run. OUT ends in .pth or
.safetensors. The report says where each parameter went, what was dropped and which options the
config needs. If something cannot be converted, nothing is written. See docs/weights.md.
"""
import argparse
import io
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from layouts import (
    CLASSIFIER,
    PAIRS,
    PREFIXES,
    RETINANET,
    Model,
    fit_config,
    name_pairs,
    recognise,
    swap_anchors,
)
from mmengine.config import Config, DictAction
from mmengine.registry import TASK_UTILS
from torch import Tensor

from mmrest import ResT, ResTV2
from mmrest.apis import build_model, exit_on_user_error
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
ANCHOR_BUFFERS = 'anchor_generator.cell_anchors.'


def convert(state: State, target: str, input_format: Optional[str] = None,
            pixel_std: Optional[Sequence[float]] = None,
            cfg_options: Optional[dict] = None) -> Tuple[State, List[str]]:
    """Return the weights by their names in the layout ``target``, and the report.

    The other arguments are the script's options.

    Raises:
        UserError: Something cannot be converted.
    """
    model = recognise(state)
    check_direction(model, target, cfg_options or {}, input_format or pixel_std)
    buffers = {} if model.family is CLASSIFIER else {
        name: value.double() for name, value in state.items()
        if name in INPUT_BUFFERS or ANCHOR_BUFFERS in name}
    weights = {name: value.detach() for name, value in state.items() if name not in buffers}
    order, std = find_input(model, buffers, input_format, pixel_std)
    cfg, classes, class_options = fit_config(model, weights)
    dropped = compare_buffers(buffers, cfg)
    names = check_names(weights, model, cfg, classes)
    result = {new: weights[old] for old, new in names.items()}
    notes = {}
    if model.family is not CLASSIFIER:
        notes.update(convert_input(result, target, order, std))
    if model.family is RETINANET:
        notes.update(reorder_anchors(result))

    report = [*group_names(names, notes, model.layout, target), *dropped]
    if model.layout == 'detectron2' and not buffers.keys() >= {*INPUT_BUFFERS}:
        report.append(f'assumed: input {order}, std {_numbers(std)}, because IN does not say '
                      'it; if that is wrong, give --input-format and --pixel-std')
    values = sum(value.numel() for value in result.values())
    report.append(
        f'{model.family.name} of {model.kind.__name__}(arch={model.size or model.arch!r}), '
        f'{classes} classes, {model.layout} -> {target}: {len(names)} tensors of {values:,} '
        f'values converted, {len(dropped)} dropped, none left')
    options = [*model.options, *class_options]
    if target == 'detectron2':
        node = 'RETINANET' if model.family is RETINANET else 'ROI_HEADS'
        report.append(f'it needs: INPUT.FORMAT {order} '
                      f'MODEL.PIXEL_MEAN "{list(_ordered(MEAN, order))}" '
                      f'MODEL.PIXEL_STD "{list(std)}" MODEL.{node}.NUM_CLASSES {classes}')
    elif target.startswith('mm'):
        report += [f'config: configs/{model.config}'] if model.config else []
        report += [f'it needs: --cfg-options {" ".join(options)}'] if options else []
    return result, report


def check_direction(model: Model, target: str, cfg_options: dict, detectron2_input) -> None:
    source, classifier = model.layout, model.family is CLASSIFIER
    if PAIRS[source] != target:
        reason, prefix = f'only to {PAIRS[source]}', PREFIXES[source]
        if source == target:
            reason = 'it is in that layout already'
        elif classifier:
            reason += (
                ': a classifier has no detection head. To start a detector from it, use '
                '--cfg-options model.backbone.init_cfg.type=Pretrained '
                'model.backbone.init_cfg.checkpoint=IN'
                + (f' model.backbone.init_cfg.prefix={prefix}' if prefix else ''))
        else:
            reason += ': a detector has no classification head'
        raise UserError(f'a {model.family.name} in the layout {source} cannot be converted to '
                        f'{target}; {reason}')
    if detectron2_input and classifier:
        raise UserError('--input-format and --pixel-std are for detectron2 only')
    if target != 'detectron2' and cfg_options:
        raise UserError('--cfg-options is for mmdet -> detectron2 only')
    lacking = [o for o in model.options if cfg_options.get(o.split('=')[0]) is not True]
    if target == 'detectron2' and lacking:
        raise UserError(
            f"detectron2's network differs from mmdet's without {' '.join(lacking)}, and "
            'weights do not show how they were trained. If yours were trained with these '
            f'options, add --cfg-options {" ".join(model.options)}')


def find_input(model: Model, buffers: State, order: Optional[str],
               std: Optional[Sequence[float]]) -> Tuple[str, Tuple[float, ...]]:
    """BGR or RGB, and the std in that order.

    The buffers say it, or else the arguments, or else it is the published detectors'.
    """
    mean, own_std = (buffers.get(name) for name in INPUT_BUFFERS)
    if mean is not None:
        said = f'pixel_mean={mean.flatten().tolist()} in the checkpoint'
        orders = [order for order in ('BGR', 'RGB') if _close(mean, _ordered(MEAN, order))]
        if not orders:
            raise UserError(f'{said} is not {MEAN}, in RGB or BGR, of the configs here. A '
                            'convolution without bias cannot make up for that')
        if order not in (None, *orders):
            raise UserError(f'--input-format {order} contradicts {said}, which is {orders[0]}')
        order = orders[0]
    if own_std is not None:
        if std and not _close(own_std, std):
            raise UserError(f'--pixel-std {tuple(std)} contradicts pixel_std='
                            f'{own_std.flatten().tolist()} in the checkpoint')
        std = own_std.flatten().tolist()
    std = tuple(INPUTS[model.kind][1] if std is None else std)
    if len(std) != 3 or not all(value > 0 for value in std):
        raise UserError(f'pixel_std={std} must be three numbers above 0')
    return order or INPUTS[model.kind][0], std


def compare_buffers(buffers: State, cfg: Config) -> List[str]:
    """Lines of the report on buffers, which are dropped. Anchors must be the config's."""
    lines = [f'dropped  {name}: the mm config normalises; see the stem'
             for name in buffers if name in INPUT_BUFFERS]
    anchors = {name: value for name, value in buffers.items() if name not in INPUT_BUFFERS}
    if anchors:
        head = cfg.model.get('rpn_head') or cfg.model.bbox_head
        generator = TASK_UTILS.build(head.anchor_generator)
        known = {str(i): swap_anchors(level) if len(level) == 9 else level
                 for i, level in enumerate(generator.base_anchors)}
    for name, value in anchors.items():
        wanted = known.get(name.rpartition('.')[2])
        if wanted is None or not _close(value, wanted):
            sizes = [(size * generator.scales).tolist() for size in generator.base_sizes]
            raise UserError(f'the anchors {name} in the checkpoint differ from those of the '
                            f'configs here (sizes {sizes}, ratios 0.5, 1 and 2)')
        lines.append(f'dropped  {name}: the mm config has the same anchors (compared)')
    return lines


def check_names(state: State, model: Model, cfg: Config, classes: int) -> Dict[str, str]:
    """The new name of each old one, once names and shapes are those of the config's model."""
    with torch.device('meta'):
        network = build_model(cfg)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    names = name_pairs(network.backbone.state_dict(), model)
    lacking = [name for name in names
               if name not in state and not name.endswith('num_batches_tracked')]
    if lacking:
        raise UserError(f'the checkpoint lacks {_few(lacking)}')
    surplus = [name for name in state if name not in names]
    if surplus:
        raise UserError(f'{model.layout} has no {_few(surplus)} in a {model.family.name}')
    names = {old: new for old, new in names.items() if old in state}
    for old, new in names.items():
        shape = shapes[old if model.layout.startswith('mm') else new]
        if state[old].shape != shape:
            raise UserError(
                f'{old} is {tuple(state[old].shape)}; in a {model.family.name} with {classes} '
                f'classes and this backbone and FPN it is {tuple(shape)}')
    return names


def convert_input(state: State, target: str, order: str,
                  std: Sequence[float]) -> Dict[str, str]:
    """Put detectron2's channel order and std into the first convolution; return the note."""
    stem, to_mm = f'{PREFIXES[target]}stem.', target == 'mmdet'
    conv = 'conv1' if f'{stem}conv1.weight' in state else 'proj.0'
    name = f'{stem}{conv}.weight'
    weight = state[name].double()  # (hidden, 3, 3, 3)
    scale = torch.tensor([ours / theirs for ours, theirs in zip(STD, _ordered(std, order))],
                         dtype=torch.double).view(1, 3, 1, 1)
    weight = weight if to_mm else weight / scale
    weight = weight.flip(1) if order == 'BGR' else weight
    weight = weight * scale if to_mm else weight
    state[name] = weight.to(state[name].dtype)
    change = f'{order} / {_numbers(std)}', f'RGB / {_numbers(STD)}'
    return {} if change[0] == change[1] else {
        name: f'  ({conv}: {" -> ".join(change if to_mm else change[::-1])})'}


def reorder_anchors(state: State) -> Dict[str, str]:
    """Put RetinaNet's outputs into the other library's order; return notes by names."""
    names = [name for name in state if name.startswith(
        ('head.cls_score.', 'head.bbox_pred.', 'bbox_head.retina_'))]
    state.update({name: swap_anchors(state[name]) for name in names})
    return dict.fromkeys(names, '  (anchors reordered)')


def group_names(names: Dict[str, str], notes: Dict[str, str], source: str,
                target: str) -> List[str]:
    """Lines of the report: where the parameters of each module went, and notes."""
    groups: Dict[Tuple[str, str], List[str]] = {}
    for old, new in names.items():
        groups.setdefault((_group(old, source), _group(new, target)), []).append(
            notes.get(new, ''))
    width = max(len(old) for old, _ in groups)
    return [f'{old:{width}}  ->  {new}  {len(noted)} tensors{max(noted)}'
            for (old, new), noted in groups.items()]


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
    state, report = convert(read(args.checkpoint), args.to, args.input_format, args.pixel_std,
                            args.cfg_options)
    write(state, args.out, args.to)
    print('\n'.join(report))
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

"""Loads published weights, or our own, into a ResT or a classification head."""
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

from mmengine.logging import print_log
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..errors import UserError
from ..safe_reading import named_tensors, read_file, read_state_dict

DETECTION_LARGE = (
    "the 'large' of ResTv2's published detection code, another network than "
    "ResTV2(arch='large'): its depths are 2 3 16 3 and its heads 1 2 4 8")
InitCfg = Optional[Union[dict, List[dict]]]


def load_pretrained(model: nn.Module,
                    checkpoint: Union[str, Path],
                    prefix: Optional[str] = None,
                    in_channels: Optional[str] = None) -> Dict[str, Tensor]:
    """Load weights into a :class:`~mmrest.ResT` or ResTV2. No code from the file is run.

    The names are the published ones, see ``own_name`` of the model. A classification head,
    a norm and stages that the model does not have are not used, and output norms that the
    file lacks keep their values. One log line names what was loaded, missing and not used,
    and the SHA-256 of the file.

    Args:
        model (ResT): The model, a ResTV2 too. It is unchanged if an error is raised.
        checkpoint (str | Path): See :func:`~mmrest.safe_reading.read_state_dict`.
        prefix (str, optional): Load only the names that start with it, without it:
            'backbone.' for a detector's checkpoint.
        in_channels (str, optional): 'adapt' makes the first convolution of a file for three
            channels fit the model's ``in_channels``, as timm's ``adapt_input_conv`` does.

    Returns:
        dict[str, Tensor]: What was loaded, by its name in the model.

    Raises:
        FileNotFoundError, OSError, ValueError: See
            :func:`~mmrest.safe_reading.read_state_dict`.
        ValueError: The weights do not fit the model.
    """
    content, digest = read_file(checkpoint)
    state = named_tensors(content, checkpoint)
    return load_weights(model, state, checkpoint, prefix, in_channels, f' (SHA-256 {digest})')


def load_weights(model: nn.Module,
                 state: Dict[str, Tensor],
                 checkpoint: Union[str, Path],
                 prefix: Optional[str] = None,
                 in_channels: Optional[str] = None,
                 digest: str = '') -> Dict[str, Tensor]:
    """:func:`load_pretrained` of tensors that were read from ``checkpoint``."""
    if in_channels not in (None, 'adapt'):
        raise UserError(f"{in_channels=} must be 'adapt' or None")
    state = own_names(model, without_prefix(model, state, checkpoint, prefix))
    stem = _stem_weight(model)
    if in_channels and stem in state and state[stem].shape[1] == 3:
        state[stem] = _adapt(state[stem], model.in_channels)
    missing, unused = check_backbone(model, state, checkpoint)
    loaded = OrderedDict((k, state[k]) for k in model.state_dict() if k in state)
    model.load_state_dict(loaded, strict=False)
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    count = sum(n for name, n in parameters.items() if name in loaded)
    print_log(
        f'{_describe(model)}: loaded {count:,} of {sum(parameters.values()):,} parameters from '
        f'{checkpoint}{digest}; missing (left at their initial value): '
        f'{", ".join(missing) or "none"}; not used: {", ".join(unused) or "none"}',
        logger='current')
    return loaded


def _describe(model: nn.Module) -> str:
    return f'{type(model).__name__}(arch={model.arch!r})'


def without_prefix(model: nn.Module, state: Dict[str, Tensor], checkpoint: Union[str, Path],
                    prefix: Optional[str]) -> Dict[str, Tensor]:
    """What is named ``prefix...`` in a file, without it."""
    if not prefix:
        return state
    found = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
    if not found:
        raise UserError(
            f'checkpoint={str(checkpoint)!r} has no parameter whose name starts with '
            f'{prefix=} for {_describe(model)}; it has {few(state)}')
    return found


def own_names(model: nn.Module, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Published names to ours. Where a file has both, ours counts."""
    renamed = {model.own_name(name): value for name, value in state.items()}
    renamed.update((name, state[name]) for name in renamed if name in state)
    return renamed


def check_backbone(model: nn.Module, state: Dict[str, Tensor],
               checkpoint: Union[str, Path]) -> Tuple[List[str], List[str]]:
    """Raise if weights do not fit a ResT; return the names that they lack, and the unused ones.

    A head, norms and stages that the model does not have may be there; norms may be lacking.
    """
    own = model.state_dict()
    missing = [
        name for name in own
        if name not in state and not name.endswith('num_batches_tracked')
    ]
    unused = [name for name in state if name not in own]
    parts = [model.stage_names(i) for i in range(model.num_stages)]
    not_built = [
        f'{name}.' for embed, stage, _ in parts[len(model.depths):] for name in (embed, stage)]
    optional = ('head.', 'norm.', *(f'{norm}.' for _, _, norm in parts), *not_built)
    lacking = [name for name in missing if not name.startswith(optional)]
    surplus = [name for name in unused if not name.startswith(optional)]
    problems = _other_shapes(model, state)
    if lacking:
        problems.append(f'it lacks {few(lacking)}')
    if surplus:
        problems.append(f'the model has no {few(surplus)}')
    if problems:
        hint = ''
        if any(k.startswith('backbone.') for k in state):
            hint = "; its names start with 'backbone.': set prefix='backbone.'"
        raise UserError(f'checkpoint={str(checkpoint)!r}, which looks like {_guess(state)}, '
                        f'does not fit {_describe(model)}: {"; ".join(problems)}{hint}')
    return missing, unused


def refuse_published(model: nn.Module, incompatible_keys: Any) -> None:
    """Refuse a published file in place of a whole model's checkpoint: a hook of ResT.

    PyTorch and MMEngine call it with the names that did not fit so far, of all modules around
    the ResT, too. MMEngine, and so MMPretrain's ``get_model(pretrained=...)``, would only log
    them.
    """
    unexpected = incompatible_keys.unexpected_keys
    if 'model' in unexpected or not model.state_dict().keys().isdisjoint(unexpected):
        raise UserError(
            'the checkpoint has the names of a published file. It belongs in init_cfg='
            f"dict(type='Pretrained', checkpoint=...) of the {type(model).__name__}, or "
            'convert_checkpoint.py makes the checkpoint of a whole classifier of it')


@WEIGHT_INITIALIZERS.register_module()
class ResTWeights:
    """What ``type='Pretrained'`` in a ResT's ``init_cfg`` means: :func:`load_pretrained`."""

    def __init__(self, checkpoint: Union[str, Path], prefix: Optional[str] = None,
                 map_location: Any = None,  # mmengine's argument; the model stays where it is
                 in_channels: Optional[str] = None):
        self.checkpoint, self.prefix, self.in_channels = checkpoint, prefix, in_channels

    def __call__(self, module: nn.Module) -> None:
        loaded = load_pretrained(module, self.checkpoint, self.prefix, self.in_channels)
        # Inside init_weights. MMEngine's update_init_info leaves out what keeps its mean.
        infos = getattr(module, '_params_init_info', {})
        for name, p in module.named_parameters():
            if p in infos and name in loaded:
                infos[p].update(init_info=f'ResTWeights: load from {self.checkpoint}',
                                tmp_mean_value=p.data.mean().cpu())


@WEIGHT_INITIALIZERS.register_module()
class ResTHead:
    """Loads the linear layer of a published classifier into mmpretrain's ``LinearClsHead``.

    ``head=dict(type='LinearClsHead', init_cfg=dict(type='ResTHead', checkpoint=...))``

    Args:
        checkpoint (str | Path): See :func:`~mmrest.safe_reading.read_state_dict`.

    Raises:
        ValueError: When applied: the file has no head, or one of another size.
    """

    def __init__(self, checkpoint: Union[str, Path]):
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        state = read_state_dict(self.checkpoint)
        head = {kind: state.get(f'head.{kind}') for kind in ('weight', 'bias')}
        shapes = [None if value is None else tuple(value.shape) for value in head.values()]
        wanted = [tuple(module.fc.weight.shape), tuple(module.fc.bias.shape)]
        if shapes != wanted:
            raise UserError(f'checkpoint={str(self.checkpoint)!r} has head.weight and '
                            f'head.bias of shapes {shapes}; this head needs {wanted}')
        module.fc.load_state_dict(head)
        print_log(f'classification head: loaded from {self.checkpoint}', 'current')


def safe_init_cfg(init_cfg: InitCfg) -> InitCfg:
    """``init_cfg`` with :class:`ResTWeights` in place of mmengine's 'Pretrained', and last."""
    if init_cfg is None:
        return None
    if isinstance(init_cfg, dict):
        return _safe(init_cfg)
    return sorted(map(_safe, init_cfg), key=lambda cfg: cfg.get('type') == 'ResTWeights')


def _safe(cfg: dict) -> dict:
    kind = cfg.get('type')  # mm's test_robustness.py sets None, which initialises nothing
    name = getattr(kind, '__name__', str(kind))
    if name.rpartition('.')[2] in ('Pretrained', 'PretrainedInit'):  # of any scope
        return dict(cfg, type='ResTWeights')
    return cfg


def _stem_weight(model: nn.Module) -> str:
    """Name of the first convolution's weight."""
    return next(f'stem.{name}.weight' for name, module in model.stem.named_modules()
                if isinstance(module, nn.Conv2d))


def _adapt(weight: Tensor, in_channels: int) -> Tensor:
    """(C, 3, k, k) -> (C, in_channels, k, k): the sum for one channel, else repeated.

    A grey image has the same features as in three channels; so has any other number of
    channels that are all alike, if it is a multiple of three.
    """
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
    return repeated * (3 / in_channels)


def _other_shapes(model: nn.Module, state: Dict[str, Tensor]) -> List[str]:
    """What is wrong with the shapes in the file: the first three of another shape."""
    weight = state.get(_stem_weight(model))
    if weight is not None and weight.ndim == 4 and weight.shape[1] != model.in_channels:
        return [f'in_channels={model.in_channels} here, {weight.shape[1]} in the file; '
                "in_channels='adapt' beside the checkpoint adapts weights for 3"]
    return [
        f'{name} is {tuple(state[name].shape)} in the file, {tuple(value.shape)} here'
        for name, value in model.state_dict().items()
        if name in state and state[name].shape != value.shape
    ][:3]


def few(names: Iterable[str]) -> str:
    names = list(names)
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def _guess(state: Dict[str, Tensor]) -> str:
    """The published model with the names, widths and depths of a state dict."""
    norm = state.get('stage1.0.norm1.weight')
    width = 0 if norm is None else len(norm)
    depths = tuple(
        len({k.split('.')[1] for k in state if k.startswith(f'stage{i}.')})
        for i in range(1, 5))
    for kind in ('ResT', 'ResTV2'):
        model = MODELS.get(kind)
        embed = f'{model.stage_names(1)[0]}.'
        for name, arch in model.arch_zoo.items():
            if ((width, depths) == (arch['embed_dims'][0], arch['depths'])
                    and any(k.startswith(embed) for k in state)):
                return f'{kind}(arch={name!r})'
    if (width, depths) == (128, (2, 3, 16, 3)):
        return DETECTION_LARGE
    return 'none of the published models'

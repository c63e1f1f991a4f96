"""Reading ResT weights, published or our own, without running code from the file."""
import hashlib
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn


class UnsafeCheckpointError(ValueError):
    """A checkpoint asks for Python objects that weights have no use for."""


class _Inert:
    """Stands in for an object beside the weights: takes everything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def _ignore(self, *args, **kwargs) -> '_Inert':
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


# What tensors are made of: functions of torch that only put bytes into shape.
_REBUILD = {
    ('collections', 'OrderedDict'),
    ('torch', 'Size'),
    ('torch', 'device'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch._utils', '_rebuild_tensor'),
    ('torch._utils', '_rebuild_tensor_v2'),
}
# Where the plain data that lies beside the weights comes from, in published and in
# mmengine checkpoints: training arguments, log histories, arrays. Nothing of it is
# imported or called: _Inert takes the place of each name.
_BESIDE_WEIGHTS = ('argparse', 'collections', 'datetime', 'mmengine', 'numpy', 'pathlib',
                   '_codecs')
_BUILTINS_BESIDE_WEIGHTS = ('bytearray', 'complex', 'getattr', 'set', 'slice')


class InertUnpickler(pickle._Unpickler):
    """Makes tensors and plain values; what may lie beside them becomes nothing.

    It is pickle's Python half: the one in C makes room for as many objects as a file says
    that it has, and lets it set attributes of classes and functions.
    """
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        changed = self.stack[-2]
        if isinstance(changed, (type, FunctionType, BuiltinFunctionType, MethodType)):
            raise UnsafeCheckpointError(f'a change of {changed.__name__}')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    @property
    def persistent_load(self) -> Callable:
        return self._load_storage

    @persistent_load.setter
    def persistent_load(self, load: Callable) -> None:  # torch.load does

        def load_storage(key: tuple) -> Any:
            # Of a 'module', torch.load writes a file where its source is said to differ.
            if not isinstance(key, tuple) or key[0] not in ('storage', b'storage'):
                raise UnsafeCheckpointError(f'the persistent object {key!r:.80}')
            return load(key)

        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILD:
            return super().find_class(module, name)
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition('.')[0] in _BESIDE_WEIGHTS:
            return _Inert
        if module in ('builtins', '__builtin__') and name in _BUILTINS_BESIDE_WEIGHTS:
            return _Inert
        raise UnsafeCheckpointError(f'{module}.{name}')


def read_state_dict(path: Union[str, Path]) -> Dict[str, Tensor]:
    """Tensors by name from a checkpoint; no code in the file runs.

    ``{'model': ...}`` (the published files) and ``{'state_dict': ...}`` (mmengine)
    are unwrapped, 'module.' before every name is dropped.

    Args:
        path (str | Path): A file that ``torch.save`` wrote, or one of safetensors, which
            ends in '.safetensors'; or what :func:`mmengine.fileio.get_local_path` accepts.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpointError: The file asks for a Python object that weights have no
            use for; nothing of it was run.
        ValueError: The file is damaged or holds no named tensors.
        ImportError: The file needs the package safetensors, which is not installed.
    """
    return _read(path)[0]


def _read(path: Union[str, Path]) -> Tuple[Dict[str, Tensor], str]:
    """Tensors by name, and the SHA-256 of the file's bytes."""
    content, digest = read_file(path)
    for wrapper in ('model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {}
    if isinstance(content, dict):
        state = {
            name: value
            for name, value in dict.items(content)  # a file may change an OrderedDict's own
            if isinstance(name, str) and isinstance(value, Tensor)
        }
    if not state:
        raise ValueError(f'checkpoint={str(path)!r} holds no named tensors')
    if all(name.startswith('module.') for name in state):
        state = {name[len('module.'):]: value for name, value in state.items()}
    return state, digest


def read_file(path: Union[str, Path],
              unpickler: type = InertUnpickler,
              map_location: Any = 'cpu') -> Tuple[Any, str]:
    """What lies in a checkpoint, and the SHA-256 of the file's bytes.

    Args:
        path (str | Path): See :func:`read_state_dict`, as for errors.
        unpickler (type): Reads the pickle in it; it decides what may be made.
        map_location (Any): See :func:`torch.load`; safetensors come to the CPU.
    """
    kind = 'checkpoint of torch.save'
    if str(path).endswith('.safetensors'):
        kind = 'file of safetensors'
    try:
        with get_local_path(str(path)) as local:
            if not Path(local).is_file():
                raise FileNotFoundError(f'checkpoint={str(path)!r}: no such file')
            if kind == 'file of safetensors':
                content = _load_safetensors(local)
            else:
                content = _load_torch(local, unpickler, map_location)
            digest = _sha256(local)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f'checkpoint={str(path)!r} holds {error}, for which weights have no use; '
            'nothing of it was run. If you trust the file, save its weights alone: '
            "torch.save(torch.load(path, weights_only=False)['model'], new_path)"
        ) from None
    except (OSError, ImportError):
        raise
    except Exception as error:  # damaged bytes fail anywhere in the unpickling
        raise ValueError(f'checkpoint={str(path)!r} cannot be read as a {kind}: '
                         f'{error}') from error
    return content, digest


def _load_torch(path: str, unpickler: type, map_location: Any) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(n.endswith('/constants.pkl') for n in archive.namelist()):
                raise UnsafeCheckpointError('TorchScript code')
            # torch.save compresses nothing: larger contents than the file are a bomb.
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError('what is in it is larger than the file')
    elif tarfile.is_tarfile(path):
        raise ValueError('it is a tar archive, which torch.save wrote before version 0.1.10')
    module = SimpleNamespace(
        Unpickler=unpickler, load=lambda file, **kwargs: unpickler(file, **kwargs).load(),
        __name__=__name__)
    return torch.load(
        path, map_location=map_location, pickle_module=module, weights_only=False)


def _load_safetensors(path: str) -> Dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError('files that end in .safetensors need the package safetensors: '
                          'pip install safetensors') from error
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(error) from error
    for name in state:
        if '/' in name or '\\' in name:  # whoever makes files of names would write outside
            raise ValueError(f'its tensor {name!r} is named like a path')
    return state


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_pretrained(model: nn.Module,
                    checkpoint: Union[str, Path],
                    prefix: Optional[str] = None,
                    map_location: str = 'cpu') -> None:
    """Load published or mmrest weights into a :class:`~mmrest.ResT`.

    The published names are ours, but for ``norm``: the LayerNorm after the last stage,
    here ``norm4`` where there are four. A classification head is dropped, stages that
    the model does not build are passed over and output norms that the file lacks keep
    their values. Logs one line: loaded, the file's SHA-256, missing, not used.

    Args:
        model (ResT): The model; unchanged if an error is raised.
        checkpoint (str | Path): See :func:`read_state_dict`.
        prefix (str, optional): Takes the names that start so, and drops it from them:
            'backbone.' for a detector's checkpoint.
        map_location (str): Accepted for mmengine's sake; parameters are copied to
            where the model is.

    Raises:
        FileNotFoundError, ValueError: See :func:`read_state_dict`.
        ValueError: The file fits another model or none: also where ``in_channels`` of the
            model is not that of the file, to which no weights are adapted.
    """
    state, digest = _read(checkpoint)
    this = f'ResT(arch={model.arch!r})'
    if prefix:
        inside = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
        if not inside:
            raise ValueError(
                f'checkpoint={str(checkpoint)!r} has no parameter whose name starts with '
                f'prefix={prefix!r} for {this}; it has {_few(state)}')
        state = inside
    last = f'norm{model.num_stages}.'
    state = {
        last + k[len('norm.'):] if k.startswith('norm.') else k: v
        for k, v in state.items()
    }

    own = model.state_dict()
    problems = _other_in_channels(model, state)
    misfits = [
        f'{name} is {tuple(state[name].shape)} there, {tuple(value.shape)} here'
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    norms = tuple(f'norm{i + 1}.' for i in range(model.num_stages))
    missing = [
        name for name in own
        if name not in state and not name.endswith('num_batches_tracked')
    ]
    lacking = [name for name in missing if not name.startswith(norms)]
    unused = [name for name in state if name not in own]
    unbuilt = tuple(
        f'{part}{i + 1}.' for i in range(model.out_indices[-1] + 1, model.num_stages)
        for part in ('patch_embed_', 'stage'))
    surplus = [name for name in unused if not name.startswith(norms + unbuilt + ('head.', ))]
    problems = problems or misfits[:3]
    if lacking:
        problems.append(f'it lacks {_few(lacking)}')
    if surplus:
        problems.append(f'the model has no {_few(surplus)}')
    if problems:
        hint = ''
        if not prefix and any(k.startswith('backbone.') for k in state):
            hint = "; its names start with 'backbone.': set prefix='backbone.'"
        raise ValueError(f'checkpoint={str(checkpoint)!r}, which looks like '
                         f'{_guess(state, model.arch_zoo)}, does not fit {this}: '
                         f'{"; ".join(problems)}{hint}')

    loaded = OrderedDict((name, state[name]) for name in own if name in state)
    model.load_state_dict(loaded, strict=False)
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    count = sum(n for name, n in parameters.items() if name in loaded)
    print_log(
        f'{this}: loaded {count:,} of {sum(parameters.values()):,} parameters from '
        f'{checkpoint} (SHA-256 {digest}); missing (left at their initial value): '
        f'{", ".join(missing) or "none"}; not used: {", ".join(unused) or "none"}',
        logger='current')


@WEIGHT_INITIALIZERS.register_module('ResTHead')
class ResTHeadInit:
    """The linear layer of a published classifier, for mmpretrain's ``LinearClsHead``.

    ``head=dict(type='LinearClsHead', init_cfg=dict(type='ResTHead', checkpoint=...))``

    Args:
        checkpoint (str | Path): See :func:`read_state_dict`.

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
            raise ValueError(f'checkpoint={str(self.checkpoint)!r} has head.weight and '
                             f'head.bias of shapes {shapes}; this head needs {wanted}')
        module.fc.load_state_dict(head)
        print_log(f'classification head: loaded from {self.checkpoint}', 'current')


def _other_in_channels(model: nn.Module, state: Dict[str, Tensor]) -> List[str]:
    """A sentence where the file's first convolution takes images of other channels."""
    conv = next(n for n, m in model.stem.named_modules() if isinstance(m, nn.Conv2d))
    here = model.stem.get_submodule(conv).in_channels
    weight = state.get(f'stem.{conv}.weight')
    if weight is None or weight.ndim != 4 or weight.shape[1] == here:
        return []
    return [f'in_channels={here} here, {weight.shape[1]} in the file, and weights are not '
            'adapted to images of other channels']


def _few(names) -> str:
    names = list(names)
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def _guess(state: Dict[str, Tensor], archs: Dict[str, dict]) -> str:
    """The published model that a state dict's widths and depths belong to."""
    stem = state.get('stem.conv3.weight')
    depths = tuple(
        len({k.split('.')[1] for k in state if k.startswith(f'stage{i}.')})
        for i in range(1, 5))
    for name, arch in archs.items():
        if stem is not None and (stem.shape[0], depths) == (arch['embed_dims'][0],
                                                             arch['depths']):
            return f'ResT(arch={name!r})'
    return 'none of the published models'

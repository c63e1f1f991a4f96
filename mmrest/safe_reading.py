"""Reads checkpoints without running code from the file."""
import collections
import hashlib
import os
import pickle
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, Callable, Dict, Iterator, Tuple, Union
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.fileio.backends import prefix_to_backends
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler
from torch import Tensor

from .errors import MissingPackageError, UserError
from .utils import moved

try:
    from numpy._core import multiarray
except ImportError:  # before NumPy 2
    from numpy.core import multiarray

# The functions and types of torch that rebuild tensors from bytes.
REBUILD = {
    ('collections', 'OrderedDict'),
    ('torch', 'Size'),
    ('torch', 'device'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch._utils', '_rebuild_tensor'),
    ('torch._utils', '_rebuild_tensor_v2'),
}
# Packages of the other objects in published and mmengine checkpoints: training arguments,
# log histories, arrays. Nothing is imported or called: Inert stands in for each name.
INERT = ('argparse', 'collections', 'datetime', 'mmengine', 'numpy', 'pathlib', '_codecs')
INERT_BUILTINS = ('bytearray', 'complex', 'getattr', 'set', 'slice')
SCHEDULERS = {
    name: value
    for name, value in vars(scheduler).items()
    if isinstance(value, type) and value.__module__.startswith(scheduler.__name__)
}


__getattr__ = moved(__name__, load_safely='mmrest.safe_reading.register_safe_loader')


class UnsafeCheckpointError(UserError):
    """A checkpoint asks for Python objects that weights do not need."""


class Inert:
    """Stands in for an object beside the weights: accepts everything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def _ignore(self, *args, **kwargs) -> 'Inert':
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class InertUnpickler(pickle._Unpickler):
    """Makes tensors and plain values, and :class:`Inert` of what may stand beside them.

    Its base is pickle's Python version. The C version allocates as many objects as a file
    claims to have, and lets it set attributes of classes and functions.
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
    def persistent_load(self, load: Callable) -> None:  # torch.load sets it

        def load_storage(key: tuple) -> Any:
            # For a 'module', torch.load may write its source to a file.
            if not isinstance(key, tuple) or key[0] not in ('storage', b'storage'):
                raise UnsafeCheckpointError(f'the persistent object {key!r:.80}')
            return load(key)

        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REBUILD:
            return super().find_class(module, name)
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition('.')[0] in INERT:
            return Inert
        if module in ('builtins', '__builtin__') and name in INERT_BUILTINS:
            return Inert
        raise UnsafeCheckpointError(f'{module}.{name}')


class CheckpointUnpickler(InertUnpickler):
    """Also makes what mmengine resumes a run from: arrays, histories, schedulers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in MAKERS:
            return MAKERS[module, name]
        if module.startswith(scheduler.__name__) and name in SCHEDULERS:
            return SCHEDULERS[name]
        return super().find_class(module, name)


def _method(owner: type, name: str) -> Callable:
    """Replaces getattr: only for the methods that histories and schedulers store."""
    if owner is not HistoryBuffer and owner not in SCHEDULERS.values():
        raise UnsafeCheckpointError('builtins.getattr')
    if not isinstance(name, str) or name.startswith('__'):
        raise UnsafeCheckpointError(f'{owner.__name__}.{name}')
    return getattr(owner, name)


def _scalar(dtype: np.dtype, *content) -> np.generic:
    if dtype.hasobject:  # NumPy would unpickle those itself
        raise UnsafeCheckpointError('numpy.object_')
    return multiarray.scalar(dtype, *content)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':  # how old pickles write bytes
        raise UnsafeCheckpointError('_codecs.encode')
    return text.encode(encoding)


MAKERS = {
    ('_codecs', 'encode'): _encode,
    ('builtins', 'getattr'): _method,
    ('__builtin__', 'getattr'): _method,
    ('collections', 'Counter'): collections.Counter,  # milestones of MultiStepLR
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
    ('numpy', 'dtype'): np.dtype,
    ('numpy', 'ndarray'): np.ndarray,
}
for _module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
    MAKERS[_module, '_reconstruct'] = multiarray._reconstruct
    MAKERS[_module, 'scalar'] = _scalar


def register_safe_loader() -> None:
    """Make mmengine read checkpoints with :func:`read_checkpoint` in this process.

    Its own loaders fall back to unrestricted pickle, which runs code from the file.
    """
    from mmengine.runner import CheckpointLoader  # needs OpenCV, which reading does not
    schemes = ['', 'file://', 'http://', 'https://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']
    CheckpointLoader.register_scheme(schemes, loader=read_checkpoint, force=True)


def read_checkpoint(filename: str, map_location: Any = 'cpu') -> Any:
    """Read a whole checkpoint of mmengine, from which a run can be resumed.

    Tensors, plain values, NumPy's arrays and numbers, log histories and the state of
    mmengine's schedulers are read as they were saved; any other object is dropped.

    Args:
        filename (str): The file.
        map_location (Any): See :func:`torch.load`.

    Raises:
        FileNotFoundError, ValueError: See :func:`read_state_dict`.
    """
    return read_file(filename, CheckpointUnpickler, map_location)[0]


def read_state_dict(path: Union[str, Path]) -> Dict[str, Tensor]:
    """Read tensors by name from a checkpoint.

    ``{'model': ...}`` (published files) and ``{'state_dict': ...}`` (mmengine) are
    unwrapped, and 'module.' before every name is dropped.

    Args:
        path (str | Path): A file that ``torch.save`` wrote, or a safetensors file that ends
            in '.safetensors'; or its address: ``file://``, ``http://``, ``https://``, or a
            storage that MMEngine knows, like ``s3://``. What HTTP brings is kept in
            PyTorch's hub cache (:func:`torch.hub.get_dir`) and is not fetched again.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be fetched.
        UnsafeCheckpointError: The file asks for a Python object that weights do not need.
            No code in it was run.
        ValueError: The address is of another kind; the file is damaged or has no named
            tensors.
        ImportError: The file needs the package safetensors, which is not installed.
    """
    return named_tensors(read_file(path)[0], path)


def named_tensors(content: Any, path: Union[str, Path]) -> Dict[str, Tensor]:
    """The tensors in the content of a checkpoint, see :func:`read_state_dict`."""
    for wrapper in ('model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {}
    if isinstance(content, dict):
        state = {
            name: value
            for name, value in dict.items(content)  # a file may replace OrderedDict.items
            if isinstance(name, str) and isinstance(value, Tensor)
        }
    if not state:
        raise UserError(f'checkpoint={str(path)!r} has no named tensors')
    if all(name.startswith('module.') for name in state):
        state = {name[len('module.'):]: value for name, value in state.items()}
    return state


def read_file(path: Union[str, Path],
              unpickler: type = InertUnpickler,
              map_location: Any = 'cpu') -> Tuple[Any, str]:
    """Read what is in a checkpoint, and the SHA-256 of the file.

    Args:
        path (str | Path): See :func:`read_state_dict`, also for the errors.
        unpickler (type): Reads the pickle, and decides which objects are made.
        map_location (Any): See :func:`torch.load`; safetensors are read to the CPU.
    """
    kind = 'safetensors file' if str(path).endswith('.safetensors') else 'torch.save file'
    local = path
    try:
        with _local_file(str(path)) as local:
            if not Path(local).is_file():
                raise FileNotFoundError(f'checkpoint={str(path)!r}: no such file')
            if kind == 'safetensors file':
                content = _load_safetensors(local)
            else:
                content = _load_torch(local, unpickler, map_location)
            digest = _sha256(local)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f'checkpoint={str(path)!r} has {error} in it, which weights do not need; '
            'no code in it was run. If you trust the file, save its weights alone: '
            "torch.save(torch.load(path, weights_only=False)['model'], new_path)"
        ) from None
    except (OSError, ImportError):
        raise
    except Exception as error:  # damaged bytes fail anywhere in the unpickling
        kept = '' if str(local) == str(path) else f' (the file {local})'
        raise UserError(
            f'checkpoint={str(path)!r}{kept} cannot be read as a {kind}: {error}') from error
    return content, digest


@contextmanager
def _local_file(address: str) -> Iterator[str]:
    scheme = urlsplit(address).scheme if '://' in address else ''
    if scheme in ('http', 'https'):
        yield _fetch(address)
        return
    if scheme == 'file':
        address = url2pathname(address[len('file://'):])
    try:
        backend = get_file_backend(address)
    except KeyError:
        known = sorted({'file', *filter(None, prefix_to_backends)})
        raise UserError(f'its address must begin with one of {", ".join(known)}') from None
    with backend.get_local_path(address) as local:
        yield str(local)


def _fetch(address: str) -> str:
    """Download a file as torch.hub does, once on a machine, and return where it is."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints',
                        os.path.basename(urlsplit(address).path))
    try:
        if int(os.environ.get('LOCAL_RANK', get_rank())) == 0 and not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(address, path, progress=sys.stderr.isatty())
    except OSError as error:
        raise OSError(f'checkpoint={address!r} cannot be fetched: {error}') from error
    finally:
        barrier()  # the other processes of this machine wait for the file
    return path


def _load_torch(path: str, unpickler: type, map_location: Any) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(n.endswith('/constants.pkl') for n in archive.namelist()):
                raise UnsafeCheckpointError('TorchScript code')
            # torch.save does not compress: a content larger than the file is a zip bomb.
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise UserError('its content is larger than the file')
    elif tarfile.is_tarfile(path):
        raise UserError('it is a tar archive, the format of torch.save before 0.1.10')
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
        raise MissingPackageError(
            'files that end in .safetensors need the package safetensors: '
            'pip install safetensors') from error
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(error) from error
    for name in state:
        if '/' in name or '\\' in name:  # a tool that names files so would write elsewhere
            raise UserError(f'its tensor {name!r} is named like a path')
    return state


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

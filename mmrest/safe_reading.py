"""Reads checkpoints of strangers without running code from the file, at any address."""
import hashlib
import os
import re
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple, Union
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import url2pathname, urlretrieve

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.fileio.backends import prefix_to_backends
from torch import Tensor

from .errors import FetchError, MissingPackageError, UserError
from .restricted_load import RUN, WEIGHTS, UnsafeCheckpointError, disarm, restricted_load
from .utils import moved

__getattr__ = moved(__name__, load_safely='mmrest.safe_reading.register_safe_loader')


def register_safe_loader(weights_only: bool = False) -> None:
    """Make mmengine read checkpoints with :func:`read_checkpoint` in this process.

    Its own loaders fall back to unrestricted pickle, which runs code from the file.
    """
    from mmengine.runner import CheckpointLoader  # needs OpenCV, which reading does not
    schemes = ['', 'file://', 'http://', 'https://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']

    def load_from_restricted(filename, map_location=None):  # mmengine logs 'by restricted'
        return read_checkpoint(filename, map_location, weights_only)

    CheckpointLoader.register_scheme(schemes, loader=load_from_restricted, force=True)


def read_checkpoint(filename: str, map_location: Any = 'cpu',
                    weights_only: bool = False) -> Any:
    """Read a whole checkpoint of mmengine, from which a run can be resumed.

    Tensors, plain values, NumPy's numbers and arrays, log histories and mmengine's schedulers
    are as they were saved, any other object is dropped. For the file, names in ``state_dict``
    and errors see :func:`read_state_dict`.

    Args:
        map_location (str | torch.device, optional): Where tensors go; ``None``: as saved.
        weights_only (bool): Reads tensors and plain values alone.
    """
    content, _ = read_file(filename, WEIGHTS if weights_only else RUN, map_location)
    if isinstance(content, dict):
        if isinstance(content.get('state_dict'), dict):
            content['state_dict'] = _uncompiled(content['state_dict'])
        disarm(content, os.path.dirname(os.path.abspath(filename)))
    return content


def read_state_dict(path: Union[str, Path]) -> Dict[str, Tensor]:
    """Read tensors by name from a checkpoint.

    ``{'model': ...}`` (published files) and ``{'state_dict': ...}`` (mmengine) are unwrapped,
    'module.' before every name and '_orig_mod.' (of ``torch.compile``) anywhere are dropped.

    Args:
        path (str | Path): A file of ``torch.save`` or safetensors, or its address: ``file://``,
            ``http://``, ``https://``, or a storage that MMEngine knows, like ``s3://``. HTTP
            downloads are kept in PyTorch's hub cache (:func:`torch.hub.get_dir`).

    Raises:
        OSError: There is no such file, or it cannot be fetched.
        UnsafeCheckpointError: The file asks for a Python object that weights do not need.
        UserError: It cannot be read, has no named tensors, or its address is of another kind.
    """
    return named_tensors(read_file(path)[0], path)


def named_tensors(content: Any, path: Union[str, Path]) -> Dict[str, Tensor]:
    """The tensors in the content of a checkpoint, see :func:`read_state_dict`."""
    content = content if isinstance(content, dict) else {}
    for wrapper in ('model', 'state_dict'):
        if isinstance(dict.get(content, wrapper), dict):
            content = dict.get(content, wrapper)  # a file may replace OrderedDict.get
            break
    state = _uncompiled({name: value for name, value in dict.items(content)
                         if isinstance(name, str) and isinstance(value, Tensor)})
    if not state:
        raise UserError(f'checkpoint={str(path)!r} has no named tensors')
    wrapped = all(name.startswith('module.') for name in state)
    return {name[7:]: value for name, value in state.items()} if wrapped else state


def _uncompiled(state: dict) -> dict:
    if not any('_orig_mod.' in str(name) for name in state):
        return state  # with its _metadata
    names = [re.sub(r'(^|\.)_orig_mod\.', r'\1', str(name)) for name in state]
    if len(set(names)) < len(names):
        raise UserError('the checkpoint has weights with and without _orig_mod. in their names')
    return dict(zip(names, state.values()))


def read_file(path: Union[str, Path], stand_ins: Dict[str, Any] = WEIGHTS,
              map_location: Any = 'cpu') -> Tuple[Any, str]:
    """Read what is in a checkpoint, and the SHA-256 of the file. See :func:`read_state_dict`.

    ``stand_ins`` says what is made of names beside the weights: WEIGHTS or RUN.
    """
    this = f'checkpoint={_shown(str(path))!r}'
    with _local_file(str(path)) as local:
        if not Path(local).is_file():
            raise FileNotFoundError(f'{this}: no such file')
        this += f' (the file {local})' if '://' in str(path) else ''
        try:
            with open(local, 'rb') as file:
                is_safetensors = file.read(9)[8:] == b'{'  # behind a length
                file.seek(0)
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
            if is_safetensors:
                return _load_safetensors(local), digest
            return restricted_load(local, map_location, stand_ins), digest
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(
                f'{this} has {_cut(error)} in it, which weights do not need; no code in it was '
                'run. If you trust the file, save its weights alone: torch.save('
                "torch.load(path, weights_only=False)['model'], new_path)") from None
        except (PermissionError, MissingPackageError):
            raise
        except Exception as error:  # damaged bytes fail anywhere in the reading
            reason = str(error).rpartition('WeightsUnpickler error: ')[2]
            raise UserError(
                f'{this} cannot be read: {_cut(reason) or type(error).__name__}. It may be '
                'damaged. If you trust it, save it again: torch.save(torch.load(path, '
                'weights_only=False), new_path)') from error


def _shown(address: str) -> str:
    """An address without user, password and tokens."""
    if '://' not in address:
        return address
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition('@')[2], query='').geturl()


def _cut(text: Any) -> str:
    """Text from a file, in one line of plain characters, 80 at most."""
    return ascii(str(text)[:80])[1:-1][:80]


def _load_safetensors(path: str) -> Dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError('safetensors files need a package: run `pip install '
                                  'safetensors`') from error
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name in state:
        if '/' in name or '\\' in name:  # a tool that names files so would write elsewhere
            raise UserError(f'its tensor {_cut(name)} is named like a path')
    return state


@contextmanager
def _local_file(address: str) -> Iterator[str]:
    scheme = urlsplit(address).scheme if '://' in address else ''
    if scheme in ('http', 'https'):
        yield _fetch(address)
        return
    address = url2pathname(address[len('file://'):]) if scheme == 'file' else address
    try:
        backend = get_file_backend(address)
    except KeyError:
        known = sorted({'file', *filter(None, prefix_to_backends)})
        raise UserError(f'checkpoint={address!r}: its address must begin with one of '
                        f'{", ".join(known)}') from None
    with backend.get_local_path(address) as local:
        yield str(local)


def _fetch(address: str) -> str:
    """Download a file, once on a machine, and return where it is."""
    parts = urlsplit(address)
    query = [(k, v) for k, v in parse_qsl(parts.query, True) if 'token' not in k.lower()]
    key = parts._replace(netloc=parts.netloc.rpartition('@')[2], query=urlencode(query))
    digest = hashlib.sha256(key.geturl().encode()).hexdigest()[:16]
    name = re.sub(r'[^\w.-]', '_', parts.path.rpartition('/')[2])[-80:]
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{digest}-{name}')
    partial = path.with_name(f'{path.name}.{os.getpid()}')
    try:
        if int(os.environ.get('LOCAL_RANK', get_rank())) == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            urlretrieve(address, partial)  # raises when it ends early
            os.replace(partial, path)
    except (OSError, ValueError, HTTPException) as error:
        partial.unlink(missing_ok=True)
        raise FetchError(
            f'checkpoint={_shown(address)!r} cannot be fetched: {_cut(error)}') from error
    finally:
        barrier()  # the other processes of this machine wait for the file
    return str(path)

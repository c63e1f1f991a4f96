"""mmengine's own checkpoints, optimizer and history with them, without running code."""
import collections
from typing import Any, Callable

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler
from mmengine.runner import CheckpointLoader

from .models.checkpoint import InertUnpickler, UnsafeCheckpointError, read_file

try:
    from numpy._core import multiarray
except ImportError:  # before NumPy 2
    from numpy.core import multiarray

SCHEDULERS = {
    name: value
    for name, value in vars(scheduler).items()
    if isinstance(value, type) and value.__module__.startswith(scheduler.__name__)
}


def load_safely() -> None:
    """Have mmengine read this process's local checkpoints with :func:`read_checkpoint`.

    It falls back to unrestricted pickle otherwise, which runs what a file asks for.
    """
    CheckpointLoader.register_scheme('', loader=read_checkpoint, force=True)


def read_checkpoint(filename: str, map_location: Any = 'cpu') -> Any:
    """A whole checkpoint of mmengine, whose runs can be resumed from it.

    Tensors, plain values, NumPy's arrays and numbers, log histories and the state of
    mmengine's schedulers are what they were; other objects of the modules that
    :func:`~mmrest.models.checkpoint.read_state_dict` bears beside weights become nothing.

    Args:
        filename (str): The file.
        map_location (Any): See :func:`torch.load`.

    Raises:
        FileNotFoundError, ValueError: See
            :func:`~mmrest.models.checkpoint.read_state_dict`.
    """
    return read_file(filename, _CheckpointUnpickler, map_location)[0]


def _method(owner: type, name: str) -> Callable:
    """A getattr for the methods that histories and schedulers keep."""
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


_MAKERS = {
    ('_codecs', 'encode'): _encode,
    ('builtins', 'getattr'): _method,
    ('__builtin__', 'getattr'): _method,
    ('collections', 'Counter'): collections.Counter,  # milestones of MultiStepLR
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
    ('numpy', 'dtype'): np.dtype,
    ('numpy', 'ndarray'): np.ndarray,
}
for _module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
    _MAKERS[_module, '_reconstruct'] = multiarray._reconstruct
    _MAKERS[_module, 'scalar'] = _scalar


class _CheckpointUnpickler(InertUnpickler):

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if module.startswith(scheduler.__name__) and name in SCHEDULERS:
            return SCHEDULERS[name]
        return super().find_class(module, name)

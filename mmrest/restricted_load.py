"""``torch.load(weights_only=True)`` within bounds, and what it makes of other objects."""
import io
import os
import pickletools
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections import OrderedDict
from types import FunctionType
from typing import Any, BinaryIO, Dict, List, Set, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler
from torch.overrides import TorchFunctionMode

from .errors import UserError


class UnsafeCheckpointError(UserError):
    """A checkpoint asks for Python objects that weights do not need."""


class Inert:
    """Stands in for an object beside the weights: accepts everything, does nothing."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class Maker(Inert):
    """Has read ``value``, which takes its place in the end."""
    value: Any = None


class Number(Maker):
    """numpy.dtype of a plain number: no objects, no structures."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r'[biufc]\d\d?', code):
            raise UnsafeCheckpointError('numpy.dtype of other things than numbers')
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple):
        self.value = self.value.newbyteorder(state[1])


class Array(Maker):
    """A NumPy array of numbers, read-only: its numbers stay where they were read."""

    def __setstate__(self, state: tuple):
        _, shape, number, is_fortran, content = state
        array = np.frombuffer(content, number.value)
        self.value = array.reshape(shape, order='F' if is_fortran else 'C')


class History(Maker):
    """MMEngine's HistoryBuffer, with its own statistics alone."""

    def __setstate__(self, state: dict):
        self.value = HistoryBuffer(max_length=int(state['max_length']))
        parts = {key: state[key] for key in ('_log_history', '_count_history')}
        if not all(isinstance(part, Array) for part in parts.values()):
            raise UserError('a HistoryBuffer of other things than arrays')
        self.value.__setstate__({key: part.value for key, part in parts.items()})


class Scheduler:
    """Stands in for a class of mmengine's schedulers: it cannot be called."""

    def __init__(self, kind: type):
        self.kind = kind


def _scalar(number: Number, content: bytes) -> np.generic:
    return np.frombuffer(content, number.value, 1)[0]


def _method(owner: Any, name: str) -> Any:
    """In the place of getattr: a function that a scheduler stores. A history knows its own."""
    if owner is History:
        return None
    method = getattr(owner.kind, name) if isinstance(owner, Scheduler) else None
    if not isinstance(method, FunctionType) or name.startswith('__'):
        raise UnsafeCheckpointError('builtins.getattr')
    return method


# What tensors and plain values are made of. PyTorch's loader knows these names, and more.
PLAIN = {
    '_codecs.encode', 'builtins.complex', 'builtins.set', 'collections.Counter',
    'collections.OrderedDict', 'torch.Size', 'torch.device', 'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_tensor', 'torch._utils._rebuild_tensor_v2'}
SCHEDULERS = {
    f'{kind.__module__}.{kind.__name__}': Scheduler(kind) for kind in vars(scheduler).values()
    if isinstance(kind, type) and kind.__module__.startswith(scheduler.__name__)}
NUMPY = ['numpy.core.multiarray', 'numpy._core.multiarray']  # before and since NumPy 2
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
# Names of other objects in published and mmengine checkpoints, and what stands in for them.
WEIGHTS: Dict[str, Any] = {
    **dict.fromkeys(SCHEDULERS, Inert),
    **{f'{module}.{name}': Inert for module, names in {
        'argparse': ['Namespace'], 'builtins': ['dict', 'getattr', 'list', 'slice'],
        'datetime': ['date', 'datetime', 'timedelta', 'timezone'],
        'mmengine.config.config': ['Config', 'ConfigDict'], 'numpy': ['dtype', 'ndarray'],
        'pathlib': ['Path', 'PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath'],
        **dict.fromkeys(NUMPY, ['_reconstruct', 'scalar'])}.items() for name in names},
    HISTORY: Inert, 'collections.defaultdict': lambda *_: {},
    'collections.deque': lambda *_: []}
# The same for a run that is resumed, which needs numbers, histories and schedulers.
RUN = {
    **WEIGHTS, **SCHEDULERS, HISTORY: History, 'builtins.getattr': _method,
    'numpy.dtype': Number, **{f'{module}._reconstruct': Array for module in NUMPY},
    **{f'{module}.scalar': _scalar for module in NUMPY}}
_one_at_a_time = threading.Lock()  # PyTorch's list of safe names is the process's


def restricted_load(path: str, map_location: Any = 'cpu', stand_ins: Any = WEIGHTS) -> Any:
    """Load a file of torch.save.

    No code from the file runs, nothing is written, and memory is a small multiple of the file.
    Limits of PyTorch's loader remain: nested tuples as keys, nested lists in the place of
    functions, slow or growing encodings of text, and a list that is copied again and again can
    keep it busy, or fill the memory.

    Args:
        path (str): The file.
        map_location (str | torch.device, optional): Where tensors go; ``None``: as saved.
        stand_ins (dict): What other objects' names mean: WEIGHTS, or RUN to resume from.

    Raises:
        UnsafeCheckpointError: The file has another object's name in it.
        UserError: PyTorch's restricted loader cannot read the file as a whole.
        Exception: It is damaged.
    """
    room, made = os.path.getsize(path), []
    with open(path, 'rb') as file:
        is_zip = file.read(4) == b'PK\3\4'  # as PyTorch's loader decides
        file.seek(0)
        # Before torch 1.6, there were five pickles behind one another.
        pickles, sizes = _check_zip(file, room) if is_zip else ([file] * 5, set())
        for pickle in pickles:
            _check_pickle(pickle, stand_ins)

    def restore(storage: Any, location: str) -> Any:
        nonlocal room
        room -= storage.nbytes()
        if room < 0:  # a part of the file may be claimed again and again
            raise UserError('its tensors are larger than the file')
        if is_zip and storage.nbytes() not in sizes:
            raise UserError('a tensor in it is larger than its record')
        storage = storage.clone() if is_zip else storage  # the file may be overwritten
        where = location if map_location is None else str(map_location)
        storage = torch.serialization.default_restore_location(storage, where)
        if not is_zip:
            storage.fill_(0)  # a file need not fill it
        made.append((storage, storage.nbytes()))
        return storage

    names: List[Any] = [(value, name) for name, value in stand_ins.items()]
    with (_one_at_a_time, torch.serialization.safe_globals(names), warnings.catch_warnings(),
          WholeTensors()):
        warnings.simplefilter('ignore')  # on protocols and TypedStorage
        # Mapped into memory, a storage is a part of the file, whatever it claims.
        content = torch.load(path, restore, weights_only=True, mmap=is_zip)
    if any(storage.nbytes() != size for storage, size in made):  # enlarged for a tensor
        raise UserError('a tensor in it is larger than its storage')
    return _finish(content)


class WholeTensors(TorchFunctionMode):
    """Forbids to iterate over tensors: one with stride 0 has any number of rows."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.unbind, torch.Tensor.__iter__):
            raise UserError('a tensor in the place of a list')
        return function(*args, **(kwargs or {}))


def _check_zip(file: BinaryIO, size: int) -> Tuple[List[BinaryIO], Set[int]]:
    """Check that a zip is whole and no larger than its size; return its pickles, and sizes.

    Only with the end that torch.save writes do PyTorch and Python read the same directory.
    """
    if size < 98:
        raise UserError('its zip is cut short')
    file.seek(size - 98)
    zip64, length, start, locator, found, end, comment = struct.unpack(
        '<4s36x2Q4s4xQ4x4s16xH', file.read())
    if ((zip64, locator, end, comment) != (b'PK\6\6', b'PK\6\7', b'PK\5\6', 0)
            or not start + length == found == size - 98):
        raise UserError('its zip does not end as torch.save writes it')
    records = zipfile.ZipFile(file).infolist()
    pickles: List[BinaryIO] = []
    if any(record.filename.lower().endswith('/constants.pkl') for record in records):
        raise UnsafeCheckpointError('TorchScript code')
    for record in records:
        size -= record.file_size
        if record.compress_type or record.file_size != record.compress_size or size < 0:
            raise UserError('its zip is compressed, or larger than the file')
        file.seek(record.header_offset + 26)
        file.seek(sum(struct.unpack('<2H', file.read(4))), os.SEEK_CUR)
        content = file.read(record.file_size)
        if record.CRC not in (0, zlib.crc32(content)):  # PyTorch does not compare
            raise UserError('it has changed since it was written')
        if record.filename.lower().endswith('/data.pkl'):
            pickles.append(io.BytesIO(content))
    return pickles, {record.file_size for record in records}


def _check_pickle(pickle: BinaryIO, stand_ins: Dict[str, Any]) -> None:
    """Refuse other names and protocols, as PyTorch's loader does, and bytearray(10**10)."""
    for op, arg, _ in pickletools.genops(pickle):
        if op.proto > 2:
            raise UserError(f'it has pickle protocol {op.proto}, torch.save has 2')
        if op.name == 'GLOBAL':
            name = str(arg).replace(' ', '.', 1).replace('__builtin__.', 'builtins.', 1)
            is_plain = name in PLAIN or re.fullmatch(r'torch\.\w+(?<!yped)Storage', name)
            is_dtype = isinstance(vars(torch).get(name[6:]), torch.dtype)
            if not is_plain and not is_dtype and name not in stand_ins:
                raise UnsafeCheckpointError(name)


def _finish(content: Any) -> Any:
    """Put what makers have read in their place, and take attributes from OrderedDicts."""
    pending, seen = [content], set()
    while pending:
        part = pending.pop()
        if id(part) in seen or not isinstance(part, (dict, list)):
            continue
        seen.add(id(part))
        for name in set(vars(part)) - {'_metadata'} if isinstance(part, OrderedDict) else ():
            delattr(part, name)  # which may replace its methods
        for key, value in list(dict.items(part) if isinstance(part, dict) else enumerate(part)):
            if isinstance(value, Maker):
                part[key] = value.value
            pending.append(value)
    return content


def disarm(checkpoint: dict, folder: str) -> None:
    """Take out what mmengine would run as code, or would remove as a file elsewhere."""
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    if isinstance(meta, dict):
        meta.pop('config', None)
    info: Any = hub.get('runtime_info') if isinstance(hub, dict) else None
    for name in list(info) if isinstance(info, dict) else ():
        home, file = os.path.split(os.path.abspath(str(info[name])))
        if str(name).startswith('best_ckpt') and (home != folder or file[:5] != 'best_'):
            del info[name]

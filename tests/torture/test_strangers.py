"""Checkpoints from strangers run no code and write no files, and memory stays bounded.

Plain pickle runs each payload in the end, which shows that it is one. The payloads of
tests/models/test_checkpoint.py (system, eval, Popen, exec, bytes for torch) are not repeated.
"""
import codecs
import contextlib
import ctypes
import functools
import importlib
import io
import json
import marshal
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.registry import WEIGHT_INITIALIZERS

from mmrest import ResT
from mmrest.safe_reading import UnsafeCheckpointError, read_checkpoint, read_state_dict

ROOT = Path(__file__).resolve().parents[2]
ADVICE = "If you trust the file.*torch.save\\(torch.load\\(path, weights_only=False\\)"


class Call:
    """Pickles as a call, whose function may be a call too."""

    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts

    def __call__(self):  # pickle wants a callable
        raise NotImplementedError


def text(words):
    """Opcode for a str."""
    return b'X' + struct.pack('<I', len(words.encode())) + words.encode()


def name(module, attribute):
    """Opcodes for STACK_GLOBAL, which follows dots."""
    return text(module) + text(attribute) + b'\x93'


def opcodes(body):
    return b'\x80\x04' + body + b'.'


def touch(mark):
    """Code, and a shell's command."""
    return f"open({str(mark)!r}, 'w').close()", f'touch {mark}'


def script(mark):
    path = mark.with_suffix('.py')
    path.write_text(touch(mark)[0])
    return str(path)


def hub(mark):
    mark.with_name('hubconf.py').write_text(f'def go():\n    {touch(mark)[0]}\n')
    return str(mark.parent)


def module(mark):
    """Name of a module whose import makes the mark."""
    sys.path.append(os.path.dirname(script(mark)))
    return mark.stem


def compiled(mark):
    """Opcodes for a code object."""
    code = marshal.dumps(compile(touch(mark)[0], 'x', 'exec'))
    return name('marshal', 'loads') + b'B' + struct.pack('<I', len(code)) + code + b'\x85R'


def npy(mark):
    path = mark.with_suffix('.npy')
    path.write_bytes(pickle.dumps(Call(eval, touch(mark)[0])))
    return str(path)


def nested(mark):
    path = mark.with_suffix('.pth')
    path.write_bytes(legacy_file(pickle.dumps(Call(eval, touch(mark)[0]))))
    return str(path)


def globals_of_a_rebuild(mark):
    """Reaches eval by getattr alone, from a function that tensors need."""
    everything = Call(getattr, torch._utils._rebuild_tensor_v2, '__globals__')
    builtins = Call(Call(getattr, everything, '__getitem__'), '__builtins__')
    return Call(Call(Call(getattr, builtins, '__getitem__'), 'eval'), touch(mark)[0])


# Each makes a pickle that creates the file ``mark`` when it is loaded. Those in BESIDE use
# modules whose objects may stand beside weights: they are replaced by Inert, not refused.
REFUSED = dict(
    importlib=lambda m: pickle.dumps(Call(importlib.import_module, module(m))),
    getattr_chain=lambda m: pickle.dumps(
        Call(Call(getattr, Call(importlib.import_module, 'os'), 'system'), touch(m)[1])),
    partial=lambda m: pickle.dumps(Call(functools.partial(os.system, touch(m)[1]))),
    attrgetter=lambda m: pickle.dumps(Call(
        Call(operator.attrgetter('system'), Call(importlib.import_module, 'os')),
        touch(m)[1])),
    torch_hub=lambda m: pickle.dumps(Call(
        functools.partial(torch.hub.load, hub(m), 'go', source='local'))),
    torch_load=lambda m: pickle.dumps(Call(functools.partial(
        torch.load, nested(m), weights_only=False))),
    marshal=lambda m: opcodes(
        name('types', 'FunctionType') + compiled(m) + b'}\x86R)R'),
    newobj=lambda m: opcodes(
        name('types', 'FunctionType') + compiled(m) + b'}\x86\x81)R'),
    copyreg=lambda m: opcodes(
        name('copyreg', '__newobj__') + name('types', 'FunctionType') + compiled(m)
        + b'}\x87R)R'),
    codecs=lambda m: pickle.dumps(Call(exec, Call(
        codecs.decode, codecs.encode(touch(m)[0], 'rot13'), 'rot13'))),
    ctypes=lambda m: pickle.dumps(
        Call(Call(getattr, Call(ctypes.CDLL, None), 'system'), touch(m)[1].encode())),
    build_setstate=lambda m: opcodes(
        name('types', 'SimpleNamespace') + b')R}' + text('__setstate__')
        + name('os', 'system') + b'sb' + text(touch(m)[1]) + b'b'),
    build_ordered_dict=lambda m: opcodes(
        name('collections', 'OrderedDict') + b')R}' + text('__setstate__')
        + name('os', 'system') + b'sb' + text(touch(m)[1]) + b'b'),
    inst=lambda m: opcodes(b'(' + text(touch(m)[1]) + b'ios\nsystem\n'),
    obj=lambda m: opcodes(b'(' + name('os', 'system') + text(touch(m)[1]) + b'o'),
    protocol_0=lambda m: f"cos\nsystem\n(S'{touch(m)[1]}'\ntR.".encode(),
    map_reduce=lambda m: pickle.dumps(Call(
        list, Call(map, os.system, [touch(m)[1]]))),
    hidden_in_a_key=lambda m: opcodes(
        b'}' + name('os', 'system') + text(touch(m)[1]) + b'\x85RNs'),
    popped=lambda m: opcodes(name('os', 'system') + text(touch(m)[1]) + b'\x85R0N'),
)
BESIDE = dict(
    dotted_argparse=lambda m: opcodes(
        name('argparse', '_os.system') + text(touch(m)[1]) + b'\x85R'),
    dotted_pathlib=lambda m: opcodes(
        name('pathlib', 'os.system') + text(touch(m)[1]) + b'\x85R'),
    mmengine_config=lambda m: opcodes(
        name('mmengine.config', 'Config.fromfile') + text(script(m)) + b'\x85R'),
    numpy_load=lambda m: opcodes(
        name('numpy', 'load') + text(npy(m)) + b'N\x88\x87R'),
    rebuild_globals=lambda m: pickle.dumps(globals_of_a_rebuild(m)),
)


def zip_file(payload):
    """A file as torch.save writes it, with the pickle ``payload``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for entry, content in (('data.pkl', payload), ('version', b'3\n'),
                               ('byteorder', b'little'), ('data/0', bytes(64))):
            archive.writestr(f'archive/{entry}', content)
    return file.getvalue()


def legacy_file(payload):
    """A file as torch.save wrote it before version 1.6."""
    head = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2)
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    return head + pickle.dumps(system, 2) + payload + pickle.dumps([], 2)


def by_init_cfg(path, kind='Pretrained'):
    arch = dict(embed_dims=(8, ), depths=(1, ), num_heads=(1, ), sr_ratios=(1, ))
    init_cfg = [dict(type=kind, checkpoint=str(path))]
    ResT(arch, out_indices=None, init_cfg=init_cfg).init_weights()


def by_scoped_init_cfg(path):
    by_init_cfg(path, 'mmengine.Pretrained')


def by_head(path):
    head = torch.nn.Module()
    head.fc = torch.nn.Linear(2, 2)
    WEIGHT_INITIALIZERS.build(dict(type='ResTHead', checkpoint=str(path)))(head)


@pytest.mark.parametrize('style', [*REFUSED, *BESIDE])
def test_no_code_runs(style, tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    payload = {**REFUSED, **BESIDE}[style](mark)
    for content in (zip_file(payload), legacy_file(payload), payload):
        path.write_bytes(content)
        for loader in (by_init_cfg, by_scoped_init_cfg, by_head, read_state_dict):
            with pytest.raises(ValueError) as raised:
                loader(path)
            assert not mark.exists(), loader
            if style in REFUSED and content is not payload:
                assert isinstance(raised.value, UnsafeCheckpointError)
                raised.match(ADVICE)
        with contextlib.suppress(ValueError):  # objects beside the weights may be read
            read_checkpoint(path)
        assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), 'this is no payload: plain pickle does not run it'


# Harm without code


def change(module, attribute, **attributes):
    """Opcodes that set attributes of a global object: BUILD takes a pair of dicts."""
    items = b''.join(
        text(key) + (b'\x88' if value is True else text(value))
        for key, value in attributes.items())
    return name(module, attribute) + b'q\x00N}(' + items + b'u\x86b'


@pytest.mark.parametrize('target', [
    ('torch._utils', '_rebuild_tensor_v2'), ('torch.storage', 'UntypedStorage'),
    ('mmengine', 'Config'), ('collections', 'OrderedDict')])
def test_no_file_is_written_and_nothing_changed(target, tmp_path, monkeypatch):
    """torch.load writes NAME.patch if a 'module' has dump_patches and another source."""
    monkeypatch.chdir(tmp_path)
    written = tmp_path / 'of_a_strangers_choice'
    body = change(*target, dump_patches=True, __name__=str(written)) + b'0(' + b''.join(
        [text('module'), b'h\x00', text('file.py'), text('a line of a stranger'), b'tQ'])
    path = tmp_path / 'evil.pth'
    module, attribute = target
    thing = getattr(importlib.import_module(module), attribute)
    before = thing.__name__
    for content in (legacy_file(opcodes(body)), zip_file(opcodes(body))):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_state_dict(path)
        assert thing.__name__ == before and not hasattr(thing, 'dump_patches')
        assert [p.name for p in tmp_path.iterdir()] == ['evil.pth']
    if attribute != 'UntypedStorage':
        return
    # A plain torch.load of the same file does write it.
    path.write_bytes(legacy_file(opcodes(body)))
    try:
        with pytest.warns(Warning):
            torch.load(path, weights_only=False)
        assert 'a line of a stranger' in written.with_suffix('.patch').read_text()
    finally:
        thing.__name__ = before
        del thing.dump_patches


def test_a_modules_source_is_never_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = b'(' + text('module') + name('torch.nn.modules.linear', 'Linear') + text(
        'file.py') + text('a line') + b'tQ'
    Path('evil.pth').write_bytes(legacy_file(opcodes(body)))
    with pytest.raises(UnsafeCheckpointError):
        read_state_dict('evil.pth')
    body = b'(' + text('module') + text('Linear') + text('file.py') + text('a line') + b'tQ'
    Path('evil.pth').write_bytes(legacy_file(opcodes(body)))
    with pytest.raises(UnsafeCheckpointError, match="persistent object .'module', 'Linear'"):
        read_state_dict('evil.pth')


PEAK = """
import json, resource, sys
from mmrest.safe_reading import read_state_dict
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
found = {}
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        words = f'taken: {list(read_state_dict(path))}'
    except ValueError as error:
        words = str(error)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found[path] = words, growth / 1024
print(json.dumps(found))
"""


def tensor_of(storage_elements, size, stride=1, offset=0, key='0'):
    """Opcodes of a dict with one tensor that claims these sizes."""
    def number(value):
        return b'J' + struct.pack('<i', value)

    return (b'}' + text('x') + name('torch._utils', '_rebuild_tensor_v2') + b'(('
            + text('storage') + b'ctorch\nFloatStorage\n' + text(key) + text('cpu')
            + number(storage_elements) + b'tQ' + number(offset) + number(size) + b'\x85'
            + number(stride) + b'\x85\x89'
            + name('collections', 'OrderedDict') + b')RtRs')


def bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', opcodes(tensor_of(2**26 - 1, 2**26 - 1)))
        archive.writestr('archive/version', '3\n')
        with archive.open('archive/data/0', 'w', force_zip64=True) as entry:
            for _ in range(256):
                entry.write(bytes(2**20))
    return file.getvalue()


def safetensors_file(header, content=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header) if length is None else length) + header + content


def entry(begin, end, shape=(2, )):
    return dict(dtype='F32', shape=list(shape), data_offsets=[begin, end])


HARMFUL = {
    'bomb.pth': (bomb, 'larger than the file'),
    'memo.pth': (lambda: zip_file(opcodes(b'}r' + struct.pack('<I', 2**29))),
                 'no named tensors'),
    # torch 2.1 reads it: a tensor of two elements.
    'storage.pth': (lambda: zip_file(opcodes(tensor_of(2**31 - 1, 2))), ''),
    'size.pth': (lambda: zip_file(opcodes(tensor_of(16, 2**31 - 1))), 'cannot be read'),
    'offset.pth': (lambda: zip_file(opcodes(tensor_of(16, 2, offset=-8))), 'cannot be read'),
    'stride.pth': (lambda: zip_file(opcodes(tensor_of(16, 16, 2**30))), 'cannot be read'),
    'allocate.pth': (lambda: zip_file(opcodes(
        name('torch.storage', 'UntypedStorage') + b'J' + struct.pack('<i', 2**31 - 1)
        + b'\x85R')), 'torch.storage.UntypedStorage'),
    'bytes.pth': (lambda: zip_file(opcodes(b'\x8e' + struct.pack('<Q', 2**40))),
                  'cannot be read'),
    'bytearray.pth': (lambda: zip_file(opcodes(b'\x96' + struct.pack('<Q', 2**40))),
                      'cannot be read'),
    'outside.pth': (lambda: zip_file(opcodes(tensor_of(16, 2, key='../../../etc/passwd'))),
                    'cannot be read'),
    'deep.pth': (lambda: zip_file(opcodes(b'(' * 2**18 + b'l' * 2**18)), 'no named tensors'),
    'long.safetensors': (lambda: safetensors_file(b' ' * 10, length=99 * 10**6),
                         'cannot be read'),
    'overlap.safetensors': (lambda: safetensors_file(
        dict(a=entry(0, 8), b=entry(4, 12)), bytes(12)), 'cannot be read'),
    'hole.safetensors': (lambda: safetensors_file(
        dict(a=entry(0, 8), b=entry(16, 24)), bytes(24)), 'cannot be read'),
    'range.safetensors': (lambda: safetensors_file(
        dict(a=entry(0, 2**40, (2**38, ))), bytes(8)), 'cannot be read'),
    'wrap.safetensors': (lambda: safetensors_file(
        dict(a=entry(0, 8, (2**62, 2**62))), bytes(8)), 'cannot be read'),
    'backwards.safetensors': (lambda: safetensors_file(
        dict(a=entry(8, 0)), bytes(8)), 'cannot be read'),
    'twice.safetensors': (lambda: safetensors_file(
        b'{"a":' + json.dumps(entry(0, 8)).encode() + b'}' * 2, bytes(8)), 'cannot be read'),
    'names.safetensors': (lambda: safetensors_file(
        {'../../etc/passwd': entry(0, 8)}, bytes(8)), 'is named like a path'),
    'backslash.safetensors': (lambda: safetensors_file(
        {'..\\\\x': entry(0, 8)}, bytes(8)), 'is named like a path'),
}


def test_files_that_lie_about_their_sizes(tmp_path):
    """Each is refused or harmless; a process measures its peak of memory after each file."""
    for kind, (make, _) in HARMFUL.items():
        (tmp_path / kind).write_bytes(make())
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', PEAK, *HARMFUL],
                          stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    failures = []
    for kind, (_, words) in HARMFUL.items():
        error, growth = found[kind]
        size = (tmp_path / kind).stat().st_size / 2**20
        if words not in error or growth > 32 + 64 * size:  # a byte can make a list
            failures.append(f'{kind}, {size:.2f} MB: {growth:.0f} MB, {error}')
    assert not failures, failures
    assert {p.name for p in tmp_path.iterdir()} == set(HARMFUL)


def test_names_in_a_zip_that_point_outside_write_nothing(tmp_path):
    inside = tmp_path / 'inside'
    inside.mkdir()
    path = inside / 'rest.pth'
    torch.save({'x': torch.arange(4.)}, path)
    with zipfile.ZipFile(path, 'a') as archive:
        for entry_name in ('../../outside', '/outside', 'archive/../../outside'):
            archive.writestr(entry_name, 'x')
    try:
        state = read_state_dict(path)
    except ValueError:
        state = {}
    assert set(state) <= {'x'}
    assert [p.name for p in tmp_path.rglob('*')] == ['inside', 'rest.pth']

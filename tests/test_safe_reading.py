"""Checkpoints of strangers: nothing runs or is written, memory is bounded, errors are plain.

And what mmengine, the published files and safetensors have in them is read as it was saved.
"""
import hashlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import LinearLR, MultiStepLR, OneCycleLR
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch.testing import assert_close

from mmrest import ResT
from mmrest.safe_reading import (
    UnsafeCheckpointError,
    read_checkpoint,
    read_state_dict,
    register_safe_loader,
)

from .models.models import ARCH
from .tiny_data import ROOT, write_classes

# Writing files


class Call:
    """Pickles as a call, whose function may be a call too."""

    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts

    def __call__(self):  # pickle wants a callable
        raise NotImplementedError


def dumps(thing):
    return pickle.dumps(thing, 2)  # torch.save's protocol


def text(words):
    return b'X' + struct.pack('<I', len(words.encode())) + words.encode()


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def number(value):
    return b'J' + struct.pack('<i', value)


def opcodes(body):
    return b'\x80\x02' + body + b'.'


def zip_file(payload, path, records=(('data/0', bytes(64)), )):
    """A file as torch.save writes it, with the pickle ``payload``."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for key, content in (('data.pkl', payload), ('byteorder', b'little'), *records):
        writer.write_record(key, content, len(content))
    writer.write_end_of_file()


def legacy_file(payload, path):
    """A file as torch.save wrote it before version 1.6."""
    head = dumps(0x1950a86a20f9469cfc6c) + dumps(1001)
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    path.write_bytes(head + dumps(system) + payload + dumps([]))


# Ways in


@pytest.fixture
def mmengine(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    return lambda path, **kwargs: (
        register_safe_loader(**kwargs), CheckpointLoader.load_checkpoint(str(path), 'cpu'))[1]


def by_init_cfg(path):
    init_cfg = [dict(type='mmengine.Pretrained', checkpoint=str(path))]
    ResT(ARCH, out_indices=(0, ), init_cfg=init_cfg).init_weights()


def by_head(path):
    head = torch.nn.Module()
    head.fc = torch.nn.Linear(2, 2)
    WEIGHT_INITIALIZERS.build(dict(type='ResTHead', checkpoint=str(path)))(head)


WEIGHTS = [by_init_cfg, by_head, read_state_dict, partial(read_checkpoint, weights_only=True)]


# Payloads: each makes a pickle that creates the file ``mark`` when pickle loads it


def touch(mark):
    """Code, and a shell's command."""
    return f"open({str(mark)!r}, 'w').close()", f'touch {mark}'


def globals_of_a_rebuild(mark):
    """Reaches eval by getattr alone, from a function that tensors need."""
    everything = Call(getattr, torch._utils._rebuild_tensor_v2, '__globals__')
    builtins = Call(Call(getattr, everything, '__getitem__'), '__builtins__')
    return Call(Call(Call(getattr, builtins, '__getitem__'), 'eval'), touch(mark)[0])


def tofile(mark):
    """A NumPy array equals the scheduler's class in it, and has methods that write files."""
    array = np.array([LinearLR, None], object)[:1]
    return Call(Call(getattr, array, 'tofile'), str(mark), ' ', '%s')


CODE = dict(
    system=lambda m: dumps(Call(os.system, touch(m)[1])),
    build_ordered_dict=lambda m: opcodes(
        name('collections', 'OrderedDict') + b')R}' + text('__setstate__')
        + name('os', 'system') + b'sb' + text(touch(m)[1]) + b'b'),
    inst=lambda m: opcodes(b'(' + text(touch(m)[1]) + b'ios\nsystem\n'),
    protocol_0=lambda m: f"cos\nsystem\n(S'{touch(m)[1]}'\ntR.".encode(),
    protocol_4=lambda m: pickle.dumps(Call(os.system, touch(m)[1]), 4),
    popped=lambda m: opcodes(name('os', 'system') + text(touch(m)[1]) + b'\x85R0N'),
    rebuild_globals=lambda m: dumps(globals_of_a_rebuild(m)),
    tofile=lambda m: dumps(tofile(m)),
)


@pytest.mark.parametrize('style', CODE)
def test_no_code_runs(style, mmengine, tmp_path):
    mark, path = tmp_path / f'ran_{style}', tmp_path / 'evil.pth'
    payload = CODE[style](mark)
    for write in (zip_file, legacy_file):
        write(payload, path)
        for way in (*WEIGHTS, read_checkpoint, mmengine, partial(mmengine, weights_only=True)):
            with pytest.raises(ValueError, match='[Ii]f you trust') as raised:
                way(path)
            assert not mark.exists(), way
            assert '\n' not in str(raised.value) and str(path) in str(raised.value)
    pickle.loads(payload)
    assert mark.exists(), 'this is no payload: plain pickle does not run it'


# Harm without code


def tensor_of(elements, size, stride=1, offset=0, key='0', legacy=b''):
    """Opcodes for a tensor that claims these sizes; ``legacy``: b'N', no view."""
    return (name('torch._utils', '_rebuild_tensor_v2') + b'((' + text('storage')
            + name('torch', 'FloatStorage') + text(key) + text('cpu') + number(elements)
            + legacy + b'tQ'
            + number(offset) + number(size) + b'\x85' + number(stride) + b'\x85\x89'
            + name('collections', 'OrderedDict') + b')RtR')


def one(tensor):
    return opcodes(b'}' + text('x') + tensor + b's')


def array(code):
    """Opcodes for a NumPy array of a dtype."""
    return (name('numpy._core.multiarray', '_reconstruct') + name('numpy', 'ndarray')
            + b'K\x00\x85' + text('b') + b'\x87R(K\x01K\x01\x85' + name('numpy', 'dtype')
            + text(code) + b'\x85R\x89(I1\nltb')


LAUGHS = text('lol') + b'q\x00' + b''.join(  # [x, x] of the one before
    b'0(h' + bytes([i]) + b'h' + bytes([i]) + b'lq' + bytes([i + 1]) for i in range(40))


def compressed_by_the_directory_alone(path):
    """The local headers say stored, the directory that PyTorch reads says deflated."""
    import zlib
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(2**26)) + packer.flush()
    zip_file(one(tensor_of(2**24, 2**24)), path, [('data/0', packed)])
    content = bytearray(path.read_bytes())
    at = content.rindex(b'data/0') - 46 - len('evil/')
    struct.pack_into('<H', content, at + 10, 8)
    struct.pack_into('<L', content, at + 24, 2**26)
    path.write_bytes(content)


def claimed_twice(path, keys=400):
    """One record of 1 MB under many keys, which PyTorch's reader takes for the same."""
    tensors = b''.join(text(f't{i}') + tensor_of(2**18, 2**18, key=''.join(
        'aA'[i >> bit & 1] for bit in range(12))) for i in range(keys))
    zip_file(opcodes(b'}(' + tensors + b'u'), path, [('data/' + 'a' * 12, bytes(2**20))])


def of_pickle(body, write=zip_file):
    return lambda path: write(opcodes(body), path)


def safetensors(header, content=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(
        struct.pack('<Q', len(header) if length is None else length) + header + content)


ENTRY = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
HARMFUL = dict(
    empty=lambda path: path.write_bytes(b''),
    cut=lambda path: path.write_bytes(b'PK\3\4' + bytes(50)),
    claimed_twice=claimed_twice,
    compressed_by_the_directory_alone=compressed_by_the_directory_alone,
    memo=of_pickle(b'}r' + struct.pack('<I', 2**31 - 1)),
    storage=lambda path: zip_file(one(tensor_of(2**31 - 1, 2**20)), path),
    legacy_storage=lambda path: legacy_file(
        one(tensor_of(2**31 - 1, 2, legacy=b'N')), path),
    size=lambda path: zip_file(one(tensor_of(16, 2**31 - 1)), path),
    offset=lambda path: zip_file(one(tensor_of(16, 2, offset=-8)), path),
    stride=lambda path: zip_file(one(tensor_of(16, 16, 2**30)), path),
    outside=lambda path: zip_file(
        one(tensor_of(16, 2, key='../../../etc/passwd')), path),
    allocate=of_pickle(name('torch.storage', 'UntypedStorage') + number(2**31 - 1) + b'\x85R'),
    bytes8=of_pickle(b'\x8e' + struct.pack('<Q', 2**40)),
    long_text=of_pickle(b'X' + struct.pack('<I', 2**32 - 1)),
    deep=of_pickle(b'(' * 2**18 + b'l' * 2**18),
    **{f'{kind}_of_rows': of_pickle(name(place, kind) + tensor_of(16, 10**7, 0) + b'\x85R')
       for kind, place in dict(set='builtins', Counter='collections', Size='torch',
                               OrderedDict='collections').items()},
    rows_as_arguments=of_pickle(name('builtins', 'set') + tensor_of(16, 10**7, 0) + b'R'),
    rows_as_state=of_pickle(
        name('collections', 'OrderedDict') + b')R' + tensor_of(16, 10**7, 0) + b'b'),
    more_than_its_record=lambda path: zip_file(one(tensor_of(20, 20)), path),
    changed=lambda path: (torch.save({'x': torch.arange(999.)}, path), path.write_bytes(
        path.read_bytes().replace(struct.pack('<f', 700), struct.pack('<f', 701)))),
    text_as_history=of_pickle(
        name('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81}('
        + text('max_length') + b'K\x05' + text('_log_history') + text('a')
        + text('_count_history') + text('a') + b'ub'),
    call_of_a_scheduler=of_pickle(name(
        'mmengine.optim.scheduler.lr_scheduler', 'CosineRestartLR') + b')R'),
    laughs=of_pickle(LAUGHS),
    laughs_as_persistent_id=of_pickle(LAUGHS + b'Q'),
    module_as_persistent_id=of_pickle(
        b'(' + text('module') + text('Linear') + text('file.py') + text('a line') + b'tQ'),
    change_of_a_class=of_pickle(name('torch', 'device') + b'N}(' + text('x') + b'\x88u\x86b'),
    objects=of_pickle(array('O8')), structure=of_pickle(array('V16')),
    forged=of_pickle(b'}' + text('x') + name('numpy', 'ndarray') + b'K\x01\x85' + name(
        'numpy', 'dtype') + text('O8') + b'\x85R' + text('AAAAAAAA') + b'\x87Rs'),
    dunder=of_pickle(name('builtins', 'getattr') + name(
        'mmengine.logging.history_buffer', 'HistoryBuffer') + text('__init__') + b'\x86R'),
    long_header=safetensors(b'{' + b' ' * 10, length=99 * 10**6),
    path=safetensors({'../../etc/passwd': ENTRY}, bytes(8)),
    backslash=safetensors({'..\\\\x': ENTRY}, bytes(8)),
    nothing=safetensors({}))

PEAK = """
import json, resource, sys
from mmrest.safe_reading import read_checkpoint, read_state_dict
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {}
for path in sys.argv[1:]:
    before, said = peak(), []
    for read in (read_state_dict, read_checkpoint):
        try:
            said.append(f'taken: {type(read(path))}')
        except ValueError as error:
            said.append(str(error))
    found[path] = said, peak() - before
print(json.dumps(found))
"""


def test_files_that_lie_are_refused_within_their_size(tmp_path):
    """A process reads each of them, and measures its peak of memory after it."""
    for kind, make in HARMFUL.items():
        make(tmp_path / kind)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', PEAK, *HARMFUL],
                          stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0
    failures = []
    for kind, (said, growth) in json.loads(done.stdout.splitlines()[-1]).items():
        size = (tmp_path / kind).stat().st_size / 2**20
        words = said[0]
        plain = f"checkpoint='{kind}'" in words and len(words) < 350 and words.isprintable()
        if not plain or growth > 32 + 64 * size:  # a byte of a pickle can make a list
            failures.append(f'{kind}, {size:.2f} MB: {growth:.0f} MB, {said}')
    assert not failures, '\n'.join(failures)
    assert {p.name for p in tmp_path.iterdir()} == set(HARMFUL)  # nothing was written


@pytest.mark.parametrize('words', ['os\x1b[2J\x1b]0;title\x07All is well', 'm' * 10**6])
def test_errors_are_one_plain_line(words, tmp_path):
    zip_file(opcodes(name(words, 'x')), tmp_path / 'evil.pth')
    with pytest.raises(UnsafeCheckpointError) as raised:
        read_state_dict(tmp_path / 'evil.pth')
    assert len(str(raised.value)) < 500 and str(raised.value).isprintable()


def test_torchscript_is_refused_with_any_tail(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    whole = path.read_bytes()
    for tail, words in ((b'', 'TorchScript code'), (b'PK\5\6', 'end'), (bytes(30), 'end')):
        path.write_bytes(whole + tail)
        for read in (read_state_dict, read_checkpoint):
            with pytest.raises(ValueError, match=words):
                read(path)


@pytest.mark.parametrize('kind', ['safetensors', 'pth', 'legacy.pth'])
@pytest.mark.parametrize('count', [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_bytes_are_a_sentence_or_load(kind, count, tmp_path):
    weights = {'a': torch.arange(6.), 'b': torch.ones(2, 3, dtype=torch.int64)}
    path = tmp_path / f'weights.{kind}'
    if kind == 'safetensors':
        from safetensors.torch import save_file
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == 'pth')
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged[:rng.choice([None, rng.randrange(len(whole))])])
        try:
            read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


def test_a_legacy_file_that_fills_no_storage_gives_zeros(tmp_path):
    legacy_file(one(tensor_of(16, 16, legacy=b'N')), tmp_path / 'a.pth')
    assert_close(read_state_dict(tmp_path / 'a.pth')['x'], torch.zeros(16), rtol=0, atol=0)


def test_mmengine_gets_no_code_and_no_files_of_others_to_remove(tmp_path):
    """Runner.resume runs meta['config'], and CheckpointHook removes best_ckpt."""
    best = dict(best_ckpt=str(tmp_path / 'best_acc.pth'), best_ckpt_a='/elsewhere/best_a.pth',
                best_ckpt_b=str(tmp_path / 'diary.txt'), it=1)
    torch.save(dict(state_dict={}, meta=dict(config='import os', cfg='text'),
                    message_hub=dict(runtime_info=best)), tmp_path / 'a.pth')
    found = read_checkpoint(str(tmp_path / 'a.pth'))
    assert found['meta'] == dict(cfg='text')
    assert found['message_hub']['runtime_info'] == dict(best_ckpt=best['best_ckpt'], it=1)


def test_attributes_do_not_replace_methods(tmp_path):
    state = b'}(' + text('items') + text('a') + text('_metadata') + text('b') + b'ub'
    zip_file(opcodes(b'}' + text('state_dict') + name('collections', 'OrderedDict') + b')R'
                     + text('x') + tensor_of(16, 2) + b's' + state + b's'), tmp_path / 'a.pth')
    found = read_checkpoint(str(tmp_path / 'a.pth'))['state_dict']
    assert vars(found) == dict(_metadata='b') and [*found.items()][0][0] == 'x'
    assert read_state_dict(tmp_path / 'a.pth').keys() == {'x'}


def test_threads_do_not_take_the_names_from_one_another(tmp_path):
    torch.save(dict(args=Namespace(a=1), model=dict(x=torch.ones(2))), tmp_path / 'a.pth')
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(read_state_dict, [tmp_path / 'a.pth'] * 80)]
    assert all(state['x'].sum() == 2 for state in found)


# What is read


@pytest.fixture
def checkpoint():
    """As mmengine saves one after two steps, with a compiled model's names."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedulers = [OneCycleLR(optimizer, eta_max=1., total_steps=9),
                  LinearLR(optimizer, start_factor=0.1),
                  MultiStepLR(optimizer, milestones=[3, 5])]
    history = HistoryBuffer(max_length=5)
    for value in (1.5, 2.5):
        model(torch.rand(4, 2)).sum().backward()
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        history.update(value)
    return dict(
        meta=dict(iter=2, seed=np.int64(7), mean=np.float32(0.5), flag=np.bool_(1),
                  table=np.eye(2)),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[scheduler.state_dict() for scheduler in schedulers],
        message_hub=dict(log_scalars={'train/loss': history}))


@pytest.mark.parametrize('legacy', [False, True])
def test_all_that_a_run_resumes_from_is_there(checkpoint, legacy, mmengine, tmp_path):
    path = str(tmp_path / 'iter_2.pth')
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    for way in (read_checkpoint, mmengine):
        found = way(path)
        for part in ('state_dict', 'optimizer'):
            assert_close(found[part], checkpoint[part], rtol=0, atol=0)
        assert found['state_dict']._metadata == checkpoint['state_dict']._metadata
        assert found['param_schedulers'] == checkpoint['param_schedulers']
        history = found['message_hub']['log_scalars']['train/loss']
        assert (history.mean(2), history.current(), history.max_length) == (2.0, 2.5, 5)
        history.update(3.5)
        assert history.mean(3) == 2.5 and type(history) is HistoryBuffer
        meta = dict(checkpoint['meta'])
        np.testing.assert_array_equal(found['meta'].pop('table'), meta.pop('table'))
        assert found['meta'] == meta
        assert {k: type(v) for k, v in found['meta'].items()} == {
            k: type(v) for k, v in meta.items()}
    torch.save(found, path)  # and again, as a resumed run does
    assert_close(read_state_dict(path), dict(checkpoint['state_dict']), rtol=0, atol=0)


def test_an_array_of_another_byte_order(tmp_path):
    torch.save(dict(a=np.array([1, 2], '>i4'), b=np.array([[1., 2.]], '<f2', order='F')),
               tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert (found['a'].tolist(), found['b'].tolist()) == ([1, 2], [[1., 2.]])


@pytest.mark.parametrize('legacy', [False, True])
def test_what_stands_beside_weights_is_left(legacy, tmp_path):
    state = OrderedDict(x=torch.arange(3.), y=torch.nn.Parameter(torch.ones(2)),
                        z=torch.ones(2, dtype=torch.bfloat16), i=torch.arange(2))
    state['view'] = state['x'][1:]
    beside = dict(
        args=Namespace(path=Path('a'), when=datetime(2026, 1, 1)), cfg=ConfigDict(a=1),
        found=defaultdict(list, a=[1]), queue=deque([1], 3), names={'a', 'b'}, part=slice(2),
        z=1j, score=np.float64(1), table=np.array([1, 'a'], object), text=b'bytes')
    path = tmp_path / 'rest.pth'
    torch.save(dict(model=state, **beside), path, _use_new_zipfile_serialization=not legacy)
    found = read_state_dict(path)
    assert_close(found, {k: v.detach() for k, v in state.items()}, rtol=0, atol=0)
    path.write_bytes(bytes(path.stat().st_size))  # the file may be overwritten
    assert_close(found['x'], torch.arange(3.), rtol=0, atol=0)


@pytest.mark.parametrize('names', [
    'module.{}', '_orig_mod.{}', 'module._orig_mod.{}', '_orig_mod.module.{}'])
def test_wrappers_in_names_are_dropped(names, mmengine, tmp_path):
    want = {'backbone.stem.weight': torch.ones(2), 'head.bias': torch.zeros(1)}
    torch.save(dict(state_dict={names.format(k): v for k, v in want.items()}), tmp_path / 'a')
    assert_close(read_state_dict(tmp_path / 'a'), want)
    both = {**want, **{f'_orig_mod.{k}': v for k, v in want.items()}}
    torch.save(dict(state_dict=both), tmp_path / 'a')
    with pytest.raises(ValueError, match='with and without _orig_mod'):
        read_state_dict(tmp_path / 'a')
    compiled = {k.replace('backbone.', 'backbone._orig_mod.'): v for k, v in want.items()}
    torch.save(dict(state_dict=compiled), tmp_path / 'a')
    assert_close(read_state_dict(tmp_path / 'a'), want)
    assert_close(mmengine(tmp_path / 'a')['state_dict'], want)


def test_tensors_go_where_they_are_asked_to(tmp_path):
    torch.save(dict(x=torch.ones(2)), tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth', torch.device('meta'))
    assert found['x'].device.type == 'meta'


def test_other_protocols_say_how_to_save_again(tmp_path):
    torch.save(dict(x=torch.ones(2), b=b'b'), tmp_path / 'a.pth', pickle_protocol=3)
    with pytest.raises(ValueError, match=r'protocol 3, torch.save has 2.*save it again: '):
        read_state_dict(tmp_path / 'a.pth')


def test_safetensors_whatever_the_file_is_called(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    save_file(dict(x=torch.arange(3.)), tmp_path / 'weights.bin', metadata=dict(a='no tensor'))
    assert_close(read_state_dict(tmp_path / 'weights.bin'), dict(x=torch.arange(3.)))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        read_state_dict(tmp_path / 'weights.bin')


# Addresses


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Addresses of files in ``tmp_path``, what was asked for, and an empty hub cache."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):

        def log_request(self, *args):
            asked.append(self.path)

        def do_GET(self):
            if 'half' in self.path or 'number' in self.path:  # the connection ends early
                self.send_response(200)
                self.send_header('Content-Length', '1000' if 'half' in self.path else 'abc')
                self.end_headers()
                self.wfile.write(b'PK')
            else:
                super().do_GET()

    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()


def test_each_address_is_fetched_once_and_kept_apart(server, mmengine, tmp_path):
    address, asked = server
    for i, folder in enumerate('ab'):
        (tmp_path / folder).mkdir()
        torch.save(dict(x=torch.tensor(float(i))), tmp_path / folder / 'model.bin')
    for _ in range(2):
        for i, folder in enumerate('ab'):
            assert read_state_dict(f'{address}/{folder}/model.bin')['x'] == i
            assert mmengine(f'{address}/{folder}/model.bin')['x'] == i
    assert asked == ['/a/model.bin', '/b/model.bin']
    user = address.replace('//', '//user:secret@')
    for url in (f'{address}/a/model.bin?token=one', f'{user}/a/model.bin',
                f'{address}/a/model.bin?v=1'):
        read_state_dict(url)
    assert asked[2:] == ['/a/model.bin?v=1']  # a token says who asks, not what for
    names = sorted(p.name for p in (tmp_path / 'torch/hub/checkpoints').iterdir())
    assert len(names) == 3 and all(n.endswith('-model.bin') for n in names), names
    digest = hashlib.sha256(f'{address}/a/model.bin'.encode()).hexdigest()[:16]
    assert f'{digest}-model.bin' in names
    assert read_state_dict((tmp_path / 'b/model.bin').as_uri())['x'] == 1


def test_addresses_that_cannot_be_read_are_a_sentence(server, tmp_path):
    address, asked = server
    (tmp_path / 'damaged.pth').write_bytes(b'PK damaged')
    for url, error, words in (
            (f'{address}/none.pth', OSError, "none.pth' cannot be fetched: HTTP Error 404"),
            ('http://127.0.0.1:9/none.pth', OSError, "none.pth' cannot be fetched: .*refused"),
            (f'{address}/half.pth', OSError, "half.pth' cannot be fetched: .*incomplete"),
            (f'{address}/number.pth', OSError, "number.pth' cannot be fetched: invalid"),
            (f'{address}/a b.pth', OSError, "a b.pth' cannot be fetched"),
            (address.replace('//', '//me:secret@') + '/none.pth?token=x', OSError,
             "'http://127[^@]*/none.pth' cannot"),
            (f'{address}/damaged.pth', ValueError, r"damaged.pth' \(the file .*checkpoints"),
            ('file:///none.pth', FileNotFoundError, "file:///none.pth': no such file"),
            ('torchvision://resnet18', ValueError, 'its address must begin with one of')):
        with pytest.raises(error, match=words):
            read_state_dict(url)
    assert len(list((tmp_path / 'torch/hub/checkpoints').iterdir())) == 1  # the damaged one


@pytest.mark.parametrize('script, args', [
    ('test.py', ['evil.pth']), ('train.py', ['--resume', 'evil.pth']),
    ('infer.py', ['evil.pth', 'data/val/0'])])
def test_scripts_run_no_code_from_a_checkpoint(script, args, tmp_path):
    mark = tmp_path / 'ran'
    torch.save(dict(state_dict={}, extra=Call(os.system, f'touch {mark}')),
               tmp_path / 'evil.pth')
    for split in ('train', 'val'):
        write_classes(tmp_path / 'data' / split, names='0123456789', each=1)
    if script != 'infer.py':
        args = args + ['--work-dir', 'out', '--cfg-options', *(
            f'{split}_dataloader.dataset.data_root=data' for split in ('train', 'val', 'test'))]
    config = ROOT / 'configs/classification/rest_lite_digits.py'
    run = subprocess.run([sys.executable, ROOT / 'tools' / script, config, *args], text=True,
                         capture_output=True, cwd=tmp_path)
    assert run.returncode == 1
    assert 'system in it, which weights do not need; no code in it was run' in run.stderr
    assert not mark.exists()

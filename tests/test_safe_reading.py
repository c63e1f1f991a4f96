"""Whole checkpoints of mmengine are read without running code from the file."""
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import LinearLR, MultiStepLR, OneCycleLR
from mmengine.runner import CheckpointLoader
from torch.testing import assert_close

from mmrest import safe_reading
from mmrest.safe_reading import (
    UnsafeCheckpointError,
    read_checkpoint,
    read_state_dict,
    register_safe_loader,
)

from .torture.training import ROOT, Run


class Payload:

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def checkpoint():
    """As mmengine saves one after two steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3)
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
        meta=dict(iter=2, seed=np.int64(7), mean=np.float32(0.5), table=np.eye(2)),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[scheduler.state_dict() for scheduler in schedulers],
        message_hub=dict(log_scalars={'train/loss': history}))


@pytest.mark.parametrize('legacy', [False, True])
def test_all_that_a_run_resumes_from_is_there(checkpoint, legacy, tmp_path):
    path = str(tmp_path / 'iter_2.pth')
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    for part in ('state_dict', 'optimizer'):
        assert_close(found[part], checkpoint[part], rtol=0, atol=0)
    assert found['param_schedulers'] == checkpoint['param_schedulers']
    history = found['message_hub']['log_scalars']['train/loss']
    assert (history.mean(2), history.current(), history.max_length) == (2.0, 2.5, 5)
    np.testing.assert_array_equal(found['meta'].pop('table'), checkpoint['meta'].pop('table'))
    assert found['meta'] == checkpoint['meta']


@pytest.fixture
def safely():
    schemes = dict(CheckpointLoader._schemes)
    register_safe_loader()
    yield
    CheckpointLoader._schemes.clear()
    CheckpointLoader._schemes.update(schemes)


@pytest.mark.parametrize('payload', [
    lambda mark: Payload(os.system, f'touch {mark}'),
    lambda mark: Payload(eval, f"open({mark!r}, 'w').close()"),
    lambda mark: Payload(getattr, HistoryBuffer, '__init__'),
    lambda mark: Payload(np.random.mtrand._rand.shuffle, [mark]),
])
def test_mmengine_refuses_code(payload, checkpoint, safely, tmp_path):
    mark, path = str(tmp_path / 'ran'), str(tmp_path / 'evil.pth')
    torch.save(dict(checkpoint, extra=payload(mark)), path)
    with pytest.raises(UnsafeCheckpointError, match='no code in it was run'):
        CheckpointLoader.load_checkpoint(path, map_location='cpu')
    assert not os.path.exists(mark)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Addresses of files in ``tmp_path``, what was asked for, and an empty hub cache."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):

        def log_request(self, *args):
            asked.append(self.path)

    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()


def test_addresses(server, checkpoint, safely, tmp_path):
    """By init_cfg and by MMEngine's loader; over HTTP once; no code runs."""
    address, asked = server
    torch.save(checkpoint, tmp_path / 'weights.pth')
    want = checkpoint['state_dict']
    for _ in range(2):
        assert_close(read_state_dict(f'{address}/weights.pth?name=1'), want)
    assert_close(read_state_dict((tmp_path / 'weights.pth').as_uri()), want)
    for url in (f'{address}/weights.pth', (tmp_path / 'weights.pth').as_uri()):
        found = CheckpointLoader.load_checkpoint(url, map_location='cpu')
        assert_close(found['state_dict'], want)
    assert asked == ['/weights.pth?name=1']
    assert [p.name for p in (tmp_path / 'torch/hub/checkpoints').iterdir()] == ['weights.pth']
    mark = tmp_path / 'ran'
    torch.save(dict(a=Payload(os.system, f'touch {mark}')), tmp_path / 'evil.pth')
    with pytest.raises(UnsafeCheckpointError, match='http://.*no code in it was run'):
        CheckpointLoader.load_checkpoint(f'{address}/evil.pth')
    assert not mark.exists()


def test_addresses_that_cannot_be_read_are_a_sentence(server, tmp_path):
    address, asked = server
    (tmp_path / 'damaged.pth').write_bytes(b'PK damaged')
    for url, error, words in (
            (f'{address}/none.pth', OSError, "none.pth' cannot be fetched: HTTP Error 404"),
            ('http://127.0.0.1:9/none.pth', OSError, "none.pth' cannot be fetched: .*refused"),
            (f'{address}/damaged.pth', ValueError, r"damaged.pth' \(the file .*checkpoints"),
            ('file:///none.pth', FileNotFoundError, "file:///none.pth': no such file"),
            ('torchvision://resnet18', ValueError, 'its address must begin with one of')):
        with pytest.raises(error, match=words):
            read_state_dict(url)


def test_numbers_that_numpy_would_unpickle_are_refused():
    with pytest.raises(UnsafeCheckpointError, match='object_'):
        safe_reading._scalar(np.dtype(object), b'anything')


@pytest.mark.parametrize('script, args', [
    ('test.py', ['evil.pth']), ('train.py', ['--resume', 'evil.pth']),
    ('infer.py', ['evil.pth', 'data/val/0'])])
def test_scripts_run_no_code_from_a_checkpoint(script, args, tmp_path):
    mark = tmp_path / 'ran'
    torch.save(dict(state_dict={}, extra=Payload(os.system, f'touch {mark}')),
               tmp_path / 'evil.pth')
    for split in ('train', 'val'):
        for digit in range(10):
            folder = tmp_path / 'data' / split / str(digit)
            folder.mkdir(parents=True)
            (folder / '0.png').touch()
    if script != 'infer.py':
        args = args + ['--work-dir', 'out', '--cfg-options', *(
            f'{split}_dataloader.dataset.data_root=data' for split in ('train', 'val', 'test'))]
    config = ROOT / 'configs/classification/rest_lite_digits.py'
    run = Run(tmp_path, config, *args, script=ROOT / 'tools' / script)
    assert run.wait() == 1
    assert 'system in it, which weights do not need; no code in it was run' in run.text()
    assert not mark.exists()

"""MMEngine's CheckpointHook with the backend 'whole'."""
import os
from types import SimpleNamespace

import mmengine.runner.checkpoint as mm
import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import HOOKS

import mmrest.engine  # noqa: F401


def runner(folder):
    """What the hook sees of a Runner."""
    def save_checkpoint(out_dir, filename, *args, backend_args=None, **kwargs):
        weights = dict(w=torch.ones(1000), name=filename)
        mm.save_checkpoint(weights, f'{out_dir}/{filename}', backend_args=backend_args)

    return SimpleNamespace(
        work_dir=str(folder), logger=MMLogger.get_instance('hooks'), iter=0, epoch=0,
        message_hub=MessageHub('hooks'), save_checkpoint=save_checkpoint)


def saved(folder, steps, **options):
    """The hook after checkpoints of so many epochs."""
    this = runner(folder)
    hook = CheckpointHook(interval=1, backend_args=dict(backend='whole'), **options)
    hook.before_train(this)
    for step in range(steps):
        this.epoch = step
        hook._save_checkpoint(this)
    this.epoch = steps
    return hook, this


def full_disk(*args):
    raise OSError(28, 'No space left on device')


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_outdated_checkpoint_is_removed_when_the_new_one_is_whole(tmp_path, monkeypatch):
    hook, this = saved(tmp_path, 2, max_keep_ckpts=1)
    assert names(tmp_path) == ['epoch_2.pth', 'last_checkpoint']
    before = (tmp_path / 'epoch_2.pth').read_bytes()
    writes = []

    def full(fd):
        writes.append(names(tmp_path))
        full_disk()

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        hook._save_checkpoint(this)
    assert writes == [['epoch_2.pth', 'epoch_3.pth.partial', 'last_checkpoint']]
    assert names(tmp_path) == ['epoch_2.pth', 'last_checkpoint']
    assert (tmp_path / 'epoch_2.pth').read_bytes() == before
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_2.pth')


def test_the_best_one_stays_until_a_better_one_is_whole(tmp_path, monkeypatch):
    hook, this = saved(tmp_path, 1, save_best='acc')
    hook.after_val_epoch(this, dict(acc=0.5))
    assert 'best_acc_epoch_1.pth' in names(tmp_path)
    this.epoch = 2
    hook.after_val_epoch(this, dict(acc=0.7))
    assert 'best_acc_epoch_2.pth' in names(tmp_path)
    assert 'best_acc_epoch_1.pth' not in names(tmp_path)
    this.epoch = 3
    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(OSError, match='No space left'):
        hook.after_val_epoch(this, dict(acc=0.8))
    assert 'best_acc_epoch_2.pth' in names(tmp_path)


def test_after_an_error_nothing_is_removed_later(tmp_path, monkeypatch):
    """The next run of the process, in another folder, is not to remove it."""
    hook, this = saved(tmp_path / 'a', 1, max_keep_ckpts=1)
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(os, 'replace', full_disk)
        hook._save_checkpoint(this)
    saved(tmp_path / 'b', 1)
    assert names(tmp_path / 'a') == ['epoch_1.pth', 'last_checkpoint']


def test_a_checkpoint_that_always_has_one_name_is_kept(tmp_path):
    _, this = saved(tmp_path, 3, max_keep_ckpts=1, filename_tmpl='latest.pth')
    assert names(tmp_path) == ['last_checkpoint', 'latest.pth']
    assert torch.load(tmp_path / 'latest.pth')['name'] == 'latest.pth'


def test_another_backend_that_saves_keeps_one_more(tmp_path):
    """FlexibleRunner's strategies save without the hook's backend, which removes alone."""
    backend = get_file_backend(backend_args=dict(backend='whole'))
    other = tmp_path / 'other' / 'a.pth'  # of a run that ended before it saved again
    other.parent.mkdir()
    other.touch()
    backend.remove(str(other))
    for i in range(4):
        if i:
            backend.remove(str(tmp_path / f'{i - 1}.pth'))
        (tmp_path / f'{i}.pth').touch()
    assert names(tmp_path) == ['2.pth', '3.pth', 'other'] and other.exists()


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / 'epoch_9.pth.partial').write_bytes(b'half')
    saved(tmp_path, 1)
    assert names(tmp_path) == ['epoch_1.pth', 'last_checkpoint']


def test_another_storage_needs_another_backend():
    """LocalBackend makes a folder called 's3:'."""
    backend = get_file_backend(backend_args=dict(backend='whole'))
    with pytest.raises(ValueError, match="out_dir='s3://bucket' is not a local folder"):
        backend.join_path('s3://bucket', 'run')


def test_the_name_in_configs_of_0_1_0():
    hook = HOOKS.build(dict(type='WholeCheckpointHook', interval=3, max_keep_ckpts=2))
    assert hook.backend_args == dict(backend='whole')
    assert (hook.interval, hook.max_keep_ckpts) == (3, 2)

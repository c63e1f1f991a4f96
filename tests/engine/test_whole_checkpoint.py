import os
from types import SimpleNamespace

import mmengine.runner.checkpoint as mm
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger

from mmrest.engine import WholeCheckpointHook
from mmrest.engine.whole_checkpoint import WholeFiles, _fault


def runner(folder, resume=False):
    """What the hook sees of a Runner; its checkpoints hold their own step."""
    def save_checkpoint(out_dir, filename, *args, backend_args=None, **kwargs):
        weights = dict(w=torch.full((1000, ), float(len(os.listdir(out_dir)))), name=filename)
        mm.save_checkpoint(weights, f'{out_dir}/{filename}', backend_args=backend_args)

    return SimpleNamespace(
        work_dir=str(folder), logger=MMLogger.get_instance('hooks'), _resume=resume,
        _load_from=None, message_hub=MessageHub('hooks'), iter=0, epoch=0,
        save_checkpoint=save_checkpoint)


def saved(folder, steps, **options):
    """The hook after checkpoints of so many epochs."""
    this = runner(folder)
    hook = WholeCheckpointHook(interval=1, **options)
    hook.before_train(this)
    for step in range(steps):
        this.epoch = step
        hook._save_checkpoint(this)
    this.epoch = steps
    return hook, this


def full_disk(*args):
    raise OSError(28, 'full')


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_outdated_ones_go_after_the_new_one_is_there(tmp_path, monkeypatch):
    hook, this = saved(tmp_path, 2, max_keep_ckpts=1)
    assert names(tmp_path) == ['epoch_2.pth', 'last_checkpoint']
    before = (tmp_path / 'epoch_2.pth').read_bytes()
    writes = []

    def full(fd):
        writes.append(names(tmp_path))
        raise OSError(28, 'No space left on device')

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
    with pytest.raises(OSError, match='full'):
        hook.after_val_epoch(this, dict(acc=0.8))
    assert 'best_acc_epoch_2.pth' in names(tmp_path)


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / 'epoch_9.pth.partial').write_bytes(b'half')
    saved(tmp_path, 1)
    assert names(tmp_path) == ['epoch_1.pth', 'last_checkpoint']


BREAK = {
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-500]),
    'empty': lambda path: path.write_bytes(b''),
    'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'gone': lambda path: path.unlink(),
    'pointer': lambda path: (path.parent / 'last_checkpoint').write_text(''),
}


@pytest.mark.parametrize('kind', BREAK)
def test_the_last_whole_one_is_taken(kind, tmp_path, caplog):
    saved(tmp_path, 11)  # 10 follows 9, not 1
    (tmp_path / 'epoch_12.pth').write_bytes(b'of another run')
    BREAK[kind](tmp_path / 'epoch_11.pth')
    this = runner(tmp_path, resume=True)
    this.logger.addHandler(caplog.handler)
    WholeCheckpointHook(interval=1).before_run(this)
    expected = 'epoch_11.pth' if kind == 'pointer' else 'epoch_10.pth'
    assert mm.find_latest_checkpoint(str(tmp_path)) == str(tmp_path / expected)
    named = 'last_checkpoint' if kind == 'pointer' else 'epoch_11.pth'
    assert f'{named} is passed over' in caplog.text


def test_nothing_whole_is_an_error_and_nothing_at_all_a_new_run(tmp_path):
    hook = WholeCheckpointHook(interval=1)
    hook.before_run(runner(tmp_path, resume=True))
    assert not names(tmp_path)
    saved(tmp_path, 1)
    BREAK['cut'](tmp_path / 'epoch_1.pth')
    with pytest.raises(RuntimeError, match='no whole checkpoint in .* remove .*last_check'):
        hook.before_run(runner(tmp_path, resume=True))


def test_changed_bytes_of_weights_are_noticed(tmp_path):
    """torch.load takes them as they are."""
    path = tmp_path / 'a.pth'
    torch.save(dict(w=torch.ones(1000)), path)
    assert _fault(path) is None
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(9).numpy().tobytes())
    content[at + 2] ^= 1
    path.write_bytes(content)
    assert 'wrong checksum' in _fault(path) or 'CRC' in _fault(path)
    assert not torch.equal(torch.load(path, weights_only=True)['w'], torch.ones(1000))


def test_a_file_is_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / 'folder/file'
    WholeFiles().put(b'old', path)
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError):
        WholeFiles().put(b'new', path)
    assert path.read_bytes() == b'old' and names(tmp_path / 'folder') == ['file']

"""A file is written whole or not at all."""
import errno
import os
from pathlib import Path

import pytest

from mmrest.files import write_whole


def test_content_and_folders_are_written(tmp_path):
    path = tmp_path / 'a/b/file.txt'
    for content in (b'old', b'', b'new\r\n\0'):
        write_whole(str(path), content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_link_leads_to_what_is_written(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/file').write_bytes(b'old')
    for name in ('folder', 'folder/file'):
        (tmp_path / f'to {Path(name).name}').symlink_to(name)
    write_whole(tmp_path / 'to file', b'new')
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / 'to folder', b'x')
    assert (tmp_path / 'folder/file').read_bytes() == b'new'
    assert (tmp_path / 'to file').is_symlink() and (tmp_path / 'to folder').is_symlink()
    assert len(list(tmp_path.rglob('*'))) == 4


def test_a_process_may_die_at_any_time(tmp_path, monkeypatch):
    """The old file stays until the new one is on the disk, whole."""
    path, seen = tmp_path / 'file.txt', []
    write_whole(path, b'old')
    for function in (os.fsync, os.replace):
        def spy(*args, function=function):
            beside, = (p for p in tmp_path.iterdir() if p != path)
            seen.append((function.__name__, path.read_bytes(), beside.read_bytes()))
            return function(*args)
        monkeypatch.setattr(os, function.__name__, spy)
    write_whole(path, b'new')
    assert seen == [('fsync', b'old', b'new'), ('replace', b'old', b'new')]
    assert path.read_bytes() == b'new'


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'file.txt'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=f'No space left .*{path}'):
        write_whole(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / 'folder', b'x')
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / 'file/x', b'x')
    assert {p.name for p in tmp_path.iterdir()} == {'folder', 'file'}

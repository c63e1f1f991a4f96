"""Checkpoints that appear whole or not at all, and resuming from the last whole one."""
import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional, Union

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


class WholeFiles(LocalBackend):
    """Local storage where a file has its old content or all of the new one."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write ``obj`` beside ``filepath``, then rename.

        Raises:
            OSError: It cannot be written; what was at ``filepath`` is still there.
        """
        partial = f'{filepath}.partial'
        os.makedirs(os.path.dirname(partial), exist_ok=True)
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if os.path.exists(partial):  # the disk is full: leave room for the next try
                os.remove(partial)
            raise
        os.replace(partial, filepath)


register_backend('whole', WholeFiles)


class _RemoveLater:
    """A storage backend that only notes what it is to remove."""

    def __init__(self, backend):
        self.backend = backend
        self.outdated: List[str] = []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for runs that are killed and disks that fill up.

    A local checkpoint gets its name when it is whole on disk. Outdated ones
    (``max_keep_ckpts``, ``save_best``) are removed after that, not before, so there is
    room needed for one more. Resuming without naming a checkpoint passes over files that
    are not whole, with a warning, and takes the one before.

    Args:
        kwargs (dict): See :class:`mmengine.hooks.CheckpointHook`.
    """

    def before_run(self, runner) -> None:
        """Let work_dir/last_checkpoint name a whole checkpoint, where one is looked for.

        Raises:
            RuntimeError: There is a last_checkpoint, but no checkpoint is whole.
        """
        # As in Runner.load_or_resume, which comes next.
        if runner._resume and runner._load_from is None:
            if is_main_process():
                self._name_whole_checkpoint(runner)
            barrier()

    def before_train(self, runner) -> None:
        """Take :class:`WholeFiles` as the storage, unless the user chose another one."""
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='whole')
        super().before_train(runner)
        if local and is_main_process():
            for partial in Path(self.out_dir).glob('*.pth.partial'):  # of a run that was killed
                partial.unlink()

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """What is removed inside stays until the block has ended without an error."""
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        for path in later.outdated:
            backend.remove(path)

    def _name_whole_checkpoint(self, runner) -> None:
        pointer = Path(runner.work_dir, 'last_checkpoint')
        if not pointer.exists():  # a new run
            return
        named = pointer.read_text().strip()
        if '://' in named or os.path.isdir(named):  # other storage, DeepSpeed's folders
            return
        folder = Path(runner.work_dir)
        if self.out_dir is not None:
            folder = Path(self.out_dir, folder.name)
        for path in [named, *self._checkpoints_before(named, folder)]:
            fault = _fault(path)
            if fault is None:
                break
            runner.logger.warning(
                f'{path or pointer} is passed over: it is no whole checkpoint ({fault})')
        else:
            raise RuntimeError(f'there is no whole checkpoint in {folder} to resume from; '
                               f'remove {pointer} to start from the beginning')
        if path != named:
            WholeFiles().put(path.encode(), pointer)

    def _checkpoints_before(self, named: str, folder: Path) -> List[str]:
        """The checkpoints in ``folder`` of fewer epochs or iterations, newest first."""
        name = re.compile(re.sub(r'\\\{.*?\\\}', r'(\\d+)', re.escape(self.filename_tmpl)))
        last = name.fullmatch(os.path.basename(named))
        found = {}
        for path in folder.iterdir():
            match = name.fullmatch(path.name)
            if match and (last is None or int(match[1]) < int(last[1])):
                found[int(match[1])] = str(path)
        return [found[step] for step in sorted(found, reverse=True)]


def _fault(path: str) -> Optional[str]:
    """Why a file is not what ``torch.save`` wrote, by its checksums; None if it is."""
    if not path:
        return 'it is empty'
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises many kinds for damaged bytes
        return f'{type(error).__name__}: {error}'
    return damaged and f'wrong checksum of {damaged}'

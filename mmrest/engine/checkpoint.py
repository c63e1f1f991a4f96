"""Checkpoints that SIGKILL and full disks leave whole, by MMEngine's own CheckpointHook."""
from pathlib import Path
from typing import List, Optional

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..errors import UserError
from ..files import write_whole


@register_backend('whole')
class WholeFiles(LocalBackend):
    """Local storage for ``CheckpointHook(backend_args=dict(backend='whole'))``.

    A file has its old content or all of the new one. The hook removes an outdated checkpoint
    before it saves the next one; this class removes it afterwards.
    """

    outdated: List[str] = []  # of the class: MMEngine builds a backend for each checkpoint

    def put(self, obj: bytes, filepath: str) -> None:
        outdated, WholeFiles.outdated = WholeFiles.outdated, []
        write_whole(filepath, obj)
        leftovers = Path(filepath).parent.glob('*.pth.partial')  # of a run that was killed
        for path in [*outdated, *leftovers]:
            Path(path).unlink(missing_ok=True)

    def remove(self, filepath: str) -> None:
        self.outdated.append(filepath)

    def join_path(self, filepath: str, *filepaths: str) -> str:
        if '://' in filepath:  # LocalBackend would make a folder of that name
            raise UserError(f"out_dir={filepath!r} is not a local folder, which "
                             "backend_args=dict(backend='whole') needs: set backend_args=None")
        return super().join_path(filepath, *filepaths)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """CheckpointHook with the backend 'whole': the name that mmrest 0.1.0's configs use."""

    def __init__(self, backend_args: Optional[dict] = None, **kwargs):
        super().__init__(backend_args=backend_args or dict(backend='whole'), **kwargs)

"""Checkpoints that SIGKILL and full disks leave whole, by MMEngine's own CheckpointHook."""
from pathlib import Path
from typing import List, Optional

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS

from ..apis import check_fit
from ..errors import UserError
from ..files import write_whole
from ..safe_reading import named_tensors


@register_backend('whole')
class WholeFiles(LocalBackend):
    """Local storage for ``CheckpointHook(backend_args=dict(backend='whole'))``.

    A file has its old content or all of the new one. The hook removes an outdated checkpoint
    before it saves the next one. This class removes it afterwards; where another backend saves,
    as FlexibleRunner's does, with the next one of its folder.
    """

    outdated: List[Path] = []  # of the class: MMEngine builds a backend for each checkpoint

    def put(self, obj: bytes, filepath: str) -> None:
        outdated, WholeFiles.outdated = WholeFiles.outdated, []
        write_whole(filepath, obj)
        leftovers = Path(filepath).parent.glob('*.pth.partial')  # of a run that was killed
        for path in {*outdated, *leftovers} - {Path(filepath)}:
            path.unlink(missing_ok=True)

    def remove(self, filepath: str) -> None:
        path = Path(filepath)
        for earlier in self.outdated:
            if earlier.parent == path.parent:
                earlier.unlink(missing_ok=True)
        WholeFiles.outdated = [path]

    def join_path(self, filepath: str, *filepaths: str) -> str:
        if '://' in filepath:  # LocalBackend would make a folder of that name
            raise UserError(f"out_dir={filepath!r} is not a local folder, which "
                            "backend_args=dict(backend='whole') needs: set backend_args=None")
        return super().join_path(filepath, *filepaths)


class CheckFitHook(Hook):
    """Ends a run before it starts from weights of which nothing, or not the backbone, fits."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        path = runner.cfg.load_from
        check_fit(model, named_tensors(checkpoint, path), path)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """CheckpointHook with the backend 'whole': the name that mmrest 0.1.0's configs use."""

    def __init__(self, backend_args: Optional[dict] = None, **kwargs):
        super().__init__(backend_args=backend_args or dict(backend='whole'), **kwargs)

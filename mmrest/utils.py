"""Registration of what ``import mmrest`` leaves out, and names that moved."""
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable


def register_all_modules() -> None:
    """Register :mod:`mmrest.engine`, and our classifiers with MMPretrain if it is installed.

    MMEngine's hub looks for this name. ``mmpretrain.get_model`` and ``list_models`` know our
    classifiers after this call.
    """
    from . import engine  # noqa: F401
    mim = Path(__file__).parent / '.mim'  # where an installation puts configs, see setup.py
    metafile = mim / 'configs/classification/metafile.yml'
    if find_spec('mmpretrain') is None or not metafile.exists():
        return
    from mmpretrain.apis.model import ModelHub
    if not ModelHub.has('rest_small_8xb256_in1k'):  # a second call would raise
        ModelHub.register_model_index(metafile, config_prefix=mim)


def moved(module: str, **names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module: old names give what has the new name, with a warning."""

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        warnings.warn(f'{module}.{name} is now {names[name]}, and goes in mmrest 0.4.0',
                      DeprecationWarning, stacklevel=2)
        home, _, new = names[name].rpartition('.')
        return getattr(import_module(home), new)

    return __getattr__

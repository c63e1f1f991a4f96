"""Registration of what ``import mmrest`` leaves out, because it imports other packages."""
from importlib.util import find_spec
from pathlib import Path

# An installation puts configs, tools and metafiles here, see setup.py.
MIM = Path(__file__).parent / '.mim'


def register_all_modules() -> None:
    """Register :mod:`mmrest.engine`, and our classifiers with MMPretrain if it is installed.

    MMEngine's hub looks for this name. ``mmpretrain.get_model`` and ``list_models`` know our
    classifiers after this call.
    """
    from . import engine  # noqa: F401
    metafile = MIM / 'configs/classification/metafile.yml'
    if find_spec('mmpretrain') is None or not metafile.exists():
        return
    from mmpretrain.apis.model import ModelHub
    if not ModelHub.has('rest_small_8xb256_in1k'):  # a second call would raise
        ModelHub.register_model_index(metafile, config_prefix=MIM)

"""Makes mmrest's configs known by name to mmengine and, once it is imported, mmpretrain."""
import importlib.abc
import importlib.util
import sys
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE

# An installation puts configs, tools and model-index.yml here (see setup.py).
ROOT = Path(__file__).parent / '.mim'
HUB = 'mmpretrain.apis.model'


def register() -> None:
    """Let 'mmrest::...' name a config, and mmpretrain list and build our classifiers."""
    MODULE2PACKAGE['mmrest'] = 'mmrest'
    if not ROOT.is_dir():  # imported from a checkout that was not installed
        return
    if HUB in sys.modules:
        _register_classifiers(sys.modules[HUB])
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register_classifiers(module) -> None:
    module.ModelHub.register_model_index(
        ROOT / 'configs/classification/metafile.yml', config_prefix=ROOT)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Waits for mmpretrain, whose import takes seconds that a detector need not spend."""

    def find_spec(self, name, path, target=None):
        if name != HUB:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module):
            run(module)
            _register_classifiers(module)

        spec.loader.exec_module = run_and_register
        return spec

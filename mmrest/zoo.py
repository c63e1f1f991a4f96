"""What mmrest adds to other packages, as soon as they are imported."""
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Callable

from mmengine.config.utils import MODULE2PACKAGE

# An installation puts configs, tools and model-index.yml here (see setup.py).
ROOT = Path(__file__).parent / '.mim'


def register() -> None:
    """Let 'mmrest::...' name a config, mmpretrain list our classifiers, mmengine our hooks.

    mmpretrain's import takes seconds that a detector need not spend, and mmengine's hooks
    need OpenCV, which the backbone does not: so neither is imported from here.
    """
    MODULE2PACKAGE['mmrest'] = 'mmrest'
    _after_import('mmengine.hooks', lambda module: importlib.import_module('mmrest.engine'))
    if ROOT.is_dir():  # else imported from a checkout that was not installed
        _after_import('mmpretrain.apis.model', _register_classifiers)


def _register_classifiers(module) -> None:
    module.ModelHub.register_model_index(
        ROOT / 'configs/classification/metafile.yml', config_prefix=ROOT)


def _after_import(name: str, then: Callable) -> None:
    """Call ``then`` with a module: now, or once it is imported."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


class _AfterImport(importlib.abc.MetaPathFinder):

    def __init__(self, name: str, then: Callable):
        self.name, self.then = name, then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_call(module):
            run(module)
            self.then(module)

        spec.loader.exec_module = run_and_call
        return spec

"""What a report of a bug needs to say of its environment: ``python -m mmrest.collect_env``."""
from importlib import import_module
from importlib.metadata import packages_distributions, version
from typing import Dict

from mmengine.utils import dl_utils

from .ops import describe_backend
from .version import __version__

PACKAGES = {'MMEngine': 'mmengine', 'MMCV': 'mmcv', 'MMDetection': 'mmdet',
            'MMPretrain': 'mmpretrain', 'MMSegmentation': 'mmseg', 'ONNX': 'onnx',
            'ONNX Runtime': 'onnxruntime', 'hotcoco': 'hotcoco'}


def collect_env() -> Dict[str, str]:
    """MMEngine's environment, and ours: packages, mmcv's operators, what attention runs on."""
    env = {key: str(value) for key, value in dl_utils.collect_env().items()}
    installed = packages_distributions()
    for title, name in PACKAGES.items():  # OneDL's packages have the same import names
        found = sorted(set(installed.get(name, ())))
        env[title] = ', '.join(f'{one} {version(one)}' for one in found) or 'not installed'
    env["mmcv's operators"] = describe_operators()
    env['mmrest'] = __version__
    try:
        env['Backend'] = describe_backend()
    except (RuntimeError, ValueError) as error:  # of MMREST_ATTENTION_BACKEND
        env['Backend'] = f'none: {error}'
    return env


def describe_operators() -> str:
    """What computes mmcv's operators here: mmcv, torchvision, or nothing."""
    try:
        operators = import_module('mmcv._ext')
    except ModuleNotFoundError as error:
        return 'none, this is mmcv-lite' if error.name == 'mmcv._ext' else f'none ({error})'
    except ImportError as error:
        return f'they cannot be loaded ({error})'
    if str(operators.__file__).endswith('.py'):
        return f"torchvision's, by mmcv_ops ({version('mmcv-torchvision-ops')})"
    return 'compiled'


if __name__ == '__main__':
    for key, value in collect_env().items():
        print(f'{key}: {value}')

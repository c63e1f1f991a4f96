"""ResT and ResTv2 (Zhang and Yang, NeurIPS 2021 and 2022) for the OpenMMLab stack."""
import torch

if torch.__version__ < '2.7a0':  # compared as versions; NVIDIA's builds are 2.7.0a0
    raise ImportError('mmrest needs torch 2.7 or newer, and this is torch '
                      f'{torch.__version__}: run `pip install -U torch torchvision`')

try:
    from mmengine.config.utils import MODULE2PACKAGE
except ImportError as error:
    raise ImportError(
        'mmrest needs mmengine, which is not installed: run `pip install '
        'onedl-mmengine` (or `pip install mmengine` in an OpenMMLab environment)'
    ) from error

from .models import EMSA, EMSAv2, ResT, ResTV2
from .version import __version__

MODULE2PACKAGE['mmrest'] = 'mmrest'  # MMEngine finds configs named 'mmrest::...'

__all__ = ['EMSA', 'EMSAv2', 'ResT', 'ResTV2', '__version__']

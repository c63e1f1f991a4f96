"""The name of :mod:`mmrest.own_data` before 0.3.0."""
from .utils import moved

__getattr__ = moved('mmrest.datasets', **{
    name: f'mmrest.own_data.{name}' for name in (
        'BASES', 'Finding', 'Split', 'contents', 'make_config', 'read', 'training')})

from .layers import EMSA
from .rest import ResT

__all__ = ['EMSA', 'ResT']

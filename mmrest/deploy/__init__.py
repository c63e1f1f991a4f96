from .export import describe, export
from .smaller import Smaller

__all__ = ['Smaller', 'describe', 'export']

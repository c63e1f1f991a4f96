from .export import describe, export

__all__ = ['describe', 'export']

from .checkpoint import WholeCheckpointHook
from .reseed import ReseedHook

__all__ = ['ReseedHook', 'WholeCheckpointHook']

"""Hooks and transforms for training: ``custom_imports=['mmrest.engine']`` registers them."""
from .checkpoint import WholeCheckpointHook
from .reseed import ReseedHook
from .skip_unreadable import SkipUnreadable

__all__ = ['ReseedHook', 'SkipUnreadable', 'WholeCheckpointHook']

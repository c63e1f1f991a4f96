"""Opt-in parts for training: ``custom_imports=['mmrest.engine']`` registers them."""
from .checkpoint import CheckFitHook, WholeCheckpointHook
from .compile_backbone import CompileBackboneHook
from .layer_decay import LayerDecayConstructor
from .reseed import ReseedHook
from .skip_unreadable import SkipUnreadable

__all__ = ['CheckFitHook', 'CompileBackboneHook', 'LayerDecayConstructor', 'ReseedHook',
           'SkipUnreadable', 'WholeCheckpointHook']

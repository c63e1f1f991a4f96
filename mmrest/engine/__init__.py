"""Opt-in parts for training: ``custom_imports=['mmrest.engine']`` registers them."""
from .checkpoint import CheckFitHook, WholeCheckpointHook
from .compile_backbone import CompileBackboneHook
from .cpu_amp import CpuAmpOptimWrapper, cpu_has_bfloat16, set_amp
from .layer_decay import LayerDecayConstructor
from .report import ReportHook, ShortLogRunner
from .reseed import ReseedHook
from .skip_unreadable import SkipUnreadable
from .val_loss import ValLossHook

__all__ = ['CheckFitHook', 'CompileBackboneHook', 'CpuAmpOptimWrapper',
           'LayerDecayConstructor', 'ReportHook', 'ReseedHook', 'ShortLogRunner',
           'SkipUnreadable', 'ValLossHook', 'WholeCheckpointHook', 'cpu_has_bfloat16',
           'set_amp']

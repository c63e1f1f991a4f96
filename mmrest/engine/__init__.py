"""What our configs train with; imported as soon as mmengine's hooks are."""
from .reseed import ReseedHook
from .skip_unreadable import SkipUnreadable
from .whole_checkpoint import WholeCheckpointHook

__all__ = ['ReseedHook', 'SkipUnreadable', 'WholeCheckpointHook']

from .skip_unreadable import SkipUnreadable

__all__ = ['SkipUnreadable']

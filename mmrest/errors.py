"""Errors that a user can mend. This module imports nothing."""


class UserError(ValueError):
    """What a user gave cannot be used: an argument, a file, weights that do not fit.

    The message says what, and what to do. The scripts in tools/ print it without a traceback.
    """


class MissingPackageError(UserError, ImportError):
    """A package that only some uses need is not installed. The message says how to get it."""


class FetchError(UserError, OSError):
    """A file cannot be downloaded."""

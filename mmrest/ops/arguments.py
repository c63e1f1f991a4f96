"""Checks of arguments, whose errors name the argument, its value and what is allowed."""
import math
from typing import Any


def check_int(name: str, value: Any, least: int) -> None:
    """Raise TypeError or ValueError unless it is an int (no bool) from ``least`` up."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'{name}={value!r} must be an int from {least} up')
    if value < least:
        raise ValueError(f'{name}={value!r} must be an int from {least} up')


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f'{name}={value!r} must be True or False')


def check_number(name: str, value: Any, above: float = -math.inf) -> None:
    """Raise TypeError or ValueError unless it is a finite number larger than ``above``."""
    allowed = 'a finite number' + (f' above {above}' if above > -math.inf else '')
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f'{name}={value!r} must be {allowed}')
    if not above < value < math.inf:
        raise ValueError(f'{name}={value!r} must be {allowed}')

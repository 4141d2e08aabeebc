"""Checks of numbers that a caller gave: one line that says what was wrong, and what is allowed."""

import sys
from functools import wraps

import numpy as np

from diffusion_lib.system.errors import ConfigError


def with_plain_numbers(kind):
    """Have a class's constructor take NumPy's scalars as the numbers that they are.

    A checkpoint that held one could not be read again.
    """
    construct = kind.__init__

    @wraps(construct)
    def init(self, *arguments, **options):
        construct(self, *map(plain, arguments), **{name: plain(value) for name, value in options.items()})

    kind.__init__ = init
    return kind


def plain(value):
    """The value, of NumPy's scalars as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def require_whole(name: str, value, least: int = 1, most: int | None = None):
    """Raises ConfigError unless the value is an int from `least`, to `most` where there is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most:,}"
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from {least}{upper}")


def require_positive(name: str, value, most: float | None = None):
    """Raises ConfigError unless the value is a finite int or float above 0, and not above `most`."""
    if not (_is_number(value) and 0 < value <= (most or sys.float_info.max)):
        upper = f" up to {most:g}" if most else ""
        raise ConfigError(f"{name} is {value!r}; allowed: a positive number{upper}")


def require_fraction(name: str, value):
    """Raises ConfigError unless the value is a number from 0, and below 1."""
    if not (_is_number(value) and 0 <= value < 1):
        raise ConfigError(f"{name} is {value!r}; allowed: a number from 0, below 1")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

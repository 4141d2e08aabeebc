"""Checks of numbers that a caller gave: one line that says what was wrong, and what is allowed."""

import math
from numbers import Real

from diffusion_lib.system.errors import ConfigError


def require_whole(name: str, value, least: int = 1, most: int | None = None):
    """Raises ConfigError unless the value is an int from `least`, to `most` where there is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most:,}"
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from {least}{upper}")


def require_positive(name: str, value, most: float = math.inf, kinds=Real):
    """Raises ConfigError unless the value is of `kinds`, finite, above 0, and not above `most`."""
    number = isinstance(value, kinds) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and 0 < value <= most):
        upper = "" if most == math.inf else f" up to {most:g}"
        raise ConfigError(f"{name} is {value!r}; allowed: a positive number{upper}")


def require_fraction(name: str, value):
    """Raises ConfigError unless the value is a number from 0, and below 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; allowed: a number from 0, below 1")

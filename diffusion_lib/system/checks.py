"""Checks of a caller's values, whose errors say in one line what was wrong and what is allowed."""

import re
import sys
from collections.abc import Callable
from dataclasses import field
from functools import wraps

from diffusion_lib.system.errors import ConfigError


def with_plain_numbers(kind):
    """Have a class's constructor take NumPy's scalars, and values of subclasses, as plain Python numbers and texts.

    A checkpoint that held another could not be read again.
    """
    construct = kind.__init__

    @wraps(construct)
    def init(self, *arguments, **options):
        construct(self, *map(plain, arguments), **{name: plain(value) for name, value in options.items()})

    kind.__init__ = init
    return kind


def plain(value):
    """Return the value; a NumPy scalar, and one of a subclass such as an Enum's, as Python's own."""
    numpy = sys.modules.get("numpy")  # where nobody has imported it, nobody has its scalars
    if numpy and isinstance(value, numpy.generic):
        return value.item()
    for kind in (str, int, float):
        if isinstance(value, kind) and type(value) not in (kind, bool):
            return getattr(kind, f"__{kind.__name__}__")(value)
    return value


def setting(default, help: str, choices=None, check: Callable | None = None):
    """Declare a setting of a configuration, whose type is its default's: see `require_allowed`.

    help: what the command line says of it.
    choices: the texts that it may be.
    check: f(name, value), which raises ConfigError for what is not allowed; None: by the type.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "check": check}
    return field(default=default, metadata=metadata)


def require_allowed(each, value, most_whole: int, most: float | None = None):
    """Raise ConfigError, naming what is allowed, unless a setting can have the value.

    each: the setting, as `setting` declares it.
    most_whole: the largest whole number; the least is 1.
    most: the largest fraction, which must be above 0; None: any.
    """
    choices, kind = each.metadata["choices"], type(each.default)
    if each.metadata["check"]:
        each.metadata["check"](each.name, value)
    elif kind is int:
        require_whole(each.name, value, 1, most_whole)
    elif kind is float:
        require_positive(each.name, value, most)
    elif not (value in choices if choices else isinstance(value, bool)):
        raise ConfigError(f"{each.name} is {value!r}; allowed: {', '.join(choices or ('true', 'false'))}")


def require_whole(name: str, value, least: int = 1, most: int | None = None):
    """Raise ConfigError unless the value is an int from `least`, to `most` where there is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most:,}"
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number from {least}{upper}")


def require_positive(name: str, value, most: float | None = None):
    """Raise ConfigError unless the value is a finite int or float above 0, and not above `most`."""
    if not (_is_number(value) and 0 < value <= (most or sys.float_info.max)):
        upper = f" up to {most:g}" if most else ""
        raise ConfigError(f"{name} is {value!r}; allowed: a positive number{upper}")


def check_name(name: str) -> str:
    """Return a name that becomes a folder. Raises ConfigError for one that could lead elsewhere, or be another's table.

    `results/NAME.csv` and `results/NAME.runs.csv` are the tables of a study.
    """
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
        or name.endswith(".runs")
    ):
        allowed = "letters, digits, dots, dashes, underscores, at most 100, and not .runs at its end"
        raise ConfigError(f"name is {name!r}; allowed: {allowed}")
    return name


def require_truth(name: str, value):
    """Raise ConfigError unless the value is True or False: a text, even 'False', would count as True."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; allowed: True or False")


def require_fraction(name: str, value):
    """Raise ConfigError unless the value is a number from 0, and below 1."""
    if not (_is_number(value) and 0 <= value < 1):
        raise ConfigError(f"{name} is {value!r}; allowed: a number from 0, below 1")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

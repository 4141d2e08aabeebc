"""Keywords of the released constructors: scripts written for them still run."""

from diffusion_lib.system.errors import ConfigError


def require_defaults(owner: str, given: dict, allowed: dict):
    """Accept released keywords at the only value that the continuous tasks use.

    Raises ConfigError for another value and TypeError, as Python does, for a keyword the release had not.
    """
    for name, value in given.items():
        if name not in allowed:
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}")
        if value != allowed[name]:
            raise ConfigError(f"{owner}: {name} is {value!r}; allowed here: {allowed[name]!r}")

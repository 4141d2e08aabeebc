"""The tasks by name, and their classes."""

from diffusion_lib.tasks import *  # noqa: F403  what that package offers is said there
from diffusion_lib.tasks import __all__ as __all__

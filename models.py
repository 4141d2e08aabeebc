"""The energy models by name, and their classes."""

from diffusion_lib.energies import *  # noqa: F403  what that package offers is said there
from diffusion_lib.energies import __all__ as __all__

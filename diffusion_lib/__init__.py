"""IRED's diffusion over energy models: train, load and use one. How: docs/library.md."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
    from diffusion_lib.energies import EBM
    from diffusion_lib.inference import load_model, solve
    from diffusion_lib.negatives import MiningConfig

__all__ = ["EBM", "GaussianDiffusion1D", "MiningConfig", "Trainer1D", "load_model", "solve"]

# Imported where they are asked for, since each brings torch.
_HOMES = {
    "EBM": "energies",
    "GaussianDiffusion1D": "denoising_diffusion_pytorch_1d",
    "MiningConfig": "negatives",
    "Trainer1D": "denoising_diffusion_pytorch_1d",
    "load_model": "inference",
    "solve": "inference",
}

# Scripts written for this project's first version import these from here.
for _name in ("environment", "errors", "files"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = import_module(f"{__name__}.system.{_name}")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

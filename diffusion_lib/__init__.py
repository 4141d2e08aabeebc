"""IRED's diffusion over energy models: train, load and use one. How: docs/library.md."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from diffusion_lib.system.registry import on_use

if TYPE_CHECKING:
    from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
    from diffusion_lib.energies import EBM
    from diffusion_lib.inference import load_model, solve
    from diffusion_lib.negatives import MiningConfig

__all__ = ["EBM", "GaussianDiffusion1D", "MiningConfig", "Trainer1D", "load_model", "solve"]

# Scripts written for this project's first version import these from here.
for _name in ("environment", "errors", "files"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = import_module(f"{__name__}.system.{_name}")


# Imported where they are asked for, since each brings torch.
__getattr__ = on_use(
    __name__,
    (
        "denoising_diffusion_pytorch_1d.GaussianDiffusion1D",
        "denoising_diffusion_pytorch_1d.Trainer1D",
        "energies.EBM",
        "inference.load_model",
        "inference.solve",
        "negatives.MiningConfig",
    ),
)

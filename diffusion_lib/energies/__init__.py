"""The energy models, by the names that the command lines use."""

from diffusion_lib.energies.base import DiffusionWrapper, EnergyModel, NoiseModel
from diffusion_lib.energies.matrix import MatrixEBM
from diffusion_lib.energies.matrix_free import MatrixEBMFree
from diffusion_lib.energies.mlp import EBM

MODELS = {"mlp": EBM, "matrix": MatrixEBM, "matrix-free": MatrixEBMFree}

__all__ = ["EBM", "MODELS", "DiffusionWrapper", "EnergyModel", "MatrixEBM", "MatrixEBMFree", "NoiseModel"]

"""The energy models by name, and their classes."""

from diffusion_lib.energies import EBM, MODELS, DiffusionWrapper, EnergyModel, MatrixEBM, MatrixEBMFree

__all__ = ["EBM", "MODELS", "DiffusionWrapper", "EnergyModel", "MatrixEBM", "MatrixEBMFree"]

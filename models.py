"""The energy models by name, and their classes."""

from diffusion_lib.energies import (
    EBM,
    MODELS,
    DiffusionWrapper,
    EnergyModel,
    GNNConv1DEBMV2,
    GNNConv1DReverse,
    GraphEBM,
    GraphReverse,
    MatrixEBM,
    MatrixEBMFree,
    MLPReverse,
    NoiseModel,
    ShiftedPlanEBM,
)

__all__ = [
    "EBM",
    "MODELS",
    "DiffusionWrapper",
    "EnergyModel",
    "GNNConv1DEBMV2",
    "GNNConv1DReverse",
    "GraphEBM",
    "GraphReverse",
    "MLPReverse",
    "MatrixEBM",
    "MatrixEBMFree",
    "NoiseModel",
    "ShiftedPlanEBM",
]

"""Energy models, by the names that the command lines use."""

from models.energy import DiffusionWrapper, EnergyModel
from models.matrix import MatrixEBM, MatrixEBMFree
from models.mlp import EBM

MODELS = {"mlp": EBM, "matrix": MatrixEBM, "matrix-free": MatrixEBMFree}

__all__ = ["EBM", "MODELS", "DiffusionWrapper", "EnergyModel", "MatrixEBM", "MatrixEBMFree"]

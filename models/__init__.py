"""Energy models, by the names that the command lines use."""

from models.energy import DiffusionWrapper, EnergyModel
from models.mlp import EBM

MODELS = {"mlp": EBM}

__all__ = ["EBM", "MODELS", "DiffusionWrapper", "EnergyModel"]

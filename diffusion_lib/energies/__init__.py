"""The energy models, by the names that the command lines use."""

from diffusion_lib.energies.base import DiffusionWrapper, EnergyModel, NoiseModel
from diffusion_lib.energies.graph import GraphEBM, GraphReverse
from diffusion_lib.energies.matrix import MatrixEBM
from diffusion_lib.energies.matrix_free import MatrixEBMFree
from diffusion_lib.energies.mlp import EBM, MLPReverse
from diffusion_lib.energies.plan import GNNConv1DEBMV2, GNNConv1DReverse, ShiftedPlanEBM

MODELS = {
    "mlp": EBM,
    "mlp-reverse": MLPReverse,
    "matrix": MatrixEBM,
    "matrix-free": MatrixEBMFree,
    "gnn": GraphEBM,
    "gnn-reverse": GraphReverse,
    "gnn-conv-1d-v2": GNNConv1DEBMV2,
    "gnn-conv-1d-v2-shift": ShiftedPlanEBM,
    "gnn-conv-1d-v2-reverse": GNNConv1DReverse,
}

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

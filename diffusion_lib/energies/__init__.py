"""The energy models, by the names that the command lines use."""

from diffusion_lib.energies.base import DiffusionWrapper, EnergyModel, NoiseModel
from diffusion_lib.energies.graph import GraphEBM, GraphReverse
from diffusion_lib.energies.matrix import MatrixEBM
from diffusion_lib.energies.matrix_free import MatrixEBMFree
from diffusion_lib.energies.mlp import EBM, MLPReverse
from diffusion_lib.energies.plan import GNNConv1DEBMV2, GNNConv1DReverse, ShiftedPlanEBM
from diffusion_lib.energies.plan_conv import GNNConv1DEBM, GNNConvEBM
from diffusion_lib.energies.sudoku import SmallSudokuEBM, SudokuDenoise, SudokuEBM
from diffusion_lib.energies.sudoku_transformer import SudokuTransformerEBM

# The release has one wrapper for each kind of model; here one serves all.
GNNDiffusionWrapper = GNNConvDiffusionWrapper = GNNConv1DV2DiffusionWrapper = DiffusionWrapper

MODELS = {
    "mlp": EBM,
    "matrix": MatrixEBM,
    "matrix-free": MatrixEBMFree,
    "mlp-reverse": MLPReverse,
    "gnn": GraphEBM,
    "gnn-reverse": GraphReverse,
    "gnn-conv-1d-v2": GNNConv1DEBMV2,
    "gnn-conv-1d-v2-shift": ShiftedPlanEBM,
    "gnn-conv-1d-v2-reverse": GNNConv1DReverse,
    "gnn-conv-1d": GNNConv1DEBM,
    "gnn-conv": GNNConvEBM,
    "sudoku": SudokuEBM,
    "sudoku-small": SmallSudokuEBM,
    "sudoku-reverse": SudokuDenoise,
    "sudoku-transformer": SudokuTransformerEBM,
}

__all__ = [
    "EBM",
    "MODELS",
    "DiffusionWrapper",
    "EnergyModel",
    "GNNConv1DEBM",
    "GNNConv1DEBMV2",
    "GNNConv1DReverse",
    "GNNConv1DV2DiffusionWrapper",
    "GNNConvDiffusionWrapper",
    "GNNConvEBM",
    "GNNDiffusionWrapper",
    "GraphEBM",
    "GraphReverse",
    "MLPReverse",
    "MatrixEBM",
    "MatrixEBMFree",
    "NoiseModel",
    "ShiftedPlanEBM",
    "SmallSudokuEBM",
    "SudokuDenoise",
    "SudokuEBM",
    "SudokuTransformerEBM",
]

"""The energy models, by the names that the command lines use."""

from diffusion_lib.system.registry import Registry, on_use

MODELS = Registry(
    __name__,
    {
        "mlp": "mlp.EBM",
        "matrix": "matrix.MatrixEBM",
        "matrix-free": "matrix_free.MatrixEBMFree",
        "mlp-reverse": "mlp.MLPReverse",
        "gnn": "graph.GraphEBM",
        "gnn-reverse": "graph.GraphReverse",
        "gnn-conv-1d-v2": "plan.GNNConv1DEBMV2",
        "gnn-conv-1d-v2-shift": "plan.ShiftedPlanEBM",
        "gnn-conv-1d-v2-reverse": "plan.GNNConv1DReverse",
        "gnn-conv-1d": "plan_conv.GNNConv1DEBM",
        "gnn-conv": "plan_conv.GNNConvEBM",
        "sudoku": "sudoku.SudokuEBM",
        "sudoku-small": "sudoku.SmallSudokuEBM",
        "sudoku-reverse": "sudoku.SudokuDenoise",
        "sudoku-transformer": "sudoku_transformer.SudokuTransformerEBM",
    },
)
_OFFERED = (
    "base.DiffusionWrapper",
    "base.EnergyModel",
    "base.NoiseModel",
    "base.GNNDiffusionWrapper",
    "base.GNNConvDiffusionWrapper",
    "base.GNNConv1DV2DiffusionWrapper",
    *MODELS.data.values(),
)

__getattr__ = on_use(__name__, _OFFERED)
__all__ = ["MODELS", *(place.rpartition(".")[2] for place in _OFFERED)]

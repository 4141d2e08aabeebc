"""The tasks, by the names that the command lines use; IRED's tasks keep the release's names."""

from diffusion_lib.system.registry import Registry, on_use

TASKS = Registry(
    __name__,
    {
        "inverse": "matrices.Inverse",
        "addition": "matrices.Addition",
        "lowrank": "matrices.LowRankDataset",
        "parents": "family.Parents",
        "uncle": "family.Uncle",
        "connectivity": "graphs.Connectivity",
        "connectivity-2": "graphs.Connectivity2",
        "shortest-path": "paths.ShortestPath",
        "shortest-path-1d": "paths.ShortestPath1D",
        "shortest-path-10-1d": "paths.ShortestPath1DOf10",
        "shortest-path-15-1d": "paths.ShortestPath1DOf15",
        "sort": "sorting.Sort",
        "sort-2": "sorting.Sort2",
        "sudoku": "sudoku.Sudoku",
        "sudoku-rrn": "sudoku.SudokuRRN",
        "parity": "parity.Parity",
        "parity-20": "parity.Parity20",
    },
)
_OFFERED = ("base.Task", *TASKS.data.values())

__getattr__ = on_use(__name__, _OFFERED)
__all__ = ["TASKS", *(place.rpartition(".")[2] for place in _OFFERED)]

"""The tasks, by the names that the command lines use; IRED's tasks keep the release's names."""

from diffusion_lib.tasks.base import Task
from diffusion_lib.tasks.family import Parents, Uncle
from diffusion_lib.tasks.graphs import Connectivity, Connectivity2
from diffusion_lib.tasks.matrices import Addition, Inverse, LowRankDataset
from diffusion_lib.tasks.parity import Parity, Parity20
from diffusion_lib.tasks.paths import ShortestPath, ShortestPath1D, ShortestPath1DOf10, ShortestPath1DOf15
from diffusion_lib.tasks.sorting import Sort, Sort2
from diffusion_lib.tasks.sudoku import Sudoku, SudokuRRN

TASKS = {
    "inverse": Inverse,
    "addition": Addition,
    "lowrank": LowRankDataset,
    "parents": Parents,
    "uncle": Uncle,
    "connectivity": Connectivity,
    "connectivity-2": Connectivity2,
    "shortest-path": ShortestPath,
    "shortest-path-1d": ShortestPath1D,
    "shortest-path-10-1d": ShortestPath1DOf10,
    "shortest-path-15-1d": ShortestPath1DOf15,
    "sort": Sort,
    "sort-2": Sort2,
    "sudoku": Sudoku,
    "sudoku-rrn": SudokuRRN,
    "parity": Parity,
    "parity-20": Parity20,
}

__all__ = [
    "TASKS",
    "Addition",
    "Connectivity",
    "Connectivity2",
    "Inverse",
    "LowRankDataset",
    "Parents",
    "Parity",
    "Parity20",
    "ShortestPath",
    "ShortestPath1D",
    "ShortestPath1DOf10",
    "ShortestPath1DOf15",
    "Sort",
    "Sort2",
    "Sudoku",
    "SudokuRRN",
    "Task",
    "Uncle",
]

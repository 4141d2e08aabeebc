"""The tasks, by the names that the command lines use."""

from diffusion_lib.tasks.base import Task
from diffusion_lib.tasks.matrices import Addition, Inverse, LowRankDataset

TASKS = {"inverse": Inverse, "addition": Addition, "lowrank": LowRankDataset}

__all__ = ["TASKS", "Addition", "Inverse", "LowRankDataset", "Task"]

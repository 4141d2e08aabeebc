"""The tasks by name, and their classes."""

from diffusion_lib.tasks import TASKS, Addition, Inverse, LowRankDataset, Task

__all__ = ["TASKS", "Addition", "Inverse", "LowRankDataset", "Task"]

"""What a task is: examples without end, and how a prediction is judged."""

import torch
from torch.utils.data import Dataset

from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError

SPLITS = ("train", "val", "test")


class Task(Dataset):
    """A regression task `inp -> target` with an endless supply of examples.

    Attributes: `inp_dim`, `out_dim` (flattened sizes), `bound` (largest magnitude of a target entry that the
    sampler lets through). Raises ConfigError for an unknown split or an impossible rank.
    """

    length = int(1e7)

    def __init__(self, split: str, rank: int, ood: bool = False):
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ConfigError(f"rank is {rank!r}; allowed: a whole number from 1")
        self.split, self.rank, self.ood = split, rank, ood
        self.h = self.w = rank
        self.inp_dim = self.out_dim = rank * rank
        self.bound = 2.0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Example `index` of the split, the same at each call: (inp_dim,), (out_dim,) float32."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = seeded_generator(f"{self.split} example", index)
        inp, target = self.sample(1, generator)
        return inp[0], target[0]

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        """Draw inputs (B, inp_dim) and targets (B, out_dim) in `dtype` from `generator`, made on `device`."""
        raise NotImplementedError

    def errors(self, inp, target, prediction) -> dict[str, torch.Tensor]:
        """Errors of each example, by name, (B,) float64; the target is float64."""
        return {"mse": (prediction.double() - target).square().flatten(1).mean(1)}

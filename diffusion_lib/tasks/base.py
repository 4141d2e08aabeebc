"""What a task is: examples without end, and how a prediction is judged."""

import torch
from torch.utils.data import Dataset, default_collate

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
        return mean_squared_error(target, prediction)


class ItemTask:
    """A torch Dataset of (inp, target) items, with `inp_dim` and `out_dim`, as a task: a batch is a draw of its items.

    It has no bound of its own (None: the model's). Raises ConfigError for a dataset without length or sizes.
    """

    bound = None

    def __init__(self, dataset):
        for name in ("__len__", "__getitem__", "inp_dim", "out_dim"):
            if not hasattr(dataset, name):
                raise ConfigError(f"the data set {type(dataset).__name__} has no {name}")
        self.dataset, self.inp_dim, self.out_dim = dataset, dataset.inp_dim, dataset.out_dim

    def indices(self, count: int, generator) -> list[int]:
        """`count` items, drawn uniformly with repeats: epochs would make a batch depend on those before it."""
        return torch.randint(len(self.dataset), (count,), generator=generator).tolist()

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        """Inputs (B, inp_dim) and targets (B, out_dim), as of a Task."""
        items = default_collate([self.dataset[i] for i in self.indices(batch_size, generator)])
        inp, target = (part.to(device, dtype) for part in items)
        return inp, target

    def errors(self, inp, target, prediction):
        return mean_squared_error(target, prediction)


def as_task(dataset) -> "Task | ItemTask":
    """What makes batches of its own is a task; anything else is taken item by item."""
    return dataset if hasattr(dataset, "sample") else ItemTask(dataset)


def mean_squared_error(target, prediction) -> dict[str, torch.Tensor]:
    """`mse` of each example, (B,) float64."""
    return {"mse": (prediction.double() - target).square().flatten(1).mean(1)}

"""Parity of a row of bits: SATNet's task, from its file where it is there."""

import torch

from diffusion_lib.tasks.base import Rules, Task
from diffusion_lib.tasks.corruption import FlippedEntries
from diffusion_lib.tasks.encoding import signs
from diffusion_lib.tasks.files import BitRows, satnet_parity
from diffusion_lib.tasks.metrics import classification_rates, confusion


class Parity(Task):
    """+1 if the number of ones among `rank` bits is odd, else -1. Input (rank,), solution (1,), in signs.

    Without SATNet's file (see files.py) rows are drawn without end. The harder set has rows with few ones: each bit
    is one with probability 0.2 instead of 0.5. The release has no corruption here; the only wrong answer is the other.
    """

    default_rank = 40
    out_dim, out_shape = 1, (1,)
    metrics = ("balanced_accuracy", "accuracy")
    higher_is_better = frozenset(metrics)
    rules = Rules(bound=1.0, candidate_bound=2.0, corruption=FlippedEntries(1.0))

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        self.inp_dim, self.inp_shape = self.rank, (self.rank,)
        self.file = None if ood else satnet_parity(self.rank, split)
        if self.file is not None:
            self.source = self.file.source
        self.moved: dict[str, BitRows] = {}

    def rows(self, device) -> BitRows:
        """Return the file's rows, moved to a device once."""
        if str(device) not in self.moved:
            bits, odd, source = self.file
            self.moved[str(device)] = BitRows(bits.to(device), odd.to(device), source)
        return self.moved[str(device)]

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        if self.file is not None:
            bits, odd, _ = self.rows(device)
            rows = torch.randint(len(bits), (batch_size,), generator=generator, device=device)
            return signs(bits[rows], dtype), signs(odd[rows], dtype)
        uniform = torch.rand(batch_size, self.rank, generator=generator, device=device)
        bits = uniform < (0.2 if self.ood else 0.5)
        return signs(bits, dtype), signs(bits.sum(1, keepdim=True) % 2, dtype)

    def score(self, inp, target, prediction):
        return confusion(target, prediction)

    def derived(self, means):
        return classification_rates(means)

    def reference_predictions(self, inp, generator):
        return {"always odd": torch.ones_like(inp[:, :1])}


class Parity20(Parity):
    """Parity of 20 bits."""

    default_rank = 20

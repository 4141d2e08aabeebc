"""Sorting by swaps (IRED's release): each step puts the right number at the first misplaced place."""

import math
from typing import ClassVar

import torch
from einops import rearrange

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import Rules, Task
from diffusion_lib.tasks.corruption import ChangedStep
from diffusion_lib.tasks.encoding import half_as_large_again, one_hot_signs, signs
from diffusion_lib.tasks.metrics import sort_scores

STEPS = 16
LARGEST = STEPS  # numbers; STEPS + 1 need at most STEPS swaps


class SortTask(Task):
    """Swaps that sort `size` different numbers: `rank`, and half as many again, at most 17, for the harder set.

    The array is any permutation but the sorted one. A step swaps the first misplaced place i with the place of the
    value i; when all is sorted it swaps (0, 0). Scores: see metrics.sort_scores; the states that a prediction claims
    are not looked at. The release has no corruption here; this one changes a step's swap.
    """

    least_rank, default_rank = 2, 10
    axes: ClassVar[int]  # of a step: 1 where it names places, 2 where pairs of them
    metrics = ("array_accuracy", "element_accuracy", "first_action_accuracy")
    higher_is_better = frozenset(metrics)

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        if self.rank > LARGEST:
            raise ConfigError(f"rank is {self.rank}; allowed: 2 to {LARGEST}, since a plan has {STEPS} swaps")
        self.size = min(half_as_large_again(self.rank), STEPS + 1) if ood else self.rank
        array = (self.size,) * self.axes
        self.inp_shape, self.out_shape = (*array, self.inp_dim), (STEPS, *array, self.out_dim)

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        states, first, second = sorting_plans(unsorted(batch_size, self.size, generator, device))
        return self.encode(states, first, second, dtype)

    def encode(self, states, first, second, dtype):
        """Return input and solution of the arrays before each step (B, 16, N), and the places swapped (B, 16)."""
        raise NotImplementedError

    def swaps(self, plan):
        """Return the places that plans (B, *out_shape) swap: two of (B, 16)."""
        raise NotImplementedError

    def order(self, inp):
        """Return the array to sort, as ranks or values (B, N)."""
        raise NotImplementedError

    def score(self, inp, target, prediction):
        label, swaps = self.swaps(target), self.swaps(prediction)
        first = torch.stack([a[:, 0] == b[:, 0] for a, b in zip(label, swaps, strict=True)]).all(0)
        return sort_scores(self.order(inp), *swaps) | {"first_action_accuracy": first.double()}

    def reference_predictions(self, inp, generator):
        """Predict no swap, and one random swap after another."""
        places = torch.randint(self.size, (2, len(inp), STEPS), generator=generator, device=inp.device)
        states = inp.new_zeros(len(inp), STEPS, self.size)
        plans = {"no swap": torch.zeros_like(places), "random swaps": places.sort(0).values}
        return {name: self.encode(states, *swaps, inp.dtype)[1] for name, swaps in plans.items()}


class Sort(SortTask):
    """Sorting by the relations of the array's numbers. Input (N, N, 6), solution (16, N, N, 7), in signs.

    Channels at (i, j): a_j < a_i, =, >, and j < i, =, >; in the solution, for each of 16 states, and a seventh that is
    one-hot at the swap.
    """

    model = "gnn-conv"
    axes, inp_dim, out_dim = 2, 6, 7
    rules = Rules(bound=1.0, candidate_bound=2.0, corruption=ChangedStep(6))

    def encode(self, states, first, second, dtype):
        places = torch.arange(self.size, device=states.device).expand_as(states)
        order = [compare(part[..., None, :], part[..., None]) for part in (states, places) for compare in COMPARISONS]
        swap = one_hot_signs(first * self.size + second, self.size**2, dtype)
        swap = rearrange(swap, "b step (first second) -> b step first second", first=self.size)
        relations = signs(torch.stack(order, -1), dtype)
        return relations[:, 0].contiguous(), torch.cat([relations, swap[..., None]], -1)

    def swaps(self, plan):
        place = plan[..., 6].flatten(2).argmax(2)
        return place // self.size, place % self.size

    def order(self, inp):
        return (inp[..., 0] > 0).sum(2)


class Sort2(SortTask):
    """Sorting by the array's values 2 (a / N - 1/2). Input (N, 1), solution (16, N, 3).

    Channels of the solution: the values before each step, and one-hots, in signs, of both places to swap.
    """

    model = "gnn-conv-1d"
    axes, inp_dim, out_dim = 1, 1, 3
    rules = Rules(bound=1.0, candidate_bound=2.0, corruption=ChangedStep(1, 2))

    def encode(self, states, first, second, dtype):
        values = states.to(dtype) / self.size * 2 - 1
        swap = [one_hot_signs(place, self.size, dtype) for place in (first, second)]
        return values[:, 0, :, None], torch.stack([values, *swap], -1)

    def swaps(self, plan):
        return plan[..., 1].argmax(2), plan[..., 2].argmax(2)

    def order(self, inp):
        return inp[..., 0]


COMPARISONS = (torch.lt, torch.eq, torch.gt)


def unsorted(batch_size: int, size: int, generator, device) -> torch.Tensor:
    """Draw permutations (B, N), uniform among all but the sorted one.

    Each is made from a number, whose digits in the factorial base are the swaps of Fisher and Yates; 0 has none.
    Drawing sorted ones again would make the host wait for a GPU.
    """
    number = torch.randint(1, math.factorial(size), (batch_size,), generator=generator, device=device)
    arrays, rows = torch.arange(size, device=device).repeat(batch_size, 1), torch.arange(batch_size, device=device)
    for i in range(1, size):
        j = i - number % (i + 1)
        number = number // (i + 1)
        arrays[:, i], arrays[rows, j] = arrays[rows, j], arrays[:, i].clone()
    return arrays


def sorting_plans(arrays) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the oracle's plan: arrays before each step (B, 16, N), and the places swapped (B, 16), first < second."""
    states, swaps, current = [], [], arrays.clone()
    rows, inorder = torch.arange(len(arrays), device=arrays.device), torch.arange(arrays.shape[1], device=arrays.device)
    for _ in range(STEPS):
        states.append(current)
        first = (current != inorder).int().argmax(1)  # the first of equals; 0 where all is sorted
        second = (current == first[:, None]).int().argmax(1)
        swaps.append((first, second))
        current = current.clone()
        current[rows, first], current[rows, second] = current[rows, second], current[rows, first]
    first, second = (torch.stack(part, 1) for part in zip(*swaps, strict=True))
    return torch.stack(states, 1), first, second

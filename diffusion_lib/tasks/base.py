"""What a task is: examples without end, what losses and sampler must know of it, and how a prediction is judged."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from diffusion_lib.seeds import global_generators, seeded_generator
from diffusion_lib.system.checks import require_positive, require_whole, with_plain_numbers
from diffusion_lib.system.errors import ConfigError, first_line

SPLITS = ("train", "val", "test")


class Corruption:
    """A hand-made way to spoil a solution, as IRED's discrete tasks use it for their negatives.

    `draw` and `apply` are separate so that the same draws can be compared with the released code's.
    """

    def draw(self, target, generator=None) -> tuple[torch.Tensor, ...]:
        """Draw the random numbers for solutions (B, *out_shape), on their device."""
        raise NotImplementedError

    def apply(self, target, *draws, released: bool = False, mask=None) -> torch.Tensor:
        """Return spoiled solutions (B, *out_shape).

        released: with the released code's defects.
        mask: see Task.mask.
        """
        raise NotImplementedError

    def __call__(self, target, generator=None, released: bool = False, mask=None) -> torch.Tensor:
        draws = self.draw(target, generator)
        made = self.apply(target.clone(), *draws, released=released, mask=mask)  # which may change it in place
        require_like(target, made, type(self).__name__)
        return made


def require_like(x_start, made, maker: str):
    """Raise ConfigError for candidates of another shape or type than the solutions: they would be broadcast."""
    wanted = (tuple(x_start.shape), x_start.dtype)
    found = (tuple(made.shape), made.dtype) if isinstance(made, torch.Tensor) else type(made).__name__
    if found != wanted:
        raise ConfigError(f"{maker} returns {found}; allowed: a tensor of {wanted}, as x_start is")


@with_plain_numbers
@dataclass(frozen=True)
class Rules:
    """What losses and sampler must know of a task; the release sets it by flags.

    bound: largest magnitude of a solution's entry in the sampler and in descents.
    candidate_bound: the same of a negative's candidate; None: bound.
    level_bound: the same at the end of a level of the sampler; None: bound.
    inner_steps: descents at each level of the sampler.
    contrast_weight: factor of the contrastive loss.
    entry_weights: from solutions (B, *out_shape) to factors of their entries' squared errors; None: all 1.
    corruption: how the mode `corrupt` spoils a solution; None: the mode is refused.
    near: how the mode `near` gets solutions of other problems, from solutions and normal noise (B, *out_shape) and a
    relative distance; None: the mode is refused.
    """

    bound: float = 2.0
    candidate_bound: float | None = None
    level_bound: float | None = None
    inner_steps: int = 5
    contrast_weight: float = 0.5
    entry_weights: Callable[[torch.Tensor], torch.Tensor] | None = None
    corruption: Corruption | None = None
    near: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None

    def __post_init__(self):
        for name in ("bound", "candidate_bound", "level_bound", "contrast_weight"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))

    def described(self) -> dict:
        """Return what a checkpoint says of the rules of its training, beside the bound."""
        bounds = {"candidate_bound": self.candidate_bound, "level_bound": self.level_bound}
        return bounds | {"entry_weights": self.entry_weights is not None}


@with_plain_numbers
class Task(Dataset):
    """A task `inp -> target` with an endless supply of examples: to add one, see docs/adding-a-task.md.

    split: train, val or test.
    rank: the size of a problem (n of n x n matrices, nodes of a graph, …); None: the task's own.
    ood: whether the examples are the harder ones.
    Raises ConfigError for an unknown split or an impossible rank.

    Attributes: `inp_shape`, `out_shape` (of one example), `inp_dim`, `out_dim` (what the constructor of its model
    takes: flattened sizes of vectors, channels of graphs and plans), `rules`, `released_rules` (the rules with the
    released code's defects), `bound` (the rules' own), `source` (where the examples come from), `pool_size`.
    """

    length = int(1e7)
    least_rank: ClassVar[int] = 1
    default_rank: ClassVar[int] = 20
    model: ClassVar[str] = "mlp"  # the energy model that IRED takes for it
    recipe: ClassVar[dict] = {}  # settings of ExperimentConfig that differ from the defaults
    metrics: ClassVar[tuple[str, ...]] = ("mse",)  # the names in `summary`; the first one decides
    higher_is_better: ClassVar[frozenset[str]] = frozenset()
    beyond_shares: ClassVar[frozenset[str]] = frozenset()  # those of higher_is_better that may lie outside [0, 1]
    difficulty_name: ClassVar[str] = "difficulty"  # what `difficulty` measures, in words
    rules: Rules = Rules()
    released_rules: Rules | None = None  # with the released code's defects; None: as `rules`
    source: str = "generated"
    pool_size: ClassVar[dict[str, int]] = {}  # by split, how many examples are made ahead, for batches to draw from

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
        rank = self.default_rank if rank is None else rank
        require_whole("rank", rank, self.least_rank)
        self.split, self.rank, self.ood = split, rank, ood

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return example `index` of the split, the same at each call: (*inp_shape), (*out_shape), float32."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = seeded_generator(f"{self.split} example", index)
        inp, target = self.sample(1, generator)
        return inp[0], target[0]

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        """Draw inputs (B, *inp_shape) and targets (B, *out_shape) in `dtype` from `generator`, made on `device`."""
        raise NotImplementedError

    def mask(self, inp: torch.Tensor) -> torch.Tensor | None:
        """Return 1 where the input gives the solution's entry, else 0, of the solution's shape; None: nowhere.

        inp: (B, *inp_shape), as long as the solution and with its values at the given entries.
        """
        return None

    def score(self, inp, target, prediction) -> dict[str, torch.Tensor]:
        """Return what `summary` needs of each example, by name, (B,) float64.

        inp: (B, *inp_shape); target, float64, and prediction: (B, *out_shape).
        """
        return mean_squared_error(target, prediction)

    def execute(self, inp, target, prediction, plan=None) -> dict[str, torch.Tensor]:
        """Score acting on a prediction and predicting anew, by name, (B,) float64; {}: nothing to act on.

        plan: from inputs (b, *inp_shape) and which of the B they are, (b,), to new predictions; None: without new ones.
        """
        return {}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Return the metrics named in `metrics`, from the means of `score` and `execute` over all examples.

        Those of `execute` are left out where it was not asked for.
        """
        known = means | self.derived(means)
        return {name: known[name] for name in self.metrics if name in known}

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Return by name the metrics that are no means of scores, such as the rates of a class, from those means."""
        return {}

    def reference_predictions(self, inp, generator) -> dict[str, torch.Tensor]:
        """Return by name predictions (B, *out_shape) that need no training, for the tables."""
        return {"zero": torch.zeros(len(inp), *self.out_shape, dtype=inp.dtype, device=inp.device)}

    def wrong_answers(self, inp, target, generator) -> dict[str, torch.Tensor]:
        """Return by name wrong solutions (B, *out_shape) that no model made, to compare energies on.

        `other` is another problem's solution, which an energy cannot tell from the true one without the input;
        `corrupted` is the solution spoiled in the task's own way.
        """
        answers = {"other": target.roll(1, 0)}
        if self.rules.corruption:
            answers["corrupted"] = self.rules.corruption(target, generator, mask=self.mask(inp))
        return answers

    def difficulty(self, inp) -> torch.Tensor | None:
        """Return how hard each problem (B, *inp_shape) is, (B,), where one number says it; else None."""
        return None

    def draw(self, axes, inp, target, prediction):
        """Draw one example on matplotlib `axes`: the input (*inp_shape), the solution and the prediction.

        By default the solution and the prediction are images side by side, with a line between them.
        """
        left, right = as_image(target), as_image(prediction)
        limit = left.abs().max().item()
        axes.imshow(torch.cat([left, right], 1).numpy(), vmin=-limit, vmax=limit, cmap="coolwarm")
        axes.axvline(left.shape[1] - 0.5, color="black")
        axes.set(xticks=[], yticks=[], title="solution | prediction")

    def extra_sets(self) -> dict[str, "Task"]:
        """Return by name further sets of examples to evaluate on, beside this one and the harder one."""
        return {}

    @property
    def bound(self) -> float:
        return self.rules.bound


class MatrixTask(Task):
    """A task of rank x rank matrices, flattened."""

    released_rules = Rules()

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        self.h = self.w = self.rank
        self.inp_dim = self.out_dim = self.rank**2

    @property
    def inp_shape(self) -> tuple[int, ...]:
        return (self.inp_dim,)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.out_dim,)


class ItemTask:
    """A torch Dataset of (inp, target) or (inp, target, mask) items, with `inp_dim` and `out_dim`, as a task.

    A batch is a draw of its items; for masks see Task.mask. It has no bound of its own (None: the model's). Raises
    ConfigError for a dataset without length or sizes, and where its items make no batch.
    """

    bound = None
    metrics, higher_is_better = Task.metrics, Task.higher_is_better
    mask, score, execute = Task.mask, Task.score, Task.execute
    summary, derived = Task.summary, Task.derived

    def __init__(self, dataset):
        for name in ("__len__", "__getitem__", "inp_dim", "out_dim"):
            if not hasattr(dataset, name):
                hint = "" if name.startswith("_") else f"; set it, as in data.{name} = the model's"
                raise ConfigError(f"the data set {type(dataset).__name__} has no {name}{hint}")
        self.dataset, self.inp_dim, self.out_dim = dataset, dataset.inp_dim, dataset.out_dim

    def indices(self, count: int, generator) -> list[int]:
        """Draw `count` items uniformly, with repeats: in epochs a batch would depend on those before it."""
        return torch.randint(len(self.dataset), (count,), generator=generator).tolist()

    def indices_once(self, count: int, generator) -> list[int]:
        """Draw `count` items without repeats, or all where there are fewer: to evaluate on."""
        chance = random.Random(torch.randint(2**62, (), generator=generator).item())
        return chance.sample(range(len(self.dataset)), min(count, len(self.dataset)))

    @torch.no_grad()
    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32, once=False):
        """Draw inputs (B, *inp_shape) and targets (B, *out_shape), as a Task does, and masks where the items have them.

        What items draw from the generators that all share is decided by `generator` too.
        once: take no item twice, so that there may be fewer than batch_size.
        """
        try:
            indices = (self.indices_once if once else self.indices)(batch_size, generator)
            with global_generators(torch.randint(2**32, (), generator=generator).item()):
                items = [self.dataset[i] for i in indices]
            if any(not isinstance(item, tuple | list) or len(item) not in (2, 3) for item in items):
                raise TypeError("items of other than two or three parts")
            if any(isinstance(part, np.ma.MaskedArray) for item in items for part in item):
                raise TypeError("masked arrays")
            parts = default_collate(items)
            if len(parts) not in (2, 3):
                raise TypeError(f"{len(parts)} parts")
            if not all(isinstance(part, torch.Tensor) for part in parts):
                raise TypeError("parts that are no arrays")
            if any(part.is_complex() for part in parts):
                raise TypeError("complex numbers")
            for mask in parts[2:]:  # the loss would weigh entries by another number, and divide by their number
                if mask.shape != parts[1].shape or not ((mask == 0) | (mask == 1)).all():
                    raise TypeError("a mask of another shape than the target, or of other numbers than 0 and 1")
            return tuple(part.to(device, dtype) for part in parts)
        except Exception as error:  # whatever the data set's own code raises
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(
                f"the data set {type(self.dataset).__name__} gives no batch ({reason}); allowed: items (inp, target) "
                "or (inp, target, mask), arrays or tensors of numbers, all of the same shapes"
            ) from error


def rules_of(task, match_release: bool) -> Rules:
    """Return the rules of a task, or those that the released code has for it."""
    return task.released_rules if match_release and task.released_rules else task.rules


def as_task(dataset) -> "Task | ItemTask":
    """Return a task as it is, and any other dataset as a task of its items."""
    return dataset if isinstance(dataset, Task | ItemTask) else ItemTask(dataset)


def name_of(task) -> str:
    """Return what errors call a task: its class, or that of the data set whose items it has."""
    return type(getattr(task, "dataset", task)).__name__


def projection(values: torch.Tensor) -> float:
    """Return a random projection of examples, which tells them from others, from other signs and from another order."""
    weights = torch.randn(values.shape, generator=seeded_generator("fingerprint's weights"), dtype=torch.float64)
    return (values.double().cpu() * weights).sum().item() / math.sqrt(values.numel())


def described(*parts: torch.Tensor) -> str:
    """Say what tells some examples from others; rounded, since they may differ in their last bits between machines."""
    sizes = [part.double().abs().mean().item() for part in parts]
    shares = [round(projection(part) / (size or 1), 3) + 0.0 for part, size in zip(parts, sizes, strict=True)]
    words = " and ".join(f"{size:.4g} ({share:+.3f})" for size, share in zip(sizes, shares, strict=True))
    return f"mean magnitude and projection {words}"


def require_finite(task, parts):
    """Raise ConfigError where examples of a task, as `sample` returns them, have nan or inf."""
    if not all(part.isfinite().all() for part in parts):
        raise ConfigError(f"{name_of(task)} has entries that are not finite")


def has_mask(dataset) -> bool:
    """Return whether the input of a task can give entries of its solution."""
    task = as_task(dataset)
    if isinstance(task, ItemTask):
        return len(task.sample(1, seeded_generator("parts of an item"))) == 3
    return getattr(type(task), "mask", Task.mask) is not Task.mask


def mask_of(task, inp, drawn) -> torch.Tensor | None:
    """Return the mask of inputs (B, *inp_shape): the one `drawn` with them, where the items have one, or the task's."""
    return drawn[0].to(inp) if drawn else task.mask(inp)


def as_image(values: torch.Tensor) -> torch.Tensor:
    """Return one solution as a picture (height, width): n^2 entries as n x n, a plan as its steps in a row.

    Of several channels the last is shown.
    """
    values = values.detach().float().cpu()
    if values.dim() == 1:
        side = math.isqrt(len(values))
        return values.view(side, side) if side**2 == len(values) else values[None]
    if values.dim() == 2:
        return values
    steps = values[..., -1]
    return steps if steps.dim() == 2 else torch.cat(list(steps), 1)


def mean_squared_error(target, prediction) -> dict[str, torch.Tensor]:
    """Return the `mse` of each example, (B,) float64."""
    return {"mse": (prediction.double() - target).square().flatten(1).mean(1)}

"""Evaluate a model on fixed sets. A task defines its metrics (Task.score), here they are averaged; of matrices:

mse          mean over matrices and entries of (prediction - target)^2
recon_error  mean over matrices of the Frobenius norm of A prediction - I (matrix inversion only)
energy_auc   share of pairs with E(real) < E(fake), over all levels, a tie counting half

All are computed with the EMA weights on evaluation sets that their own seed fixes: the same for every run, strategy,
device and number of processes. Predictions are compared with float64 targets.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed

from diffusion_lib.names import SAMPLERS
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks.base import ItemTask, Task, as_task, described, mask_of, name_of, require_finite

CACHED = 256  # examples of a batch on a CPU: with 2,048, `matrix-free` takes twice the time, waiting for memory
ALIGNED = 64  # examples of which a multiple starts at an edge of every product's blocks


def samplers_of(diffusion) -> list[str]:
    """Return the names of the samplers that the model can have; without an energy there is no inner loop."""
    return [name for name, steps in SAMPLERS.items() if diffusion.model.ebm.has_energy or not steps(diffusion.rules)]


class Share(NamedTuple):
    """The part of a set that this process evaluates."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> range:
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return all processes' rows, in order, on every process."""
        if self.world == 1:
            return values
        parts = [None] * self.world
        torch.distributed.all_gather_object(parts, values.cpu())
        return torch.cat(parts)


class EvaluationSet:
    """`size` examples of a task with float64 targets, their mask, and the noise that the sampler starts from.

    They are made on the CPU, so that every device gets the same numbers. Both difficulties of matrix inversion share
    their R.

    task: a Task, or what `as_task` takes.
    size: how many examples; of a data set of items no item is taken twice, so there may be fewer.
    device: where inputs, targets, noise and mask are.
    masked: whether the entries that the input gives are kept.
    Attributes: inp (size, *inp_shape); target (size, *out_shape), float64; start and noise of the target's shape;
    mask, or None; exact_inp, the inputs in float64 on the CPU.
    """

    def __init__(self, task: Task, size: int, device, masked: bool = True):
        task = as_task(task)
        once = {"once": True} if isinstance(task, ItemTask) else {}
        inp, self.target, *drawn = task.sample(size, seeded_generator("evaluation data"), dtype=torch.float64, **once)
        require_finite(task, (inp, self.target))
        self.task, self.size = task, len(inp)
        noise = torch.randn(2, *self.target.shape, generator=seeded_generator("evaluation noise"))
        self.exact_inp = inp
        self.inp, self.target = inp.float().to(device), self.target.to(device)
        self.start, self.noise = noise.to(device)
        self.mask = mask_of(task, self.inp, drawn) if masked else None

    def described(self) -> str:
        """Say what tells the set from another one."""
        return f"{self.size:,} of {name_of(self.task)}, {described(self.exact_inp, self.target)}"

    def mask_of(self, rows: slice) -> torch.Tensor | None:
        return None if self.mask is None else self.mask[rows]

    def sample(self, diffusion, rows: slice, inner_steps: int | None, levels=None) -> torch.Tensor:
        """Solve the problems of some rows (B, *out_shape), from the set's noise and within the task's bound.

        inner_steps, levels: as in sample_loop.
        """
        inp, start, bound = self.inp[rows], self.start[rows], self.bound(diffusion)
        options = {"inner_steps": inner_steps, "bound": bound, "levels": levels}
        return diffusion.sample_loop(inp, mask=self.mask_of(rows), start=start, **options)

    def bound(self, diffusion) -> float:
        """Return the bound that the sampler keeps on these problems; the released code keeps the model's on all."""
        own = self.task.bound
        return diffusion.bound if diffusion.match_release or own is None else own

    def batches(self, most: int, share: Share = Share()):
        """Yield slices of this process's rows, at most `most` at a time; on a CPU about as many as its caches hold."""
        rows = share.of(self.size)
        if self.inp.device.type == "cpu":
            # nearly equal: a product rounds otherwise where it has a few rows, or where its last ones start elsewhere
            parts = max(1, len(rows) // CACHED)
            most = min(most, ALIGNED * max(1, math.ceil(len(rows) / parts / ALIGNED)))
        for first in range(rows.start, rows.stop, most):
            yield slice(first, min(first + most, rows.stop))


def sampler_metrics(
    diffusion,
    chosen: EvaluationSet,
    sampler: str | int | None,
    batch_size=2048,
    share=Share(),
    levels=None,
    execute=False,
) -> dict:
    """Return the task's metrics, by name, of a sampler on an evaluation set; all nan where a sample is not finite.

    sampler: one of SAMPLERS by name, a number of descents at each level, or None for the model's own.
    levels: as in sample_loop.
    execute: whether to compute the metrics of Task.execute too, which take further samples.
    """
    parts, inner_steps = [], SAMPLERS[sampler](diffusion.rules) if isinstance(sampler, str) else sampler
    for rows in chosen.batches(batch_size, share):
        inp, target, start = chosen.inp[rows], chosen.target[rows], chosen.start[rows]
        prediction = chosen.sample(diffusion, rows, inner_steps, levels)
        scores = chosen.task.score(inp, target, prediction)
        if execute:

            def plan(changed, which, start=start):
                options = {"inner_steps": inner_steps, "bound": chosen.bound(diffusion), "levels": levels}
                return diffusion.sample_loop(changed, start=start[which], **options)

            scores |= chosen.task.execute(inp, target, prediction, plan)
        # a score may hide a nan, which is a sign or an argmax like another
        parts.append(scores | {"finite": prediction.isfinite().flatten(1).all(1).double()})
    scores = {name: share.gather(torch.cat([part[name] for part in parts])) for name in parts[0]}
    finite = scores.pop("finite").bool().all()
    return summary(chosen.task, scores) if finite else dict.fromkeys(chosen.task.metrics, math.nan)


def prediction_metrics(chosen: EvaluationSet, prediction) -> dict:
    """Return the task's metrics, by name, of a prediction (size, *out_shape) for the whole set."""
    example = chosen.inp, chosen.target, prediction
    return summary(chosen.task, chosen.task.score(*example) | chosen.task.execute(*example))


def summary(task, scores: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the task's metrics, by name, from its scores of some examples, (B,) each."""
    return task.summary({name: values.mean().item() for name, values in scores.items()})


@torch.no_grad()
def energy_auc(diffusion, chosen: EvaluationSet, modes) -> dict[str, float]:
    """Return by mode how often the real sample has a lower energy than the negative, which is made as in training.

    It is the share over all levels and examples; nothing for a model without an energy.
    modes: of 'random' and 'adversarial', the latter with IRED's two opt_steps whatever the model was trained with.
    """
    if not diffusion.model.ebm.has_energy:
        return {}
    ebm, wins = diffusion.model.ebm, {mode: [] for mode in modes}
    for rows in chosen.batches(2048):
        target, noise, mask = chosen.target[rows].float(), chosen.noise[rows], chosen.mask_of(rows)
        cond = ebm.condition(chosen.inp[rows], 0)
        for t in range(diffusion.num_timesteps):
            cond = ebm.retime(cond, t)
            real = ebm.energy(cond, diffusion.noised(target, t, noise, target, mask))
            for mode, won in wins.items():
                fake = ebm.energy(cond, diffusion.negatives(cond, target, t, noise, MiningConfig(mode), mask))
                won.append((real < fake).double() + 0.5 * (real == fake).double())
    return {mode: torch.cat(won).mean().item() for mode, won in wins.items()}

"""The metrics, each defined once; every table and CSV uses these names.

mse          mean over matrices and entries of (prediction - target)^2
recon_error  mean over matrices of the Frobenius norm of A prediction - I (matrix inversion only)
energy_auc   share of pairs with E(real) < E(fake), over all levels, a tie counting half
All are computed with the EMA weights on evaluation sets that their own seed fixes: the same for every run,
strategy, device and number of processes. Predictions are compared with float64 targets.
"""

from typing import NamedTuple

import torch
import torch.distributed

from diffusion_lib.negatives import MiningConfig
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks.base import Task, as_task

SAMPLERS = {"plain": 0, "innerloop": 5}  # name -> opt_steps at each level


class Share(NamedTuple):
    """Which part of a set this process evaluates."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> range:
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """All processes' rows, in order; every process gets them."""
        if self.world == 1:
            return values
        parts = [None] * self.world
        torch.distributed.all_gather_object(parts, values.cpu())
        return torch.cat(parts)


class EvaluationSet:
    """`size` examples of a task with float64 targets, and the noise that the sampler starts from.

    Made on the CPU, so that every device gets the same numbers. Both difficulties of a task share their R.
    """

    def __init__(self, task: Task, size: int, device):
        task = as_task(task)
        self.task, self.size = task, size
        inp, self.target = task.sample(size, seeded_generator("evaluation data"), dtype=torch.float64)
        noise = torch.randn(2, size, task.out_dim, generator=seeded_generator("evaluation noise"))
        self.exact_inp = inp
        self.inp, self.target = inp.float().to(device), self.target.to(device)
        self.start, self.noise = noise.to(device)

    def batches(self, batch_size: int, share: Share):
        """Slices of this process's rows."""
        rows = share.of(self.size)
        for first in range(rows.start, rows.stop, batch_size):
            yield slice(first, min(first + batch_size, rows.stop))


def sampler_metrics(diffusion, chosen: EvaluationSet, inner_steps: int | None, batch_size=2048, share=Share()) -> dict:
    """The task's metrics, by name, of the sampler with `inner_steps` opt_steps a level on an evaluation set."""
    parts = []
    for rows in chosen.batches(batch_size, share):
        prediction = diffusion.sample_loop(
            chosen.inp[rows], start=chosen.start[rows], inner_steps=inner_steps, bound=_bound(diffusion, chosen)
        )
        parts.append(chosen.task.score(chosen.inp[rows], chosen.target[rows], prediction))
    scores = {name: share.gather(torch.cat([part[name] for part in parts])) for name in parts[0]}
    return _summary(chosen.task, scores)


def prediction_metrics(chosen: EvaluationSet, prediction) -> dict:
    """The task's metrics, by name, of a prediction for the whole set."""
    return _summary(chosen.task, chosen.task.score(chosen.inp, chosen.target, prediction))


def _summary(task, scores) -> dict:
    return task.summary({name: values.mean().item() for name, values in scores.items()})


def _bound(diffusion, chosen):
    own = chosen.task.bound
    return diffusion.bound if diffusion.match_release or own is None else own


@torch.no_grad()
def energy_auc(diffusion, chosen: EvaluationSet, mode: str, batch_size=2048, share=Share()) -> float:
    """How often the real sample has the lower energy, over all levels and examples; negatives as in training.

    mode: 'random' or 'adversarial', the latter with IRED's two opt_steps whatever the model was trained with.
    """
    ebm, wins = diffusion.model.ebm, []
    for rows in chosen.batches(batch_size, share):
        target, noise = chosen.target[rows].float(), chosen.noise[rows]
        cond = ebm.condition(chosen.inp[rows], 0)
        for t in range(diffusion.num_timesteps):
            cond = ebm.retime(cond, t)
            real = ebm.energy(cond, diffusion.q_sample(target, t, noise))
            fake = ebm.energy(cond, diffusion.negatives(cond, target, t, noise, MiningConfig(mode)))
            wins.append((real < fake).double() + 0.5 * (real == fake).double())
    return share.gather(torch.cat(wins)).mean().item()

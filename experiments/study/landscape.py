"""What a trained energy looks like: does it rank, does it point home, and what do the negatives do?

`diagnose` measures one trained model on the fixed sets; the figures are in landscape_figures.py.

Strategies cannot be compared by how they rank negatives mined on their own energies: each has others. A task's
`wrong_answers` are the same for all, since no model mined them.
"""

from itertools import pairwise

import torch

from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.names import DIFFICULTIES, column
from diffusion_lib.negatives import MiningConfig, mined
from diffusion_lib.seeds import seeded_generator

INNER_STEPS = (0, 1, 5, 20, 40)  # opt_steps at each level of the sampler
INNER_STEP_PROBLEMS = 256  # of each difficulty, at most, behind a point over INNER_STEPS, which takes the longest
MINED = ("random", "adversarial")  # modes of the negatives that are ranked
SLICE_LEVEL, SLICE_POINTS = 2, 31
DIFFICULTY_BINS = 10  # of equally many problems


def diagnose(diffusion, val: EvaluationSet, ood: EvaluationSet) -> dict:
    """All measurements of a model on the sets of both difficulties, ready for JSON; some need an energy."""
    energetic = diffusion.model.ebm.has_energy
    with torch.no_grad():
        return {
            "levels": level_rows(diffusion, val, wrong_answers(val)) if energetic else [],
            "inner_steps": inner_step_rows(diffusion, *(first_rows(each, INNER_STEP_PROBLEMS) for each in (val, ood))),
            "diffusion_steps": diffusion_step_rows(diffusion, val, ood),
            "conditioning": difficulty_rows(diffusion, val, ood),
            "slice": energy_slice(diffusion, val) if energetic else None,
            "example": solved_example(diffusion, val),
        }


def wrong_answers(chosen: EvaluationSet) -> dict[str, torch.Tensor]:
    """The task's, on an evaluation set, by name (B, *out_shape)."""
    generator = seeded_generator("wrong answers", device=chosen.inp.device)
    return chosen.task.wrong_answers(chosen.inp, chosen.target.float(), generator)


def first_rows(chosen: EvaluationSet, size: int) -> EvaluationSet:
    """The first `size` examples of an evaluation set."""
    return EvaluationSet(chosen.task, min(size, chosen.size), chosen.inp.device, chosen.mask is not None)


def level_rows(diffusion, chosen: EvaluationSet, answers: dict[str, torch.Tensor]) -> list[dict]:
    """A row per level t. Of each kind of wrong answer, the model's own negatives of both modes and `answers`: `auc`
    P(E(real) < E(fake)), `gap` mean E(fake) - E(real), `distance` from the solution (root mean square, in the
    solution's units). `accepted`: share of IRED's two opt_steps kept. `alignment`: mean cosine of dE/dx at x_t with
    x_t - sqrt(alphas_cumprod_t) y."""
    ebm, rows = diffusion.model.ebm, []
    target, noise, mask = chosen.target.float(), chosen.noise, chosen.mask
    cond = ebm.condition(chosen.inp, 0)
    for t in range(diffusion.num_timesteps):
        cond = ebm.retime(cond, t)
        real = diffusion.noised(target, t, noise, target, mask)
        energy_real, gradient = ebm.energy_and_gradient(cond, real)
        away = real - diffusion.sqrt_alphas_cumprod[t] * target
        alignment = torch.cosine_similarity(gradient.flatten(1), away.flatten(1), dim=1)
        row = {"t": t, "alignment": alignment.mean().item()}
        own = {mode: diffusion.negatives(cond, target, t, noise, MiningConfig(mode), mask) for mode in MINED}
        fixed = {name: diffusion.noised(answer, t, noise, target, mask) for name, answer in answers.items()}
        for name, fake in (own | fixed).items():
            gap = ebm.energy(cond, fake) - energy_real
            distance = (fake - real) / diffusion.sqrt_alphas_cumprod[t]
            row[f"auc_{name}"] = ((gap > 0).double() + 0.5 * (gap == 0).double()).mean().item()
            row[f"gap_{name}"] = gap.mean().item()
            row[f"distance_{name}"] = distance.square().flatten(1).mean(1).sqrt().mean().item()
        rows.append({**row, "accepted": _mined(diffusion, cond, target, t, noise, mask)[1].item()})
    return rows


def _mined(diffusion, cond, target, t, noise, mask):
    """The point of IRED's own mining (B, *out_shape), at level t, and the share of its descents kept."""
    return mined(diffusion, cond, target, t, noise, MiningConfig("adversarial"), diffusion.given(target, t, mask))


def inner_step_rows(diffusion, val, ood) -> list[dict]:
    """The metrics against the opt_steps at each level of the sampler, and the size of the sets behind them."""
    return [
        {"inner_steps": steps, **metrics_of_both(diffusion, val, ood, steps), "evaluation_size": val.size}
        for steps in (INNER_STEPS if diffusion.model.ebm.has_energy else (0,))
    ]


def metrics_of_both(diffusion, val, ood, sampler, **options) -> dict:
    """The metrics on both sets, by the names of result.json; those that are not defined there are left out."""
    return {
        column(difficulty, metric): value
        for difficulty, chosen in zip(DIFFICULTIES, (val, ood), strict=True)
        for metric, value in sampler_metrics(diffusion, chosen, sampler, **options).items()
        if value == value
    }


def diffusion_step_rows(diffusion, val, ood) -> list[dict]:
    """The metrics of the plain sampler against the number of levels that it visits, evenly chosen from all T."""
    total = diffusion.num_timesteps
    rows = []
    for count in sorted({1, 2, 3, 5, 7, total}):
        if count > total:
            continue
        levels = torch.linspace(total - 1, 0, count).round().long().tolist() if count > 1 else [total - 1]
        rows.append({"diffusion_steps": count, **metrics_of_both(diffusion, val, ood, 0, levels=levels)})
    return rows


def difficulty_rows(diffusion, val, ood) -> list[dict]:
    """Plain sampler: the task's first metric of the problems of both sets, by how hard they are; often none says it."""
    parts = [chosen.task.difficulty(chosen.exact_inp) for chosen in (val, ood)]
    if parts[0] is None:
        return []
    difficulty, metric = torch.cat(parts), val.task.metrics[0]
    scores = torch.cat([_scores(diffusion, chosen)[metric] for chosen in (val, ood)])
    edges = torch.quantile(difficulty, torch.linspace(0, 1, DIFFICULTY_BINS + 1, dtype=difficulty.dtype)).tolist()
    rows = []
    for low, high in pairwise(edges):
        inside = (difficulty >= low) & ((difficulty < high) | (high == edges[-1]))
        if inside.any():
            rows.append({"condition_from": low, "matrices": int(inside.sum()), metric: scores[inside].mean().item()})
    return rows


def _scores(diffusion, chosen):
    options = {"mask": chosen.mask, "start": chosen.start, "bound": chosen.task.bound}
    prediction = diffusion.sample_loop(chosen.inp, inner_steps=0, **options)
    return {name: values.cpu() for name, values in chosen.task.score(chosen.inp, chosen.target, prediction).items()}


def energy_slice(diffusion, chosen: EvaluationSet) -> dict:
    """Energies of one problem on the plane through the solution (0, 0), the mined negative (1, 0) and a random
    direction of the same length (0, 1), at level SLICE_LEVEL, none of which moves a given entry: `axis` (k,),
    `energy` (k, k) with the random direction as the row."""
    ebm, t = diffusion.model.ebm, min(SLICE_LEVEL, diffusion.num_timesteps - 1)
    inp, target, noise = chosen.inp[:1], chosen.target[:1].float(), chosen.noise[:1]
    mask = chosen.mask_of(slice(1))
    home = diffusion.sqrt_alphas_cumprod[t] * target
    first = _mined(diffusion, ebm.condition(inp, t), target, t, noise, mask)[0] - home
    free = chosen.start[:1] if mask is None else torch.where(mask.bool(), 0.0, chosen.start[:1])
    second = free - (free * first).sum() / first.square().sum() * first
    second = second * first.norm() / second.norm()
    axis = torch.linspace(-1.5, 1.5, SLICE_POINTS, device=home.device)
    energies = []
    for y in axis.tolist():  # a row of points at a time, for memory
        points = torch.cat([home + x * first + y * second for x in axis.tolist()])
        energies.append(ebm.energy(ebm.condition(inp.expand(len(points), *inp.shape[1:]), t), points).tolist())
    return {"level": t, "axis": axis.tolist(), "energy": energies}


def solved_example(diffusion, chosen: EvaluationSet) -> dict:
    """The first problem of the set, solved with the task's own number of descents: `prediction`, its entries in order.

    Of a model with an energy also, in the order of sampling: `levels`, and at each `energy`, that of the sample, and
    `energy_solution`, that of the true solution without noise.
    """
    ebm, inp, target = diffusion.model.ebm, chosen.inp[:1], chosen.target[:1].float()
    trajectory = diffusion.sample_loop(
        inp,
        mask=chosen.mask_of(slice(1)),
        start=chosen.start[:1],
        inner_steps=diffusion.rules.inner_steps if ebm.has_energy else 0,
        bound=chosen.task.bound,
        return_traj=True,
    )
    solved = {"prediction": trajectory[-1].double().flatten().round(decimals=5).tolist()}
    if not ebm.has_energy:
        return solved
    levels = list(reversed(range(diffusion.num_timesteps)))
    energies = {"energy": trajectory, "energy_solution": [target] * len(levels)}
    for name, answers in energies.items():
        solved[name] = [
            ebm.energy(ebm.condition(inp, t), diffusion.sqrt_alphas_cumprod[t] * answer).item()
            for t, answer in zip(levels, answers, strict=True)
        ]
    return solved | {"levels": levels}

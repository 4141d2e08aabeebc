"""Diagnose a trained energy: does it rank, does it point to the solution, and what do the negatives do?

`diagnose` measures one trained model on the fixed sets; the figures are in landscape_figures.py.

Ranking negatives mined on a model's own energy compares no strategies, since each has others. A task's `wrong_answers`
are the same for all, since no model mined them.
"""

from itertools import pairwise

import torch

from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.names import DIFFICULTIES, column
from diffusion_lib.negatives import MiningConfig, mined
from diffusion_lib.seeds import seeded_generator

INNER_STEPS = (0, 1, 5, 20, 40)  # of the sampler, at each level
INNER_STEP_PROBLEMS = 256  # of each difficulty, at most, behind a point over INNER_STEPS, which takes the longest
MINED = ("random", "adversarial")  # modes of the negatives that are ranked
DIFFICULTY_BINS = 10  # of equally many problems


def diagnose(diffusion, val: EvaluationSet, ood: EvaluationSet) -> dict:
    """Return all measurements of a model on the sets of both difficulties, ready for JSON; some need an energy."""
    energetic = diffusion.model.ebm.has_energy
    with torch.no_grad():
        return {
            "levels": level_rows(diffusion, val, wrong_answers(val)) if energetic else [],
            "inner_steps": inner_step_rows(diffusion, *(first_rows(each, INNER_STEP_PROBLEMS) for each in (val, ood))),
            "diffusion_steps": diffusion_step_rows(diffusion, val, ood),
            "conditioning": difficulty_rows(diffusion, val, ood),
            "example": solved_example(diffusion, val),
        }


def wrong_answers(chosen: EvaluationSet) -> dict[str, torch.Tensor]:
    """Return the task's wrong answers on an evaluation set, by name (B, *out_shape)."""
    generator = seeded_generator("wrong answers", device=chosen.inp.device)
    return chosen.task.wrong_answers(chosen.inp, chosen.target.float(), generator)


def first_rows(chosen: EvaluationSet, size: int) -> EvaluationSet:
    """Return `size` examples of an evaluation set, of a task of ours the first."""
    return EvaluationSet(chosen.task, min(size, chosen.size), chosen.inp.device, chosen.mask is not None)


def level_rows(diffusion, chosen: EvaluationSet, answers: dict[str, torch.Tensor]) -> list[dict]:
    """Return a row per level t, with each kind of wrong answer: the model's own negatives of both modes, and `answers`.

    auc, gap: P(E(real) < E(fake)), and mean E(fake) - E(real).
    distance: from the solution (root mean square, in the solution's units).
    accepted: share of IRED's two opt_steps kept.
    alignment: mean cosine of dE/dx at x_t with x_t - sqrt(alphas_cumprod_t) y.
    """
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
        given = diffusion.given(target, t, mask)
        kept = mined(diffusion, cond, target, t, noise, MiningConfig("adversarial"), given)[1]
        rows.append({**row, "accepted": kept.item()})
    return rows


def inner_step_rows(diffusion, val, ood) -> list[dict]:
    """Return the metrics by the sampler's inner_steps at each level, and the size of the sets behind them."""
    return [
        {"inner_steps": steps, **metrics_of_both(diffusion, val, ood, steps), "evaluation_size": val.size}
        for steps in (INNER_STEPS if diffusion.model.ebm.has_energy else (0,))
    ]


def metrics_of_both(diffusion, val, ood, sampler, **options) -> dict:
    """Return the metrics on both sets, by the names of result.json, without those that are not defined there."""
    return {
        column(difficulty, metric): value
        for difficulty, chosen in zip(DIFFICULTIES, (val, ood), strict=True)
        for metric, value in sampler_metrics(diffusion, chosen, sampler, **options).items()
        if value == value
    }


def diffusion_step_rows(diffusion, val, ood) -> list[dict]:
    """Return the plain sampler's metrics by the number of levels that it visits, evenly chosen from all T."""
    total = diffusion.num_timesteps
    rows = []
    for count in sorted({1, 2, 3, 5, 7, total}):
        if count > total:
            continue
        levels = torch.linspace(total - 1, 0, count).round().long().tolist() if count > 1 else [total - 1]
        rows.append({"diffusion_steps": count, **metrics_of_both(diffusion, val, ood, 0, levels=levels)})
    return rows


def difficulty_rows(diffusion, val, ood) -> list[dict]:
    """Return the first metric, plain sampler, by how hard the problems of both sets are; no rows if no task says it."""
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
    prediction = chosen.sample(diffusion, slice(None), 0)
    return {name: values.cpu() for name, values in chosen.task.score(chosen.inp, chosen.target, prediction).items()}


def solved_example(diffusion, chosen: EvaluationSet) -> dict:
    """Solve the first problem of the set with the task's own descents; return `prediction`, its entries in order."""
    inner_steps = diffusion.rules.inner_steps if diffusion.model.ebm.has_energy else 0
    prediction = chosen.sample(diffusion, slice(1), inner_steps)
    return {"prediction": prediction.double().flatten().round(decimals=5).tolist()}

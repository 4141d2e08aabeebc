"""What a trained energy looks like: does it rank, does it point home, and what do the negatives do?

`diagnose` measures one trained model on the fixed sets; the figures are in landscape_figures.py.

Strategies cannot be compared by how they rank negatives mined on their own energies: each has others. The wrong answers
of `fixed_answers` are the same for all, since no model mined them.
"""

from itertools import pairwise

import torch

from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.seeds import seeded_generator
from experiments.analysis.metrics import column_name

INNER_STEPS = (0, 1, 5, 20, 40)  # opt_steps at each level of the sampler
INNER_STEP_MATRICES = 256  # of each difficulty, at most, behind a point over INNER_STEPS, which takes the longest
REGRESSION = "linear regression"  # among a task's references
MINED = ("random", "adversarial")  # modes of the negatives that are ranked
SLICE_LEVEL, SLICE_POINTS = 2, 31
CONDITION_EDGES = (0, 10, 20, 30, 50, 80, 120, 200, 320, 500, float("inf"))  # of cond(A), for the histogram


def diagnose(diffusion, val: EvaluationSet, ood: EvaluationSet) -> dict:
    """All measurements of a model on the sets of both difficulties, ready for JSON."""
    with torch.no_grad():
        return {
            "levels": level_rows(diffusion, val, fixed_answers(val)),
            "inner_steps": inner_step_rows(diffusion, *(first_rows(each, INNER_STEP_MATRICES) for each in (val, ood))),
            "diffusion_steps": diffusion_step_rows(diffusion, val, ood),
            "conditioning": conditioning_rows(diffusion, val, ood),
            "slice": energy_slice(diffusion, val),
        }


def fixed_answers(chosen: EvaluationSet) -> dict[str, torch.Tensor]:
    """Wrong answers (B, out_dim) that are the same for every model, by name.

    `regression`: the linear regression's, for a task that has one, the best that a linear model knows of the solution.
    `other`: the solution of another problem of the set, which an energy cannot tell from the true one without looking
    at the input.
    """
    generator = seeded_generator("fixed answers", device=chosen.inp.device)
    references = chosen.task.reference_predictions(chosen.inp.double(), generator)
    answers = {"regression": references[REGRESSION].float()} if REGRESSION in references else {}
    return answers | {"other": chosen.target.float().roll(1, 0)}


def first_rows(chosen: EvaluationSet, size: int) -> EvaluationSet:
    """The first `size` examples of an evaluation set."""
    return EvaluationSet(chosen.task, min(size, chosen.size), chosen.inp.device)


def level_rows(diffusion, chosen: EvaluationSet, answers: dict[str, torch.Tensor]) -> list[dict]:
    """A row per level t. Of each kind of wrong answer, the model's own negatives of both modes and `answers`: `auc`
    P(E(real) < E(fake)), `gap` mean E(fake) - E(real), `distance` from the solution (root mean square, in the
    solution's units). `accepted`: share of IRED's two opt_steps kept. `alignment`: mean cosine of dE/dx at x_t with
    x_t - sqrt(alphas_cumprod_t) y."""
    ebm, rows = diffusion.model.ebm, []
    target, noise = chosen.target.float(), chosen.noise
    cond = ebm.condition(chosen.inp, 0)
    for t in range(diffusion.num_timesteps):
        cond = ebm.retime(cond, t)
        real = diffusion.q_sample(target, t, noise)
        energy_real, gradient = ebm.energy_and_gradient(cond, real)
        away = real - diffusion.sqrt_alphas_cumprod[t] * target
        row = {"t": t, "alignment": torch.cosine_similarity(gradient, away, dim=1).mean().item()}
        mined = {mode: diffusion.negatives(cond, target, t, noise, MiningConfig(mode)) for mode in MINED}
        fixed = {name: diffusion.q_sample(answer, t, noise) for name, answer in answers.items()}
        for name, fake in (mined | fixed).items():
            gap = ebm.energy(cond, fake) - energy_real
            distance = (fake - real) / diffusion.sqrt_alphas_cumprod[t]
            row[f"auc_{name}"] = ((gap > 0).double() + 0.5 * (gap == 0).double()).mean().item()
            row[f"gap_{name}"] = gap.mean().item()
            row[f"distance_{name}"] = distance.square().mean(1).sqrt().mean().item()
        mining = MiningConfig("adversarial")
        far = diffusion.q_sample(target, t, mining.noise_scale * noise)
        _, kept = diffusion.descend(cond, far, t, mining.opt_steps, mining.scale_factor, diffusion.bound)
        rows.append({**row, "accepted": kept.item()})
    return rows


def inner_step_rows(diffusion, val, ood) -> list[dict]:
    """Errors against the number of opt_steps at each level of the sampler, and the size of the sets behind them."""
    rows = []
    for steps in INNER_STEPS:
        errors = {
            column_name(metric, harder): value
            for harder, chosen in enumerate((val, ood))
            for metric, value in sampler_metrics(diffusion, chosen, steps).items()
        }
        rows.append({"inner_steps": steps, **errors, "evaluation_size": val.size})
    return rows


def diffusion_step_rows(diffusion, val, ood) -> list[dict]:
    """Errors of the plain sampler against the number of levels that it visits, evenly chosen from all T."""
    total = diffusion.num_timesteps
    rows = []
    for count in sorted({1, 2, 3, 5, 7, total}):
        if count > total:
            continue
        levels = torch.linspace(total - 1, 0, count).round().long().tolist() if count > 1 else [total - 1]
        row = {"diffusion_steps": count}
        for name, chosen in (("val_mse", val), ("ood_mse", ood)):
            solution = _solve(diffusion, chosen, levels=levels)
            row[name] = (solution.double() - chosen.target).square().mean().item()
        rows.append(row)
    return rows


def _solve(diffusion, chosen, **options):
    return diffusion.sample_loop(chosen.inp, start=chosen.start, inner_steps=0, bound=chosen.task.bound, **options)


def conditioning_rows(diffusion, val, ood) -> list[dict]:
    """Plain sampler: mean squared error of the matrices of both sets, by the condition number of A."""
    n = val.task.rank
    conditions = torch.cat([torch.linalg.cond(chosen.exact_inp.view(-1, n, n)) for chosen in (val, ood)])
    errors = torch.cat(
        [chosen.task.score(chosen.inp, chosen.target, _solve(diffusion, chosen))["mse"].cpu() for chosen in (val, ood)]
    )
    rows = []
    for low, high in pairwise(CONDITION_EDGES):
        inside = (conditions >= low) & (conditions < high)
        if inside.any():
            rows.append({"condition_from": low, "matrices": int(inside.sum()), "mse": errors[inside].mean().item()})
    return rows


def energy_slice(diffusion, chosen: EvaluationSet) -> dict:
    """Energies of one matrix on the plane through the solution (0, 0), the mined negative (1, 0) and a random
    direction of the same length (0, 1), at level SLICE_LEVEL: `axis` (k,), `energy` (k, k) with the random
    direction as the row."""
    ebm, t = diffusion.model.ebm, min(SLICE_LEVEL, diffusion.num_timesteps - 1)
    inp, target, noise = chosen.inp[:1], chosen.target[:1].float(), chosen.noise[:1]
    home = diffusion.sqrt_alphas_cumprod[t] * target
    start = diffusion.q_sample(target, t, MiningConfig().noise_scale * noise)
    mined, _ = diffusion.descend(ebm.condition(inp, t), start, t, 2, 1.0, diffusion.bound)
    first = mined - home
    second = chosen.start[:1] - (chosen.start[:1] * first).sum() / first.square().sum() * first
    second = second * first.norm() / second.norm()
    axis = torch.linspace(-1.5, 1.5, SLICE_POINTS, device=home.device)
    points = home + axis[None, :, None] * first + axis[:, None, None] * second  # (k, k, out_dim)
    flat = points.flatten(0, 1)
    energy = ebm.energy(ebm.condition(inp.expand(len(flat), -1), t), flat).view(SLICE_POINTS, SLICE_POINTS)
    return {"level": t, "axis": axis.tolist(), "energy": energy.tolist()}

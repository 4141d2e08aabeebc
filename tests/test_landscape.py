"""The landscape's measurements on an energy that is known in closed form."""

from dataclasses import replace

import pytest
import torch
from conftest import make_diffusion

from dataset import Inverse
from diffusion_lib.evaluation import EvaluationSet, sampler_metrics
from experiments.study.landscape import (
    difficulty_rows,
    diffusion_step_rows,
    inner_step_rows,
    level_rows,
    solved_example,
)
from models import EnergyModel


class Bowl(EnergyModel):
    """E = ||x - sqrt(alphas_cumprod_t) A^-1||^2 / 20: its gradient points straight away from the solution."""

    def __init__(self, diffusion):
        super().__init__(diffusion.inp_dim, diffusion.out_dim)
        self.scale = diffusion.sqrt_alphas_cumprod

    def condition(self, inp, t):
        n = round(self.inp_dim**0.5)
        return torch.linalg.inv(inp.view(-1, n, n).double()).float().flatten(1), t

    def retime(self, cond, t):
        return cond[0], t

    def energy(self, cond, x):
        return 0.05 * (x - self.scale[cond[1]] * cond[0]).square().sum(1)


@pytest.fixture
def bowl():
    diffusion = make_diffusion()
    diffusion.model.ebm = Bowl(diffusion)
    return diffusion


def test_levels_of_a_bowl(bowl):
    chosen = EvaluationSet(Inverse("val", 3), 40, "cpu")
    rows = level_rows(bowl, chosen, {"other": chosen.target.float().roll(1, 0)})
    assert [row["t"] for row in rows] == list(range(10))
    for row in rows:
        assert row["alignment"] == pytest.approx(1, abs=1e-5)
        assert 0 < row["accepted"] <= 1
        assert row["distance_adversarial"] <= row["distance_random"] + 1e-6
    assert rows[3]["auc_random"] > 0.9
    assert rows[0]["auc_other"] > 0.9
    assert rows[3]["gap_random"] > 0


def test_inner_steps_lower_the_error_of_a_bowl(bowl):
    val, ood = (EvaluationSet(Inverse("val", 3, ood=ood), 40, "cpu") for ood in (False, True))
    rows = inner_step_rows(bowl, val, ood)
    assert [row["inner_steps"] for row in rows] == [0, 1, 5, 20, 40]
    errors = [row["val_mse"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    steps = diffusion_step_rows(bowl, val, ood)
    assert [row["diffusion_steps"] for row in steps] == [1, 2, 3, 5, 7, 10]


def test_conditioning_counts_every_matrix_once(bowl):
    val, ood = (EvaluationSet(Inverse("val", 3, ood=ood), 40, "cpu") for ood in (False, True))
    assert sum(row["matrices"] for row in difficulty_rows(bowl, val, ood)) == 80


def test_the_solved_problem_is_the_first_of_the_set(bowl):
    chosen = EvaluationSet(Inverse("val", 3), 4, "cpu")
    found = torch.tensor(solved_example(bowl, chosen)["prediction"])
    distances = (found - chosen.target).square().sum(1)
    assert distances.argmin() == 0


def test_a_diagnosis_keeps_the_bound_of_the_evaluation():
    rules = replace(Inverse("train", 3).rules, bound=0.5)
    diffusion = make_diffusion(match_release=True, rules=rules)  # whose sampler keeps the model's own bound everywhere
    sets = [EvaluationSet(Inverse("val", 3, ood=ood), 40, "cpu") for ood in (False, True)]
    rows = difficulty_rows(diffusion, *sets)
    mean = sum(row["mse"] * row["matrices"] for row in rows) / 80
    assert mean == pytest.approx(sum(sampler_metrics(diffusion, chosen, "plain")["mse"] for chosen in sets) / 2)

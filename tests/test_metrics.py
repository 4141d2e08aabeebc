"""The metrics, by hand, and the reference solvers on the fixed sets."""

import numpy as np
import pytest
import torch
from conftest import make_diffusion

from dataset import Addition, Inverse
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import EvaluationSet, Share, energy_auc, prediction_metrics, sampler_metrics
from diffusion_lib.tasks import matrix_references
from diffusion_lib.tasks.matrix_references import Fitted, exact_inverse, newton_schulz
from experiments.analysis import references
from experiments.analysis.references import predictor_metrics, published_rows, reference_rows


def test_errors_by_hand():
    task = Inverse("val", 2)
    a = torch.tensor([[2.0, 0.0, 0.0, 4.0]])
    target, prediction = torch.tensor([[0.5, 0, 0, 0.25]]).double(), torch.tensor([[0.5, 0, 0, 0.5]])
    errors = task.score(a, target, prediction)
    assert errors["mse"].tolist() == pytest.approx([0.25**2 / 4])
    assert errors["recon_error"].tolist() == pytest.approx([1.0])  # A Y - I = diag(0, 1)


def test_evaluation_sets_are_fixed_and_paired():
    one, two = (EvaluationSet(Inverse("val", 4), 50, "cpu") for _ in range(2))
    harder = EvaluationSet(Inverse("val", 4, ood=True), 50, "cpu")
    assert torch.equal(one.inp, two.inp)
    assert torch.equal(one.start, two.start)
    eye = 0.4 * torch.eye(4).flatten()
    assert torch.allclose(one.inp - harder.inp, eye.expand(50, -1), atol=1e-5)
    exact = np.linalg.inv(one.exact_inp.view(-1, 4, 4).numpy())
    assert np.abs(one.target.view(-1, 4, 4).numpy() - exact).max() < 1e-12


def test_batching_and_sharing_do_not_change_a_metric():
    diffusion, chosen = make_diffusion(), EvaluationSet(Inverse("val", 3), 40, "cpu")
    whole = sampler_metrics(diffusion, chosen, "innerloop", batch_size=40)
    pieces = sampler_metrics(diffusion, chosen, "innerloop", batch_size=7)
    assert whole == pytest.approx(pieces, rel=1e-4)
    rows = [row for rank in range(3) for row in Share(rank, 3).of(40)]
    assert rows == list(range(40))


@pytest.mark.parametrize("size", [1, 255, 513, 600, 1300])
def test_the_batches_of_a_set_hold_each_example_once(size):
    chosen = EvaluationSet(Inverse("val", 2), size, "cpu")
    for most in (7, 2048):
        batches = list(chosen.batches(most))
        assert [row for batch in batches for row in range(size)[batch]] == list(range(size))
        assert max(batch.stop - batch.start for batch in batches) <= most


def test_the_sampler_is_bounded_by_the_evaluated_task():
    diffusion, harder = make_diffusion(bound=2.0), EvaluationSet(Inverse("val", 3, ood=True), 30, "cpu")
    wide = diffusion.sample_loop(harder.inp, start=harder.start, inner_steps=0, bound=harder.task.bound)
    assert wide.abs().max() > 2.0
    expected = harder.task.score(harder.inp, harder.target, wide)["mse"].mean().item()
    assert sampler_metrics(diffusion, harder, "plain")["mse"] == pytest.approx(expected)


class KnownEnergy(torch.nn.Module):
    """Energy = squared distance of x to the noised solution, or its negative, or a constant."""

    has_energy = True

    def __init__(self, sign, inp_dim, solution):
        super().__init__()
        self.sign, self.inp_dim, self.out_dim, self.solution = sign, inp_dim, inp_dim, solution

    def condition(self, inp, t):
        return t

    def retime(self, cond, t):
        return t

    def energy(self, cond, x):
        return self.sign * (x - self.solution).square().sum(1)


@pytest.mark.parametrize(("sign", "auc"), [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_energy_auc_of_a_known_energy(sign, auc):
    """With the noise at zero the real sample is the scaled solution; random negatives lie elsewhere."""
    diffusion, chosen = make_diffusion(), EvaluationSet(Inverse("val", 3), 30, "cpu")
    diffusion.num_timesteps = 1
    scaled = diffusion.q_sample(chosen.target.float(), 0, chosen.noise)
    diffusion.model.ebm = KnownEnergy(sign, 9, scaled)
    assert energy_auc(diffusion, chosen, ["random"]) == {"random": auc}


def test_newton_schulz_and_exact_inverse():
    chosen = EvaluationSet(Inverse("val", 6), 100, "cpu")
    errors = [(newton_schulz(chosen.inp.double(), 6, k) - chosen.target).abs().max().item() for k in (2, 6, 14)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    assert (exact_inverse(chosen.inp, 6) - chosen.target).abs().max() < 1e-5


def test_linear_regression_against_least_squares():
    fitted = Fitted(Inverse("train", 3), samples=2000)
    inp, target = Inverse("train", 3).sample(500, torch.Generator().manual_seed(5), dtype=torch.float64)
    train_inp, train_target = fitted.training_data(2000)
    upper = np.triu_indices(3)
    features = np.c_[train_inp.view(-1, 3, 3).numpy()[:, upper[0], upper[1]], np.ones(2000)]
    solution, *_ = np.linalg.lstsq(features, train_target.numpy(), rcond=None)
    new = np.c_[inp.view(-1, 3, 3).numpy()[:, upper[0], upper[1]], np.ones(500)]
    assert np.allclose(fitted.linear_regression(inp).numpy(), new @ solution, atol=1e-8)
    assert np.allclose(fitted.mean_predictor(inp).numpy(), train_target.numpy().mean(0))
    assert (fitted.linear_regression(inp) - target).square().mean() < (fitted.mean - target).square().mean()


def test_reference_rows_are_in_the_known_order_of_quality(monkeypatch):
    monkeypatch.setattr(matrix_references, "FIT_SAMPLES", 3000)
    sets = tuple(EvaluationSet(Inverse("val", 5, ood=ood), 500, "cpu") for ood in (False, True))
    rows = reference_rows(sets)
    ordered = ["zero matrix", "mean predictor", "linear regression", "Newton-Schulz 8", "Newton-Schulz 10"]
    assert [row["strategy"] for row in rows] == [*ordered, "Newton-Schulz 12", "exact inverse (float32)"]
    for metric in ("val_mse", "ood_mse"):
        errors = [row[metric] for row in rows[:4]]
        assert errors == sorted(errors, reverse=True)
    assert rows[0]["recon_error"] == rows[0]["ood_recon_error"] == pytest.approx(5**0.5)
    assert rows[0]["val_mse"] == pytest.approx(sets[0].target.square().mean().item())
    assert rows[-1]["recon_error"] < 1e-4


def test_a_reference_is_judged_as_a_run_is_whatever_the_batches(monkeypatch):
    monkeypatch.setattr(matrix_references, "FIT_SAMPLES", 500)
    chosen = EvaluationSet(Inverse("val", 3), 50, "cpu")
    whole = predictor_metrics(chosen)
    monkeypatch.setattr(references, "BATCH", 16)
    assert predictor_metrics(chosen) == {name: pytest.approx(found) for name, found in whole.items()}
    solution = newton_schulz(chosen.inp.double(), 3, 8)
    assert whole["Newton-Schulz 8"] == pytest.approx(prediction_metrics(chosen, solution))


def test_other_tasks_have_the_predictors_that_they_name():
    class Coin(Addition):
        def reference_predictions(self, inp, generator):
            drawn = torch.rand(len(inp), self.out_dim, generator=generator, dtype=inp.dtype)
            return {**super().reference_predictions(inp, generator), "a guess": drawn}

    sets = tuple(EvaluationSet(Coin("val", 2, ood=ood), 40, "cpu") for ood in (False, True))
    one, two = (reference_rows(sets) for _ in range(2))
    assert one == two and [set(row) for row in one] == [{"strategy", "sampler", "val_mse", "ood_mse"}] * 2


@pytest.mark.parametrize(
    ("task", "model", "rank", "count"),
    [(Inverse, "mlp", 20, 4), (Inverse, "matrix", 20, 0), (Inverse, "mlp", 10, 0), (Addition, "mlp", 20, 0)],
)
def test_published_numbers_stand_where_they_apply_alone(task, model, rank, count):
    rows = published_rows(task("val", rank), ExperimentConfig(model=model, rank=rank))
    assert len(rows) == count and all(row["sampler"] == "published, not rerun" for row in rows)

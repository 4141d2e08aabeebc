"""The metrics, by hand, and the reference solvers on the fixed sets."""

import numpy as np
import pytest
import torch
from conftest import make_diffusion

from dataset import Inverse
from diffusion_lib.evaluation import EvaluationSet, Share, energy_auc, sampler_metrics
from experiments.analysis.reference_solvers import Fitted, exact_inverse, newton_schulz, reference_rows


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
    assert energy_auc(diffusion, chosen, "random") == auc


def test_newton_schulz_and_exact_inverse():
    chosen = EvaluationSet(Inverse("val", 6), 100, "cpu")
    errors = [(newton_schulz(chosen.inp.double(), 6, k) - chosen.target).abs().max().item() for k in (2, 6, 14)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    assert (exact_inverse(chosen.inp, 6) - chosen.target).abs().max() < 1e-5


def test_linear_regression_against_least_squares():
    fitted = Fitted(3, samples=2000)
    inp, target = Inverse("train", 3).sample(500, torch.Generator().manual_seed(5), dtype=torch.float64)
    train_inp, train_target = fitted.training_data(2000)
    upper = np.triu_indices(3)
    features = np.c_[train_inp.view(-1, 3, 3).numpy()[:, upper[0], upper[1]], np.ones(2000)]
    solution, *_ = np.linalg.lstsq(features, train_target.numpy(), rcond=None)
    new = np.c_[inp.view(-1, 3, 3).numpy()[:, upper[0], upper[1]], np.ones(500)]
    assert np.allclose(fitted.linear_regression(inp).numpy(), new @ solution, atol=1e-8)
    assert np.allclose(fitted.mean_predictor(inp).numpy(), train_target.numpy().mean(0))
    assert (fitted.linear_regression(inp) - target).square().mean() < (fitted.mean - target).square().mean()


def test_reference_rows_are_in_the_known_order_of_quality():
    rows = {row["strategy"]: row for row in reference_rows(5, 500, fit_samples=3000)}
    for metric in ("val_mse", "ood_mse"):
        ordered = [
            rows[name][metric]
            for name in (
                "mean predictor",
                "linear regression",
                "Newton-Schulz 8",
                "Newton-Schulz 10",
                "exact inverse (float32)",
            )
        ]
        assert ordered[:3] == sorted(ordered[:3], reverse=True)
    assert rows["exact inverse (float32)"]["recon_error"] < 1e-4

"""Predictors without an energy model: what a learned one has to beat, on the same sets and metrics."""

import torch

from diffusion_lib.evaluation import EvaluationSet, prediction_metrics
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks import Inverse

FIT_SAMPLES = 200_000
NEWTON_SCHULZ_ITERATIONS = (8, 10, 12)


class Fitted:
    """The mean of the targets, and a linear regression of their upper triangle on that of A (with intercept)."""

    def __init__(self, rank: int, samples: int = FIT_SAMPLES, device="cpu"):
        self.rank, self.device = rank, device
        self.rows, self.columns = torch.triu_indices(rank, rank, device=device)
        inp, target = self.training_data(samples)
        self.mean = target.mean(0)
        features = self._features(inp)
        # the normal equations in float64: the features are few and well scaled
        gram, moments = features.mT @ features, features.mT @ self._upper(target)
        self.weight = torch.linalg.solve(gram, moments)

    def training_data(self, samples: int):
        """What it is fitted on: (samples, n^2) float64, of the training distribution."""
        generator = seeded_generator("linear regression", device=self.device)
        task, chunk = Inverse("train", self.rank), 10_000  # chunks: the making of data takes several times its memory
        parts = [
            task.sample(min(chunk, samples - done), generator, self.device, torch.float64)
            for done in range(0, samples, chunk)
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def mean_predictor(self, inp):
        """The mean target for every input: (B, n^2) float64."""
        return self.mean.expand(inp.shape[0], -1)

    def linear_regression(self, inp):
        """(B, n^2) float64, symmetric."""
        n = self.rank
        upper = self._features(inp) @ self.weight
        full = inp.new_zeros(inp.shape[0], n, n)
        full[:, self.rows, self.columns] = upper
        full[:, self.columns, self.rows] = upper
        return full.flatten(1)

    def _upper(self, flat):
        return flat.view(-1, self.rank, self.rank)[:, self.rows, self.columns]

    def _features(self, inp):
        upper = self._upper(inp)
        return torch.cat((upper, torch.ones_like(upper[:, :1])), 1)


def newton_schulz(inp, rank: int, iterations: int):
    """X <- X (2 I - A X) from X = I / trace(A) (Schulz 1933): (B, n^2) in the precision of `inp`."""
    a = inp.view(-1, rank, rank)
    identity = torch.eye(rank, dtype=a.dtype, device=a.device)
    x = identity / a.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    for _ in range(iterations):
        x = x @ (2 * identity - a @ x)
    return x.flatten(1)


def exact_inverse(inp, rank: int):
    """LAPACK's inverse of the float32 matrices, (B, n^2)."""
    return torch.linalg.inv(inp.view(-1, rank, rank)).flatten(1)


def reference_rows(rank: int, evaluation_size: int, device="cpu", fit_samples: int = FIT_SAMPLES) -> list[dict]:
    """A row of metrics per reference: `strategy` is its name, the rest as for a run."""
    fitted = Fitted(rank, fit_samples, device)
    solvers = {"mean predictor": fitted.mean_predictor, "linear regression": fitted.linear_regression}
    for k in NEWTON_SCHULZ_ITERATIONS:
        solvers[f"Newton-Schulz {k}"] = lambda inp, k=k: newton_schulz(inp, rank, k)
    solvers["exact inverse (float32)"] = lambda inp: exact_inverse(inp.float(), rank)
    sets = [EvaluationSet(Inverse("val", rank, ood=ood), evaluation_size, device) for ood in (False, True)]
    rows = []
    for name, solve in solvers.items():
        same, harder = (prediction_metrics(chosen, solve(chosen.inp.double())) for chosen in sets)
        rows.append(
            {
                "strategy": name,
                "sampler": "reference",
                "val_mse": same["mse"],
                "ood_mse": harder["mse"],
                "recon_error": same["recon_error"],
                "ood_recon_error": harder["recon_error"],
            }
        )
    return rows

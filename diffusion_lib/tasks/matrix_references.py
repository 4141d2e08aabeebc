"""Ways to invert matrices without an energy model: what a learned one has to beat, on the same sets and metrics."""

from functools import lru_cache

import torch

from diffusion_lib.seeds import seeded_generator

FIT_SAMPLES = 200_000
QUICK_FIT_SAMPLES = 30_000  # where the fit is only an example of a good wrong answer
NEWTON_SCHULZ_ITERATIONS = (8, 10, 12)


class Fitted:
    """The mean of the targets, and a linear regression of their upper triangle on that of A (with intercept).

    task: the training task, of symmetric matrices.
    samples: how many problems are fitted.
    """

    def __init__(self, task, samples: int, device="cpu"):
        self.task, self.rank, self.device = task, task.rank, device
        self.rows, self.columns = torch.triu_indices(self.rank, self.rank, device=device)
        inp, target = self.training_data(samples)
        self.mean = target.mean(0)
        features = self._features(inp)
        # the normal equations in float64: the features are few and well scaled
        gram, moments = features.mT @ features, features.mT @ self._upper(target)
        self.weight = torch.linalg.solve(gram, moments)

    def training_data(self, samples: int):
        """Draw the problems to fit: inputs and targets, (samples, n^2) float64 each, of the training distribution."""
        generator = seeded_generator("linear regression", device=self.device)
        chunk = 10_000  # the making of data takes several times its memory
        parts = [
            self.task.sample(min(chunk, samples - done), generator, self.device, torch.float64)
            for done in range(0, samples, chunk)
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def mean_predictor(self, inp):
        """Predict the mean target for every input: (B, n^2) float64."""
        return self.mean.expand(inp.shape[0], -1)

    def linear_regression(self, inp):
        """Predict by the linear regression: (B, n^2) float64, symmetric."""
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


@lru_cache(maxsize=2)
def _fitted(kind, rank: int, samples: int, device) -> Fitted:
    return Fitted(kind("train", rank), samples, device)


def fitted(task, samples: int | None = None) -> Fitted:
    """Return the fit on `samples` problems (None: FIT_SAMPLES) of a task's training, made once."""
    return _fitted(type(task), task.rank, samples or FIT_SAMPLES, "cpu")


def newton_schulz(inp, rank: int, iterations: int):
    """Iterate X <- X (2 I - A X) from X = I / trace(A) (Schulz 1933): (B, n^2) in the precision of `inp`."""
    a = inp.view(-1, rank, rank)
    identity = torch.eye(rank, dtype=a.dtype, device=a.device)
    x = identity / a.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    for _ in range(iterations):
        x = x @ (2 * identity - a @ x)
    return x.flatten(1)


def exact_inverse(inp, rank: int):
    """Invert the float32 matrices by LAPACK: (B, n^2)."""
    return torch.linalg.inv(inp.view(-1, rank, rank)).flatten(1)


def inverse_references(task, inp) -> dict[str, torch.Tensor]:
    """Return by name inverses (B, n^2) of float64 matrices `inp` (B, n^2) of the Inverse `task`, the worst first."""
    fit = fitted(task)
    found = {
        "zero matrix": torch.zeros_like(inp),
        "mean predictor": fit.mean_predictor(inp),
        "linear regression": fit.linear_regression(inp),
    }
    for k in NEWTON_SCHULZ_ITERATIONS:
        found[f"Newton-Schulz {k}"] = newton_schulz(inp, task.rank, k)
    return found | {"exact inverse (float32)": exact_inverse(inp.float(), task.rank)}

"""IRED's three continuous tasks, generated on the device, a whole batch at a time."""

import math

import torch
from einops import rearrange

from diffusion_lib.system.checks import require_positive
from diffusion_lib.tasks import matrix_references
from diffusion_lib.tasks.base import MatrixTask, Rules


class Inverse(MatrixTask):
    """Matrix inversion: R ~ U(-1,1)^{n x n}, A = 2 R R^T + ridge I, target A^-1 (IRED, section 4.1).

    `ridge` is 0.5, and 0.1 for the harder matrices (`ood`). Since A >= ridge I, no entry of A^-1 exceeds 1/ridge, which
    is this task's `bound`. A is float32, and the target is the float64 inverse of exactly that matrix.
    """

    def __init__(self, split: str, rank: int | None = None, ood: bool = False, ridge: float | None = None):
        super().__init__(split, rank, ood)
        self.ridge = ridge if ridge is not None else (0.1 if ood else 0.5)
        require_positive("ridge", self.ridge)
        self.rules = Rules(bound=1.0 / self.ridge, near=near_inverse)

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        n = self.rank
        r = torch.rand(batch_size, n, n, generator=generator, device=device).mul_(2).sub_(1)
        a = torch.bmm(r, r.mT).mul_(2)
        a.diagonal(dim1=1, dim2=2).add_(self.ridge)
        inverse = spd_inverse(a.double())
        return a.flatten(1).to(dtype), inverse.to(dtype).flatten(1).contiguous()

    metrics = ("mse", "recon_error")
    difficulty_name = "condition number of A"

    def score(self, inp, target, prediction):
        """Return `mse`, and `recon_error`: the Frobenius norm of A Y - I."""
        a, y = (part.double().view(-1, self.rank, self.rank) for part in (inp, prediction))
        residual = a @ y
        residual.diagonal(dim1=1, dim2=2).sub_(1)
        return super().score(inp, target, prediction) | {"recon_error": residual.flatten(1).norm(dim=1)}

    def wrong_answers(self, inp, target, generator):
        """Add `regression`, the linear regression's answer: the best that a linear model knows of the solution."""
        regression = matrix_references.fitted(self, matrix_references.QUICK_FIT_SAMPLES).linear_regression(
            inp.cpu().double()
        )
        return super().wrong_answers(inp, target, generator) | {"regression": regression.to(inp)}

    def difficulty(self, inp):
        """Return the condition number of A."""
        return torch.linalg.cond(inp.view(-1, self.rank, self.rank))

    def reference_predictions(self, inp, generator):
        """Predict by zero, fits, Newton-Schulz iterations and LAPACK: see matrix_references.py."""
        return matrix_references.inverse_references(self, inp)


class Addition(MatrixTask):
    """Sum of two matrices with entries U(-1,1), and U(-2.5,2.5) for `ood` (IRED, section 4.1)."""

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        if rank == 2:  # the released task draws 2 x 1 matrices at rank 2
            self.w = 1
        self.out_dim = self.h * self.w
        self.inp_dim = 2 * self.out_dim
        self.scale = 2.5 if ood else 1.0
        self.rules = Rules(bound=2.0 * self.scale)

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        uniform = torch.rand(batch_size, self.inp_dim, generator=generator, device=device, dtype=dtype)
        inp = uniform.mul_(2).sub_(1).mul_(self.scale)
        return inp, inp[:, : self.out_dim] + inp[:, self.out_dim :]


class LowRankDataset(MatrixTask):
    """Matrix completion: 0.1 N + U V^T / 20 (`ood`: / 5), U and V n x 10; half the entries are hidden.

    The hidden entries are zero in the input. IRED, section 4.1.
    """

    inner_rank = 10

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        self.divisor = 5.0 if ood else 20.0
        self.rules = Rules(bound=8.0 if ood else 2.0)

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        def normal(*shape):
            return torch.randn(batch_size, *shape, generator=generator, device=device, dtype=dtype)

        u, v = normal(self.h, self.inner_rank), normal(self.w, self.inner_rank)
        full = 0.1 * normal(self.h, self.w) + u @ v.mT / self.divisor
        seen = torch.rand(full.shape, generator=generator, device=device) < 0.5
        return (full * seen).flatten(1), full.flatten(1)


def near_inverse(y: torch.Tensor, noise: torch.Tensor, distance: float) -> torch.Tensor:
    """Return the inverses of symmetric positive definite matrices near those whose inverses are `y` (B, n^2).

    With S = distance N / sqrt(2 n) and N the noise, (I + S) y (I + S)^T is the inverse of A plus a small symmetric
    matrix, at first order -(A S + S^T A). It differs from y by about `distance` of its norm (root mean square:
    sqrt(1 + 1/n) times that), and nothing is inverted for it.
    """
    n = math.isqrt(y.shape[1])
    y, noise = (rearrange(part, "b (row column) -> b row column", row=n) for part in (y, noise))
    factor = distance / math.sqrt(2 * n) * noise
    factor.diagonal(dim1=1, dim2=2).add_(1)
    return rearrange(factor @ y @ factor.mT, "b row column -> b (row column)")


def spd_inverse(a: torch.Tensor) -> torch.Tensor:
    """Invert symmetric positive definite matrices (B, n, n), by n symmetric sweeps (Goodnight 1979).

    The batch is the innermost axis, so each sweep is one vectorised update over all matrices; LAPACK, called once per
    small matrix, takes over twice as long. Positive pivots need no exchanges. A sweep at pivot d divides row and column
    k by d, makes the pivot -1/d, and subtracts row x column / d from the rest. With u = row/sqrt(d) and
    u_k = sqrt(d) - 1/sqrt(d) that is x - u u^T everywhere, except that the pivot is left 2 too large.
    """
    x = a.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)  # (n, n, B)
    for k in range(x.shape[0]):
        root = x[k, k].rsqrt()
        u = x[k] * root
        u[k] -= root
        x.addcmul_(u[:, None], u, value=-1)
    x.diagonal().sub_(2)
    return x.neg_().permute(2, 0, 1)

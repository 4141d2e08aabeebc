"""An energy with the form of matrix inversion built in: products of n x n matrices, for any n."""

import math
from typing import NamedTuple

import torch
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.schedule import cosine_beta_schedule, schedule_buffers
from diffusion_lib.system.errors import ConfigError

CHANNELS, PRODUCTS, LAYERS = 8, 4, 10
START = 10.0  # the size of the first P, and of I in matrix_free.py, in units of 1 / scale(A)


def require_square(inp_dim: int, out_dim: int):
    """Raise ConfigError for sizes that are not those of flattened n x n inputs and outputs."""
    if math.isqrt(inp_dim) ** 2 != inp_dim or inp_dim != out_dim:
        raise ConfigError(f"a matrix energy needs n x n inputs and outputs, not {inp_dim} and {out_dim} numbers")


def square(flat: torch.Tensor) -> torch.Tensor:
    """Flattened matrices (B, n^2) as (B, n, n)."""
    n = math.isqrt(flat.shape[1])
    return flat.view(-1, n, n)


def eigenvalue_scale(a: torch.Tensor) -> torch.Tensor:
    """Return trace(A^8)^(1/8) of symmetric A (B, n, n), as (B, 1, 1).

    It is at least A's largest eigenvalue and at most n^(1/8) times that. So A over it has its eigenvalues in (0, 1) for
    every n, and weights learned at one size serve another.
    """
    fourth = torch.linalg.matrix_power(a / torch.linalg.matrix_norm(a)[:, None, None], 4)
    return (torch.linalg.matrix_norm(a) * fourth.square().sum((1, 2)) ** 0.125)[:, None, None]


class Condition(NamedTuple):
    """`p` = P(A) and `pa` = P(A) A, (B, n, n); `g` and `c`: scalars of the level, (B, 1, 1) or (1, 1, 1)."""

    p: torch.Tensor
    pa: torch.Tensor
    g: torch.Tensor
    c: torch.Tensor


class Polynomial(torch.autograd.Function):
    """W_last Z_L (B, n, n) of symmetric A (B, n, n): Z_0 = W_in [I; A], then L times Z <- Z + W_out (W_mix Z)^2.

    A layer's channels are (C, B n n), so that one product mixes them for the whole batch; squares are of n x n
    matrices. Every Z is a polynomial in A, so all of them commute, and of a gradient D only tr(D q(A)) with polynomials
    q counts: the gradient of H^2 may be written 2 H D, one product where autograd needs two.
    """

    @staticmethod
    def forward(ctx, a, w_in, w_mix, w_out, w_last):
        basis = torch.stack((torch.eye(a.shape[-1], device=a.device, dtype=a.dtype).expand_as(a), a)).view(2, -1)
        layers, z = [], w_in @ basis
        for mix, out in zip(w_mix, w_out, strict=True):
            h = (mix @ z).view(-1, *a.shape[1:])
            square = h @ h
            layers.append((z, h, square))
            z = torch.addmm(z, out, square.view(len(mix), -1))
        ctx.layers, ctx.last, ctx.basis = layers, z, basis
        ctx.save_for_backward(w_mix, w_out, w_last)
        return (w_last @ z).view_as(a)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        w_mix, w_out, w_last = ctx.saved_tensors
        d_mix, d_out = torch.empty_like(w_mix), torch.empty_like(w_out)
        flat = gradient.reshape(1, -1)
        d_last = (flat @ ctx.last.t())[0]
        d = w_last[:, None] * flat  # (C, B n n), of the channels after the layer
        for i in reversed(range(len(w_mix))):
            z, h, square = ctx.layers[i]
            d_out[i] = d @ square.view(w_mix.shape[1], -1).t()
            d_h = (h @ (2 * w_out[i].t() @ d).view_as(h)).view(w_mix.shape[1], -1)
            d_mix[i] = d_h @ z.t()
            d = torch.addmm(d, w_mix[i].t(), d_h)
        return None, d @ ctx.basis.t(), d_mix, d_out, d_last


class MatrixEBM(EnergyModel):
    """E(A, x, t) = 1/2 || P(A) (g_t A x - c_t I) ||_F^2, with a learned polynomial P and learned scalars per level.

    P starts from eight channels Z = W_in [I; A^], each n x n, with A^ = A / scale(A). Ten times it squares four
    channels H = W_mix Z, one by one, and sets Z <- Z + W_out H^2. Squares are enough: (U + V)^2 - (U - V)^2 = 4 U V
    where U and V commute. Then P = 10 / scale(A) * W_last Z. A polynomial in A needs no inverse, and nothing in it
    depends on n. A must be symmetric.

    At level t the residual g_t A x - c_t I vanishes at x = (c_t / g_t) A^-1. The first values
    g_t = (1 - alphas_cumprod_t)^(-1/4), c_t = sqrt(alphas_cumprod_t) g_t put that at the noised solution's mean, and
    make dE/dx of the size of the noise where P = A^-1. P preconditions the descent: the nearer P(A) A is to I, the
    straighter it is.

    `condition` computes P(A) and P(A) A once a batch. Then an energy is one product of n x n matrices, and a gradient
    one more: g_t (P A)^T (P r), r the residual, a closed form that plain autograd differentiates.
    """

    any_size = True

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        require_square(inp_dim, out_dim)
        self.w_in = nn.Parameter(0.5 * torch.randn(CHANNELS, 2))
        self.w_mix = nn.Parameter(0.3 * torch.randn(LAYERS, PRODUCTS, CHANNELS))
        self.w_out = nn.Parameter(0.15 * torch.randn(LAYERS, CHANNELS, PRODUCTS))
        # the first P is positive: training rarely recovers from one that changes sign among the eigenvalues
        self.w_last = nn.Parameter(0.1 * torch.rand(CHANNELS))
        with torch.no_grad():
            self.w_in[:, 0].abs_()
        self.set_timesteps(self.num_timesteps)

    def set_timesteps(self, num_timesteps: int):
        """Make the scalars of the levels anew, for T levels."""
        super().set_timesteps(num_timesteps)
        buffers = schedule_buffers(cosine_beta_schedule(num_timesteps))
        g = buffers["sqrt_one_minus_alphas_cumprod"].rsqrt()
        self.g = nn.Parameter(g)
        self.c = nn.Parameter(buffers["sqrt_alphas_cumprod"] * g)

    def solution_shape(self, inp):
        return (len(inp), inp.shape[1])

    def condition(self, inp, t):
        a = square(inp)
        scale = eigenvalue_scale(a)
        p = START / scale * Polynomial.apply(a / scale, self.w_in, self.w_mix, self.w_out, self.w_last)
        return Condition(p, p @ a, *self._scalars(t))

    def retime(self, cond, t):
        return Condition(cond.p, cond.pa, *self._scalars(t))

    def _scalars(self, t):
        if isinstance(t, int):
            return self.g[t].view(1, 1, 1), self.c[t].view(1, 1, 1)
        # a product with one-hot rows: its gradient is deterministic on every device
        rows = nn.functional.one_hot(t, self.num_timesteps).to(self.g.dtype)
        return (rows @ self.g)[:, None, None], (rows @ self.c)[:, None, None]

    def energy(self, cond, x):
        return 0.5 * self._preconditioned_residual(cond, x).square().sum((1, 2))

    def energy_and_gradient(self, cond, x):
        residual = self._preconditioned_residual(cond, x)
        gradient = cond.g * (cond.pa.mT @ residual)
        return 0.5 * residual.square().sum((1, 2)), gradient.flatten(1)

    def _preconditioned_residual(self, cond, x):
        return cond.g * (cond.pa @ square(x)) - cond.c * cond.p

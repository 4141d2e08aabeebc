"""Energies that can represent matrix inversion: built of products of n x n matrices, for any n."""

import math
from typing import NamedTuple

import torch
from torch import nn

from diffusion_lib.errors import ConfigError
from diffusion_lib.schedule import cosine_beta_schedule, schedule_buffers
from models.energy import EnergyModel

CHANNELS, PRODUCTS, LAYERS, FREE_LAYERS = 8, 4, 8, 6
SPREAD = 3.0  # of A's eigenvalues over their root mean square: at most 2.83 for large n (Marchenko-Pastur)


def side(inp_dim: int, out_dim: int) -> int:
    """n of flattened n x n inputs and outputs. Raises ConfigError for other sizes."""
    n = math.isqrt(inp_dim)
    if n * n != inp_dim or inp_dim != out_dim:
        raise ConfigError(f"a matrix energy needs n x n inputs and outputs, not {inp_dim} and {out_dim} numbers")
    return n


def eigenvalue_scale(a: torch.Tensor) -> torch.Tensor:
    """SPREAD times the root mean square eigenvalue of A (B, n, n), as (B, 1, 1): A over it has its eigenvalues in
    about (0, 1) for every n, so that weights learned at one size serve another."""
    return SPREAD / math.sqrt(a.shape[-1]) * torch.linalg.matrix_norm(a)[:, None, None]


class Condition(NamedTuple):
    """`p` = P(A) and `pa` = P(A) A, (B, n, n); `g` and `c`: scalars of the level, (B, 1, 1) or (1, 1, 1)."""

    p: torch.Tensor
    pa: torch.Tensor
    g: torch.Tensor
    c: torch.Tensor


class MatrixEBM(EnergyModel):
    """E(A, x, t) = 1/2 || P(A) (g_t A x - c_t I) ||_F^2, with a learned polynomial P and learned scalars per level.

    P: with A^ = A / scale(A), Z_0 = W_in [I; A^] has 8 channels of n x n; eight times H = (W_p Z)(W_q Z), four
    channel-wise products, and Z <- Z + W_o H; P = SPREAD^2 / scale(A) * W_last Z. Being a polynomial in A it costs
    no inverse, and nothing in it depends on n. At level t the residual vanishes at x = (c_t / g_t) A^-1; the start
    g_t = (1 - alphas_cumprod_t)^(-1/4), c_t = sqrt(alphas_cumprod_t) g_t puts that at the noised solution's mean
    and makes dE/dx of the size of the noise where P = A^-1. P acts as a preconditioner: the nearer P(A) A is to I,
    the straighter the descent.

    P(A) and P(A) A are computed once a batch (`condition`); then an energy is one product of n x n matrices and a
    gradient one more, g_t (P A)^T (P r), a closed form that plain autograd differentiates.
    """

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.n = side(inp_dim, out_dim)
        self.w_in = nn.Parameter(0.5 * torch.randn(CHANNELS, 2))
        self.w_pq = nn.Parameter(0.3 * torch.randn(LAYERS, 2 * PRODUCTS, CHANNELS))
        self.w_out = nn.Parameter(0.15 * torch.randn(LAYERS, CHANNELS, PRODUCTS))
        # a positive start of P: from a P that changes sign among the eigenvalues training rarely recovers
        self.w_last = nn.Parameter(0.1 * torch.rand(CHANNELS))
        with torch.no_grad():
            self.w_in[:, 0].abs_()
        self.set_timesteps(self.num_timesteps)

    def set_timesteps(self, num_timesteps: int):
        """Start the scalars of the levels anew, for T levels."""
        super().set_timesteps(num_timesteps)
        buffers = schedule_buffers(cosine_beta_schedule(num_timesteps))
        g = buffers["sqrt_one_minus_alphas_cumprod"].rsqrt()
        self.g = nn.Parameter(g)
        self.c = nn.Parameter(buffers["sqrt_alphas_cumprod"] * g)

    def condition(self, inp, t):
        a = inp.view(-1, self.n, self.n)
        scale = eigenvalue_scale(a)
        p = SPREAD**2 / scale * self._polynomial(a / scale)
        return Condition(p, p @ a, *self._scalars(t))

    def retime(self, cond, t):
        return Condition(cond.p, cond.pa, *self._scalars(t))

    def _scalars(self, t):
        if isinstance(t, int):
            return self.g[t].view(1, 1, 1), self.c[t].view(1, 1, 1)
        # a product with one-hot rows: its gradient is deterministic on every device
        rows = nn.functional.one_hot(t, self.num_timesteps).to(self.g.dtype)
        return (rows @ self.g)[:, None, None], (rows @ self.c)[:, None, None]

    def _polynomial(self, a):
        """W_last Z_8 (B, n, n). Channels come first, so that mixing them is one matrix product over the batch."""
        identity = torch.eye(self.n, device=a.device, dtype=a.dtype).expand_as(a)
        z = self.w_in @ torch.stack((identity, a)).view(2, -1)  # (C, B n n)
        for w_pq, w_out in zip(self.w_pq, self.w_out, strict=True):
            left, right = (w_pq @ z).view(2, -1, self.n, self.n)  # (K B, n, n) each
            z = torch.addmm(z, w_out, (left @ right).view(PRODUCTS, -1))
        return (self.w_last @ z).view_as(a)

    def energy(self, cond, x):
        return 0.5 * self._preconditioned_residual(cond, x).square().sum((1, 2))

    def energy_and_gradient(self, cond, x):
        residual = self._preconditioned_residual(cond, x.detach())
        gradient = cond.g * (cond.pa.mT @ residual)
        return 0.5 * residual.square().sum((1, 2)), gradient.flatten(1)

    def _preconditioned_residual(self, cond, x):
        return cond.g * (cond.pa @ x.view(-1, self.n, self.n)) - cond.c * cond.p


class FreeCondition(NamedTuple):
    """`a`: A over its scale (B, n, n). `gain`: (L, K, B or 1), of each product at the level. `weight`: (B or 1,)."""

    a: torch.Tensor
    gain: torch.Tensor
    weight: torch.Tensor


class MatrixEBMFree(EnergyModel):
    """The same products without the residual built in: E = w_t / 2 || s W_last Z_6 ||_F^2, Z_0 = W_in [I; A^; x / s].

    s = 2 sqrt(n). Layers as in MatrixEBM, but six (eight diverge at the learning rate they need), each product
    scaled by a learned gain of its layer and level: what the energy should vanish at has to be learned. The
    gradient comes from autograd.
    """

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.n = side(inp_dim, out_dim)
        self.w_in = nn.Parameter(0.5 * torch.randn(CHANNELS, 3))
        self.w_pq = nn.Parameter(0.3 * torch.randn(FREE_LAYERS, 2 * PRODUCTS, CHANNELS))
        self.w_out = nn.Parameter(0.05 * torch.randn(FREE_LAYERS, CHANNELS, PRODUCTS))
        self.w_last = nn.Parameter(0.3 * torch.randn(CHANNELS))
        self.set_timesteps(self.num_timesteps)

    def set_timesteps(self, num_timesteps: int):
        """Start the gains of the levels anew, for T levels."""
        super().set_timesteps(num_timesteps)
        self.gain = nn.Parameter(torch.ones(FREE_LAYERS, PRODUCTS, num_timesteps))
        self.log_weight = nn.Parameter(torch.zeros(num_timesteps))

    def condition(self, inp, t):
        a = inp.view(-1, self.n, self.n)
        return self.retime(FreeCondition(a / eigenvalue_scale(a), self.gain, self.log_weight), t)

    def retime(self, cond, t):
        if isinstance(t, int):
            return FreeCondition(cond.a, self.gain[..., t, None], self.log_weight[t].exp()[None])
        columns = nn.functional.one_hot(t, self.num_timesteps).to(self.gain.dtype).t()  # (T, B)
        return FreeCondition(cond.a, self.gain @ columns, (self.log_weight @ columns).exp())

    def energy(self, cond, x):
        a, n = cond.a, self.n
        identity = torch.eye(n, device=a.device, dtype=a.dtype).expand_as(a)
        spread = 2 * math.sqrt(n)  # the largest singular value of an n x n matrix of unit noise
        z = self.w_in @ torch.stack((identity, a, x.view_as(a) / spread)).view(3, -1)
        for w_pq, w_out, gain in zip(self.w_pq, self.w_out, cond.gain, strict=True):
            left, right = (w_pq @ z).view(2, -1, n, n)
            product = (left @ right).view(PRODUCTS, -1, n, n) * gain[:, :, None, None]
            z = torch.addmm(z, w_out, product.view(PRODUCTS, -1))
        return 0.5 * cond.weight * (spread * (self.w_last @ z)).view_as(a).square().sum((1, 2))

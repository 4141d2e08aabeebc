"""MatrixEBM's kind of products without its residual: an energy that has to learn what inversion is."""

import math
from typing import NamedTuple

import torch
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.energies.matrix import CHANNELS, PRODUCTS, START, eigenvalue_scale, require_square, square
from diffusion_lib.schedule import cosine_beta_schedule, schedule_buffers

LAYERS = 8


class Condition(NamedTuple):
    """What the energy needs of inputs and level.

    unit, a: 10 I and A, both over A's scale, (B, n, n).
    gain: of each layer's products at the level, (L, K, B or 1).
    weight: of the energy at the level, (B or 1,).
    """

    unit: torch.Tensor
    a: torch.Tensor
    gain: torch.Tensor
    weight: torch.Tensor


class MatrixEBMFree(EnergyModel):
    """MatrixEBM's products without its residual: E = w_t / 2 || s W_last Z_8 ||_F^2.

    Z_0 = W_in [10 I / scale(A); A^; x / s], s = 2 sqrt(n). Eight times Z <- Z + W_out (W_p Z)(W_q Z), four products,
    each scaled by a learned gain of its layer and level. Where the energy vanishes has to be learned. I is divided by
    A's scale as A is; else the size of A, and so of its inverse, would be lost: with a plain I no training got below
    1.1e-4. The gradient comes from autograd.
    """

    any_size = True

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        require_square(inp_dim, out_dim)
        self.w_in = nn.Parameter(0.5 * torch.randn(CHANNELS, 3))
        self.w_pq = nn.Parameter(0.3 * torch.randn(LAYERS, 2 * PRODUCTS, CHANNELS))
        self.w_out = nn.Parameter(0.02 * torch.randn(LAYERS, CHANNELS, PRODUCTS))  # larger starts diverge
        self.w_last = nn.Parameter(0.3 * torch.randn(CHANNELS))
        self.set_timesteps(self.num_timesteps)

    def set_timesteps(self, num_timesteps: int):
        """Make the gains and weights of the levels anew, for T levels."""
        super().set_timesteps(num_timesteps)
        self.gain = nn.Parameter(torch.ones(LAYERS, PRODUCTS, num_timesteps))
        buffers = schedule_buffers(cosine_beta_schedule(num_timesteps))
        self.log_weight = nn.Parameter(-buffers["sqrt_one_minus_alphas_cumprod"].log())  # log of MatrixEBM's g_t^2

    def solution_shape(self, inp):
        return (len(inp), inp.shape[1])

    def condition(self, inp, t):
        a = square(inp)
        scale = eigenvalue_scale(a)
        unit = START / scale * torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
        return self.retime(Condition(unit, a / scale, self.gain, self.log_weight), t)

    def retime(self, cond, t):
        if isinstance(t, int):
            return Condition(cond.unit, cond.a, self.gain[..., t, None], self.log_weight[t].exp()[None])
        columns = nn.functional.one_hot(t, self.num_timesteps).to(self.gain.dtype).t()  # (T, B)
        return Condition(cond.unit, cond.a, self.gain @ columns, (self.log_weight @ columns).exp())

    def energy(self, cond, x):
        a, n = cond.a, cond.a.shape[-1]
        spread = 2 * math.sqrt(n)  # the largest singular value of an n x n matrix of unit noise
        z = self.w_in @ torch.stack((cond.unit, a, x.view_as(a) / spread)).view(3, -1)
        for w_pq, w_out, gain in zip(self.w_pq, self.w_out, cond.gain, strict=True):
            left, right = (w_pq @ z).view(2, -1, n, n)
            product = (left @ right).view(PRODUCTS, -1, n, n) * gain[:, :, None, None]
            z = torch.addmm(z, w_out, product.view(PRODUCTS, -1))
        return 0.5 * cond.weight * (spread * (self.w_last @ z)).view_as(a).square().sum((1, 2))

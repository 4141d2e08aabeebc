"""IRED's energy for vectors: an MLP whose output is squared and summed."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.energies.mlp_fast import Energy, Gradient, Gram, Levels, Sweep

HIDDEN = 512
TIME_DIM = 128


class Condition(NamedTuple):
    """projected: the input's share of fc1, bias included, (B, H). w1: fc1's columns for the candidate. gram: fc4's.
    tables: gain2, shift2, gain3, shift3 of each level in use, (L, H). levels: each sample's rows of them.
    """

    projected: torch.Tensor
    w1: torch.Tensor
    gram: Gram
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    levels: Levels


class SinusoidalPosEmb(nn.Module):
    """Sinusoidal embedding (N,) -> (N, dim) of the noise level (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
        angles = t[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class EBM(EnergyModel):
    """E = ||fc4 h3||^2, h = swish(fc1 [inp, x]), then twice h = swish(fc(h) * (gain_t + 1) + bias_t).

    Parameter names are those of IRED's checkpoints. The gradient is written out (below) instead of traced.
    `product` multiplies all large matrices: see diffusion_lib.training.precision.
    """

    product = staticmethod(torch.matmul)

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(TIME_DIM), nn.Linear(TIME_DIM, TIME_DIM), nn.GELU(), nn.Linear(TIME_DIM, TIME_DIM)
        )
        self.fc1 = nn.Linear(inp_dim + out_dim, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, HIDDEN)
        self.fc4 = nn.Linear(HIDDEN, out_dim)
        self.t_map_fc2 = nn.Linear(TIME_DIM, 2 * HIDDEN)
        self.t_map_fc3 = nn.Linear(TIME_DIM, 2 * HIDDEN)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Energies (B, 1) of the concatenation x = [inp, candidate] (B, inp_dim + out_dim) at levels t (B,)."""
        inp, candidate = x.split([self.inp_dim, self.out_dim], dim=-1)
        return self.energy(self.condition(inp, t), candidate)[:, None]

    def condition(self, inp, t):
        projected = self.product(inp, self.fc1.weight[:, : self.inp_dim].t()).add_(self.fc1.bias)
        gram = Gram.of(self.fc4.weight.detach(), self.fc4.bias.detach())
        return Condition(projected, self.fc1.weight[:, self.inp_dim :], gram, *self._time_features(t, len(inp)))

    def retime(self, cond, t):
        return Condition(*cond[:3], *self._time_features(t, len(cond.projected)))

    def _time_features(self, t, batch_size):
        """`tables` and `levels` of a Condition. fc2's and fc3's biases are in the shifts: (W h + b) gain + bias_t."""
        weight = self.fc1.weight
        embedded = self.time_mlp(torch.arange(self.num_timesteps, device=weight.device, dtype=weight.dtype))
        tables = []
        for layer, time_map in ((self.fc2, self.t_map_fc2), (self.fc3, self.t_map_fc3)):
            gain, bias = time_map(embedded).chunk(2, dim=1)
            tables += [gain + 1, torch.addcmul(bias, layer.bias, gain + 1)]
        if isinstance(t, int):
            tables = [table[t : t + 1] for table in tables]
            return tuple(tables), Levels(tuple(table.detach() for table in tables), weight.new_ones(batch_size, 1))
        rows = tuple(table.detach().index_select(0, t) for table in tables)
        return tuple(tables), Levels(rows, F.one_hot(t, self.num_timesteps).to(weight.dtype))

    def energy(self, cond, x):
        if x.requires_grad:
            return self._traced_energy(cond, x)
        if torch.is_grad_enabled():
            return Energy.apply(*self._arguments(cond, x))
        return self._sweep(cond, x).energy()

    def _traced_energy(self, cond, x):
        """E for who differentiates it in x: by autograd, to any order."""
        gain2, shift2, gain3, shift3 = (cond.levels.choice @ table for table in cond.tables)
        h = F.silu(cond.projected + self.product(x, cond.w1.t()))
        h = F.silu(torch.addcmul(shift2, self.product(h, self.fc2.weight.t()), gain2))
        h = F.silu(torch.addcmul(shift3, self.product(h, self.fc3.weight.t()), gain3))
        return (self.product(h, self.fc4.weight.t()) + self.fc4.bias).square().sum(1)

    def energy_and_gradient(self, cond, x):
        x = x.detach()
        if torch.is_grad_enabled():
            return self.energy(cond, x), self.gradient(cond, x)
        return self._sweep(cond, x).energy_and_gradient()

    def gradient(self, cond, x):
        x = x.detach()
        if torch.is_grad_enabled():
            return Gradient.apply(*self._arguments(cond, x))
        return self._sweep(cond, x).gradient()

    def _sweep(self, cond, x):
        return Sweep(self.product, x, cond.levels, cond.gram, cond.projected, *self._weights(cond))

    def _arguments(self, cond, x):
        return self.product, x, cond.levels, cond.gram, cond.projected, *cond.tables, *self._weights(cond)

    def _weights(self, cond):
        return cond.w1, self.fc2.weight, self.fc3.weight, self.fc4.weight, self.fc4.bias

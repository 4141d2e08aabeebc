"""IRED's energy for vectors: an MLP whose output is squared and summed.

This page is the whole model, in plain torch. mlp_fast.py computes the same numbers in less time.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.energies.mlp_fast import FastGradients
from diffusion_lib.system.errors import ConfigError

HIDDEN = 512
TIME_DIM = 128


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


class Condition(NamedTuple):
    """inp: the inputs (B, inp_dim). The others: gains and shifts of layers 2 and 3, (B, H), or (1, H) for one level."""

    inp: torch.Tensor
    gain2: torch.Tensor
    shift2: torch.Tensor
    gain3: torch.Tensor
    shift3: torch.Tensor


class PlainEBM(EnergyModel):
    """E = ||fc4 h3||^2, h1 = swish(fc1 [inp, x]), h2 = swish(gain2 fc2(h1) + shift2), h3 likewise of h2.

    Gains and shifts are learned functions of the noise level. Parameter names are those of IRED's checkpoints.
    E can be differentiated by autograd to any order, in x, in the inputs and in the parameters.
    `product` multiplies all large matrices: see diffusion_lib.training.precision.
    `is_ebm` is the release's argument; raises ConfigError where it is False.
    """

    product = staticmethod(torch.matmul)

    def __init__(self, inp_dim: int, out_dim: int, is_ebm: bool = True):
        super().__init__(inp_dim, out_dim)
        if not is_ebm:
            raise ConfigError(
                "is_ebm is False; allowed: True (the noise-predicting variant is the model 'mlp-reverse', not here yet)"
            )
        self.is_ebm = True
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
        levels = torch.as_tensor(t, device=inp.device).view(-1).to(self.fc1.weight.dtype)
        time = self.time_mlp(levels)
        gain2, shift2 = self.t_map_fc2(time).chunk(2, dim=1)
        gain3, shift3 = self.t_map_fc3(time).chunk(2, dim=1)
        return Condition(inp, gain2 + 1, shift2, gain3 + 1, shift3)

    def retime(self, cond, t):
        return self.condition(cond.inp, t)

    def energy(self, cond, x):
        h = F.silu(self._linear(self.fc1, torch.cat((cond.inp, x), dim=1)))
        h = F.silu(cond.gain2 * self._linear(self.fc2, h) + cond.shift2)
        h = F.silu(cond.gain3 * self._linear(self.fc3, h) + cond.shift3)
        return self._linear(self.fc4, h).square().sum(1)

    def _linear(self, layer, h):
        return self.product(h, layer.weight.t()) + layer.bias


class EBM(FastGradients, PlainEBM):
    """PlainEBM, with the same parameters and the same numbers up to rounding, at the speed of mlp_fast.py."""

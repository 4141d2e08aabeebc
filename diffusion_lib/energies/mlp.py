"""IRED's energy for vectors: an MLP whose output is squared and summed.

This module is the whole model, in plain torch. mlp_fast.py computes the same numbers in less time.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib.energies.base import EnergyModel, NoiseModel
from diffusion_lib.energies.mlp_fast import FastGradients, SavingEvaluation
from diffusion_lib.energies.time_embedding import TimeMLP
from diffusion_lib.system.errors import ConfigError

HIDDEN = 512
TIME_DIM = 128


class Condition(NamedTuple):
    """The inputs `inp` (B, inp_dim), and gains and shifts of layers 2 and 3, (B, H), or (1, H) for one level."""

    inp: torch.Tensor
    gain2: torch.Tensor
    shift2: torch.Tensor
    gain3: torch.Tensor
    shift3: torch.Tensor


class PlainEBM(EnergyModel):
    """E = ||fc4 h3||^2, h1 = swish(fc1 [inp, x]), h2 = swish(gain2 fc2(h1) + shift2), h3 likewise from h2.

    Gains and shifts are learned functions of the noise level. Parameter names are those of IRED's checkpoints. Autograd
    differentiates E to any order, in x, in the inputs and in the parameters. `product` multiplies all large matrices:
    see diffusion_lib.precision.
    """

    product = staticmethod(torch.matmul)

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.time_mlp = TimeMLP(TIME_DIM, TIME_DIM)
        self.fc1 = nn.Linear(inp_dim + out_dim, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, HIDDEN)
        self.fc4 = nn.Linear(HIDDEN, out_dim)
        self.t_map_fc2 = nn.Linear(TIME_DIM, 2 * HIDDEN)
        self.t_map_fc3 = nn.Linear(TIME_DIM, 2 * HIDDEN)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the energies (B, 1) of x = [inp, candidate] (B, inp_dim + out_dim) at levels t (B,)."""
        inp, candidate = x.split([self.inp_dim, self.out_dim], dim=-1)
        return self.energy(self.condition(inp, t), candidate)[:, None]

    def condition(self, inp, t):
        time = self.time_mlp(t)
        gain2, shift2 = self.t_map_fc2(time).chunk(2, dim=1)
        gain3, shift3 = self.t_map_fc3(time).chunk(2, dim=1)
        return Condition(inp, gain2 + 1, shift2, gain3 + 1, shift3)

    def retime(self, cond, t):
        return self.condition(cond.inp, t)

    def energy(self, cond, x):
        return self.outputs(cond, x).square().sum(1)

    def outputs(self, cond, x):
        """Return fc4 h3 (B, out_dim)."""
        h = F.silu(self._linear(self.fc1, torch.cat((cond.inp, x), dim=1)))
        h = F.silu(cond.gain2 * self._linear(self.fc2, h) + cond.shift2)
        h = F.silu(cond.gain3 * self._linear(self.fc3, h) + cond.shift3)
        return self._linear(self.fc4, h)

    def _linear(self, layer, h):
        return self.product(h, layer.weight.t()) + layer.bias


class MLPReverse(NoiseModel, PlainEBM):
    """PlainEBM without the square: the noise in x is fc4 h3."""

    is_ebm = False

    def predict(self, cond, x):
        return self.outputs(cond, x)


class EBM(FastGradients, PlainEBM):
    """PlainEBM at the speed of mlp_fast.py, with the same parameters and, up to rounding, the same numbers.

    `is_ebm` is the release's argument: EBM(inp_dim, out_dim, is_ebm=False) is an MLPReverse.
    """

    is_ebm = True
    evaluation = SavingEvaluation  # or mlp_compiled.py's

    def __new__(cls, *arguments, **options):  # none where a model is copied; a subclass may have others
        given = dict(zip(("inp_dim", "out_dim", "is_ebm"), arguments, strict=False)) | options
        if cls is not EBM or given.pop("is_ebm", True):
            return super().__new__(cls)
        return MLPReverse(**given)

    def __init__(self, inp_dim: int, out_dim: int, is_ebm: bool = True):
        if not is_ebm:
            raise ConfigError(f"is_ebm is {is_ebm!r} in {type(self).__name__}, an EBM; allowed: True")
        super().__init__(inp_dim, out_dim)

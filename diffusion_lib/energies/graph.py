"""IRED's energy for relations on graphs: a neural logic machine's outputs on all pairs, squared and summed."""

from typing import NamedTuple

from torch import nn

from diffusion_lib.energies.base import EnergyModel, NoiseModel
from diffusion_lib.energies.nlm import HIDDEN, PairBlock, Shares
from diffusion_lib.energies.time_embedding import TimeMLP
from diffusion_lib.system.errors import ConfigError

FREQUENCIES, TIME_DIM = 512, 32


class Condition(NamedTuple):
    """The first layer's shares of the inputs, and of inputs and level together."""

    inputs: Shares
    all: Shares


class GraphEBM(EnergyModel):
    """E = sum_ij o_ij^2, o = fc_out(block([inp, x, e(t)])): for any number of nodes N from 2.

    inp (B, N, N, inp_dim), x (B, N, N). Renumbering the nodes of both leaves E unchanged. Parameter names are those of
    IRED's checkpoints. Raises ConfigError for an out_dim other than 1.
    """

    def __init__(self, inp_dim: int, out_dim: int = 1):
        super().__init__(inp_dim, out_dim)
        if out_dim != 1:
            raise ConfigError(f"out_dim is {out_dim}; allowed for {type(self).__name__}: 1, a number for each pair")
        self.time_mlp = TimeMLP(FREQUENCIES, TIME_DIM)
        self.nlm = PairBlock(inp_dim + out_dim + TIME_DIM)
        self.fc_out = nn.Linear(HIDDEN, 1)

    def solution_shape(self, inp):
        return tuple(inp.shape[:3])

    def condition(self, inp, t):
        return self.retime(Condition(self.nlm.share(inp), None), t)

    def retime(self, cond, t):
        level = self.nlm.share_of_level(self.time_mlp(t), self.inp_dim + self.out_dim)
        return Condition(cond.inputs, cond.inputs.plus(level))

    def rows(self, cond, rows):
        """Return some rows of `cond`, made at one level for all: a row's numbers do not depend on the others."""
        return Condition(*(Shares(*(part[rows] for part in shares)) for shares in cond))

    def energy(self, cond, x):
        return self.outputs(cond, x).square().sum((1, 2))

    def outputs(self, cond, x):
        """Return o (B, N, N)."""
        block = self.nlm.finish(cond.all.plus(self.nlm.share(x[..., None], self.inp_dim)))
        return self.fc_out(block).squeeze(-1)


class GraphReverse(NoiseModel, GraphEBM):
    """GraphEBM without the square: the noise in x is o."""

    def predict(self, cond, x):
        return self.outputs(cond, x)

"""IRED's energies for plans whose steps are joined by convolutions: a sorting algorithm's, or a path's."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from diffusion_lib.energies.base import EnergyModel
from diffusion_lib.energies.nlm import HIDDEN, PairBlock, Shares
from diffusion_lib.energies.nlm_nodes import NodeBlock, NodeShares
from diffusion_lib.energies.steps import beside
from diffusion_lib.energies.time_embedding import TimeMLP

FREQUENCIES, TIME_DIM = 512, 32


class StepBlock(nn.Module):
    """A block of nlm.py or nlm_nodes.py at each step, then a convolution over the steps, each with a swish."""

    def __init__(self, nlm: nn.Module):
        super().__init__()
        self.nlm = nlm
        self.conv = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)

    def finish(self, shares, *values) -> torch.Tensor:
        """Return the block's result (B, T, N, h) or (B, T, N, N, h) from the first layer's sums, each (B, T, ...)."""
        steps = shares.nodes.shape[1]
        flat, values = ([rearrange(part, "b step ... -> (b step) ...") for part in parts] for parts in (shares, values))
        z = F.silu(self.nlm.finish(type(shares)(*flat), *values))
        z = rearrange(z, "(b step) ... -> b step ...", step=steps)
        weight = rearrange(self.conv.weight, "hidden channel step -> hidden (step channel)")
        return F.silu(F.linear(beside(z), weight, self.conv.bias))


class Condition(NamedTuple):
    """The inputs, and the first block's shares of them and of inputs and level together; each has one step."""

    inp: torch.Tensor
    inputs: Shares | NodeShares
    all: Shares | NodeShares


class GNNConvEBM(EnergyModel):
    """E = sum of fc_out over steps and pairs: three blocks over [inp, x, e(t)], for any number of nodes N from 2.

    inp (B, N, N, inp_dim), x (B, T, N, N, out_dim), T = `plan_steps` or any other. Parameter names are those of IRED's
    checkpoints. `use_1d` is the release's argument: GNNConvEBM(inp_dim, out_dim, use_1d=True) is a GNNConv1DEBM.
    """

    plan_steps = 16
    blocks = 3
    block = PairBlock

    def __new__(cls, *_, use_1d: bool = False, **__):
        return super().__new__(GNNConv1DEBM if use_1d else cls)

    def __init__(self, inp_dim: int, out_dim: int, *, use_1d: bool = False):
        super().__init__(inp_dim, out_dim)
        self.time_mlp = TimeMLP(FREQUENCIES, TIME_DIM)
        for i in range(self.blocks):
            inputs = HIDDEN if i else inp_dim + out_dim + TIME_DIM
            setattr(self, f"block{i + 1}", StepBlock(self.block(inputs)))
        self.fc_out = nn.Linear(HIDDEN, 1)

    def solution_shape(self, inp):
        return (len(inp), self.plan_steps, *inp.shape[1:-1], self.out_dim)

    def condition(self, inp, t):
        return self.retime(Condition(inp[:, None], self.block1.nlm.share(inp[:, None]), None), t)

    def retime(self, cond, t):
        level = self.block1.nlm.share_of_level(self.time_mlp(t)[:, None], self.inp_dim + self.out_dim)
        return cond._replace(all=cond.inputs.plus(level))

    def energy(self, cond, x):
        return self.outputs(cond, x).flatten(1).sum(1)

    def released_energy(self, cond, x):
        """Return what the release calls the energy: summed over steps and the first node axis only, (B, N) of pairs."""
        return self.outputs(cond, x).sum((1, 2))

    def outputs(self, cond, x):
        """Return fc_out's output (B, T, N, N), or (B, T, N) in one dimension."""
        z = self.block1.finish(cond.all.plus(self.block1.nlm.share(x, self.inp_dim)), *self.compared(cond.inp, x))
        for i in range(1, self.blocks):
            block = getattr(self, f"block{i + 1}")
            z = block.finish(block.nlm.bias().plus(block.nlm.share(z)), *self.compared(z))
        return self.fc_out(z).squeeze(-1)

    def compared(self, *features):
        """Return what `block` takes besides its features."""
        return ()


class GNNConv1DEBM(GNNConvEBM):
    """E = sum of fc_out over steps and nodes: two blocks over [inp, x, e(t)], for any number of nodes N from 2.

    inp (B, N, inp_dim), x (B, T, N, out_dim). Nodes are compared by their number and by the second channel of a block's
    features: that of [inp, x], then a hidden one.
    """

    blocks = 2
    block = NodeBlock

    def compared(self, *features):
        steps = features[-1].shape[1]
        return (torch.cat([part.expand(-1, steps, -1, -1) for part in features], dim=-1)[..., 1],)

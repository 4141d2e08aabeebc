"""IRED's energy for a path in a graph: two layers of messages between all nodes at each step of the plan."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from diffusion_lib.energies.base import EnergyModel, NoiseModel
from diffusion_lib.energies.max_plus import max_plus
from diffusion_lib.energies.steps import beside, beside_as_released
from diffusion_lib.energies.time_embedding import TimeMLP

HIDDEN = 64
FREQUENCIES, TIME_DIM = 512, 32


class MessageBlock(nn.Module):
    """out_i = max_j swish(W [z3_i, z3_j, c_ij, c_ji] + b) at each step, z3 the node's features at three steps.

    z (B, T, N, channels), c (B, N, N, edges), result (B, T, N, HIDDEN). W is split into two products over nodes, and
    one over pairs that all steps share. swish falls and then rises, so the largest swish is that of the largest or of
    the smallest sum, and the sums over all j are never formed.
    """

    def __init__(self, channels: int, edges: int):
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(6 * channels + 2 * edges, HIDDEN)

    def edges(self, c: torch.Tensor) -> torch.Tensor:
        """Return W's share of c_ij and c_ji with b, and its negative: (B, N, N, 2 HIDDEN)."""
        along, across = self.linear.weight[:, 6 * self.channels :].chunk(2, dim=1)
        share = F.linear(c, along, self.linear.bias) + F.linear(c, across).transpose(1, 2)
        return torch.cat((share, -share), dim=-1)

    def nodes(self, z3: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return W's shares of the receiver's and of the sender's features, together (B, T, N, 2 HIDDEN).

        z3: (B, T, N, 3c), z's c channels from `start` on, at three steps.
        """
        weight = self.linear.weight[:, : 6 * self.channels]
        weight = rearrange(weight, "hidden (end step channel) -> hidden end step channel", end=2, step=3)
        weight = weight[..., start : start + z3.shape[-1] // 3]
        return F.linear(z3, rearrange(weight, "hidden end step channel -> (end hidden) (step channel)"))

    def finish(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Return the block's result from the sums over nodes, of both ends, and over edges."""
        receiver, sender = nodes.chunk(2, dim=-1)
        largest, smallest = max_plus(torch.cat((sender, -sender), dim=-1), edges).chunk(2, dim=-1)
        return torch.maximum(F.silu(receiver + largest), F.silu(receiver - smallest))


class Condition(NamedTuple):
    """The two blocks' shares of the inputs, (B, N, N, 2 HIDDEN) each, and the embedded level, for the first."""

    edges1: torch.Tensor
    edges2: torch.Tensor
    level: torch.Tensor


class GNNConv1DEBMV2(EnergyModel):
    """E = sum over steps and nodes of fc(block2(block1([x, e(t)]))): of either sign, for any number of nodes N.

    inp (B, N, N, inp_dim), x (B, T, N, out_dim), T = `plan_steps` or any other. Parameter names are those of IRED's
    checkpoints. As released, no step of the plan sees another.
    """

    plan_steps = 8
    steps = staticmethod(beside_as_released)

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
        self.time_mlp = TimeMLP(FREQUENCIES, TIME_DIM)
        self.block1 = MessageBlock(out_dim + TIME_DIM, inp_dim)
        self.block2 = MessageBlock(HIDDEN, inp_dim)
        self.fc = nn.Linear(HIDDEN, 1)

    def solution_shape(self, inp):
        return (len(inp), self.plan_steps, inp.shape[1], self.out_dim)

    def condition(self, inp, t):
        return self.retime(Condition(self.block1.edges(inp), self.block2.edges(inp), None), t)

    def retime(self, cond, t):
        return cond._replace(level=self.time_mlp(t)[:, None, None])

    def rows(self, cond, rows):
        """Return some rows of `cond`, made at one level for all: a row's numbers do not depend on the others."""
        return cond._replace(edges1=cond.edges1[rows], edges2=cond.edges2[rows])

    def energy(self, cond, x):
        return self.outputs(cond, x).sum((1, 2, 3))

    def outputs(self, cond, x):
        """Return fc's output (B, T, N, 1)."""
        level = self.steps(cond.level.expand(-1, x.shape[1], -1, -1))
        nodes = self.block1.nodes(self.steps(x)) + self.block1.nodes(level, self.out_dim)
        z = self.block1.finish(nodes, cond.edges1)
        return self.fc(self.block2.finish(self.block2.nodes(self.steps(z)), cond.edges2))


class GNNConv1DReverse(NoiseModel, GNNConv1DEBMV2):
    """GNNConv1DEBMV2 without the sum: the noise in x is fc's output."""

    def predict(self, cond, x):
        return self.outputs(cond, x)


class ShiftedPlanEBM(GNNConv1DEBMV2):
    """GNNConv1DEBMV2 whose steps see the step before and the step after, as the paper means it."""

    steps = staticmethod(beside)

"""Two layers of a neural logic machine (Dong et al. 2019), as IRED uses it, over pairs of nodes.

A layer has a perceptron with sigmoid outputs for each "order": facts about 1, 2 and 3 nodes. Each reads the orders next
to its own too: a lower one repeated, a higher one by the maximum and minimum over its further node. Written out, the
perceptron for triples would be two thirds of all work. Each of its inputs is a fact on a pair, so here its product is
taken over pairs and summed by broadcasting. The sigmoid is increasing, so it is applied after the maximum, and no
tensor holds all triples.
"""

import itertools
import warnings
from typing import NamedTuple

import torch
from torch import nn

from diffusion_lib.energies.max_plus import max_plus

HIDDEN = 32
# Slot p of the triple layer's input is x_ij copied along k, its axes permuted so that axis m is the old axis p[m]:
# it holds the facts on the pair (p.index(0), p.index(1)) of a triple's nodes.
SLOTS = {(p.index(0), p.index(1)): slot for slot, p in enumerate(itertools.permutations(range(3)))}
PAIRS = ((0, 1), (0, 2), (1, 2))  # of a triple's nodes


class LogicLayer(nn.Module):
    """The perceptrons of one layer, by order.

    sizes: {order: (inputs, outputs)}.
    Parameter names are those of IRED's checkpoints, `logic.<order>.layer.0.mlp.0`.
    """

    def __init__(self, sizes: dict[int, tuple[int, int]]):
        super().__init__()
        with warnings.catch_warnings():  # the release has a perceptron without outputs, which torch warns of
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            linear = {str(order): nn.Linear(*size) for order, size in sizes.items()}
        self.logic = nn.ModuleDict(
            {
                order: nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleList([layer])})])})
                for order, layer in linear.items()
            }
        )

    def __getitem__(self, order: int) -> nn.Linear:
        return self.logic[str(order)]["layer"][0]["mlp"][0]


def interleaved(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Join channels (..., c) of both to (..., 2c): high_0, low_0, high_1, … as the release's pooling has them."""
    return torch.stack((high, low), dim=-1).flatten(-2)


def diagonal(x: torch.Tensor) -> torch.Tensor:
    """Return where i = j, (N, N, 1) bool, for pair features x (..., N, N, c)."""
    return torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)[:, :, None]


def pool_others(x: torch.Tensor) -> torch.Tensor:
    """Return max(0, max_j x_ij) and min(1, min_j x_ij) over j unlike i, interleaved: (..., N, N, c) to (..., N, 2c)."""
    same = diagonal(x)
    # max and min with an index send the gradient of ties to the first, as the released code does
    return interleaved(x.masked_fill(same, 0).max(-2).values, x.masked_fill(same, 1).min(-2).values)


class Shares(NamedTuple):
    """What some of the input channels add to a PairBlock's first layer before its sigmoids; shares are summed.

    pairs: (..., N, N, 4h), for facts on pairs and for those on the pairs (i, j), (i, k), (j, k) of triples.
    nodes: (..., N, h).
    An axis over which a share is constant may have size 1.
    """

    pairs: torch.Tensor
    nodes: torch.Tensor

    def plus(self, other: "Shares") -> "Shares":
        return Shares(self.pairs + other.pairs, self.nodes + other.nodes)


class PairBlock(nn.Module):
    """Two layers: pair features (B, N, N, inputs) to (B, N, N, h) in (0, 1), N at least 2.

    With s the sigmoid, u_i = s(L01 pool(x)_i), v_ij = s(L02 [x_ij, x_ji]) and, in the order of SLOTS,
    w_ijk = s(L03 [x_ij, x_ik, x_ji, x_ki, x_jk, x_kj]). Then g_ij = [u_i, v_ij, max_k w_ijk, min_k w_ijk], with i, j, k
    all different (maximum 0 and minimum 1 for i = j), and the result is s(L12 [g_ij, g_ji]). The second layer's orders
    0, 1 and 3 are in IRED's checkpoints and feed nothing.
    """

    def __init__(self, inputs: int):
        super().__init__()
        h = HIDDEN
        self.inputs = inputs
        self.layers = nn.ModuleList(
            [
                LogicLayer({1: (2 * inputs, h), 2: (2 * inputs, h), 3: (6 * inputs, h)}),
                LogicLayer({0: (2 * h, 0), 1: (3 * h, h), 2: (8 * h, h), 3: (12 * h, h)}),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.finish(self.bias().plus(self.share(x)))

    def bias(self) -> Shares:
        """Return the biases of the first layer as a share."""
        node, pair, triple = (self.layers[0][order].bias for order in (1, 2, 3))
        return Shares(torch.cat((pair, triple, triple.new_zeros(2 * HIDDEN))), node)

    def share(self, x: torch.Tensor, start: int = 0) -> Shares:
        """Return the share of x (..., N, N, c), the channels from `start` on."""
        along, across = self._pair_weights(start, x.shape[-1])
        pairs = x @ along + (x @ across).transpose(-2, -3)
        return Shares(pairs, pool_others(x) @ self._node_weight(start, x.shape[-1]))

    def share_of_level(self, e: torch.Tensor, start: int) -> Shares:
        """Return the share of e (..., c), channels from `start` on that all pairs have alike, and of the biases."""
        along, across = self._pair_weights(start, e.shape[-1])
        pooled = interleaved(e.clamp(min=0), e.clamp(max=1)) @ self._node_weight(start, e.shape[-1])
        return self.bias().plus(Shares((e @ (along + across))[..., None, None, :], pooled[..., None, :]))

    def finish(self, shares: Shares) -> torch.Tensor:
        """Return the result from the first layer's sums, (B, N, N, 4h) and (B, N, h)."""
        u, (v, ij, ik, jk) = shares.nodes.sigmoid(), shares.pairs.chunk(4, dim=-1)
        facts = torch.cat((v.sigmoid(), pool_third(ij, ik, jk)), dim=-1)
        layer, sums = self.layers[1][2], []
        for weight in layer.weight.chunk(2, dim=1):  # of [u, v, interleaved pools of w] at (i, j), and at (j, i)
            of_u, of_v, of_pools = weight.split((HIDDEN, HIDDEN, 2 * HIDDEN), dim=1)
            of_facts = torch.cat((of_v, of_pools[:, ::2], of_pools[:, 1::2]), dim=1)
            sums.append(facts @ of_facts.t() + (u @ of_u.t())[:, :, None])
        return (sums[0] + sums[1].transpose(1, 2) + layer.bias).sigmoid()

    def _pair_weights(self, start, channels):
        """Return the weights of [v, w's pairs] at (i, j) and at (j, i), (channels, 4h) each, for the channels named."""
        pair, triple = (self.layers[0][order].weight.unflatten(1, (-1, self.inputs)).unbind(1) for order in (2, 3))
        along = (pair[0], *(triple[SLOTS[i, j]] for i, j in PAIRS))
        across = (pair[1], *(triple[SLOTS[j, i]] for i, j in PAIRS))
        return [torch.cat(weights)[:, start : start + channels].t() for weights in (along, across)]

    def _node_weight(self, start, channels):
        """(2 channels, h)"""
        return self.layers[0][1].weight[:, 2 * start : 2 * (start + channels)].t()


def pool_third(ij, ik, jk) -> torch.Tensor:
    """Return max_k and min_k of s(ij + ik + jk), i, j, k all different, 0 and 1 for i = j: (B, N, N, h) to 2h."""
    # minus infinity before a sigmoid is 0 after it, and 1 after that of its negative
    same = ij.new_zeros(ij.shape[1:3]).fill_diagonal_(-torch.inf)[:, :, None]
    ij, ik, jk = (torch.cat((part, -part), dim=-1) + same for part in (ij, ik, jk))
    high, low = (ij + max_plus(ik, jk)).chunk(2, dim=-1)
    return torch.cat((high.sigmoid(), (-low).sigmoid()), dim=-1)

"""Two layers of a neural logic machine, as in nlm.py, over nodes whose pairs are compared."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib.energies.nlm import HIDDEN, LogicLayer, diagonal, interleaved, pool_others

RELATIONS = 3


def relations(values: torch.Tensor) -> torch.Tensor:
    """Return q_ij = [i < j, i = j, value_i < value_j], (B, N, N, 3), of values (B, N); no gradient passes."""
    place = torch.arange(values.shape[1], device=values.device)
    before, same = place[:, None] < place, place[:, None] == place
    less = values[:, :, None] < values[:, None]
    return torch.stack((before.expand_as(less), same.expand_as(less), less), dim=-1).to(values.dtype)


class NodeShares(NamedTuple):
    """What some of the input channels add to a NodeBlock's first layer before its sigmoids; shares are summed.

    whole: (..., 1, h), for facts on the whole.
    nodes: (..., N or 1, 3h), for facts on nodes, on a pair's first node and on its second.
    """

    whole: torch.Tensor
    nodes: torch.Tensor

    def plus(self, other: "NodeShares") -> "NodeShares":
        return NodeShares(self.whole + other.whole, self.nodes + other.nodes)


class NodeBlock(nn.Module):
    """Two layers: node features x (..., N, inputs), and values to compare, to (..., N, h) in (0, 1).

    With s the sigmoid and q the relations, g = s(L00 pool(x)) over all nodes, u_i = s(L01 [x_i, pool(q)_i]),
    v_ij = s(L02 [r_ij, r_ji]) with r_ij = [x_i, q_ij]. The result is s(L11 [g, u_i, pool(v)_i]). The second layer's
    orders 0 and 2 are in IRED's checkpoints and feed nothing.
    """

    def __init__(self, inputs: int):
        super().__init__()
        h = HIDDEN
        self.inputs = inputs
        self.layers = nn.ModuleList(
            [
                LogicLayer({0: (2 * inputs, h), 1: (inputs + 2 * RELATIONS, h), 2: (2 * (inputs + RELATIONS), h)}),
                LogicLayer({0: (3 * h, h), 1: (4 * h, h), 2: (4 * h, h)}),
            ]
        )

    def bias(self) -> NodeShares:
        """Return the biases of the first layer as a share."""
        whole, node, pair = (self.layers[0][order].bias for order in (0, 1, 2))
        return NodeShares(whole, torch.cat((node, pair, torch.zeros_like(pair))))

    def share(self, x: torch.Tensor, start: int = 0) -> NodeShares:
        """Return the share of x, channels from `start` on: (..., N, c), or (..., 1, c) where all nodes are alike."""
        stop = start + x.shape[-1]
        pooled = interleaved(x.max(-2, keepdim=True).values, x.min(-2, keepdim=True).values)
        node, first, second = (weight[:, start:stop] for weight in self._node_weights())
        whole = F.linear(pooled, self.layers[0][0].weight[:, 2 * start : 2 * stop])
        return NodeShares(whole, F.linear(x, torch.cat((node, first, second))))

    def share_of_level(self, e: torch.Tensor, start: int) -> NodeShares:
        """Return the share of e (..., c), channels from `start` on that all nodes have alike, and of the biases."""
        return self.bias().plus(self.share(e[..., None, :], start))

    def finish(self, shares: NodeShares, values: torch.Tensor) -> torch.Tensor:
        """Return the result (B, N, h) from the first layer's sums, (B, 1, h) and (B, N, 3h), and the values (B, N)."""
        q = relations(values)
        node, first, second = shares.nodes.chunk(3, dim=-1)
        u = (node + F.linear(pool_others(q), self.layers[0][1].weight[:, self.inputs :])).sigmoid()
        along, across = self.layers[0][2].weight.chunk(2, dim=1)
        pairs = first[:, :, None] + second[:, None]
        pairs = pairs + F.linear(q, along[:, self.inputs :]) + F.linear(q, across[:, self.inputs :]).transpose(1, 2)
        same, never = diagonal(pairs), torch.inf  # its sigmoid is 0 or 1
        high, low = pairs.masked_fill(same, -never).max(2).values, pairs.masked_fill(same, never).min(2).values
        pooled = interleaved(high.sigmoid(), low.sigmoid())
        return self.layers[1][1](torch.cat((shares.whole.sigmoid().expand_as(u), u, pooled), dim=-1)).sigmoid()

    def _node_weights(self):
        """Return the weights of facts on nodes, on a pair's first and on its second node, (h, inputs) each."""
        along, across = self.layers[0][2].weight.chunk(2, dim=1)
        return [weight[:, : self.inputs] for weight in (self.layers[0][1].weight, along, across)]

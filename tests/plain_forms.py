"""The graph energies' equations as they are written, every triple and every message formed: what to compare with.

Only the weights of a GraphEBM and a GNNConv1DEBMV2 are used. Layers that feed nothing, which the release computes, are
left out here too.
"""

import itertools

import torch
import torch.nn.functional as F

from diffusion_lib.energies import GNNConv1DEBMV2, GraphEBM


def pooled(facts, excluded):
    """Return maximum and minimum over the last node axis of (..., N, c), interleaved; an excluded entry is 0 and 1."""
    high = facts.masked_fill(excluded[..., None], 0).amax(-2)
    low = facts.masked_fill(excluded[..., None], 1).amin(-2)
    return torch.stack((high, low), dim=-1).flatten(-2)


def plain_graph_energy(model: GraphEBM, inp, x, t):
    """Return E (B,) of inp (B, N, N, c), x (B, N, N) and t (B,)."""
    n, layers = x.shape[-1], model.nlm.layers
    e = model.time_mlp(t)[:, None, None].expand(-1, n, n, -1)
    features = torch.cat((inp, x[..., None], e), dim=-1)
    same = torch.eye(n, dtype=torch.bool, device=x.device)
    not_three = same[:, :, None] | same[:, None] | same[None]
    u = layers[0][1](pooled(features, same)).sigmoid()
    v = layers[0][2](torch.cat((features, features.transpose(1, 2)), dim=-1)).sigmoid()
    triples = features[:, :, :, None].expand(-1, -1, -1, n, -1)
    orders = [triples.permute(0, *(axis + 1 for axis in p), 4) for p in itertools.permutations(range(3))]
    w = layers[0][3](torch.cat(orders, dim=-1)).sigmoid()
    g = torch.cat((u[:, :, None].expand_as(v), v, pooled(w, not_three)), dim=-1)
    block = layers[1][2](torch.cat((g, g.transpose(1, 2)), dim=-1)).sigmoid()
    return model.fc_out(block).square().sum((1, 2, 3))


def plain_plan_energy(model: GNNConv1DEBMV2, inp, x, t):
    """Return E (B,) of inp (B, N, N, c), x (B, T, N, 1) and t (B,)."""
    steps, n = x.shape[1:3]
    c = torch.cat((inp, inp.transpose(1, 2)), dim=-1)[:, None].expand(-1, steps, -1, -1, -1)
    z = torch.cat((x, model.time_mlp(t)[:, None, None].expand(-1, steps, n, -1)), dim=-1)
    for block in (model.block1, model.block2):
        z3 = model.steps(z)
        receiver, sender = z3[:, :, :, None].expand(-1, -1, -1, n, -1), z3[:, :, None].expand(-1, -1, n, -1, -1)
        z = F.silu(block.linear(torch.cat((receiver, sender, c), dim=-1))).amax(3)
    return model.fc(z).sum((1, 2, 3))

"""The graph energies' equations as they are written, every triple and every message formed: what to compare with.

Of a GraphEBM and a GNNConv1DEBMV2 only the weights are used. Layers that feed nothing, which the release computes, are
left out here too.
"""

import itertools
import statistics

import torch
import torch.nn.functional as F

from diffusion_lib.energies import GNNConv1DEBMV2, GraphEBM
from experiments.speed.timing import settled


def pooled(facts, excluded):
    """Maximum and minimum over the last node axis of (..., N, c), interleaved; an excluded entry is 0 and 1."""
    high = facts.masked_fill(excluded[..., None], 0).amax(-2)
    low = facts.masked_fill(excluded[..., None], 1).amin(-2)
    return torch.stack((high, low), dim=-1).flatten(-2)


def plain_graph_energy(model: GraphEBM, inp, x, t):
    """E (B,) of inp (B, N, N, c), x (B, N, N) and t (B,)."""
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
    """E (B,) of inp (B, N, N, c), x (B, T, N, 1) and t (B,)."""
    steps, n = x.shape[1:3]
    c = torch.cat((inp, inp.transpose(1, 2)), dim=-1)[:, None].expand(-1, steps, -1, -1, -1)
    z = torch.cat((x, model.time_mlp(t)[:, None, None].expand(-1, steps, n, -1)), dim=-1)
    for block in (model.block1, model.block2):
        z3 = model.steps(z)
        receiver, sender = z3[:, :, :, None].expand(-1, -1, -1, n, -1), z3[:, :, None].expand(-1, -1, n, -1, -1)
        z = F.silu(block.linear(torch.cat((receiver, sender, c), dim=-1))).amax(3)
    return model.fc(z).sum((1, 2, 3))


def denoising_step(energy, model, inp, x):
    """A function that differentiates, in the weights, the squared error of dE/dx to some noise."""
    weights = [weight for name, weight in model.named_parameters() if not name.startswith("nlm.layers.1.logic")]
    weights += [model.nlm.layers[1][2].weight] if hasattr(model, "nlm") else []
    candidate, noise = x.clone().requires_grad_(), torch.randn_like(x)

    def step():
        (gradient,) = torch.autograd.grad(energy(candidate).sum(), candidate, create_graph=True)
        return torch.autograd.grad((gradient - noise).square().mean(), weights, allow_unused=True)

    return step


def measure_forms(batch_size: int = 32, repeats: int = 5, device: str = "cpu") -> list[dict]:
    """Rows of median milliseconds of a step's denoising loss and its gradients, in this project's form and plainly."""
    rows = []
    for model, inp_shape, x_shape, plain in (
        (GraphEBM(1, 1), (12, 12, 1), (12, 12), plain_graph_energy),
        (GNNConv1DEBMV2(4, 1), (20, 20, 4), (8, 20, 1), plain_plan_energy),
    ):
        model = model.to(device)
        inp, x = (torch.randn(batch_size, *shape, device=device) for shape in (inp_shape, x_shape))
        t = torch.arange(batch_size, device=device) % 10
        forms = {
            "ours": denoising_step(lambda z, m=model, i=inp, t=t: m.energy(m.condition(i, t), z), model, inp, x),
            "plain": denoising_step(lambda z, m=model, i=inp, t=t, f=plain: f(m, i, z, t), model, inp, x),
        }
        times = {name: [] for name in forms}
        for _ in range(repeats):
            for name, step in forms.items():
                times[name].append(settled(step, device))
        ours, released = (1e3 * statistics.median(times[name]) for name in forms)
        rows.append(
            {"measured": f"{type(model).__name__}, N {inp_shape[0]}, batch {batch_size}", "ours_ms": ours}
            | {"plain_ms": released, "ratio": released / ours}
        )
    return rows

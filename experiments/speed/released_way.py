"""The released code's way of working, written plainly: what the benchmark compares against.

Items one by one through a DataLoader, autograd with create_graph for every gradient, inputs concatenated and
embedded anew for each energy, energy and gradient recomputed at every inner step. The numbers it computes are
those of the rest of the project (tests hold them equal); only the work differs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from diffusion_lib.energies import EBM
from diffusion_lib.energies.matrix import START, MatrixEBM, eigenvalue_scale, square


class ItemwiseInverse(Dataset):
    """One matrix and its inverse per item, from numpy's global stream."""

    def __init__(self, rank: int):
        self.rank = rank

    def __len__(self):
        return int(1e7)

    def __getitem__(self, _):
        r = np.random.uniform(-1, 1, (self.rank, self.rank))
        a = 2 * r.dot(r.T) + 0.5 * np.eye(self.rank)
        return a.flatten(), np.linalg.inv(a).flatten()


def item_batches(rank: int, batch_size: int, workers: int):
    """Yield float32 batches (B, n^2), (B, n^2) without end."""
    dataset = ItemwiseInverse(rank)
    order = torch.utils.data.RandomSampler(dataset, replacement=True)  # a permutation of 1e7 would swamp the start
    for inp, target in DataLoader(dataset, batch_size=batch_size, sampler=order, num_workers=workers):
        yield inp.float(), target.float()


def plain_energy(ebm: EBM | MatrixEBM, inp, x, t):
    """Return E (B,), every part computed for this call."""
    return (plain_matrix_energy if isinstance(ebm, MatrixEBM) else plain_mlp_energy)(ebm, inp, x, t)


def plain_matrix_energy(ebm, inp, x, t):
    """Return E (B,) of the matrix energy, in the order of its equation."""
    a, x = map(square, (inp, x))
    scale, identity = eigenvalue_scale(a), torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = torch.einsum("ci,ibjk->bcjk", ebm.w_in, torch.stack((identity.expand_as(a), a / scale)))
    for mix, out in zip(ebm.w_mix, ebm.w_out, strict=True):
        h = torch.einsum("kc,bcij->bkij", mix, z)
        z = z + torch.einsum("ck,bkij->bcij", out, h @ h)
    p = START / scale * torch.einsum("c,bcij->bij", ebm.w_last, z)
    residual = ebm.g[t][:, None, None] * (a @ x) - ebm.c[t][:, None, None] * identity
    return 0.5 * (p @ residual).square().sum((1, 2))


def plain_mlp_energy(ebm, inp, x, t):
    """Return E (B,) of IRED's own energy."""
    time = ebm.time_mlp(t.to(x.dtype))
    gain2, bias2 = ebm.t_map_fc2(time).chunk(2, -1)
    gain3, bias3 = ebm.t_map_fc3(time).chunk(2, -1)
    h = _swish(ebm.fc1(torch.cat([inp, x], -1)))
    h = _swish(ebm.fc2(h) * (gain2 + 1) + bias2)
    h = _swish(ebm.fc3(h) * (gain3 + 1) + bias3)
    return ebm.fc4(h).pow(2).sum(-1)


def _swish(x):
    return x * torch.sigmoid(x)


def plain_energy_and_gradient(ebm, inp, x, t):
    x = x.detach().requires_grad_()
    energy = plain_energy(ebm, inp, x, t)
    return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def plain_opt_step(diffusion, inp, x, t, steps):
    ebm = diffusion.model.ebm
    limit = (diffusion.bound * diffusion.sqrt_alphas_cumprod[t])[:, None]
    for _ in range(steps):
        energy, gradient = plain_energy_and_gradient(ebm, inp, x, t)
        proposal = (x - diffusion.opt_step_size[t][:, None] * gradient).clamp(-limit, limit)
        worse = plain_energy(ebm, inp, proposal, t) > energy
        x = torch.where(worse[:, None], x, proposal).detach()
    return x


def plain_loss(diffusion, inp, x_start, t, noise, nce_noise):
    """Return the training loss as in GaussianDiffusion1D.p_losses."""
    ebm, mining = diffusion.model.ebm, diffusion.mining
    _, prediction = plain_energy_and_gradient(ebm, inp, diffusion.q_sample(x_start, t, noise), t)
    loss = F.mse_loss(prediction, noise)
    if mining.mode == "none":
        return loss
    real = diffusion.q_sample(x_start, t, nce_noise)
    fake = diffusion.q_sample(x_start, t, mining.noise_scale * nce_noise)
    if mining.mode == "adversarial":
        fake = plain_opt_step(diffusion, inp, fake, t, mining.opt_steps)
    start = diffusion.predict_start(fake, t).clamp(-diffusion.bound, diffusion.bound)
    fake = diffusion.q_sample(start, t, nce_noise)
    energy = plain_energy(ebm, torch.cat([inp, inp]), torch.cat([real, fake]), torch.cat([t, t]))
    energy_real, energy_fake = energy.chunk(2)
    return loss + mining.weight * F.softplus(energy_real - energy_fake).mean()


class PlainTrainer:
    """One released-style training step: loader, loss, backward, clip, Adam, EMA every tenth step."""

    def __init__(self, diffusion, ema, batches, device):
        self.diffusion, self.ema, self.batches, self.device = diffusion, ema, batches, device
        self.optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def __call__(self):
        inp, target = (part.to(self.device) for part in next(self.batches))
        t = torch.randint(0, self.diffusion.num_timesteps, (len(inp),), device=self.device)
        noise, nce_noise = torch.randn_like(target), torch.randn_like(target)
        loss = plain_loss(self.diffusion, inp, target, t, noise, nce_noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return loss.item()


def plain_sample(diffusion, inp, start, inner_steps):
    """Sample with a level for each row and everything recomputed at each of its steps."""
    ebm, x = diffusion.model.ebm, start
    for level in reversed(range(diffusion.num_timesteps)):
        t = torch.full((len(inp),), level, device=inp.device)
        _, noise = plain_energy_and_gradient(ebm, inp, x, t)
        x_start = diffusion.predict_start(x, t, noise.detach()).clamp(-diffusion.bound, diffusion.bound)
        x = plain_opt_step(diffusion, inp, diffusion.sqrt_alphas_cumprod[level] * x_start, t, inner_steps)
        x_start = diffusion.predict_start(x, t)
        if level:
            x = diffusion.sqrt_alphas_cumprod[level - 1] * x_start
    return x_start

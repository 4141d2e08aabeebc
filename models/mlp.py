"""IRED's energy for vectors: an MLP whose output is squared and summed."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from models.energy import EnergyModel

HIDDEN = 512
TIME_DIM = 128


class Condition(NamedTuple):
    """`projected`: the input's share of fc1, bias included, (B, H). `gain2` … `bias3`: (B, H), or (1, H) where
    one t serves all; the gains have their 1 added."""

    projected: torch.Tensor
    gain2: torch.Tensor
    bias2: torch.Tensor
    gain3: torch.Tensor
    bias3: torch.Tensor


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


class EBM(EnergyModel):
    """E = ||fc4 h3||^2, h = swish(fc1 [inp, x]), then twice h = swish(fc(h) * (gain_t + 1) + bias_t).

    Parameter names are those of IRED's checkpoints. The gradient is written out (below) instead of traced.
    `product` multiplies all large matrices: see diffusion_lib.precision.
    """

    product = staticmethod(torch.matmul)

    def __init__(self, inp_dim: int, out_dim: int):
        super().__init__(inp_dim, out_dim)
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
        projected = self.product(inp, self.fc1.weight[:, : self.inp_dim].t()) + self.fc1.bias
        return Condition(projected, *self._time_features(t))

    def retime(self, cond, t):
        return Condition(cond.projected, *self._time_features(t))

    def _time_features(self, t):
        """Gain and bias of both middle layers: a table with a row per level, then a row per sample."""
        weight = self.fc1.weight
        embedded = self.time_mlp(torch.arange(self.num_timesteps, device=weight.device, dtype=weight.dtype))
        table = torch.cat((self.t_map_fc2(embedded), self.t_map_fc3(embedded)), dim=1)  # (T, 4H)
        if isinstance(t, int):
            rows = table[t : t + 1]
        else:  # a product with one-hot rows: its gradient is deterministic on every device
            rows = F.one_hot(t, self.num_timesteps).to(table.dtype) @ table
        gain2, bias2, gain3, bias3 = rows.chunk(4, dim=1)
        return gain2 + 1, bias2, gain3 + 1, bias3

    def energy(self, cond, x):
        product = self.product
        h = F.silu(cond.projected + product(x, self._candidate_weight().t()))
        h = F.silu(torch.addcmul(cond.bias2, product(h, self.fc2.weight.t()) + self.fc2.bias, cond.gain2))
        h = F.silu(torch.addcmul(cond.bias3, product(h, self.fc3.weight.t()) + self.fc3.bias, cond.gain3))
        return (product(h, self.fc4.weight.t()) + self.fc4.bias).square().sum(1)

    def energy_and_gradient(self, cond, x):
        weights = (self.fc2.weight, self.fc2.bias, self.fc3.weight, self.fc3.bias, self.fc4.weight, self.fc4.bias)
        arguments = (x.detach(), *cond, self._candidate_weight(), *weights)
        if torch.is_grad_enabled():
            return _EnergyAndGradient.apply(self.product, *arguments)
        energy, gradient, _ = _forward(self.product, *arguments)
        return energy, gradient

    def _candidate_weight(self):
        return self.fc1.weight[:, self.inp_dim :]


_silu_gradient = torch.ops.aten.silu_backward  # (upstream, a) -> upstream * swish'(a), in one pass


def _forward(product, x, projected, gain2, bias2, gain3, bias3, w1, w2, b2, w3, b3, w4, b4):
    """E and dE/dx in one sweep down and one up; `a` are pre-activations, d_ is dE/d of what follows it."""
    a1 = product(x, w1.t()).add_(projected)
    h1 = F.silu(a1)
    u2 = product(h1, w2.t()).add_(b2)
    a2 = torch.addcmul(bias2, u2, gain2)
    h2 = F.silu(a2)
    u3 = product(h2, w3.t()).add_(b3)
    a3 = torch.addcmul(bias3, u3, gain3)
    h3 = F.silu(a3)
    out = product(h3, w4.t()).add_(b4)
    d_out = out * 2
    d_h3 = product(d_out, w4)
    d_a3 = _silu_gradient(d_h3, a3)
    d_u3 = d_a3 * gain3
    d_h2 = product(d_u3, w3)
    d_a2 = _silu_gradient(d_h2, a2)
    d_u2 = d_a2 * gain2
    d_h1 = product(d_u2, w2)
    d_a1 = _silu_gradient(d_h1, a1)
    kept = (a1, h1, u2, a2, h2, u3, a3, h3, d_out, d_h3, d_a3, d_u3, d_h2, d_a2, d_u2, d_h1, d_a1)
    return out.square().sum(1), product(d_a1, w1), kept


class _EnergyAndGradient(torch.autograd.Function):
    """(E, dE/dx), differentiable once in everything but x.

    For a cotangent v of dE/dx the derivative of <v, dE/dx> in a parameter is that of the directional
    derivative of E along v: push v forward (dots below), then pull back. The pull-back of the dotted
    quantities is what the forward sweep already found (its d_ arrays).
    """

    @staticmethod
    def forward(ctx, product, x, projected, gain2, bias2, gain3, bias3, w1, w2, b2, w3, b3, w4, b4):
        arguments = (x, projected, gain2, bias2, gain3, bias3, w1, w2, b2, w3, b3, w4, b4)
        energy, gradient, kept = _forward(product, *arguments)
        ctx.product = product
        ctx.save_for_backward(x, gain2, gain3, w1, w2, w3, w4, *kept)
        return energy, gradient

    @staticmethod
    @once_differentiable
    def backward(ctx, e_bar, v):
        x, gain2, gain3, w1, w2, w3, w4, *kept = ctx.saved_tensors
        a1, h1, u2, a2, h2, u3, a3, h3, d_out, d_h3, d_a3, d_u3, d_h2, d_a2, d_u2, d_h1, d_a1 = kept
        product = ctx.product

        s1, curve1 = _silu_derivatives(a1)
        a1_dot = product(v, w1.t())
        h1_dot = s1 * a1_dot
        u2_dot = product(h1_dot, w2.t())
        s2, curve2 = _silu_derivatives(a2)
        a2_dot = u2_dot * gain2
        h2_dot = s2 * a2_dot
        u3_dot = product(h2_dot, w3.t())
        s3, curve3 = _silu_derivatives(a3)
        a3_dot = u3_dot * gain3
        h3_dot = s3 * a3_dot

        out_bar = torch.addcmul(product(h3_dot, w4.t()).mul_(2), d_out, e_bar[:, None])
        w4_bar = product(out_bar.t(), h3).add_(product(d_out.t(), h3_dot))
        a3_bar = s3.mul_(product(out_bar, w4)).add_(curve3.mul_(a3_dot).mul_(d_h3))
        gain3_bar = (a3_bar * u3).addcmul_(d_a3, u3_dot)
        u3_bar = a3_bar * gain3
        w3_bar = product(u3_bar.t(), h2).add_(product(d_u3.t(), h2_dot))
        a2_bar = s2.mul_(product(u3_bar, w3)).add_(curve2.mul_(a2_dot).mul_(d_h2))
        gain2_bar = (a2_bar * u2).addcmul_(d_a2, u2_dot)
        u2_bar = a2_bar * gain2
        w2_bar = product(u2_bar.t(), h1).add_(product(d_u2.t(), h1_dot))
        a1_bar = s1.mul_(product(u2_bar, w2)).add_(curve1.mul_(a1_dot).mul_(d_h1))
        w1_bar = product(a1_bar.t(), x).add_(product(d_a1.t(), v))

        times = (_like(gain2_bar, gain2), _like(a2_bar, gain2), _like(gain3_bar, gain3), _like(a3_bar, gain3))
        biases = (u2_bar.sum(0), u3_bar.sum(0), out_bar.sum(0))
        return (None, None, a1_bar, *times, w1_bar, w2_bar, biases[0], w3_bar, biases[1], w4_bar, biases[2])


def _silu_derivatives(a):
    """First and second derivative of swish(a) = a * sigmoid(a)."""
    sigmoid = torch.sigmoid(a)
    slope = sigmoid * (1 - sigmoid)
    first = torch.addcmul(sigmoid, a, slope)
    # s'' = slope * (2 + a (1 - 2 sigmoid))
    second = sigmoid.mul_(-2).add_(1).mul_(a).add_(2).mul_(slope)
    return first, second


def _like(gradient, argument):
    """Sum over the batch where one row served all of it."""
    return gradient if gradient.shape == argument.shape else gradient.sum(0, keepdim=True)

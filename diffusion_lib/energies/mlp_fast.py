"""Compute the MLP's E, dE/dx and their gradients in the weights fast, as fixed lists of products without autograd.

Training needs gradients, in the weights, of a loss that contains dE/dx. Autograd would trace the gradient's own graph
for that; here the formulas are written out, nothing unneeded is computed, and memory is reused. `FastGradients`
attaches this to the model in mlp.py; the tests hold the two equal.

Notation. Each of the three hidden layers computes m = W h_below, a = gain m + shift and h = swish(a), and E = ||W4 h3 +
b4||^2. The first layer has no gain, and its shift is the inputs' share of its product, bias included. The gains and
shifts of the other two depend on the noise level; their biases are in the shifts.
d_y is dE/dy; y_dot the directional derivative of y along a direction v of x; y_bar the gradient of the loss in y.
Arrays are (B, H), H the hidden size, unless said otherwise.

Where only dE/dx is wanted the output is never formed: dE/dh3 = 2 (G h3 + W4^T b4), G = W4^T W4, is one product of
hidden size instead of two of size out_dim.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


class Levels(NamedTuple):
    """The samples' noise levels, as constants.

    rows: gain2, shift2, gain3, shift3 of each sample, (B, H), or (1, H) where all samples have one level.
    one_hot: (B, L), which of the L levels in use each sample has.
    """

    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    one_hot: torch.Tensor


class Gram(NamedTuple):
    """The products of the output layer that dE/dx needs: `matrix` G = W4^T W4, (H, H), and `shift` W4^T b4, (H,)."""

    matrix: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, w4, b4):
        """Compute both from W4 (out_dim, H) and b4 (out_dim,)."""
        return cls(w4.t() @ w4, w4.t() @ b4)


class FastCondition(NamedTuple):
    """What energies at the same inputs and levels share.

    inp (B, inp_dim), t ((B,) or one int): as passed, for the plain energy.
    projected: the inputs' share of fc1, bias included, (B, H).
    w1: fc1's columns for x, (H, out_dim).
    gram: that of fc4.
    tables: gain2, shift2, gain3, shift3 of each level in use, (L, H), differentiable.
    levels: each sample's.
    """

    inp: torch.Tensor
    t: torch.Tensor | int
    projected: torch.Tensor
    w1: torch.Tensor
    gram: Gram
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    levels: Levels


class FastGradients:
    """Fast methods in place of those of PlainEBM; a class lists it before PlainEBM among its bases.

    Without gradients enabled nothing is saved. With them, results can be differentiated once, in the parameters and
    inputs. Where x.requires_grad the plain energy is used, by autograd, for derivatives in x and of any order.
    """

    def condition(self, inp, t):
        projected = self.product(inp, self.fc1.weight[:, : self.inp_dim].t()).add_(self.fc1.bias)
        gram = Gram.of(self.fc4.weight.detach(), self.fc4.bias.detach())
        tables_and_levels = self._time_features(t, len(inp))
        return FastCondition(inp, t, projected, self.fc1.weight[:, self.inp_dim :], gram, *tables_and_levels)

    def retime(self, cond, t):
        tables, levels = self._time_features(t, len(cond.inp))
        return cond._replace(t=t, tables=tables, levels=levels)

    def energy(self, cond, x):
        if not torch.is_grad_enabled():
            return self._evaluation(cond, x).energy()
        if x.requires_grad:
            return super().energy(super().condition(cond.inp, cond.t), x)
        return Energy.apply(*self._arguments(cond, x))

    def energy_and_gradient(self, cond, x):
        if not torch.is_grad_enabled():
            return self._evaluation(cond, x).energy_and_gradient()
        if x.requires_grad:
            return super().energy_and_gradient(cond, x)
        return self.energy(cond, x), self.gradient(cond, x)

    def gradient(self, cond, x):
        if not torch.is_grad_enabled():
            return self._evaluation(cond, x).gradient()
        if x.requires_grad:
            return super().gradient(cond, x)
        return Gradient.apply(*self._arguments(cond, x))

    def _time_features(self, t, batch_size):
        """Return `tables` and `levels` of a FastCondition, computed once a level, not a sample: levels are few."""
        weight = self.fc1.weight
        embedded = self.time_mlp(torch.arange(self.num_timesteps, device=weight.device, dtype=weight.dtype))
        tables = []
        for layer, time_map in ((self.fc2, self.t_map_fc2), (self.fc3, self.t_map_fc3)):
            gain, shift = time_map(embedded).chunk(2, dim=1)
            tables += [gain + 1, torch.addcmul(shift, layer.bias, gain + 1)]
        if isinstance(t, int):
            tables = [table[t : t + 1] for table in tables]
            return tuple(tables), Levels(tuple(table.detach() for table in tables), weight.new_ones(batch_size, 1))
        rows = tuple(table.detach().index_select(0, t) for table in tables)
        return tuple(tables), Levels(rows, F.one_hot(t, self.num_timesteps).to(weight.dtype))

    def _evaluation(self, cond, x):
        return self.evaluation(self.product, x, cond.levels, cond.gram, cond.projected, *self._weights(cond))

    def _arguments(self, cond, x):
        return self._evaluation(cond, x), cond.projected, *cond.tables, *self._weights(cond)

    def _weights(self, cond):
        return cond.w1, self.fc2.weight, self.fc3.weight, self.fc4.weight, self.fc4.bias


class Evaluation:
    """An evaluation at x (B, out_dim) without further derivatives: it saves nothing and reuses its memory.

    product: multiplies all large matrices.
    projected: the first layer's shift (B, H).
    gram: that of W4 and b4.
    w1 (H, out_dim), w2 and w3 (H, H), w4 (out_dim, H), b4 (out_dim,): the weights.
    """

    def __init__(self, product, x, levels: Levels, gram: Gram, projected, w1, w2, w3, w4, b4):
        self.product, self.x, self.one_hot, self.gram = product, x, levels.one_hot, gram
        gain2, shift2, gain3, shift3 = levels.rows
        self.hidden = ((w1, None, projected), (w2, gain2, shift2), (w3, gain3, shift3))
        self.w4, self.b4 = w4, b4

    def energy(self):
        """Return E (B,)."""
        h = self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            h = F.silu(m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m), inplace=True)
        return self._output(h).square_().sum(1)

    def energy_and_gradient(self):
        """Return E (B,) and dE/dx (B, out_dim)."""
        h, slopes = self._forward_with_slopes()
        out = self._output(h)
        energy = out.square().sum(1)
        return energy, self._gradient(self.product(out.mul_(2), self.w4), slopes)

    def gradient(self):
        """Return dE/dx (B, out_dim)."""
        h, slopes = self._forward_with_slopes()
        return self._gradient(self._d_h3(h), slopes)

    def _forward_with_slopes(self):
        """Return h3, and swish'(a) of each hidden layer."""
        slopes, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            slopes.append(swish_slope(h, sigmoid, out=sigmoid))
        return h, slopes

    def _gradient(self, d, slopes):
        """Return dE/dx (B, out_dim) from d = dE/dh3, which is overwritten."""
        for (weight, gain, _), slope in zip(reversed(self.hidden), reversed(slopes), strict=True):
            d.mul_(slope)
            d = self.product(d if gain is None else d.mul_(gain), weight)
        return d

    def _output(self, h):
        """Return W4 h + b4, (B, out_dim)."""
        return self.product(h, self.w4.t()).add_(self.b4)

    def _d_h3(self, h):
        """Return dE/dh3 at h3 = h, by the Gram matrix."""
        return self.product(h, self.gram.matrix).add_(self.gram.shift).mul_(2)


class SavedForward(NamedTuple):
    """Activations of a hidden layer that the forward pass saves. m is None in the first, where nothing needs it."""

    m: torch.Tensor | None
    sigmoid: torch.Tensor  # of a
    h: torch.Tensor


class SavedGradient(NamedTuple):
    """What computing dE/dx saves of a hidden layer; slope is swish'(a)."""

    slope: torch.Tensor
    d_h: torch.Tensor
    d_a: torch.Tensor
    d_m: torch.Tensor


class SavedTangent(NamedTuple):
    """A hidden layer's directional derivatives along v."""

    m_dot: torch.Tensor
    a_dot: torch.Tensor
    h_dot: torch.Tensor


class SavingEvaluation(Evaluation):
    """An evaluation that saves what gradients in the weights need.

    Call either `forward_energy`, then `backward_energy`; or `forward_gradient`, then `backward_gradient`.
    """

    tangents = None  # one for each hidden layer while dE/dx is differentiated, None while E is
    gradients, d_out = (), None  # of a forward pass of dE/dx, of E

    def forward_energy(self):
        """Return E (B,)."""
        self.layers = self._forward()
        out = self._output(self.layers[-1].h)
        energy = out.square().sum(1)
        self.d_out = out.mul_(2)
        return energy

    def forward_gradient(self):
        """Return dE/dx (B, out_dim)."""
        self.layers, self.gradients = self._forward(), []
        d_h = self._d_h3(self.layers[-1].h)
        for (weight, gain, _), layer in zip(reversed(self.hidden), reversed(self.layers), strict=True):
            slope = swish_slope(layer.h, layer.sigmoid)
            d_a = d_h * slope
            d_m = d_a if gain is None else d_a * gain
            self.gradients.insert(0, SavedGradient(slope, d_h, d_a, d_m))
            d_h = self.product(d_m, weight)
        return d_h

    def backward_energy(self, e_bar):
        """Return the gradients of sum(e_bar E), e_bar (B,), as a tuple.

        They are in projected (B, H); in gain2, shift2, gain3, shift3 of each level (L, H); in w1, w2, w3, w4 and b4.
        """
        out_bar = self.d_out * e_bar[:, None]
        w4_bar = self.product(out_bar.t(), self.layers[-1].h)
        return *self._backward_hidden(self.product(out_bar, self.w4)), w4_bar, out_bar.sum(0)

    def backward_gradient(self, v):
        """Return the gradients of sum(v dE/dx), v (B, out_dim), in the order of `backward_energy`.

        sum(v dE/dx) is the directional derivative of E along v. A forward pass computes it, then a backward pass goes
        through that; of dE/dx this needs only what `forward_gradient` has saved.
        """
        self._forward_tangent(v)
        h, h_dot = self.layers[-1].h, self.tangents[-1].h_dot
        pairs, total = self.product(h_dot.t(), h), h_dot.sum(0)
        w4_bar = torch.addmm(torch.outer(self.b4, total), self.w4, pairs + pairs.t()).mul_(2)
        b4_bar = 2 * (self.w4 @ total)
        return *self._backward_hidden(self.product(h_dot, self.gram.matrix).mul_(2)), w4_bar, b4_bar

    def _forward(self):
        layers, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            layers.append(SavedForward(None if gain is None else m, sigmoid, h))
        return layers

    def _forward_tangent(self, v):
        self.v, self.tangents, h_dot = v, [], v
        for (weight, gain, _), saved in zip(self.hidden, self.gradients, strict=True):
            m_dot = self.product(h_dot, weight.t())
            a_dot = m_dot if gain is None else m_dot * gain
            h_dot = saved.slope * a_dot
            self.tangents.append(SavedTangent(m_dot, a_dot, h_dot))

    def _backward_hidden(self, h_bar):
        """Return the first eight of `backward_energy`'s gradients, from the gradient in h3."""
        gain3, shift3, w3_bar, h_bar = self._backward_layer(2, h_bar)
        gain2, shift2, w2_bar, h_bar = self._backward_layer(1, h_bar)
        _, projected, w1_bar, _ = self._backward_layer(0, h_bar)
        return projected, gain2, shift2, gain3, shift3, w1_bar, w2_bar, w3_bar

    def _backward_layer(self, i, h_bar):
        """Return gradients in hidden layer i's gain, shift and weights, and in the h below it; None where unused.

        While dE/dx is differentiated, h_dot, a_dot and m_dot have gradients too, which are d_h, d_a and d_m: they add
        the terms below that only occur with tangents.
        """
        (weight, gain, _), layer = self.hidden[i], self.layers[i]
        below = self.layers[i - 1].h if i else self.x
        if self.tangents is None:
            a_bar = h_bar.mul_(swish_slope(layer.h, layer.sigmoid))
        else:
            saved, tangent = self.gradients[i], self.tangents[i]
            a_bar = h_bar.mul_(saved.slope).addcmul_(_curvature(layer, saved.slope).mul_(tangent.a_dot), saved.d_h)
        m_bar = a_bar if gain is None else a_bar * gain
        w_bar = self.product(m_bar.t(), below)
        if self.tangents is not None:
            w_bar.add_(self.product(saved.d_m.t(), self.tangents[i - 1].h_dot if i else self.v))
        if gain is None:
            return None, a_bar, w_bar, None
        by_level = self.one_hot.t()  # a product sums in a fixed order on every device
        shift_bar = by_level @ a_bar
        gain_bar = a_bar.mul_(layer.m)
        if self.tangents is not None:
            gain_bar.addcmul_(saved.d_a, tangent.m_dot)
        return by_level @ gain_bar, shift_bar, w_bar, self.product(m_bar, weight)


def swish_slope(h, sigmoid, out=None):
    """Return swish'(a) = h + sigmoid (1 - h), from h = swish(a) and sigmoid(a)."""
    return torch.lerp(h, h.new_ones(()), sigmoid, out=out)


def _curvature(layer, slope):
    """Return swish''(a) = (1 - sigmoid) (2 swish' - h)."""
    factor = torch.lerp(layer.h, slope, 2.0)
    return factor.addcmul_(factor, layer.sigmoid, value=-1)


class Energy(torch.autograd.Function):
    """E (B,) as an autograd operation, differentiable once, in everything but x.

    evaluation: a SavingEvaluation.
    inputs: its projected (B, H); gain2, shift2, gain3, shift3 of each level (L, H); its w1, w2, w3, w4 and b4; here
        only to receive their gradients.
    """

    @staticmethod
    def forward(ctx, evaluation, *_inputs):
        ctx.evaluation = evaluation
        return evaluation.forward_energy()

    @staticmethod
    @once_differentiable
    def backward(ctx, e_bar):
        return None, *ctx.evaluation.backward_energy(e_bar)


class Gradient(torch.autograd.Function):
    """dE/dx (B, out_dim) as an autograd operation, differentiable once, in everything but x; arguments as in Energy."""

    @staticmethod
    def forward(ctx, evaluation, *_inputs):
        ctx.evaluation = evaluation
        return evaluation.forward_gradient()

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        return None, *ctx.evaluation.backward_gradient(v)

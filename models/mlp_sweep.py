"""The MLP energy's calculus, written out: E, dE/dx and their gradients in the weights, as fixed lists of products.

In each of three hidden layers m = W h_below, a = gain m + shift, h = swish(a); E = ||W4 h3 + b4||^2. The first layer
has no gain, and its shift is the input's share of it; those of the other two depend on the noise level.
d_y is dE/dy, y_dot the derivative of y along v, y_bar the gradient of the loss in y. Arrays are (B, hidden size).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


class Levels(NamedTuple):
    """The middle layers' gains and shifts at the samples' levels.

    rows: gain2, shift2, gain3, shift3, each (B, H), or (1, H) where one level serves all. choice: (B, L) one-hot,
    which of L levels each sample has.
    """

    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    choice: torch.Tensor


class Layer(NamedTuple):
    """What the way down leaves of a hidden layer. The first has no m: nothing needs it."""

    m: torch.Tensor | None
    sigmoid: torch.Tensor
    h: torch.Tensor


class Ascent(NamedTuple):
    """What the way up leaves of a hidden layer; slope is swish'(a)."""

    slope: torch.Tensor
    d_h: torch.Tensor
    d_a: torch.Tensor
    d_m: torch.Tensor


class Tangent(NamedTuple):
    """How a hidden layer changes along v."""

    m_dot: torch.Tensor
    a_dot: torch.Tensor
    h_dot: torch.Tensor


class Sweep:
    """One evaluation at x (B, out_dim). `energy` and `energy_and_gradient` keep nothing and overwrite what they can.

    For gradients in the weights, in this order: `down`; `up` and `push`, where dE/dx is wanted; `pull`.
    product: multiplies all large matrices. projected: the input's share of the first layer (B, H).
    weights: W1 (its columns for x), W2, W3, W4, b4.
    """

    def __init__(self, product, x, levels: Levels, projected, w1, w2, w3, w4, b4):
        self.product, self.x, self.choice = product, x, levels.choice
        gain2, shift2, gain3, shift3 = levels.rows
        self.hidden = ((w1, None, projected), (w2, gain2, shift2), (w3, gain3, shift3))
        self.w4, self.b4 = w4, b4
        self.v = self.tangents = None

    def energy(self):
        """E (B,)."""
        h = self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            h = F.silu(m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m), inplace=True)
        return self._output(h).square_().sum(1)

    def energy_and_gradient(self):
        """E (B,) and dE/dx (B, out_dim)."""
        slopes, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            slopes.append(_slope(h, sigmoid, out=sigmoid))
        out = self._output(h)
        energy = out.square().sum(1)
        d = self.product(out.mul_(2), self.w4)
        for (weight, gain, _), slope in zip(reversed(self.hidden), reversed(slopes), strict=True):
            d.mul_(slope)
            d = self.product(d if gain is None else d.mul_(gain), weight)
        return energy, d

    def _output(self, h):
        return self.product(h, self.w4.t()).add_(self.b4)

    def down(self):
        """E (B,)."""
        self.layers, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            self.layers.append(Layer(None if gain is None else m, sigmoid, h))
        out = self._output(h)
        energy = out.square().sum(1)
        self.d_out = out.mul_(2)
        return energy

    def up(self):
        """dE/dx (B, out_dim)."""
        self.ascents, d_h = [], self.product(self.d_out, self.w4)
        for (weight, gain, _), layer in zip(reversed(self.hidden), reversed(self.layers), strict=True):
            slope = _slope(layer.h, layer.sigmoid)
            d_a = d_h * slope
            d_m = d_a if gain is None else d_a * gain
            self.ascents.insert(0, Ascent(slope, d_h, d_a, d_m))
            d_h = self.product(d_m, weight)
        return d_h

    def push(self, v):
        """Follow the change of x along v (B, out_dim)."""
        self.v, self.tangents, h_dot = v, [], v
        for (weight, gain, _), ascent in zip(self.hidden, self.ascents, strict=True):
            m_dot = self.product(h_dot, weight.t())
            a_dot = m_dot if gain is None else m_dot * gain
            h_dot = ascent.slope * a_dot
            self.tangents.append(Tangent(m_dot, a_dot, h_dot))

    def pull(self, e_bar):
        """Gradients of <e_bar, E> + <v, dE/dx>: in projected (B, H), in gain2, shift2, gain3, shift3 of each level
        (L, H), and in the weights. e_bar (B,) or None; without `push` there is no second term.

        That term is the derivative of E along v: what it needs of dE/dx is what `up` has left.
        """
        h, dots = self.layers[-1].h, self.tangents
        if dots is None:
            out_bar = self.d_out * e_bar[:, None]
        else:
            out_bar = self.product(dots[-1].h_dot, self.w4.t()).mul_(2)
            if e_bar is not None:
                out_bar.addcmul_(self.d_out, e_bar[:, None])
        w4_bar = self.product(out_bar.t(), h)
        if dots is not None:
            w4_bar.add_(self.product(self.d_out.t(), dots[-1].h_dot))
        gain3, shift3, w3_bar, h_bar = self._pull_layer(2, self.product(out_bar, self.w4))
        gain2, shift2, w2_bar, h_bar = self._pull_layer(1, h_bar)
        _, projected, w1_bar, _ = self._pull_layer(0, h_bar)
        return projected, gain2, shift2, gain3, shift3, w1_bar, w2_bar, w3_bar, w4_bar, out_bar.sum(0)

    def _pull_layer(self, i, h_bar):
        """Gradients in a hidden layer's gain and shift, in its weights, and in what lies below it."""
        (weight, gain, _), layer = self.hidden[i], self.layers[i]
        below = self.layers[i - 1].h if i else self.x
        if self.tangents is None:
            a_bar = h_bar.mul_(_slope(layer.h, layer.sigmoid))
        else:
            up, dot = self.ascents[i], self.tangents[i]
            a_bar = h_bar.mul_(up.slope).addcmul_(_curvature(layer, up.slope).mul_(dot.a_dot), up.d_h)
        m_bar = a_bar if gain is None else a_bar * gain
        w_bar = self.product(m_bar.t(), below)
        if self.tangents is not None:
            w_bar.add_(self.product(up.d_m.t(), self.tangents[i - 1].h_dot if i else self.v))
        if gain is None:
            return None, a_bar, w_bar, None
        by_level = self.choice.t()  # a product sums in a fixed order on every device
        shift_bar = by_level @ a_bar
        gain_bar = a_bar.mul_(layer.m)
        if self.tangents is not None:
            gain_bar.addcmul_(up.d_a, dot.m_dot)
        return by_level @ gain_bar, shift_bar, w_bar, self.product(m_bar, weight)


def _slope(h, sigmoid, out=None):
    """swish' = h + sigmoid (1 - h)."""
    return torch.lerp(h, h.new_ones(()), sigmoid, out=out)


def _curvature(layer, slope):
    """swish'' = (1 - sigmoid) (2 swish' - h)."""
    factor = torch.lerp(layer.h, slope, 2.0)
    return factor.addcmul_(factor, layer.sigmoid, value=-1)


class EnergyAlone(torch.autograd.Function):
    """E (B,), differentiable in everything but x.

    After a Sweep's first three arguments come `projected`; gain2, shift2, gain3, shift3 of each level (L, H), which
    are there for their gradients alone; and the weights.
    """

    @staticmethod
    def forward(ctx, product, x, levels, projected, _gain2, _shift2, _gain3, _shift3, *weights):
        ctx.sweep = Sweep(product, x, levels, projected, *weights)
        return ctx.sweep.down()

    @staticmethod
    @once_differentiable
    def backward(ctx, e_bar):
        return None, None, None, *ctx.sweep.pull(e_bar)


class EnergyAndGradient(torch.autograd.Function):
    """(E, dE/dx), differentiable once in everything but x; arguments as of EnergyAlone."""

    @staticmethod
    def forward(ctx, product, x, levels, projected, _gain2, _shift2, _gain3, _shift3, *weights):
        ctx.set_materialize_grads(False)  # the denoising loss leaves E unused
        ctx.sweep = Sweep(product, x, levels, projected, *weights)
        return ctx.sweep.down(), ctx.sweep.up()

    @staticmethod
    @once_differentiable
    def backward(ctx, e_bar, v):
        if v is not None:
            ctx.sweep.push(v)
        return None, None, None, *ctx.sweep.pull(e_bar)

"""The MLP energy's calculus, written out: E, dE/dx and their gradients in the weights, as fixed lists of products.

In each of three hidden layers m = W h_below, a = gain m + shift, h = swish(a); E = ||W4 h3 + b4||^2. The first layer
has no gain, and its shift is the input's share of it; those of the other two depend on the noise level.
Where only dE/dx is wanted, the output is never formed: dE/dh3 = 2 (G h3 + W4^T b4) with G = W4^T W4 is one product of
hidden size instead of two of out_dim, in both directions.
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


class Gram(NamedTuple):
    """G = W4^T W4 (H, H) and W4^T b4 (H,)."""

    matrix: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, w4, b4):
        return cls(w4.t() @ w4, w4.t() @ b4)


class Sweep:
    """An evaluation at x (B, out_dim) that keeps nothing and overwrites what it can.

    product: multiplies all large matrices. gram: that of W4 and b4. projected: the input's share of the first layer
    (B, H). weights: W1 (its columns for x), W2, W3, W4, b4.
    """

    def __init__(self, product, x, levels: Levels, gram: Gram, projected, w1, w2, w3, w4, b4):
        self.product, self.x, self.choice, self.gram = product, x, levels.choice, gram
        gain2, shift2, gain3, shift3 = levels.rows
        self.hidden = ((w1, None, projected), (w2, gain2, shift2), (w3, gain3, shift3))
        self.w4, self.b4 = w4, b4

    def energy(self):
        """E (B,)."""
        h = self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            h = F.silu(m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m), inplace=True)
        return self._output(h).square_().sum(1)

    def energy_and_gradient(self):
        """E (B,) and dE/dx (B, out_dim)."""
        h, slopes = self._slopes()
        out = self._output(h)
        energy = out.square().sum(1)
        return energy, self._gradient(self.product(out.mul_(2), self.w4), slopes)

    def gradient(self):
        """dE/dx (B, out_dim)."""
        h, slopes = self._slopes()
        return self._gradient(self._d_h3(h), slopes)

    def _slopes(self):
        """The last layer's h, and swish'(a) of each."""
        slopes, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain, out=m)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            slopes.append(_slope(h, sigmoid, out=sigmoid))
        return h, slopes

    def _gradient(self, d, slopes):
        """dE/dx, from dE/dh3."""
        for (weight, gain, _), slope in zip(reversed(self.hidden), reversed(slopes), strict=True):
            d.mul_(slope)
            d = self.product(d if gain is None else d.mul_(gain), weight)
        return d

    def _output(self, h):
        return self.product(h, self.w4.t()).add_(self.b4)

    def _d_h3(self, h):
        return self.product(h, self.gram.matrix).add_(self.gram.shift).mul_(2)


class KeptSweep(Sweep):
    """An evaluation that keeps what gradients in the weights need: `down` and `pull_energy` for those of E, or `up`,
    `push` and `pull_gradient` for those of dE/dx."""

    tangents = None  # until `push`

    def _layers(self):
        layers, h = [], self.x
        for weight, gain, shift in self.hidden:
            m = self.product(h, weight.t())
            a = m.add_(shift) if gain is None else torch.addcmul(shift, m, gain)
            sigmoid = torch.sigmoid(a)
            h = a.mul_(sigmoid)
            layers.append(Layer(None if gain is None else m, sigmoid, h))
        return layers

    def down(self):
        """E (B,)."""
        self.layers = self._layers()
        out = self._output(self.layers[-1].h)
        energy = out.square().sum(1)
        self.d_out = out.mul_(2)
        return energy

    def up(self):
        """dE/dx (B, out_dim)."""
        self.layers, self.ascents = self._layers(), []
        d_h = self._d_h3(self.layers[-1].h)
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

    def pull_energy(self, e_bar):
        """Gradients of <e_bar, E>, e_bar (B,): in projected (B, H), in gain2, shift2, gain3, shift3 of each level
        (L, H), and in the weights."""
        out_bar = self.d_out * e_bar[:, None]
        w4_bar = self.product(out_bar.t(), self.layers[-1].h)
        return *self._pull_hidden(self.product(out_bar, self.w4)), w4_bar, out_bar.sum(0)

    def pull_gradient(self):
        """Gradients of <v, dE/dx>, as those of pull_energy.

        It is the derivative of E along v: what they need of dE/dx is what `up` has left.
        """
        h, h_dot = self.layers[-1].h, self.tangents[-1].h_dot
        pairs, total = self.product(h_dot.t(), h), h_dot.sum(0)
        w4_bar = torch.addmm(torch.outer(self.b4, total), self.w4, pairs + pairs.t()).mul_(2)
        b4_bar = 2 * (self.w4 @ total)
        return *self._pull_hidden(self.product(h_dot, self.gram.matrix).mul_(2)), w4_bar, b4_bar

    def _pull_hidden(self, h_bar):
        """The part of the gradients that belongs to the hidden layers, from that in h3."""
        gain3, shift3, w3_bar, h_bar = self._pull_layer(2, h_bar)
        gain2, shift2, w2_bar, h_bar = self._pull_layer(1, h_bar)
        _, projected, w1_bar, _ = self._pull_layer(0, h_bar)
        return projected, gain2, shift2, gain3, shift3, w1_bar, w2_bar, w3_bar

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


class Energy(torch.autograd.Function):
    """E (B,), differentiable once, in everything but x.

    After a Sweep's first four arguments come `projected`; gain2, shift2, gain3, shift3 of each level (L, H), which are
    there for their gradients alone; and the weights.
    """

    @staticmethod
    def forward(ctx, product, x, levels, gram, projected, _gain2, _shift2, _gain3, _shift3, *weights):
        ctx.sweep = KeptSweep(product, x, levels, gram, projected, *weights)
        return ctx.sweep.down()

    @staticmethod
    @once_differentiable
    def backward(ctx, e_bar):
        return None, None, None, None, *ctx.sweep.pull_energy(e_bar)


class Gradient(torch.autograd.Function):
    """dE/dx (B, out_dim), differentiable once, in everything but x; arguments as of Energy."""

    @staticmethod
    def forward(ctx, product, x, levels, gram, projected, _gain2, _shift2, _gain3, _shift3, *weights):
        ctx.sweep = KeptSweep(product, x, levels, gram, projected, *weights)
        return ctx.sweep.up()

    @staticmethod
    @once_differentiable
    def backward(ctx, v):
        ctx.sweep.push(v)
        return None, None, None, None, *ctx.sweep.pull_gradient()

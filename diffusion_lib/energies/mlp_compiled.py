"""Compute the MLP's step in bfloat16 by compiled programs: what stands between two products is one pass over memory.

The formulas are those of mlp_fast.py: a program is one of its methods, compiled whole by torch.compile. What a later
program needs is saved as products take it, in bfloat16; the rest it computes again.
"""

from functools import cache

import torch

from diffusion_lib.energies.mlp_fast import SavedForward, SavedGradient, SavingEvaluation, swish_slope
from diffusion_lib.precision import multiply_bf16

torch._dynamo.config.cache_size_limit = 64  # sizes of a program; beyond torch's 8 it would end with an error


class CompiledEvaluation:
    """A SavingEvaluation whose methods are compiled, and whose products are bfloat16's, whatever `product` is."""

    def __init__(self, _product, *arguments):
        self.arguments = arguments

    def energy(self):
        return _program("energy")(*self.arguments)

    def energy_and_gradient(self):
        return _program("energy_and_gradient")(*self.arguments)

    def gradient(self):
        return _program("gradient")(*self.arguments)

    def forward_energy(self):
        energy, self.saved = _saving_program("forward_energy")(*self.arguments)
        return energy

    def forward_gradient(self):
        gradient, self.saved = _saving_program("forward_gradient")(*self.arguments)
        return gradient

    def backward_energy(self, e_bar):
        return _backward_program("backward_energy")(e_bar, self.saved, *self.arguments)

    def backward_gradient(self, v):
        return _backward_program("backward_gradient")(v, self.saved, *self.arguments)


def make_programs(model, batch_size: int):
    """Make all programs of a model's steps: before the first, inside which no signal could end it at once."""
    weight = model.fc1.weight
    inp, x = (weight.new_zeros(batch_size, size) for size in (model.inp_dim, model.out_dim))
    with torch.enable_grad():
        cond = model.condition(inp, torch.zeros(batch_size, dtype=torch.long, device=weight.device))
        for value in (model.energy(cond, x), model.gradient(cond, x)):
            (value * value.detach()).sum().backward(retain_graph=True)
    model.zero_grad()
    with torch.no_grad():
        model.energy_and_gradient(cond, x)
        model.energy(cond, x)


def _compiled(program):
    return torch.compile(program, fullgraph=True, dynamic=False)


@cache
def _program(method: str):
    return _compiled(lambda *arguments: getattr(SavingEvaluation(multiply_bf16, *arguments), method)())


@cache
def _saving_program(method: str):
    def program(*arguments):
        evaluation = SavingEvaluation(multiply_bf16, *arguments)
        return getattr(evaluation, method)(), _save(evaluation)

    return _compiled(program)


@cache
def _backward_program(method: str):
    def program(bar, saved, *arguments):
        evaluation = SavingEvaluation(multiply_bf16, *arguments)
        _restore(evaluation, *saved)
        return getattr(evaluation, method)(bar)

    return _compiled(program)


def _save(evaluation: SavingEvaluation):
    """Return in bfloat16 what `_restore` needs."""
    layers = [[value if value is None else value.bfloat16() for value in layer] for layer in evaluation.layers]
    gradients = [(each.d_h.bfloat16(), each.d_m.bfloat16()) for each in evaluation.gradients]
    return layers, gradients, evaluation.d_out


def _restore(evaluation: SavingEvaluation, layers, gradients, d_out):
    """Give an evaluation what another had saved."""
    evaluation.layers = [
        SavedForward(*(value if value is None else value.float() for value in layer)) for layer in layers
    ]
    evaluation.gradients = []
    for layer, (d_h, d_m) in zip(evaluation.layers, gradients, strict=False):  # none where E is differentiated
        slope = swish_slope(layer.h, layer.sigmoid)
        evaluation.gradients.append(SavedGradient(slope, d_h.float(), d_h.float() * slope, d_m.float()))
    evaluation.d_out = d_out

"""The interface between an energy model and everything that uses one."""

import torch
from torch import nn

from diffusion_lib.system.checks import require_whole, with_plain_numbers
from diffusion_lib.system.errors import ConfigError


@with_plain_numbers
class EnergyModel(nn.Module):
    """A learned energy E(inp, x, t) whose gradient in x predicts the noise in x (IRED, equation 3).

    To add a model, subclass it and write `condition`, `retime` and `energy`; autograd supplies the gradient. A model
    that writes out its own gradient overrides `energy_and_gradient`; tests hold that equal to the one here.

    inp_dim, out_dim: flattened sizes of vectors, channels of graphs and plans.
    num_timesteps: T, the number of noise levels.
    In the shapes below `inp` and `x` are (B, inp_dim) and (B, out_dim), for vectors; a model of graphs, plans or boards
    says its own. Raises ConfigError for a size below 1.
    """

    has_energy = True
    any_size = False  # whether vectors may have other lengths than inp_dim and out_dim

    def __init__(self, inp_dim: int, out_dim: int, num_timesteps: int = 10):
        super().__init__()
        require_whole("inp_dim", inp_dim)
        require_whole("out_dim", out_dim)
        self.inp_dim, self.out_dim, self.num_timesteps = inp_dim, out_dim, num_timesteps

    def set_timesteps(self, num_timesteps: int):
        """Set T, as the diffusion that uses the model does. Raises ConfigError if the model has another T built in."""
        self.num_timesteps = num_timesteps

    def solution_shape(self, inp: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the candidates x for these inputs, batch first. Raises ConfigError for other vectors."""
        if inp.ndim == 2 and inp.shape[1] != self.inp_dim and not self.any_size:
            raise ConfigError(f"inputs are {tuple(inp.shape)}; {type(self).__name__} takes (B, {self.inp_dim})")
        return (len(inp), self.out_dim)

    def condition(self, inp: torch.Tensor, t: torch.Tensor | int):
        """Compute once what all energies at these inputs and levels share.

        inp: (B, inp_dim).
        t: (B,), or one level for all.
        """
        raise NotImplementedError

    def retime(self, cond, t: torch.Tensor | int):
        """Return `cond` for the same inputs at other levels t, without the work that only the inputs need."""
        raise NotImplementedError

    def energy(self, cond, x: torch.Tensor) -> torch.Tensor:
        """Return energies (B,) of candidates x (B, out_dim), differentiable to any order in x where x.requires_grad."""
        raise NotImplementedError

    def energy_and_gradient(self, cond, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return energies (B,) and gradients dE/dx (B, out_dim); a row's do not depend on the batch's size.

        With gradients enabled both can be differentiated in the parameters and, where x.requires_grad, in x.
        """
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if differentiable and x.requires_grad:
                x = x.view_as(x)  # dE/dx at a fixed `cond`, even where that was computed from x
            else:
                x = x.detach().requires_grad_()  # a leaf of our own: the caller's tensor keeps its flags
            energy = self.energy(cond, x)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=differentiable)
        return (energy, gradient) if differentiable else (energy.detach(), gradient)

    def gradient(self, cond, x: torch.Tensor) -> torch.Tensor:
        """Return dE/dx alone, as of `energy_and_gradient`; overridden where it costs less without E."""
        return self.energy_and_gradient(cond, x)[1]


class NoiseModel(EnergyModel):
    """A network that predicts the noise in x directly, without an energy: IRED's "reverse diffusion" (section 4).

    To add one, write `condition`, `retime` and `predict`. It takes the place of a DiffusionWrapper, without negatives
    and with the sampler that only denoises. Raises ConfigError where an energy is asked for.
    """

    has_energy = False

    @property
    def ebm(self):
        return self

    def predict(self, cond, x: torch.Tensor) -> torch.Tensor:
        """Return the noise in x, of x's shape."""
        raise NotImplementedError

    def forward(self, inp, x, t):
        return self.predict(self.condition(inp, t), x)

    def gradient(self, cond, x):
        return self.predict(cond, x)

    def energy(self, cond, x):
        raise ConfigError(f"{type(self).__name__} predicts noise and has no energy: no negatives, no inner descents")

    def energy_and_gradient(self, cond, x):
        return self.energy(cond, x)


class DiffusionWrapper(nn.Module):
    """What a diffusion calls: an energy model's noise prediction dE/dx, its energy, or both.

    `forward(inp, opt_out, t)` takes (B, inp_dim), (B, out_dim) and (B,). It returns the gradient (B, out_dim); with
    `return_energy` the energy (B, 1); with `return_both` the energy and the gradient. As in the released code, with
    gradients enabled it sets opt_out.requires_grad, and its results can be differentiated in opt_out, to any order, and
    in the parameters. Raises ConfigError for a model that has no energy.
    """

    def __init__(self, ebm: EnergyModel):
        super().__init__()
        if not isinstance(ebm, EnergyModel):
            raise ConfigError(
                f"DiffusionWrapper needs an EnergyModel, not {type(ebm).__name__} (to write one: "
                "docs/adding-an-energy-model.md)"
            )
        self.ebm = ebm
        self.inp_dim, self.out_dim = ebm.inp_dim, ebm.out_dim

    def forward(self, inp, opt_out, t, return_energy=False, return_both=False):
        if torch.is_grad_enabled():
            opt_out.requires_grad_()
        cond = self.ebm.condition(inp, t)
        if return_energy:
            return self.ebm.energy(cond, opt_out)[:, None]
        if not return_both:
            return self.ebm.gradient(cond, opt_out)
        energy, gradient = self.ebm.energy_and_gradient(cond, opt_out)
        return energy[:, None], gradient


# The release has one wrapper for each kind of model; here one serves all.
GNNDiffusionWrapper = GNNConvDiffusionWrapper = GNNConv1DV2DiffusionWrapper = DiffusionWrapper

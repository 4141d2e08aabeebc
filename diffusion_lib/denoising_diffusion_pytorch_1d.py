"""IRED's diffusion over energy models: noising, the training losses, the descent of the energy, the sampler."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from diffusion_lib.energies import DiffusionWrapper, EnergyModel, NoiseModel
from diffusion_lib.masks import Given, restored
from diffusion_lib.negatives import MODES, MiningConfig, declared, other_levels
from diffusion_lib.released_api import DIFFUSION_DEFAULTS, ReleasedCalls, by_flags, require_defaults
from diffusion_lib.schedule import cosine_beta_schedule, schedule_buffers
from diffusion_lib.system.checks import plain, require_positive, require_truth, require_whole, with_plain_numbers
from diffusion_lib.system.defaults import torchs_defaults, usable, without_autocast
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.base import Rules, require_like
from diffusion_lib.training.trainer import Trainer1D

__all__ = ["GaussianDiffusion1D", "Trainer1D"]

DEFAULT_TIMESTEPS = 10
MARGIN = 1.0  # of the hinge loss
MOVING = 0.75  # of the rows of a descent: where no more move, the others are left out

Method = TypeVar("Method", bound=Callable)


def without_dropout(method: Method) -> Method:
    """Run a module's method in evaluation mode, so that the energies it compares are of one function."""

    @wraps(method)
    def wrapped(self, *arguments, **options):
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            return method(self, *arguments, **options)
        finally:
            for module in training:
                module.training = True

    return wrapped


def require_possible(energy, rules, mode: str, use_innerloop_opt: bool = False):
    """Raise ConfigError if the energy's class or the task lacks what the mining mode or the sampler needs."""
    if not getattr(energy, "has_energy", True) and (use_innerloop_opt or mode != "none"):
        raise ConfigError(
            f"{energy.__name__} predicts noise and has no energy; allowed with it: mining mode 'none' and "
            f"use_innerloop_opt False, not {mode!r} and {use_innerloop_opt}"
        )
    needs, words = declared(mode).needs or (None, "")
    if needs and getattr(rules, needs) is None:
        raise ConfigError(f"mining mode is {mode!r}, and this task has no {words} of its own")


@with_plain_numbers
class GaussianDiffusion1D(ReleasedCalls, nn.Module):
    """Diffusion whose noise prediction is the gradient of an energy (IRED, ICML 2024, sections 3.1 to 3.3).

    model: an EnergyModel, a DiffusionWrapper around one, or a NoiseModel.
    timesteps: T, the number of noise levels. None: 10, IRED's own, with a warning.
    rules: the `rules` of a task. None: by the release's keywords `continuous`, `sudoku`, `connectivity`,
        `shortest_path`; without any, solutions are bounded by 1, as in the release.
    mining_config: how negatives are made, a dict for MiningConfig. None: IRED's own.
    bound: largest magnitude of a solution's entry; None: that of the rules.
    use_innerloop_opt: the sampler descends the energy at each level.
    show_inference_tqdm: show a progress bar for the sampler's levels.
    supervise_energy_landscape: False switches the contrastive loss off, whatever `mining_config` says.
    baseline: the sampler adds the posterior's noise, as a plain diffusion model does.
    match_release: reproduce the released code's defects (docs/released-code.md).

    The release's other keywords (objective, …) are accepted with the value that it uses; its other calls are in
    released_api.py. Raises ConfigError for anything that is not allowed.

    In its methods `out_shape` is the shape of one solution, (out_dim,) for vectors; a mask (B, *out_shape) is 1 at
    entries of the solution that the input gives.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        timesteps: int | None = None,
        rules: Rules | None = None,
        sampling_timesteps: int | None = None,
        mining_config: Mapping[str, Any] | MiningConfig | None = None,
        bound: float | None = None,
        supervise_energy_landscape: bool = True,
        use_innerloop_opt: bool = True,
        show_inference_tqdm: bool = False,
        baseline: bool = False,
        match_release: bool = False,
        **released: Any,
    ):
        super().__init__()
        for name, switch in (
            ("supervise_energy_landscape", supervise_energy_landscape),
            ("use_innerloop_opt", use_innerloop_opt),
            ("baseline", baseline),
            ("match_release", match_release),
        ):
            require_truth(name, switch)
        rules, mining = by_flags(released, rules, mining_config, bound, match_release)
        require_defaults("GaussianDiffusion1D", released, DIFFUSION_DEFAULTS)
        if timesteps is None:
            timesteps = DEFAULT_TIMESTEPS
            warnings.warn("timesteps is not given: it is 10, IRED's own (the release's is 1000)", stacklevel=3)
        require_whole("timesteps", timesteps)
        if sampling_timesteps not in (None, timesteps):
            raise ConfigError(f"sampling_timesteps is {sampling_timesteps!r}; allowed: None or timesteps")
        if isinstance(model, EnergyModel) and not isinstance(model, NoiseModel):
            model = DiffusionWrapper(model)
        if not isinstance(getattr(model, "ebm", None), EnergyModel):
            raise ConfigError(
                f"model is {type(model).__name__}; allowed: an EnergyModel, or a DiffusionWrapper of one (to write "
                "one: docs/adding-an-energy-model.md)"
            )
        if not isinstance(rules, Rules):
            raise ConfigError(f"rules is {rules!r}; allowed: the rules of a task")
        if bound is not None:
            require_positive("bound", bound)
            rules = replace(rules, bound=bound)
        self.rules = rules
        self.model = model
        self.inp_dim, self.out_dim = model.inp_dim, model.out_dim
        self.num_timesteps = timesteps
        model.ebm.set_timesteps(timesteps)
        self.mining = mining if supervise_energy_landscape else MiningConfig(mode="none")
        self.contrast = True  # what trains it may switch the contrastive term off for some steps
        self.match_release = match_release
        require_possible(type(model.ebm), self.rules, self.mining.mode, use_innerloop_opt)
        if self.mining.mode == "levels" and timesteps < 2:
            raise ConfigError("mining mode is 'levels' and timesteps 1; allowed with it: timesteps from 2")
        if self.mining.loss == "hinge" and self._has_several_energies():
            raise ConfigError("loss is 'hinge', and the release has several energies here; allowed: softplus")
        self.use_innerloop_opt = use_innerloop_opt
        self.show_inference_tqdm = show_inference_tqdm
        self.baseline = baseline
        for name, value in schedule_buffers(cosine_beta_schedule(timesteps)).items():
            self.register_buffer(name, value)

    @property
    def bound(self) -> float:
        return self.rules.bound

    def q_sample(self, x_start, t, noise=None):
        """Noise solutions: return x_t = sqrt(alphas_cumprod_t) x_start + sqrt(1 - alphas_cumprod_t) noise.

        x_start: solutions (B, *out_shape).
        t: their levels, one int or (B,).
        noise: normal noise (B, *out_shape); None: drawn here.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        scaled = self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        return torch.addcmul(scaled, self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start), noise)

    def predict_start(self, x_t, t, noise=0.0):
        """Return x_0 from x_t and the noise in it, all (B, *out_shape): `q_sample` solved for x_start."""
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return self._at(recip, t, x_t) * x_t - self._at(recipm1, t, x_t) * noise

    @staticmethod
    def _at(table, t, x):
        """Return a (T,) table at t, to multiply x (B, *out_shape): a scalar for an int t, else one for each row."""
        return table[t] if isinstance(t, int) else table[t].view(-1, *[1] * (x.ndim - 1))

    def noised(self, x_start, t, noise, values, mask):
        """Return x_t as `q_sample` makes it, but for entries that a mask keeps: `values`, without noise.

        All are (B, *out_shape), t an int or (B,); mask may be None.
        """
        return restored(self.q_sample(x_start, t, noise), self.given(values, t, mask))

    def given(self, values, t, mask) -> Given | None:
        """Return what a mask keeps at level t: entries of `values` (B, *out_shape), scaled to it, without noise."""
        return None if mask is None else Given(mask.bool(), self._at(self.sqrt_alphas_cumprod, t, values) * values)

    def forward(
        self,
        inp: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        nce_noise: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        drawn: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | int, ...]]:
        """Return the training loss of a batch: see `p_losses`, which names the arguments. Draws t where it is None."""
        if t is None:
            t = torch.randint(0, self.num_timesteps, (target.shape[0],), device=target.device)
        return self.p_losses(inp, target, mask, t, noise, nce_noise, candidates, drawn)

    @without_autocast()
    def p_losses(
        self,
        inp: torch.Tensor,
        x_start: torch.Tensor,
        mask: torch.Tensor | None,
        t: torch.Tensor,
        noise: torch.Tensor | None = None,
        nce_noise: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        drawn: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | int, ...]]:
        """Return the denoising loss plus `mining.weight` times the contrastive loss (IRED, equations 4 and 6).

        inp: the problems (B, *inp_shape).
        x_start: their solutions (B, *out_shape).
        mask: (B, *out_shape) or None.
        t: levels (B,).
        noise: normal noise (B, *out_shape) of the denoising loss. None: drawn here.
        nce_noise: the same of the contrastive loss, which its real and its wrong answers share. None: drawn here.
        candidates: the wrong answers (B, *out_shape). None: made by the mode.
        drawn: the mode's own normal noise (B, draws, *out_shape). None: drawn here.
        torch.autocast has no effect: see diffusion_lib.system.defaults.
        Returns the mean loss and three numbers: the denoising and the contrastive loss, and the mean squared distance
        of the candidates from the solutions; the last two are -1 without a contrastive loss, as in the release.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        ebm = self.model.ebm
        cond = ebm.condition(inp, t)
        x_t = self.noised(x_start, t, noise, inp, mask)
        denoising = self._denoising_loss(ebm.gradient(cond, x_t), noise, x_start, mask)
        if self.mining.mode == "none" or not self.contrast:
            return denoising, (denoising, -1, -1)
        nce_noise = torch.randn_like(x_start) if nce_noise is None else nce_noise
        drawn = self._drawn(x_start, drawn)
        wrong = cond
        if self.mining.mode == "levels":  # the real sample itself, uncut, at a level that it is not of
            candidates, wrong = x_start, ebm.retime(cond, other_levels(t, drawn, self.num_timesteps))
        elif candidates is None:
            candidates = self.candidates(cond, x_start, t, nce_noise, mask=mask, drawn=drawn)
        real = self.noised(x_start, t, nce_noise, x_start, mask)
        fake = self.noised(candidates, t, nce_noise, x_start, mask)
        contrastive = self._contrastive_loss(self._energies(cond, real), self._energies(wrong, fake))
        distance = F.mse_loss(candidates, x_start)
        return denoising + self.mining.weight * contrastive, (denoising, contrastive, distance)

    def _denoising_loss(self, prediction, noise, x_start, mask):
        """Mean squared error of the noise (IRED, equation 4) over the entries that are not given."""
        if mask is None and self.rules.entry_weights is None:
            return F.mse_loss(prediction, noise)
        errors = (prediction - noise).square()
        if self.rules.entry_weights is not None:
            errors = errors * self.rules.entry_weights(x_start)
        if mask is None:
            return errors.mean()
        unknown = 1 - mask.to(errors)
        # defect 9: the release divides by the number of all entries
        return (errors * unknown).sum() / (unknown.numel() if self.match_release else unknown.sum().clamp(min=1))

    def _energies(self, cond, x):
        """Energies (B,); (B, n) with match_release, if the release's model has n energies a row (defect 10)."""
        ebm = self.model.ebm
        return ebm.released_energy(cond, x) if self._has_several_energies() else ebm.energy(cond, x)

    def _has_several_energies(self) -> bool:
        return self.match_release and hasattr(self.model.ebm, "released_energy")

    def _contrastive_loss(self, real, fake):
        """Minus the log of the real sample's share of exp(-E) (IRED, equation 6), from `_energies`.

        With the loss `hinge`: by how much the fake's energy falls short of the real one's plus MARGIN.
        """
        if self.mining.loss == "hinge":
            return F.relu(MARGIN + real - fake).mean()
        if real.ndim == 1:
            return F.softplus(real - fake).mean()
        # defect 10: the first of the n energies against all 2n
        return (real[:, 0] + torch.cat((-real, -fake), dim=1).logsumexp(1)).mean()

    @without_dropout
    @torch.no_grad()
    def candidates(self, cond, x_start, t, noise, mining=None, mask=None, drawn=None):
        """Make the wrong answers of a mining mode (B, *out_shape): see negatives.py.

        cond: the energy's condition on the problems and t.
        x_start: the solutions (B, *out_shape).
        t: levels, an int or (B,).
        noise: normal noise (B, *out_shape), that of the real answers.
        mining: a MiningConfig; None: the model's own.
        mask: (B, *out_shape) or None.
        drawn: the mode's own normal noise (B, draws, *out_shape); None: drawn here.
        Raises ConfigError where the mode makes another shape or type.
        """
        mining = mining or self.mining
        given = self.given(x_start, t, mask)
        bound = self.bound if self.rules.candidate_bound is None else self.rules.candidate_bound
        own = (self._drawn(x_start, drawn, mining),) if mining.draws() else ()
        # copies, since the real sample is made of the same tensors, which a mode may change in place
        level = t if isinstance(t, int) else t.clone()
        made = MODES[mining.mode](self, cond, x_start.clone(), level, noise.clone(), mining, given, *own)
        require_like(x_start, made, f"the mode {mining.mode!r}")
        return made.clamp(-bound, bound)

    def _drawn(self, x_start, drawn, mining=None):
        """Return the mode's own normal noise (B, draws, *out_shape), drawn if None; None for a mode that needs none."""
        draws = (mining or self.mining).draws()
        return (
            x_start.new_empty(len(x_start), draws, *x_start.shape[1:]).normal_() if draws and drawn is None else drawn
        )

    def negatives(self, cond, x_start, t, noise, mining=None, mask=None, drawn=None):
        """Return the candidates at level t (B, *out_shape), with the noise of the real answers (IRED, section 3.2).

        The arguments are those of `candidates`.
        """
        return self.noised(self.candidates(cond, x_start, t, noise, mining, mask, drawn), t, noise, x_start, mask)

    @without_dropout
    @torch.no_grad()
    def descend(self, cond, z, t, steps, scale, bound, given=None, settling=False):
        """Descend the energy (IRED, algorithm 2): z' = clamp(z - eta_t scale dE/dz), kept where E falls.

        cond: the energy's condition on the problems and t.
        z: where to start, at level t (B, *out_shape).
        t: levels, an int or (B,).
        steps: how many descents.
        scale: factor on the step size eta_t.
        bound: largest magnitude of a solution's entry, in the solution's units.
        given: what a mask keeps.
        settling: leave rows at rest out of further steps; t is then one level for all. A row whose step was not kept,
            or moved nothing, would only repeat it: z is the same, but not the share.
        Returns z (B, *out_shape) and the share of steps kept, a scalar tensor.
        """
        # a step takes one energy and gradient: those at its new point serve the next step
        settled = rows = None
        limit = self._clamp_limit(t, bound, z)
        step_size = self._at(self.opt_step_size, t, z)
        energy, gradient = self._energy_and_gradient(cond, z)
        kept = z.new_zeros(())
        for i in range(steps):
            if self.match_release and i > 0:
                scale = self.rules.bound  # defect 1: the release overwrites its own scale
            proposal = restored(torch.addcmul(z, step_size, gradient, value=-scale), given)
            proposal = torch.maximum(torch.minimum(proposal, limit), -limit)
            last = i == steps - 1
            new = self._energy_and_gradient(cond, proposal, only_energy=last)
            accept = new[0] <= energy
            kept_rows = accept.view(-1, *[1] * (z.ndim - 1))
            kept = kept + accept.float().mean() / steps
            z, before = torch.where(kept_rows, proposal, z), z
            if last:
                break
            energy = torch.where(accept, new[0], energy)
            gradient = torch.where(kept_rows, new[1], gradient)
            if settling and (i > 0 or not self.match_release):  # whose first step has another scale
                moving = (z != before).flatten(1).any(1).nonzero()[:, 0]
                if not len(moving):
                    break
                if len(moving) <= MOVING * len(z):
                    settled, rows = (z, moving) if rows is None else (settled.index_copy(0, rows, z), rows[moving])
                    cond = self.model.ebm.rows(cond, moving)
                    z, energy, gradient = z[moving], energy[moving], gradient[moving]
                    given = None if given is None else Given(*(part[moving] for part in given))
        return z if rows is None else settled.index_copy(0, rows, z), kept

    def langevin_step(self, cond, z, t, scale, noise, given=None):
        """Take a Langevin step: clamp(z - s dE/dz + sqrt(2 s) noise), s = eta_t scale, kept even where E rises.

        noise: normal noise (B, *out_shape), times the square root of a temperature.
        The other arguments are those of `descend`. Returns z (B, *out_shape).
        """
        step = scale * self._at(self.opt_step_size, t, z)
        proposal = restored(z - step * self.model.ebm.gradient(cond, z) + (2 * step).sqrt() * noise, given)
        limit = self._clamp_limit(t, self.bound, z)
        return torch.maximum(torch.minimum(proposal, limit), -limit)

    def _energy_and_gradient(self, cond, z, only_energy=False):
        """Return the energies (B,) that a descent compares, and dE/dz or None."""
        ebm = self.model.ebm
        energy, gradient = (ebm.energy(cond, z), None) if only_energy else ebm.energy_and_gradient(cond, z)
        if self._has_several_energies():
            energy = self._energies(cond, z).view(len(z), -1)[:, 0]  # defect 10: the release compares the first
        return energy, gradient

    def _clamp_limit(self, t, bound, x):
        """Return the largest magnitude of x at level t: the bound, scaled as noising scales a solution."""
        if self.match_release and not isinstance(t, int):
            t = t[:1]  # defect 2: the first sample's level for the whole batch
        return self._at(self.sqrt_alphas_cumprod, t, x) * bound

    @without_dropout
    @torchs_defaults()
    @torch.no_grad()
    def sample_loop(
        self,
        inp: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        inner_steps: int | None = None,
        bound: float | None = None,
        levels: Sequence[int] | int | None = None,
        return_traj: bool = False,
    ) -> torch.Tensor:
        """Sample solutions (B, *out_shape) (IRED, section 3.3): denoise level by level, and descend E at each.

        inp: the problems (B, *inp_shape).
        mask: 1 at entries of the solution that the input gives (B, *out_shape).
        start: the noise x_T (B, *out_shape); None: drawn from `generator`.
        inner_steps: descents at each level; None: the rules', or 0 without use_innerloop_opt.
        bound: largest magnitude of a solution's entry; None: the model's own.
        levels: which of T-1 … 0 to visit, in this order, or one; None: all.
        return_traj: return what each level makes of it, (levels, B, *out_shape).
        Raises ConfigError for what is not allowed.
        """
        if inner_steps is None:
            inner_steps = self.rules.inner_steps if self.use_innerloop_opt else 0
        inner_steps, bound = plain(inner_steps), self.bound if bound is None else plain(bound)
        require_whole("inner_steps", inner_steps, 0)
        require_positive("bound", bound)
        if not isinstance(inp, torch.Tensor) or inp.ndim < 2:
            found = tuple(inp.shape) if isinstance(inp, torch.Tensor) else type(inp).__name__
            raise ConfigError(f"inp is {found}; allowed: a tensor of inputs, the number of them first")
        inp, mask, start = map(usable, (inp, mask, start))
        inp = inp.to(self.betas.dtype, copy=True)  # an energy's condition may change it in place
        level_bound = bound if self.rules.level_bound is None else self.rules.level_bound
        shape = tuple(self.model.ebm.solution_shape(inp))
        if start is None:
            start = torch.randn(shape, generator=generator, device=inp.device, dtype=inp.dtype)
        for name, part, entries in (("start", start, ""), ("mask", mask, ", of 0 and 1")):
            found = tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
            if part is not None and found != shape:
                raise ConfigError(f"{name} is {found}; allowed for these inputs: a tensor of {shape}{entries}")
        x = start.to(inp.dtype)
        known = list(reversed(range(self.num_timesteps)))
        asked = known if levels is None else list(levels) if isinstance(levels, Iterable) else [levels]
        levels = [level for level in known if level in asked]
        if not levels or levels != asked:
            raise ConfigError(f"levels are {asked}; allowed: some of 0 to {known[0]}, in descending order")
        cond = self.model.ebm.condition(inp, levels[0])
        trajectory = []
        # on a GPU, counting the rows that move would wait for the device
        settling = x.device.type == "cpu" and hasattr(self.model.ebm, "rows")
        for t, following in tqdm(
            list(zip(levels, [*levels[1:], None], strict=True)), desc="sampling", disable=not self.show_inference_tqdm
        ):
            cond = self.model.ebm.retime(cond, t)
            given = self.given(inp, t, mask)
            x = restored(self._p_sample(cond, restored(x, given), t, bound, generator), given)
            if inner_steps:
                x, _ = self.descend(cond, x, t, inner_steps, 1.0, bound, given, settling)
            limit = self._clamp_limit(t, level_bound, x)
            x = x.clamp(-limit, limit)
            x_start = self.predict_start(x, t)
            trajectory.append(x_start)
            if following is not None:
                x = self._at(self.sqrt_alphas_cumprod, following, x) * x_start
        if return_traj:
            return torch.stack(trajectory)
        # defect 3: the release returns the last sample without undoing its scale
        return x if self.match_release else x_start

    def _p_sample(self, cond, x, t, bound, generator):
        """Denoise once at level t (B, *out_shape); the result is still at the scale of that level."""
        noise_prediction = self.model.ebm.gradient(cond, x)
        x_start = self.predict_start(x, t, noise_prediction).clamp(-bound, bound)
        x = self._at(self.sqrt_alphas_cumprod, t, x) * x_start
        if self.baseline and t > 0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + (0.5 * self.posterior_log_variance_clipped[t]).exp() * noise
        return x

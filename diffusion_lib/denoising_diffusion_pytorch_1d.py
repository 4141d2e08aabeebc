"""IRED's diffusion over energy models: noising, the training losses, the inner optimisation, the sampler."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from diffusion_lib.energies import DiffusionWrapper, EnergyModel
from diffusion_lib.negatives import MODES, MiningConfig
from diffusion_lib.released_api import DIFFUSION_DEFAULTS, ReleasedCalls, refuse_mask, require_defaults
from diffusion_lib.schedule import cosine_beta_schedule, schedule_buffers
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.training.trainer import Trainer1D

__all__ = ["GaussianDiffusion1D", "Trainer1D"]

RELEASED_BOUND = 2.0  # the release's clamp of solutions, whatever the task
DEFAULT_TIMESTEPS = 10
INNER_STEPS = 5  # opt_steps at each level of the sampler (IRED, algorithm 2)


class GaussianDiffusion1D(ReleasedCalls, nn.Module):
    """Diffusion whose noise prediction is the gradient of an energy (IRED, ICML 2024, sections 3.1 to 3.3).

    model: an EnergyModel, or a DiffusionWrapper around one. timesteps: T (None: 10, IRED's own, with a warning).
    mining_config: dict (or None) for MiningConfig. bound: largest magnitude of a solution's entry that losses and
    sampler let through (None: 2). use_innerloop_opt: the sampler descends the energy at each level.
    show_inference_tqdm: a bar for its levels. supervise_energy_landscape: False switches the contrastive term off
    whatever `mining_config` says, as in the release. baseline: the sampler adds the posterior's noise, as a plain
    diffusion model does. match_release: reproduce defects 1 to 3 of the README's list of the released code's.
    Other keywords of the released constructor (objective, sudoku, …) are accepted at the value that the continuous
    tasks use; its other calls are in released_api.py. Raises ConfigError for anything that is not allowed.
    """

    inner_steps = INNER_STEPS

    def __init__(
        self,
        model,
        *,
        timesteps: int | None = None,
        sampling_timesteps: int | None = None,
        mining_config: dict | MiningConfig | None = None,
        bound: float | None = None,
        supervise_energy_landscape: bool = True,
        use_innerloop_opt: bool = True,
        show_inference_tqdm: bool = False,
        baseline: bool = False,
        match_release: bool = False,
        seq_length: int | None = None,
        **released,
    ):
        super().__init__()
        require_defaults("GaussianDiffusion1D", released, DIFFUSION_DEFAULTS)
        if timesteps is None:
            timesteps = DEFAULT_TIMESTEPS
            warnings.warn("timesteps is not given: it is 10, IRED's own (the release's is 1000)", stacklevel=2)
        if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
            raise ConfigError(f"timesteps is {timesteps!r}; allowed: a whole number from 1")
        if sampling_timesteps not in (None, timesteps):
            raise ConfigError(f"sampling_timesteps is {sampling_timesteps!r}; allowed: None or timesteps")
        if isinstance(model, EnergyModel):
            model = DiffusionWrapper(model)
        if not isinstance(getattr(model, "ebm", None), nn.Module):
            raise ConfigError(f"model is {type(model).__name__}; allowed: an EnergyModel, or a DiffusionWrapper of one")
        self.model, self.seq_length = model, seq_length
        self.inp_dim, self.out_dim = model.inp_dim, model.out_dim
        self.num_timesteps = timesteps
        model.ebm.set_timesteps(timesteps)
        mining = MiningConfig.from_dict(mining_config)
        self.mining = mining if supervise_energy_landscape else MiningConfig(mode="none")
        self.match_release = match_release
        self.bound = RELEASED_BOUND if bound is None or match_release else bound
        self.use_innerloop_opt = use_innerloop_opt
        self.show_inference_tqdm = show_inference_tqdm
        self.baseline = baseline
        for name, value in schedule_buffers(cosine_beta_schedule(timesteps)).items():
            self.register_buffer(name, value)

    def q_sample(self, x_start, t, noise=None):
        """x_t = sqrt(alphas_cumprod_t) x_start + sqrt(1 - alphas_cumprod_t) noise, all (B, out_dim)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        scaled = self._at(self.sqrt_alphas_cumprod, t) * x_start
        return torch.addcmul(scaled, self._at(self.sqrt_one_minus_alphas_cumprod, t), noise)

    def predict_start(self, x_t, t, noise=0.0):
        """x_0 (B, out_dim) from x_t and the noise in it (equation 2 of IRED, solved for y)."""
        return self._at(self.sqrt_recip_alphas_cumprod, t) * x_t - self._at(self.sqrt_recipm1_alphas_cumprod, t) * noise

    @staticmethod
    def _at(table, t):
        """The entries of a (T,) table at t: a scalar for an int, (B, 1) for a tensor (B,)."""
        return table[t] if isinstance(t, int) else table[t][:, None]

    def forward(self, inp, target, mask=None, t=None, noise=None, nce_noise=None):
        """The training loss of a batch: see `p_losses`, which names the arguments. Draws t where it is None."""
        if t is None:
            t = torch.randint(0, self.num_timesteps, (target.shape[0],), device=target.device)
        return self.p_losses(inp, target, mask, t, noise, nce_noise)

    def p_losses(self, inp, x_start, mask, t, noise=None, nce_noise=None):
        """Denoising loss plus `mining.weight` times the contrastive loss (IRED, equations 4 and 6).

        inp (B, inp_dim), x_start (B, out_dim), t (B,); noise and nce_noise (B, out_dim), drawn where None.
        Returns the mean loss and three parts of it: denoising, contrastive, and the mean squared distance of the
        negatives' candidates from the solution; the last two are -1 without a contrastive term, as in the release.
        """
        refuse_mask(mask)
        noise = torch.randn_like(x_start) if noise is None else noise
        ebm = self.model.ebm
        cond = ebm.condition(inp, t)
        noise_prediction = ebm.gradient(cond, self.q_sample(x_start, t, noise))
        denoising = F.mse_loss(noise_prediction, noise)
        if self.mining.mode == "none":
            return denoising, (denoising, -1, -1)
        nce_noise = torch.randn_like(x_start) if nce_noise is None else nce_noise
        candidates = self.candidates(cond, x_start, t, nce_noise)
        energy_real = ebm.energy(cond, self.q_sample(x_start, t, nce_noise))
        energy_fake = ebm.energy(cond, self.q_sample(candidates, t, nce_noise))
        contrastive = F.softplus(energy_real - energy_fake).mean()
        distance = F.mse_loss(candidates, x_start)
        return denoising + self.mining.weight * contrastive, (denoising, contrastive, distance)

    @torch.no_grad()
    def candidates(self, cond, x_start, t, noise, mining=None):
        """The wrong answers of a mining mode (B, out_dim): see negatives.py. mining: None for the model's own."""
        mining = mining or self.mining
        return MODES[mining.mode](self, cond, x_start, t, noise, mining).clamp(-self.bound, self.bound)

    def negatives(self, cond, x_start, t, noise, mining=None):
        """The candidates at level t (B, out_dim), with the noise of the real sample (IRED, section 3.2)."""
        return self.q_sample(self.candidates(cond, x_start, t, noise, mining), t, noise)

    @torch.no_grad()
    def descend(self, cond, z, t, steps, scale, bound):
        """Inner optimisation (IRED, algorithm 2): z' = clamp(z - eta_t scale dE/dz), kept where E falls.

        Returns z (B, out_dim) and the share of steps kept, a scalar tensor. One energy and gradient per step:
        the energy at a new point is the next step's own.
        """
        ebm = self.model.ebm
        limit = self._clamp_limit(t, bound)
        step_size = self._at(self.opt_step_size, t)
        energy, gradient = ebm.energy_and_gradient(cond, z)
        kept = z.new_zeros(())
        for i in range(steps):
            if self.match_release and i > 0:
                scale = RELEASED_BOUND  # defect 1: the release overwrites its own scale
            proposal = torch.addcmul(z, step_size, gradient, value=-scale)
            proposal = torch.maximum(torch.minimum(proposal, limit), -limit)
            last = i == steps - 1
            new = (ebm.energy(cond, proposal), None) if last else ebm.energy_and_gradient(cond, proposal)
            accept = new[0] <= energy
            kept = kept + accept.float().mean() / steps
            z = torch.where(accept[:, None], proposal, z)
            if not last:
                energy = torch.where(accept, new[0], energy)
                gradient = torch.where(accept[:, None], new[1], gradient)
        return z, kept

    def _clamp_limit(self, t, bound):
        """Largest magnitude of z at level t: that of a solution, scaled as the noising scales it."""
        if self.match_release and not isinstance(t, int):
            t = t[:1]  # defect 2: the first sample's level for the whole batch
        return self._at(self.sqrt_alphas_cumprod, t) * bound

    @torch.no_grad()
    def sample_loop(
        self, inp, *, start=None, generator=None, inner_steps=None, bound=None, levels=None, return_traj=False
    ):
        """Solutions (B, out_dim) for inputs (B, inp_dim); with return_traj those of every level, (T, B, out_dim).

        start: the noise x_T (B, out_dim), drawn from `generator` where None. inner_steps: opt_steps at each
        level (None: 5, or 0 without use_innerloop_opt). bound: overrides the model's own, for other tasks.
        levels: those of 0 … T-1 to visit, descending (None: all).
        """
        if inner_steps is None:
            inner_steps = self.inner_steps if self.use_innerloop_opt else 0
        bound = self.bound if bound is None else bound
        x = start
        if x is None:
            x = torch.randn(inp.shape[0], self.out_dim, generator=generator, device=inp.device, dtype=inp.dtype)
        levels = list(reversed(range(self.num_timesteps))) if levels is None else list(levels)
        cond = self.model.ebm.condition(inp, levels[0])
        trajectory = []
        for t, following in tqdm(
            list(zip(levels, [*levels[1:], None], strict=True)), desc="sampling", disable=not self.show_inference_tqdm
        ):
            cond = self.model.ebm.retime(cond, t)
            x = self._p_sample(cond, x, t, bound, generator)
            if inner_steps:
                x, _ = self.descend(cond, x, t, inner_steps, 1.0, bound)
            limit = self._clamp_limit(t, bound)
            x_start = self.predict_start(x.clamp(-limit, limit), t)
            trajectory.append(x_start)
            if following is not None:
                x = self._at(self.sqrt_alphas_cumprod, following) * x_start
        if return_traj:
            return torch.stack(trajectory)
        # defect 3: the release returns the last sample without undoing its scale
        return x if self.match_release else x_start

    def _p_sample(self, cond, x, t, bound, generator):
        """One denoising step at level t, still at the scale of that level."""
        noise_prediction = self.model.ebm.gradient(cond, x)
        x_start = self.predict_start(x, t, noise_prediction).clamp(-bound, bound)
        x = self._at(self.sqrt_alphas_cumprod, t) * x_start
        if self.baseline and t > 0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + (0.5 * self.posterior_log_variance_clipped[t]).exp() * noise
        return x

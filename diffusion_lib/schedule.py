"""The noise schedule: betas and what follows from them, as the buffers of a diffusion model."""

import math

import torch
import torch.nn.functional as F


def cosine_beta_schedule(timesteps: int, s: float = 0.008) -> torch.Tensor:
    """Return the cosine schedule's betas (T,) float64, clipped to 0.999 (Nichol and Dhariwal 2021, equation 17)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, 0.999)


def schedule_buffers(betas: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return all schedule constants, each (T,) float32, computed in the precision of `betas`.

    betas: the variances of the T levels' noise, (T,).
    The names are those of IRED's checkpoints; the posterior is that of DDPM (equations 6 and 7). `opt_step_size` is
    the inner step size eta_t = beta_t / sqrt(1 - alphas_cumprod_t).
    """
    alphas = 1 - betas
    alphas_cumprod = alphas.cumprod(0)
    previous = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
    noise_variance = 1 - alphas_cumprod
    posterior_variance = betas * (1 - previous) / noise_variance
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise_variance.sqrt(),
        "log_one_minus_alphas_cumprod": noise_variance.log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "opt_step_size": betas / noise_variance.sqrt(),
        "posterior_variance": posterior_variance,
        # the variance is 0 at t = 0, hence the floor
        "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / noise_variance,
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / noise_variance,
        "loss_weight": torch.ones_like(betas),
    }
    return {name: value.float() for name, value in buffers.items()}

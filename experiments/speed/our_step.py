"""A training step of this project, as the benchmarks time it."""

import torch

from diffusion_lib.compiling import set_compiled
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D
from diffusion_lib.energies import MODELS
from diffusion_lib.precision import bf16_product
from diffusion_lib.tasks import Inverse

MODES = ("none", "random", "adversarial")


def initial_diffusion(mode, model, rank, device) -> GaussianDiffusion1D:
    torch.manual_seed(0)
    ebm = MODELS[model](rank**2, rank**2)
    return GaussianDiffusion1D(ebm, timesteps=10, rules=Inverse.rules, mining_config={"mode": mode}).to(device)


def our_step(mode, model, rank, batch_size, device, bf16=False, compiled=False, cuda_graph=True):
    """Make a step of this project's trainer, which saves nothing. compiled: in bf16, by compiled programs."""
    diffusion = initial_diffusion(mode, model, rank, device)
    if bf16 or compiled:
        diffusion.model.ebm.product = bf16_product
    set_compiled("on" if compiled else "off", diffusion.model.ebm, torch.device(device))
    task = Inverse("train", rank)
    return Trainer1D(diffusion, task, train_batch_size=batch_size, device=device, cuda_graph=cuda_graph).run_one_step

"""A training step of this project, as the benchmarks time it."""

import torch

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
    if compiled:
        from diffusion_lib.energies.mlp_compiled import use_programs  # here, since it imports the compiler

        use_programs(diffusion.model.ebm)
    task = Inverse("train", rank)
    return Trainer1D(diffusion, task, train_batch_size=batch_size, device=device, cuda_graph=cuda_graph).run_one_step

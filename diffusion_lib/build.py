"""From a configuration to its untrained model and its evaluation tasks."""

import torch

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D
from diffusion_lib.energies import MODELS, DiffusionWrapper
from diffusion_lib.seeds import derive_seed
from diffusion_lib.tasks import Inverse, Task
from diffusion_lib.training.batches import INITIAL_WEIGHTS


def build_diffusion(
    config: ExperimentConfig,
    mining_config: dict,
    seed: int,
    task: Task | None = None,
    use_innerloop_opt: bool = False,
    baseline: bool = False,
) -> GaussianDiffusion1D:
    """The untrained model of a run: initial weights are a function of the seed alone, not of the strategy.

    task: what it is trained on, by default Inverse. use_innerloop_opt, baseline: see GaussianDiffusion1D.
    """
    torch.manual_seed(derive_seed(INITIAL_WEIGHTS, seed))
    task = task or Inverse("train", config.rank)
    return GaussianDiffusion1D(
        DiffusionWrapper(MODELS[config.model](task.inp_dim, task.out_dim)),
        timesteps=config.diffusion_steps,
        mining_config=mining_config,
        bound=task.bound,
        use_innerloop_opt=use_innerloop_opt,
        baseline=baseline,
        match_release=config.match_release,
    )


def evaluation_tasks(config: ExperimentConfig, trained_on: Task) -> tuple[Task, Task]:
    """The training's usual and the harder difficulty, each with the bound that the sampler keeps on it."""
    val, harder = (type(trained_on)("val", config.rank, ood) for ood in (False, True))
    if config.clamp == "training":
        harder.bound = trained_on.bound
    return val, harder

"""Count training FLOPs: two for each multiply-add of the matrix products in a step, as torch counts them.

A step at batch B costs a + b B, where a is the cost of products of weights alone (the Gram matrix of the MLP's last
layer, once a step). Runs are charged as at the published batch of 2,048, b + a / 2048 an example, so that the ratio of
two strategies does not depend on a study's batch. For the MLP at rank 20, a is 2% of the baseline's step at that batch
and 24% at batch 128; adversarial costs 2.80 and 2.40 times the baseline. Not counted: making the data, the update of
the weights, and everything that is no matrix product.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lib.build import build_diffusion, check_model, training_task
from diffusion_lib.config import ExperimentConfig, step_kind

PUBLISHED_BATCH = 2048


def step_flops(config: ExperimentConfig, batch_size: int) -> int:
    """Count the FLOPs of a step of `batch_size` examples, forward and backward, on torch's meta device."""
    task = training_task(config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        diffusion = build_diffusion(config, 0, task)
        inp, target = (torch.zeros(batch_size, *shape) for shape in (task.inp_shape, task.out_shape))
        levels = torch.zeros(batch_size, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            candidates = target if config.mining.mode == "corrupt" else None  # those come with a batch
            diffusion(inp, target, t=levels, candidates=candidates)[0].backward()
    return counter.get_total_flops()


def example_flops(config: ExperimentConfig) -> float:
    """Return the FLOPs of training on one example: its share of a step at the published batch. Raises ConfigError."""
    return _counted(step_kind(config).change(batch_size=1))  # a step of a kind is counted once, whatever a study varies


@cache
def _counted(config: ExperimentConfig) -> float:
    check_model(config)
    return step_flops(config, PUBLISHED_BATCH) / PUBLISHED_BATCH


def train_flops(config: ExperimentConfig) -> int:
    """Count the FLOPs of a whole run; steps before its contrastive loss starts cost what those without mining do."""
    early = config.mining.first_contrast(config.train_steps)
    examples = (config.train_steps - early) * example_flops(config)
    if early:
        examples += early * example_flops(config.change(mode="none", start=0.0))
    return round(examples * config.batch_size)


def equal_compute_steps(config: ExperimentConfig, other: ExperimentConfig) -> int:
    """Return how many steps of `config` cost what the whole run `other` costs; at least one."""
    per_step = train_flops(config) / config.train_steps
    return max(1, round(train_flops(other) / per_step))

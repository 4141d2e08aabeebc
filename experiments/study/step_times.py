"""Seconds of a training step with and without adversarial negatives, measured side by side: the verdict's time clause.

The seconds that runs took decide nothing, since they share a machine with whatever else is at work on it.
"""

from pathlib import Path

import torch

from diffusion_lib.build import build_diffusion
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.checks import require_positive
from diffusion_lib.system.environment import cpu_name
from diffusion_lib.system.errors import say
from diffusion_lib.system.files import read_json, write_json
from diffusion_lib.training.device import chosen_device
from experiments.analysis.verdict import ADVERSARIAL, BASELINE
from experiments.speed.timing import alternate
from experiments.study.run import build_trainer

STEPS = 24  # measured of each strategy
WARM_UP, LIMIT = 0.5, 5.0  # seconds


def write_step_times(
    study: Path, config: ExperimentConfig, mining_configs: dict[str, dict], device, threads: int, cuda_graph: bool
):
    """Time steps of the strategies in turn, in this process, and write timing.json, unless the study has it.

    mining_configs: name -> mining_config. cuda_graph: as of Trainer1D. timing.json has the median seconds of a step by
    strategy, `batch_size`, `threads`, `device` and `cpu`. It takes LIMIT seconds, or one turn where that is longer.
    """
    path, place = study / "timing.json", chosen_device(device)
    if path.exists():
        return
    say(f"timing steps of {' and '.join(mining_configs)} in turn")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # those of a run
    try:
        steps = {
            name: build_trainer(
                config, build_diffusion(config, mining, 0), 0, study, device, cuda_graph=cuda_graph
            ).run_one_step
            for name, mining in mining_configs.items()
        }
        seconds = alternate(steps, STEPS, place.type, WARM_UP, LIMIT)
    finally:
        torch.set_num_threads(before)
    machine = {"batch_size": config.batch_size, "threads": threads, "device": place.type, "cpu": cpu_name()}
    write_json(path, seconds | machine)


def read_step_times(study: Path) -> dict | None:
    """timing.json, where the study has one. Raises ConfigError for one that lacks what the time clause reads."""
    path = study / "timing.json"
    if not path.exists():
        return None
    timing = read_json(path)
    for name in ("batch_size", BASELINE, ADVERSARIAL):
        require_positive(f"{name} in {path}", timing.get(name))
    return timing

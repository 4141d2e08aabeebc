"""Seconds of a training step by strategy, measured side by side: for the verdict's time clause, and to plan a study.

The seconds that runs took decide nothing, since they share a machine with whatever else is at work on it.
"""

from pathlib import Path

import torch

from diffusion_lib.build import build_diffusion, training_task
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.system.checks import require_positive
from diffusion_lib.system.environment import cpu_name
from diffusion_lib.system.errors import say
from diffusion_lib.system.files import read_json, write_json
from diffusion_lib.training.device import chosen_device
from diffusion_lib.training.precision import set_precision
from experiments.analysis.verdict import ADVERSARIAL, BASELINE
from experiments.speed.timing import alternate

STEPS = 24  # measured of each strategy
WARM_UP, LIMIT = 0.5, 5.0  # seconds


def step_seconds(
    config: ExperimentConfig, mining_configs: dict[str, dict], device, threads: int, cuda_graph: bool
) -> dict[str, float]:
    """Time steps of the strategies in turn, in this process, and return the median seconds of each by its name.

    mining_configs: name -> mining_config. threads: torch's, of a run. cuda_graph: as of Trainer1D. It writes nothing,
    and takes LIMIT seconds, or one turn where that is longer. Raises ConfigError.
    """
    place, steps, before = chosen_device(device), {}, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, mining in mining_configs.items():
            diffusion = build_diffusion(config, mining, 0)
            set_precision(config.precision, diffusion.model.ebm, place)
            options = {**config.trainer_options(), "results_folder": Path(), "device": device}
            steps[name] = Trainer1D(diffusion, training_task(config), cuda_graph=cuda_graph, **options).run_one_step
        return alternate(steps, STEPS, place.type, WARM_UP, LIMIT)
    finally:
        torch.set_num_threads(before)


def write_step_times(
    study: Path, config: ExperimentConfig, mining_configs: dict[str, dict], device, threads: int, cuda_graph: bool
):
    """Write timing.json, unless the study has it: what `step_seconds` returns, and where that was measured.

    The arguments are those of `step_seconds`; beside the seconds stand `batch_size`, `threads`, `device` and `cpu`.
    """
    path = study / "timing.json"
    if path.exists():
        return
    say(f"timing steps of {' and '.join(mining_configs)} in turn")
    seconds = step_seconds(config, mining_configs, device, threads, cuda_graph)
    place = chosen_device(device).type
    machine = {"batch_size": config.batch_size, "threads": threads, "device": place, "cpu": cpu_name()}
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

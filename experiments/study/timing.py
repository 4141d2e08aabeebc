"""Measure the seconds of training steps side by side, for the verdict at equal time and to plan a study.

The seconds that whole runs took decide nothing, since they share a machine with other work.
"""

from pathlib import Path
from statistics import mean

import torch

from diffusion_lib.build import build_diffusion, set_step, training_task
from diffusion_lib.config import ExperimentConfig, step_kind
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.system.checks import require_positive
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.environment import cpu_name
from diffusion_lib.system.errors import say
from diffusion_lib.system.files import create_exclusively, json_text, read_json, write_json
from experiments.speed.timing import alternate

STEPS = 24  # measured of each strategy
WARM_UP, LIMIT = 2.0, 20.0  # seconds; in 0.5 and 5 one ratio, the same each time, was found as 2.4 to 3.0


def step_seconds(configs: dict[str, ExperimentConfig], device, threads: int, cuda_graph: bool) -> dict[str, float]:
    """Time steps of configurations in turn, in this process, and return the median seconds of each by its name.

    threads: torch's, of a run.
    cuda_graph: as in Trainer1D.
    It writes nothing, and takes LIMIT seconds, or one turn where that is longer. Raises ConfigError.
    """
    place, steps, before = chosen_device(device), {}, torch.get_num_threads()
    kinds = {step_kind(config): name for name, config in reversed(configs.items())}  # each kind is timed once
    torch.set_num_threads(threads)
    try:
        for name, config in configs.items():
            if kinds[step_kind(config)] != name:
                continue
            diffusion = build_diffusion(config, 0)
            set_step(config, diffusion, place)
            options = {**config.trainer_options(), "results_folder": Path(), "device": device}
            steps[name] = Trainer1D(diffusion, training_task(config), cuda_graph=cuda_graph, **options).run_one_step
        seconds = alternate(steps, STEPS, place.type, WARM_UP, LIMIT)
    finally:
        torch.set_num_threads(before)
    return {name: seconds[kinds[step_kind(config)]] for name, config in configs.items()}


def write_step_times(study: Path, configs: dict[str, ExperimentConfig], device, threads: int, cuda_graph: bool):
    """Write timing.json, unless the study has it with all of `configs`: see `step_seconds`.

    Beside the seconds stand `batch_size`, `threads`, `device` and `cpu`. Of several processes at once, one writes it.
    What is written stays, since runs were made as long as it says: new labels are timed beside the old ones, and
    brought to the speed at which these were.
    """
    path = study / "timing.json"
    there = read_json(path) if path.exists() else {}
    if configs.keys() <= there.keys():
        return
    say(f"timing steps of {' and '.join(configs)} in turn")
    seconds = step_seconds(configs, device, threads, cuda_graph)
    known = configs.keys() & there.keys()
    for label in known:
        require_positive(f"{label} in {path}", there[label])
    speed = mean(there[label] / seconds[label] for label in known) if known else 1.0
    kinds = {step_kind(configs[label]): there[label] for label in known}
    seconds = {label: kinds.get(step_kind(configs[label]), speed * own) for label, own in seconds.items()}
    batch_size = next(iter(configs.values())).batch_size
    place = chosen_device(device).type
    record = seconds | {"batch_size": batch_size, "threads": threads, "device": place, "cpu": cpu_name()} | there
    if path.exists():
        write_json(path, record)
    else:
        create_exclusively(path, json_text(record))


def read_step_times(study: Path, labels) -> dict | None:
    """Return timing.json where it has all of `labels`, else None. Raises ConfigError for damaged numbers."""
    path = study / "timing.json"
    if not path.exists():
        return None
    timing = read_json(path)
    for name in (name for name in ("batch_size", *labels) if name in timing):
        require_positive(f"{name} in {path}", timing[name])
    return timing if timing.keys() >= {"batch_size", *labels} else None

"""Where a run is trained."""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from diffusion_lib.system.errors import ConfigError


def chosen_device(device: str | None) -> torch.device:
    """The device of that name; for None, the one that is there. Raises ConfigError for one that is not."""
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; allowed: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but this machine has no usable CUDA device; allowed here: cpu")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def make_accelerator(device: str | None = None, log_with: str | None = None, folder="results") -> Accelerator:
    """An Accelerator on `device` ('cpu', 'cuda', or None for what is there). Raises ConfigError without CUDA."""
    chosen_device(device)
    if log_with not in (None, "tensorboard"):
        raise ConfigError(f"log_with is {log_with!r}; allowed: tensorboard")
    # by name, since `accelerate launch` sets others through the environment: the gradients here are written for float32
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        log_with=log_with,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        project_dir=str(folder),
    )

"""Where a run is trained, and by how many processes."""

import os
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from diffusion_lib.system.errors import ConfigError

# What torchrun and `accelerate launch` set for each of the processes that train one model.
ONE_OF_SEVERAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The beginnings of variables that accelerate must not read: MPI's, which may have started programs that know nothing
# of each other, and a user's saved settings for accelerate: gradients here are written for float32, without a plugin.
NOT_READ = ("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL", "ACCELERATE_")
GRANTED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")  # which GPUs a job may use
NO_GPU = ("", "-1", "NoDevFiles")
# By tracker, the keyword that names a run of a project; to the others a run is a project of its own.
RUN_NAMES = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "mlflow": "run_name"}


def chosen_device(device: str | None) -> torch.device:
    """Return the device of that name; for None, a CUDA device where there is one, or else the CPU.

    Raises ConfigError for a device that is not there, and for None where a GPU was granted that torch cannot use.
    """
    check_device_name(device)
    if device == "cpu" or torch.cuda.is_available():
        return torch.device(device or "cuda")
    if device == "cuda":
        raise ConfigError("device is 'cuda', but this machine has no usable CUDA device; allowed here: cpu")
    for name in GRANTED:
        if os.environ.get(name, "") not in NO_GPU:
            raise ConfigError(
                f"{name} is {os.environ[name]}, but torch {torch.__version__} cannot use a GPU here (see nvidia-smi); "
                "--device cpu trains without"
            )
    return torch.device("cpu")


def check_device_name(device: str | None):
    """Raise ConfigError unless the name is that of a supported device, whatever this machine has."""
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; allowed: cpu, cuda")


def processes() -> int:
    """Return how many processes train one model, by torchrun's or accelerate's variables. Raises ConfigError."""
    if any(name not in os.environ for name in ONE_OF_SEVERAL):
        return 1
    values = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if not all(value.isdigit() for value in values.values()) or int(values["RANK"]) >= int(values["WORLD_SIZE"]):
        said = ", ".join(f"{name} is {value!r}" for name, value in values.items())
        raise ConfigError(f"{said}; allowed: what torchrun or accelerate launch sets, or none of them")
    return int(values["WORLD_SIZE"])


def make_accelerator(device: str | None = None, log_with: str | None = None, folder="results") -> Accelerator:
    """Make an Accelerator on `device`: see chosen_device. Raises ConfigError."""
    on_cpu = chosen_device(device).type == "cpu"
    require_tracker(log_with)
    with _environment_for_accelerate(), _state_of_its_own():
        accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no", dynamo_backend="no", log_with=log_with, project_dir=str(folder)
        )
    if on_cpu != (accelerator.device.type == "cpu"):
        raise ConfigError(
            f"another Accelerator of this process is on {accelerator.device.type}, and so are all; allowed: that device"
        )
    return accelerator


def require_tracker(name: str | None):
    """Raise ConfigError for a tracker that accelerate does not know, or that is not installed."""
    installed = [str(each) for each in get_available_trackers()]
    if name in LOGGER_TYPE_TO_CLASS and name not in installed:
        raise ConfigError(f"log_with is {name!r}, which is not installed; installed: {', '.join(installed) or 'none'}")
    if name is not None and name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"log_with is {name!r}; allowed, where installed: {', '.join(LOGGER_TYPE_TO_CLASS)}")


def start_tracker(accelerator: Accelerator, name: str):
    """Begin a run of the tracker that the Accelerator logs with. name: the project's, or project/run."""
    tracker = str(accelerator.log_with[0])
    project, _, run = name.partition("/")
    if run and tracker in RUN_NAMES:
        accelerator.init_trackers(project, init_kwargs={tracker: {RUN_NAMES[tracker]: run}})
    else:
        accelerator.init_trackers(name)


def prepare(accelerator: Accelerator, model):
    """Return `accelerator.prepare(model)`; where several processes train one model, hold it until they end.

    Some processes never ended otherwise: when Python drops DistributedDataParallel's reducer, the reducer waits for
    gloo's threads while it holds Python's lock, and a thread that just then drops the tensors of its last exchange
    waits for that lock.
    """
    model = accelerator.prepare(model)
    if accelerator.num_processes > 1:
        _HELD.append(model)
    return model


_HELD = []


@contextmanager
def _environment_for_accelerate():
    """Hide what accelerate must not read."""
    hidden = NOT_READ + (("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if processes() == 1 else ())
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(hidden)}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _state_of_its_own():
    """Keep apart what all Accelerators of a process share, such as a caller's accumulation of gradients."""
    kept = {kind: kind._shared_state for kind in (AcceleratorState, GradientState)}
    for kind, state in kept.items():
        kind._shared_state = type(state)()
    try:
        yield
    finally:
        for kind, state in kept.items():
            kind._shared_state = state

"""Share one GPU between processes: NVIDIA's MPS, and how many runs at once the check found best."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from diffusion_lib.system.files import read_json, write_json

PROGRAM = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
RECORD = "check-gpu.json"


def has_mps() -> bool:
    """Return whether this machine can start MPS."""
    return shutil.which(PROGRAM) is not None


def mps_is_on() -> bool:
    """Return whether processes started now would find an MPS daemon."""
    return Path(os.environ.get(PIPES, "/tmp/nvidia-mps"), "control").exists()


@contextmanager
def mps(on: bool):
    """Let processes started inside share the GPU by an MPS daemon of their own; where `on` is False, without one."""
    before = {name: os.environ.get(name) for name in (PIPES, LOGS)}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {PIPES: folder, LOGS: folder}  # without a daemon in it, nobody finds one
        try:
            if on:
                subprocess.run([PROGRAM, "-d"], check=True, capture_output=True, timeout=30)
            yield
        finally:
            if on:
                subprocess.run([PROGRAM], input=b"quit\n", capture_output=True, timeout=60)
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def record_best(results: Path, at_once: dict[bool, int]):
    """Write for later commands how many runs at once are best on this GPU; at_once: without and with MPS."""
    write_json(results / RECORD, {"gpu": torch.cuda.get_device_name(), "at_once": at_once[False], "mps": at_once[True]})


def recorded_best(results: Path) -> int:
    """Return how many runs at once the check found best on this GPU, with MPS where it is on; 1 without a check."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = read_json(results / RECORD)
        if record.get("gpu") == torch.cuda.get_device_name():
            return max(1, int(record["mps" if mps_is_on() else "at_once"]))
    return 1

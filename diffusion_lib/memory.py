"""Peak memory of a part of a process."""

import resource
from contextlib import suppress
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device):
    """Count the peak from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # where this fails the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the resident set's high-water mark


def peak_memory_bytes(device: torch.device) -> int:
    """Bytes at the peak: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""A process's memory: its peak, and who keeps what was freed."""

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory():
    """Let this process keep large blocks that it frees, where its C library is glibc.

    Else glibc gives them back at once, and each array of a step costs the kernel's clearing of its pages: up to half
    the time of a step on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that older ones allow


def reset_peak_memory(device: torch.device):
    """Count the peak from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # what an earlier run freed is not this one's
        ctypes.CDLL(None).malloc_trim(0)
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

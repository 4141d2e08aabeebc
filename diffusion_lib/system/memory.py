"""A process's memory: its peak, its limit, and who keeps what was freed."""

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

from diffusion_lib.system.environment import cgroups

CGROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # version 2, 1

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory():
    """Let this process keep large blocks that it frees, where its C library is glibc.

    Otherwise glibc returns them at once, and the kernel clears pages anew for each array of a step: up to half the time
    of a step on a CPU.
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
    """Return the bytes at the peak: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_limit(device: torch.device) -> float:
    """Return the most bytes that this process can have: by the GPU, or by machine, container and `ulimit -v`."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits += [address_space] if address_space != resource.RLIM_INFINITY else []
    for path in (group / name for group in cgroups("memory") for name in CGROUP_LIMITS):
        with suppress(OSError, ValueError):  # 'max', where there is none
            limits.append(float(path.read_text()))
    return min(limits)

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# How much of a freed array stays resident. Below 32 MB glibc may or may not keep it, as its heap happens to lie.
RESIDENT_AFTER_FREEING = """
import psutil, sys, torch
from diffusion_lib.system.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = psutil.Process().memory_info().rss
torch.ones(10 * 2**20)
print(psutil.Process().memory_info().rss - before)
"""


def resident_after_freeing(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT_AFTER_FREEING, how], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back at once")
def test_what_a_step_frees_stays_with_the_process():
    """So the next step does not pay for the kernel's clearing of its pages again."""
    assert resident_after_freeing("returned") < 10 * 2**20 < 40 * 2**20 <= resident_after_freeing("kept")


PEAK_OF_THE_SECOND = """
import torch
from diffusion_lib.system.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory
keep_freed_memory()
cpu = torch.device("cpu")
reset_peak_memory(cpu)
start = peak_memory_bytes(cpu)
torch.ones(2**26)
first = peak_memory_bytes(cpu) - start
reset_peak_memory(cpu)
torch.ones(2**24)
print(first, peak_memory_bytes(cpu) - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere the peak is that of the whole process")
def test_the_peak_is_that_of_what_came_after_the_reset():
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_THE_SECOND], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, second = map(int, done.stdout.split())
    assert first == pytest.approx(4 * 2**26, rel=0.1)
    assert second == pytest.approx(4 * 2**24, rel=0.2)

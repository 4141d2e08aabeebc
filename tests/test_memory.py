import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Page faults of a hundred steps that each make and drop four arrays of 4 MB, after a few steps to settle.
COUNT_FAULTS = """
import resource, sys, torch
from diffusion_lib.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        arrays = [torch.zeros(2**20) + 1 for _ in range(4)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(100))
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], cwd=ROOT, capture_output=True, text=True,
                          check=True, env={"OMP_NUM_THREADS": "1"})  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back at once")
def test_a_step_does_not_pay_for_the_pages_of_its_arrays_again():
    assert page_faults("kept") < 5000 < page_faults("returned")  # 1024 of them make an array


PEAK_OF_THE_SECOND = """
import torch
from diffusion_lib.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory
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
    done = subprocess.run([sys.executable, "-c", PEAK_OF_THE_SECOND], cwd=ROOT, capture_output=True, text=True,
                          check=True)  # fmt: skip
    first, second = map(int, done.stdout.split())
    assert first == pytest.approx(4 * 2**26, rel=0.1)
    assert second == pytest.approx(4 * 2**24, rel=0.2)

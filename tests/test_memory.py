import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lib.system import environment, memory

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


@pytest.mark.parametrize(
    ("membership", "outer", "files"),
    [
        ("0::/job/step", "job", {"memory.max": "300000\n", "cpu.max": "100000 100000\n"}),
        ("0::/job/step", "", {"memory.max": "300000\n", "cpu.max": "100000 100000\n"}),
        ("4:memory:/job/step", "memory/job", {"memory.limit_in_bytes": "300000\n"}),
        ("4:memory:/docker/of-the-host", "memory", {"memory.limit_in_bytes": "300000\n"}),
        ("1:cpu,cpuacct:/job/step", "cpu/job", {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}),
    ],
    ids=["version 2", "version 2, at its root", "version 1", "version 1, in a container", "version 1, cores"],
)
def test_the_least_limit_of_all_cgroups_around_counts(membership, outer, files, tmp_path, monkeypatch):
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    (tmp_path / "job" / "step" / "cpu.max").write_text("max 100000\n")
    (tmp_path / outer).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (tmp_path / outer / name).write_text(content)
    (tmp_path / "membership").write_text(f"9:name=systemd:/\n{membership}\n")
    monkeypatch.setattr(environment, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(environment, "CGROUPS", tmp_path)
    monkeypatch.setattr(environment, "CORES", set(range(8)))
    if any(name.startswith("memory") for name in files):
        assert memory.memory_limit(torch.device("cpu")) == 300_000
    if any(name.startswith("cpu") for name in files):
        assert environment.granted_cores() == 1

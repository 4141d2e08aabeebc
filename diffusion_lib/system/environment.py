"""What a result was made with: versions, commit, hardware, command."""

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lib.system.startup import CORES

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
MEMBERSHIP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
PACKAGES = ("torch", "numpy", "einops", "accelerate", "ema-pytorch", "tqdm", "tabulate", "scipy", "matplotlib")


def environment(device: "torch.device", at_once: int = 1) -> dict:
    """Return versions, commit, hardware and command, for config.json.

    device: `gpu` is None where this is the CPU, whatever the machine has.
    at_once: the runs that the command trains at the same time.
    """
    import torch  # here, since commands import this module before they listen to Ctrl-C

    return {
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "commit": commit(),
        "host": socket.gethostname(),
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "at_once": at_once,
        "float32_products": torch.get_float32_matmul_precision(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }


def installed(package: str) -> str:
    """Return the version of a package, or 'unknown' where it has no metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def commit() -> str:
    """Return the checkout's commit; where files differ from it, with + and a digest of the package's code.

    Outside a checkout, even where that lies in another repository, it is unknown+DIGEST.
    """
    head = "unknown"
    with suppress(OSError, subprocess.CalledProcessError):
        if Path(_git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            head = _git("rev-parse", "--short=12", "HEAD")
            if not _git("status", "--porcelain", "--untracked-files=no"):
                return head
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "diffusion_lib").rglob("*.py"))))
    return f"{head}+{code.hexdigest()[:8]}"


def _git(*arguments):
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook has its own
    done = subprocess.run(["git", *arguments], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def granted_cores() -> int:
    """Return how many cores this process may use at once: no more than the quota of any cgroup that it is in."""
    cores = len(CORES)
    for group in cgroups("cpu"):
        with suppress(OSError, ValueError):  # 'max', or no file, where there is no quota
            names = ("cpu.max",) if (group / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
            if quota > 0:
                cores = min(cores, max(1, quota // period))
    return cores


def cgroups(controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and of those around it; each may set a limit, in versions 1 and 2."""
    found = []
    with suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                root = CGROUPS / controller if controllers else CGROUPS  # version 1, 2
                own = root / group.lstrip("/")
                found += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return found


def cpu_name() -> str:
    """Return the processor's model name with its family and model, which tell apart those that share a name."""
    found = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or "unknown"
    numbers = [f"{key} {found[word]}" for key, word in (("family", "cpu family"), ("model", "model")) if word in found]
    return f"{name} ({', '.join(numbers)})" if numbers else name

"""Who trains a run: files in its folder, so that processes and jobs that share a study never train one run twice.

The folder of a run holds claim-1.json, claim-2.json, …, of which the highest number counts. A process that finds
it absent, given back, or of a dead process creates the next number; the file system lets one process do that
(O_EXCL, which NFS has too), and since no number comes twice, two takers of one dead claim cannot both win. The
files go once the run has its result, so a taker looks for a result after it took the claim.
"""

import json
import os
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.system.files import write_json

HEARTBEAT_SECONDS = 15.0  # between two writes of a holder's claim, with its progress
STALE_SECONDS = 600.0  # after which a silent holder, on a machine that we cannot look at, counts as dead


class RunHeld(Exception):
    """Another process trains this run; the message says which."""


class ClaimRecord(NamedTuple):
    """A claim as read from its file: its number, its content, and the seconds since its last heartbeat."""

    number: int
    content: dict
    age: float

    @property
    def alive(self) -> bool:
        """Whether its holder still has the run, as far as one can tell from here."""
        if self.content.get("released"):
            return False
        if self.content.get("machine") == machine():
            started = process_started(self.content["pid"])
            return started is not None and started == self.content["process_started"]
        return self.age < STALE_SECONDS and not job_is_gone(self.content)

    @property
    def holder(self) -> str:
        job = self.content.get("job")
        name = f"process {self.content.get('pid', '?')} on {self.content.get('host', 'an unknown host')}"
        return f"{name}, job {job}" if job else name


class Claim:
    """The claim on the run in `folder`, for a `with` block. Raises RunHeld where a living process has it.

    `note` is a Trainer1D's on_log: it records the progress for others to see.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.content = this_process() | {"step": 0, "steps_per_second": None}
        self.number = self._take()
        self.first, self.lost = None, False
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def _take(self) -> int:
        """Create the next number, which makes the run ours, and return it."""
        record = read_claim(self.folder)
        number = record.number if record else 0
        while True:
            if record and record.alive:
                raise RunHeld(f"held by {record.holder}")
            if record:
                self.content["step"] = record.content.get("step", 0)
            number += 1
            path = claim_path(self.folder, number)
            try:
                path.touch(exist_ok=False)
            except FileExistsError:  # another taker was faster: its claim is judged like the one before
                record = _read(self.folder, number)
                continue
            try:
                with open(path, "w") as file:
                    json.dump(self.content, file)
            except OSError:  # a full disk, say: an empty claim would hold the run for nobody
                path.unlink()
                raise
            return number

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, _type, error, _traceback):
        self.stop.set()
        self.thread.join()
        if (self.folder / "result.json").exists():
            for path in self.folder.glob("claim-*.json"):
                path.unlink(missing_ok=True)
            return
        self.content["released"] = True
        if isinstance(error, Exception):
            self.content["error"] = str(error) or type(error).__name__
        with suppress(OSError):  # a full disk, say, which is the error already on its way
            self._write()

    def _write(self):
        write_json(claim_path(self.folder, self.number), self.content)

    def _beat(self):
        while not self.stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the next beat may succeed
                self.lost = self.lost or claim_path(self.folder, self.number + 1).exists()
                self._write()

    def note(self, row: dict):
        """Record a row of metrics.csv. Raises RunHeld if this process was silent so long that another took the run."""
        if self.lost:
            raise RunHeld("taken over by another process while this one was silent")
        self.reached(row["step"])

    def reached(self, step: int):
        """Record the step, and the rate since the first one that was recorded, evaluations included."""
        now = time.monotonic()
        first_step, first_time = self.first = self.first or (step, now)
        rate = (step - first_step) / (now - first_time) if step > first_step else None
        self.content = self.content | {"step": step, "steps_per_second": rate}


def claim_path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"


def read_claim(folder: Path) -> ClaimRecord | None:
    """The claim that counts, or None where there never was one."""
    numbers = [int(path.stem[len("claim-") :]) for path in folder.glob("claim-*.json")]
    return _read(folder, max(numbers)) if numbers else None


def _read(folder: Path, number: int) -> ClaimRecord | None:
    """Claim `number`, or None if its run has ended meanwhile."""
    path, content = claim_path(folder, number), {}
    try:
        age = time.time() - path.stat().st_mtime
        for _ in range(20):  # its maker may be between creating and filling it
            with suppress(ValueError):
                content = json.loads(path.read_text())
                break
            time.sleep(0.01)
    except FileNotFoundError:
        return None
    return ClaimRecord(number, content, age)


def this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "job_restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
    }


def machine() -> str:
    """Equal for processes that see each other's process ids: the host, its boot, and the container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def process_started(pid: int) -> str | None:
    """When a process of this machine started, in its own units: process ids are used again. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
    except ProcessLookupError:
        return None
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _started_without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _started_without_proc(pid):
    """On macOS: whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def job_is_gone(content: dict) -> bool:
    """Whether the Slurm job of a claim no longer runs; False where that cannot be known."""
    job, cluster = content.get("job"), os.environ.get("SLURM_CLUSTER_NAME")
    if not job or not cluster or content.get("cluster") != cluster:
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        return content.get("job_restarts") != os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if asked.returncode:
        return "Invalid job id" in asked.stderr
    return set(asked.stdout.split()) <= {"PENDING"}  # requeued, which ended the process; several lines: an array

"""Who trains a run: the process that holds the operating system's lock on the file `lock` in the run's folder.

The kernel frees the lock when its holder ends, however it ends. The file holds the holder's mark, since a network
file system can drop the lock of a machine that slept: a holder that no longer finds its mark has lost the run.
"""

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import remove_temporary_files, write_json

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
WAIT = 0.1  # seconds: held_by takes the lock for an instant, which must not turn its next holder away
SECONDS_BETWEEN_NOTES = 5.0


class RunHeld(Exception):
    """Another process trains this run, or has ended it; the message says which."""


class RunLock:
    """The right to train the run in `folder`, for a `with` block; makes the folder.

    use_lock: False where the caller knows that no other process trains this run (--no-lock).
    Entering raises RunHeld where another process holds the lock, and ConfigError where the file system has no locks.
    """

    def __init__(self, folder: Path | str, use_lock: bool = True):
        self.folder, self.path = Path(folder), Path(folder) / "lock"
        self.mark = json.dumps({"holder": this_process(), "token": uuid.uuid4().hex})
        self.progress, self.first, self.noted = {}, None, -SECONDS_BETWEEN_NOTES
        self.lock = FileLock(self.path, WAIT, thread_local=False, fallback_to_soft=False) if use_lock else None

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lock:
            self._acquire()
        try:
            self.path.write_text(self.mark)
            remove_temporary_files(self.folder)  # of a writer that was killed
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, _type, error, _traceback):
        if isinstance(error, Exception) and not isinstance(error, RunHeld):
            self.progress["error"] = str(error) or type(error).__name__
        if self.progress and not isinstance(error, RunHeld):
            self._write_progress()
        self._release()

    def _acquire(self):
        try:
            self.lock.acquire()
        except Timeout:
            raise RunHeld(f"held by {read_mark(self.folder) or 'another process'}") from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            raise ConfigError(
                f"the file system of {self.folder} has no locks; --no-lock trains without, "
                "where no other process trains this run"
            ) from None

    def _release(self):
        if self.lock:
            self.lock.release()

    def check(self):
        """Raise RunHeld where another process has the run, or has ended it. Call before each write to the run.

        Raises OSError where the file system does not say.
        """
        if (self.folder / "result.json").exists():
            raise RunHeld("ended by another process")
        with suppress(FileNotFoundError):  # gone with its folder
            if self.path.read_text() == self.mark:
                return
        raise RunHeld(f"taken over by {read_mark(self.folder) or 'another process'}")

    def reached(self, step: int):
        """Note the step, and the rate since the first noted one, evaluations included."""
        now = time.monotonic()
        first_step, first_time = self.first = self.first or (step, now)
        rate = (step - first_step) / (now - first_time) if step > first_step else None
        self.progress = {"step": step, "steps_per_second": rate}

    def note(self, row: dict):
        """Record the progress for --status from a row of metrics.csv; for a Trainer1D's on_log."""
        self.reached(row["step"])
        now = time.monotonic()
        if now - self.noted >= SECONDS_BETWEEN_NOTES:
            self.noted = now
            self._write_progress()

    def _write_progress(self):
        with suppress(OSError, RunHeld):  # nothing depends on it
            self.check()
            write_json(self.folder / "progress.json", self.progress)


def held_by(folder: Path) -> str | None:
    """Return who holds the lock of a run, or None; this needs no right to write there.

    Raises OSError where the file system does not say.
    """
    path = folder / "lock"
    with suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_mark(folder) or "another process"
        except OSError as error:
            error.filename = str(path)
            raise
    return None


def read_mark(folder: Path) -> str | None:
    """Return the process that took the lock last, as it named itself, or None where no mark can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / "lock").read_text())["holder"]
    return None


def this_process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")

"""Show where each run of a study stands, from its folder, also while jobs run."""

import math
import time
from contextlib import suppress
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.run_folder import ended_result, read_config
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_json
from diffusion_lib.system.lock import held_by

HEADERS = ("--run", "run", "state", "step", "steps/s", "time left", "where or why")


def status_table(study: Path, numbers: dict[Path, int | str]) -> str:
    """Write a line per run folder, and one with their totals. Raises ConfigError where `study` has no valid config.

    numbers: by folder what `--run` calls the run.
    """
    total = read_config(study).get("train_steps", 0)
    names = {folder: f"{folder.parent.name} {folder.name.replace('-', ' ')}" for folder in numbers}
    lines = [[number, names[folder], *run_status(folder, total)] for folder, number in numbers.items()]
    states = [line[2] for line in lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{tabulate(lines, HEADERS, disable_numparse=True)}\n\n{len(lines)} runs: {counts}"


def run_status(folder: Path, total: int) -> tuple[str, str, str, str, str]:
    """Return state, step of the run's own total, steps/s, time left, and who has the run or why it stopped.

    total: the steps of a run that does not say its own.
    States: finished; failed (its loss or a metric is not finite; it is not repeated); running; interrupted (the next
    start continues it); error (what the next start must find mended); waiting; unknown (the file system does not say
    who has its lock).
    """
    try:
        result = ended_result(folder)
        if (folder / "config.json").exists():
            total = read_config(folder).get("train_steps", total)
    except (ConfigError, OSError) as error:
        return ("error", "", "", "", str(error))
    if result:
        rate = _number(result, "steps_per_second")
        return (result["status"], f"{total}/{total}" if rate else "", _rate(rate), "", result.get("reason", ""))
    progress, age = read_progress(folder)
    step, rate = _number(progress, "step"), _number(progress, "steps_per_second")
    place = f"{step}/{total}"
    try:
        holder = held_by(folder)
    except OSError as error:
        return ("unknown", place, "", "", str(error))
    if holder:
        left = duration((total - step) / rate) if rate else ""
        return ("running", place, _rate(rate), left, f"{holder}, heard {duration(age)} ago" if progress else holder)
    if progress.get("error"):
        return ("error", place, "", "", str(progress["error"]))
    return ("interrupted", place, "", "", "") if (folder / "last.pt").exists() else ("waiting", "", "", "", "")


def read_progress(folder: Path) -> tuple[dict, float]:
    """Return the content of progress.json and its age in seconds; nothing where it cannot be read."""
    path = folder / "progress.json"
    with suppress(OSError, ConfigError):
        return read_json(path), time.time() - path.stat().st_mtime
    return {}, 0.0


def _number(content: dict, key: str) -> float:
    value = content.get(key)
    return value if isinstance(value, int | float) else 0


def _rate(steps_per_second: float | None) -> str:
    return f"{steps_per_second:.3g}" if steps_per_second else ""


def duration(seconds: float) -> str:
    """Write seconds as '42 s', '7 min' or '3 h 05 min'."""
    seconds = max(0, math.ceil(seconds))
    if seconds < 120:
        return f"{seconds} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

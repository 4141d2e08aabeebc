"""Where each run of a study stands, read from its folder while jobs run."""

import math
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.system.files import read_json
from experiments.study.claims import read_claim
from experiments.study.folder import read_result

HEADERS = ("run", "state", "step", "steps/s", "time left", "where or why")


def status_table(study: Path, folders: list[Path]) -> str:
    """A line per run folder, and a line with their totals. Raises ConfigError where `study` has no valid config."""
    total = read_json(study / "config.json")["config"]["train_steps"]
    names = [f"{folder.parent.name} {folder.name.replace('-', ' ')}" for folder in folders]
    lines = [[name, *run_status(folder, total)] for name, folder in zip(names, folders, strict=True)]
    states = [line[1] for line in lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{tabulate(lines, HEADERS, disable_numparse=True)}\n\n{len(lines)} runs: {counts}"


def run_status(folder: Path, total: int) -> tuple[str, str, str, str, str]:
    """State, step of `total`, steps/s, time left, and who has the run or why it stopped.

    States: finished; failed (its loss became non-finite; it is not repeated); running; interrupted (the next
    start continues it); error (what the next start must find mended); waiting.
    """
    result, claim = read_result(folder), read_claim(folder)
    if result:
        rate = result.get("steps_per_second")
        return (result["status"], f"{total}/{total}" if rate else "", _rate(rate), "", result.get("reason", ""))
    if not claim:
        return ("waiting", "", "", "", "")
    content = claim.content
    step, rate = content.get("step", 0), content.get("steps_per_second")
    place = f"{step}/{total}"
    if claim.alive:
        left = duration((total - step) / rate) if rate else ""
        return ("running", place, _rate(rate), left, f"{claim.holder}, heard {duration(claim.age)} ago")
    if content.get("error"):
        return ("error", place, "", "", content["error"])
    if not content.get("released"):
        return ("interrupted", place, "", "", f"{claim.holder}, died")
    return ("interrupted", place, "", "", "") if (folder / "last.pt").exists() else ("waiting", "", "", "", "")


def _rate(steps_per_second: float | None) -> str:
    return f"{steps_per_second:.3g}" if steps_per_second else ""


def duration(seconds: float) -> str:
    """'42 s', '7 min', '3 h 05 min'."""
    seconds = max(0, math.ceil(seconds))
    if seconds < 120:
        return f"{seconds} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

"""Working through the runs of a study beside other processes that do the same."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.errors import USER_ERRORS, ConfigError
from experiments.claims import RunHeld, read_claim


class Outcome(NamedTuple):
    """What a pass over all runs left: a line for each run that failed, and for each that another process has."""

    failures: list[str]
    held: list[str]


def run_all(runs: dict[str, Callable[[], dict]]) -> Outcome:
    """Call each run, by its name, until all have ended or are held by other processes.

    A call returns the content of result.json. An error of one run (diffusion_lib.errors.USER_ERRORS) does not
    stop the others. Raises Interrupted after a signal.
    """
    failures, held, waiting = {}, {}, dict(runs)
    while waiting:
        held = {}
        for name, run in waiting.items():
            try:
                result = run()
            except RunHeld as error:
                held[name] = str(error)
                print(f"{name}: {error}; going on with the next run", file=sys.stderr, flush=True)
            except USER_ERRORS as error:
                failures[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
            else:
                if result["status"] == "failed":
                    failures[name] = result["reason"]
        if len(held) == len(waiting):  # nothing to do meanwhile: their holders finish them
            break
        waiting = {name: runs[name] for name in held}
    return Outcome(_lines(failures), _lines(held))


def _lines(reasons: dict[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def ended_runs(study: Path) -> set[Path]:
    """The folders of the runs that have a result."""
    return {path.parent for path in study.glob("runs/*/seed-*/result.json")}


def delete_study(study: Path):
    """Delete a study, if there is one. Raises ConfigError while a process trains one of its runs."""
    if not (study / "config.json").exists():
        return
    for folder in study.glob("runs/*/seed-*"):
        claim = read_claim(folder)
        if claim and claim.alive:
            raise ConfigError(f"--fresh would delete {folder}, which is held by {claim.holder}; stop that one first")
    shutil.rmtree(study)

"""Working through the runs of a study, several at once and beside other processes that do the same."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.system.errors import USER_ERRORS, ConfigError
from experiments.study.claims import RunHeld, read_claim
from experiments.study.other_process import OtherProcess

ENDED, FAILED, HELD = "ended", "failed", "held"


class Outcome(NamedTuple):
    """What a pass over all runs left: a line for each run that failed, and for each that another process has."""

    failures: list[str]
    held: list[str]


def run_all(runs: dict[str, Callable[[], dict]], at_once: int = 1, threads: int | None = None) -> Outcome:
    """Call each run, by its name, until all have ended or are held by other processes.

    A call returns the content of result.json. An error of one run (diffusion_lib.system.errors.USER_ERRORS) does not
    stop the others. With `at_once` above 1 the runs, which must be picklable, are called in that many processes of
    `threads` threads each. Raises Interrupted after a signal, when all have saved their work, and ChildProcessError
    where a process died.
    """
    failures, held, waiting = {}, {}, list(runs)
    with ExitStack() as stack:
        processes = [stack.enter_context(OtherProcess(threads)) for _ in range(at_once)] if at_once > 1 else []
        stack.enter_context(_stopping_together(processes))
        while waiting:
            held = {}
            for name, (state, reason) in _attempts({name: runs[name] for name in waiting}, processes):
                if state != ENDED:
                    {FAILED: failures, HELD: held}[state][name] = reason
                    more = "; going on with the next run" if state == HELD else ""
                    print(f"{name}: {reason}{more}", file=sys.stderr, flush=True)
            if len(held) == len(waiting):  # nothing to do meanwhile: their holders finish them
                break
            waiting = list(held)
    return Outcome(_lines(failures), _lines(held))


@contextmanager
def _stopping_together(processes):
    """Left by an exception, ask all to stop before the first is waited for: the time to save may be short."""
    try:
        yield
    except BaseException:
        for process in processes:
            process.stop()
        raise


def _attempts(runs, processes) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name and (state, reason) of each run, as they end."""
    if not processes:
        yield from ((name, attempt(run)) for name, run in runs.items())
        return
    todo, free, busy = iter(runs.items()), list(processes), {}
    while True:
        for process, (name, run) in zip(free, todo, strict=False):
            process.send(attempt, run)
            busy[process.connection] = (process, name)
        if not busy:
            return
        free = []
        for connection in wait(list(busy)):
            process, name = busy.pop(connection)
            free.append(process)
            try:
                ended = process.receive()
            except ChildProcessError as error:
                raise ChildProcessError(f"{name}: {error}") from None
            yield name, ended


def attempt(run: Callable[[], dict]) -> tuple[str, str]:
    """Call a run: its state, and the reason where it has not ended well."""
    try:
        result = run()
    except RunHeld as error:
        return HELD, str(error)
    except USER_ERRORS as error:
        return FAILED, str(error)
    return (FAILED, result["reason"]) if result["status"] == "failed" else (ENDED, "")


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

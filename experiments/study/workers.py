"""Work through the runs of a study; processes that do the same share the runs by their locks."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from diffusion_lib.run_folder import is_study, run_folders
from diffusion_lib.system.errors import USER_ERRORS, ConfigError, say
from diffusion_lib.system.files import TEMPORARY, remove_temporary_files
from diffusion_lib.system.lock import RunHeld, held_by
from diffusion_lib.system.other_process import OtherProcess

# What a study's folder may hold; the second line: of earlier versions.
MADE = {"config.json", "report.md", "runs", "search.md", "study.toml", "timing.json"}
MADE |= {"configs.json", "table.tex"}
ENDINGS = {".csv", ".png", ".pdf", TEMPORARY}
TABLES = (".csv", ".runs.csv")  # beside it


class Outcome(NamedTuple):
    """The runs that failed, and those that another process has: name -> reason."""

    failures: dict[str, str]
    held: dict[str, str]


def run_all(runs: dict[str, Callable[[], dict]], at_once: int = 1, threads: int | None = None) -> Outcome:
    """Call each run, by its name, until all have ended or are held by other processes.

    A call returns the content of result.json. An error of one run (diffusion_lib.system.errors.USER_ERRORS) does not
    stop the others.
    at_once: above 1, so many processes of `threads` threads each do this, on the same runs, which must be picklable.
    Raises Interrupted after a signal, when all have saved their work, and ChildProcessError where a process died.
    """
    if at_once == 1:
        return work_through(runs)
    with ExitStack() as stack:
        workers = [stack.enter_context(OtherProcess(threads)) for _ in range(at_once)]
        stack.push(partial(_stop_all, workers))
        busy, outcomes = {worker.connection: worker for worker in workers}, []
        for worker in workers:
            worker.send(work_through, runs)
        while busy:
            outcomes += [busy.pop(connection).receive() for connection in wait(list(busy))]
    failures = {name: reason for outcome in outcomes for name, reason in outcome.failures.items()}
    # a run that one of the processes has ended was held for the others
    held = {name: reason for name, reason in outcomes[0].held.items() if all(name in o.held for o in outcomes)}
    return Outcome(failures, held)


def _stop_all(workers, kind, *_):
    """After an exception, ask all to stop before the first is waited for: the time to save may be short."""
    for worker in workers if kind else ():
        worker.stop()


def work_through(runs: dict[str, Callable[[], dict]]) -> Outcome:
    """Do `run_all` in this process."""
    failures, held, waiting = {}, {}, list(runs)
    while waiting:
        held = {}
        for name in waiting:
            try:
                result = runs[name]()
            except RunHeld as error:
                held[name] = str(error)
                continue
            except USER_ERRORS as error:
                result = {"status": "failed", "reason": str(error)}
            if result["status"] == "failed":
                failures[name] = result["reason"]
                say(f"{name}: {result['reason']}")
        if len(held) == len(waiting):  # nothing to do meanwhile: their holders finish them
            break
        waiting = list(held)
    return Outcome(failures, held)


def require_deletable(study: Path, use_lock: bool = True):
    """Raise ConfigError where --fresh must delete nothing: in what is no study, not all of it or in use.

    use_lock: False where the caller knows that no other process trains the study's runs (--no-lock). Raises OSError
    where the file system does not say whether one does.
    """
    if study.is_symlink():
        raise ConfigError(f"--fresh would delete {study}, a link; delete what it links to, or choose another --name")
    foreign = sorted(path.name for path in study.glob("*") if path.name not in MADE and path.suffix not in ENDINGS)
    if foreign or (study.exists() and not is_study(study)):
        which = f"holds {', '.join(foreign)}, which no study makes" if foreign else "is no study"
        raise ConfigError(f"--fresh would delete {study}, but it {which}; move that away, or choose another --name")
    for folder, folders, files in os.walk(study):
        kept = [path for name in folders + files if (path := Path(folder, name)).is_symlink()]
        kept += [folder] if os.path.ismount(folder) or not os.access(folder, os.R_OK | os.W_OK | os.X_OK) else []
        if kept:
            raise ConfigError(f"--fresh would delete {study}, but not all of {kept[0]} can go; choose another --name")
    for folder in run_folders(study) if use_lock else ():
        holder = held_by(folder)
        if holder:
            raise ConfigError(f"--fresh would delete {folder}, which is held by {holder}; stop that process first")


def delete_study(study: Path, use_lock: bool = True):
    """Delete a study, if there is one, and its tables; nothing where `require_deletable` raises."""
    require_deletable(study, use_lock)
    delete_tables(study)
    if not study.exists():
        return
    doomed = study.with_name(f".{study.name}.deleted")  # renamed first, since half a study would be continued
    shutil.rmtree(doomed, ignore_errors=True)
    study.rename(doomed)  # who began a run a moment ago no longer finds its mark, and stops
    shutil.rmtree(doomed)


def delete_tables(study: Path):
    """Delete the tables beside a study, which would be taken for the next study's."""
    for name in TABLES:
        study.with_name(f"{study.name}{name}").unlink(missing_ok=True)


def remove_leftovers(study: Path):
    """Remove what a killed command left in the study's root, beside it, and of its deletion."""
    remove_temporary_files(study)
    remove_temporary_files(study.parent, f"{study.name}.")
    shutil.rmtree(study.with_name(f".{study.name}.deleted"), ignore_errors=True)

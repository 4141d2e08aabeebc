"""Errors that a user can mend: shown as one line, without a traceback, with exit status 2."""

import os
import signal
import sys
from contextlib import contextmanager, suppress
from functools import cache

from diffusion_lib.system.signals import SIGNALS, handled_by, quit_at_once

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # sysexits' EX_TEMPFAIL: the work is saved, run the same command again


class ConfigError(ValueError):
    """A value that the user gave is not allowed; the message says which ones are."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or belongs to another configuration; the file is left as it was."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last weights are those before that step."""


class Interrupted(BaseException):  # like KeyboardInterrupt, so that no `except Exception` takes it for a failure
    """A signal asked for the end of the run; its state is saved."""


USER_ERRORS = (ConfigError, CheckpointError, NonFiniteLossError, OSError)


@contextmanager
def exit_status():
    """Turn a user's error into one line on stderr and the exit status that callers rely on.

    Inside the `with` block SIGNALS raise Interrupted, except while a training loop listens to them.
    """
    try:
        with handled_by(_interrupt):
            yield
    except USER_ERRORS as error:
        say(f"error: {error}")
        sys.exit(EXIT_BAD_INPUT)
    except Interrupted as stop:
        for number in SIGNALS:  # the exit status is decided
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        say(f"stopped: {stop}; the same command continues from what is saved")
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def one_line_for_full_memory():
    """Turn an allocation that fails inside into a ConfigError. torch reports it as a RuntimeError on the CPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        import torch  # here: a command that only shows its help needs this module, and not torch

        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise ConfigError("the memory is full; try a smaller batch_size, evaluation_size, rank or at_once") from None


def say(line: str):
    """Print a line on stderr, or nothing where it cannot be written (a full disk, a terminal that is gone)."""
    with suppress(OSError, ValueError, AttributeError):
        # the line's end in the same write: another process's line must not come between
        print(f"{line}\n", end="", file=sys.stderr, flush=True)


@cache
def say_once(line: str):
    """Do as `say`, once in a process."""
    say(line)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def show(text: str):
    """Print a text on stdout, once the files are written. Raises OSError, which names stdout, where that fails."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries the rest again at its end
        error.filename = "standard output"
        raise


def _interrupt(number, _frame):
    # once: Slurm signals the program of a job, and the job's script, which forwards it
    if not isinstance(sys.exc_info()[1], Interrupted):
        raise Interrupted(signal.Signals(number).name)
    if number == signal.SIGINT:
        quit_at_once()

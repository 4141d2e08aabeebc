"""Errors that a user can mend: shown as one line, without a traceback, with exit status 2."""

import sys
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # sysexits' EX_TEMPFAIL: the work is saved, run the same command again


class ConfigError(ValueError):
    """A value that the user gave is not allowed; the message says which ones are."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or belongs to another configuration; the file is left as it was."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights before that step are the last ones."""


class Interrupted(Exception):
    """A signal asked for the end of the run; its state is saved."""


USER_ERRORS = (ConfigError, CheckpointError, NonFiniteLossError, OSError)


@contextmanager
def exit_status():
    """Turn a user's error into one line on stderr and the exit status that callers rely on."""
    try:
        yield
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except Interrupted as stop:
        print(f"stopped: {stop}; the same command continues", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)

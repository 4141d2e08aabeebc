"""What a command does before it imports torch, which takes seconds and may bind the process to one core."""

import os
import signal
import sys

# The cores that the process was started with. With OMP_PROC_BIND the import of torch leaves it one.
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
EXIT_NOTHING_BEGUN = 130  # as shells show a Ctrl-C


def begin():
    """From here until `exit_status` listens, a Ctrl-C is one line instead of the traceback of an import.

    What a terminal's encoding lacks, such as the × of a table, is printed as ? instead of ending the command. A stream
    that is closed, as daemons have them, is /dev/null: its number could become that of a pipe, which all would inherit.
    """
    os.environ["MPLBACKEND"] = "Agg"  # figures are files; a name that matplotlib lacks would stop its import
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, in a script's background
        signal.signal(signal.SIGINT, _quit)


def _quit(_number, _frame):
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"stopped: SIGINT before anything was begun\n")
    os._exit(EXIT_NOTHING_BEGUN)  # an exception could be taken for an import's failure

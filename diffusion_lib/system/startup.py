"""What a command does before it imports torch, which takes seconds and may bind the process to one core."""

import os
import signal
import sys
from contextlib import contextmanager, suppress
from importlib import import_module

# The cores that the process was started with. With OMP_PROC_BIND the import of torch leaves it one.
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def run(name: str):
    """Run the command whose `main` is in the module of that name: import it, call it, exit with what it returns."""
    begin()
    try:
        main = import_module(name).main
        from diffusion_lib.system.errors import exit_status  # after CORES are known

        with exit_status():
            status = main()
    except SystemExit as ended:
        status = ended.code
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in ("diffusion_lib", "experiments", "results"):
            raise
        remedy = "`make setup` installs all that is needed for .venv/bin/python"
        print(f"{error.name} is not installed for {sys.executable}; {remedy}", file=sys.stderr)
        status = 2
    leave(status)


def begin():
    """Let a Ctrl-C print one line instead of an import's traceback, until `exit_status` listens; mend the streams.

    Characters that the terminal's encoding lacks, such as the × of a table, are printed as ? instead of ending the
    command. A closed stream, as daemons have them, becomes /dev/null: otherwise a pipe could get its number, and all
    processes would inherit that.
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


@contextmanager
def importing():
    """Let signals end the command as they did before `exit_status`, during imports inside it: no work has begun."""
    from diffusion_lib.system.signals import handled_by

    with handled_by(_quit):
        yield


def _quit(number, _frame):
    line = f"stopped: {signal.Signals(number).name} before anything was begun\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
    os._exit(128 + number)  # as shells show it; an exception could be taken for an import's failure


def leave(status: int):
    """End this process; where it is one of several, without Python's own shutdown.

    A thread of gloo may still hold tensors of the last exchange, and dropping them in the shutdown aborts the process
    (pytorch/pytorch#179291). DistributedDataParallel keeps these threads beyond destroy_process_group.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":  # as both launchers set it
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status or 0)  # a command's main returns None too
    sys.exit(status)

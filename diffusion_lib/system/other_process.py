"""Start other Python processes, each of which calls what it is sent."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType

import torch

from diffusion_lib.system.errors import EXIT_INTERRUPTED, Interrupted, exit_status
from diffusion_lib.system.signals import SIGNALS
from diffusion_lib.system.startup import CORES

BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # what binds threads to cores


class OtherProcess:
    """A fresh process, for a `with` block; an exception in the block sends it a SIGTERM, so that its work is saved.

    threads: torch's there; None: its default.
    """

    def __init__(self, threads: int | None = None):
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks, threads and CUDA's state
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads))
        with _no_main_from_stdin(), _free_of_the_first_core(), _deaf_to_the_terminal(), _also_of_a_daemon():
            self.process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.stop()
        self.connection.close()  # which ends its loop
        self.process.join()

    def stop(self):
        """Ask it to save its work and end, without waiting for it."""
        self.process.terminate()

    def send(self, function: Callable, *arguments):
        """Have it call `function(*arguments)`, all of it picklable; `receive` returns the result, or raises."""
        with suppress(ConnectionError):
            self.connection.send((function, arguments))

    def receive(self):
        """Return the call's result, or raise its error.

        Raises Interrupted where a signal ended the process, and ChildProcessError where it died otherwise.
        """
        try:
            result, error = self.connection.recv()
        except (EOFError, ConnectionError):  # the second where it died before it had read its work
            self.process.join()
            status = self.process.exitcode
            if status == EXIT_INTERRUPTED or -status in SIGNALS:  # a signal that went to all reached it first
                raise Interrupted("a signal") from None
            raise ChildProcessError(
                f"a process ended before its work, with status {status}{' (out of memory?)' if status == -9 else ''}"
            ) from None
        if error is not None:
            raise error
        return result

    def call(self, function: Callable, *arguments):
        self.send(function, *arguments)
        return self.receive()


@contextmanager
def _no_main_from_stdin():
    """Hide a main file that does not exist, since the program came through stdin: a new process would run it first."""
    main = sys.modules["__main__"]
    if not Path(getattr(main, "__file__", None) or __file__).exists():
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _free_of_the_first_core():
    """Let what is started inside use all cores; with OMP_PROC_BIND each would bind itself to the same first one."""
    names = [name for name in BINDING if name in os.environ]
    if not names or not hasattr(os, "sched_setaffinity"):
        yield
        return
    kept, cores = {name: os.environ.pop(name) for name in names}, os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        os.environ.update(kept)


@contextmanager
def _deaf_to_the_terminal():
    """Keep Ctrl-C from what is started inside, even while it imports: a terminal sends it to all, the first decides."""
    resource_tracker.ensure_running()  # its start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _also_of_a_daemon():
    """Let a worker of multiprocessing.Pool have children too, which Python forbids lest they outlive it.

    Those started here end with their parent.
    """
    process = multiprocessing.current_process()
    daemon, process.daemon = process.daemon, False
    try:
        yield
    finally:
        process.daemon = daemon


def _serve(connection, threads):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    with exit_status():
        while True:
            try:
                function, arguments = connection.recv()
            except EOFError:
                return
            try:
                answer = (function(*arguments), None)
            except Exception as error:
                error.add_note(traceback.format_exc())  # the caller's own shows where it waited
                answer = (None, error)
            connection.send(answer)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)

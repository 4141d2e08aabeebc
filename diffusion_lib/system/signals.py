"""Signals as a polite request to save and stop: SIGTERM, SIGUSR1, SIGUSR2 (submitit's), Ctrl-C (SIGINT), SIGHUP."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """`name` is the signal that asked for the end, or None while nobody did."""

    name: str | None = None


@contextmanager
def stop_requests():
    """Yield a request that a signal sets inside the `with` block; outside it signals act as before.

    The block clears the name when it acts on it. Else, also where the block fails, it is a signal again afterwards.
    """
    request = StopRequest()

    def note(number, _frame):
        if number == signal.SIGINT and request.name == "SIGINT":
            quit_at_once()
        request.name = signal.Signals(number).name

    try:
        with handled_by(note):
            yield request
    finally:
        if request.name:
            signal.raise_signal(signal.Signals[request.name])


@contextmanager
def handled_by(handler: Callable):
    """Call `handler` for the signals inside a `with` block; those that are ignored (by nohup, say) stay so.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        previous = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in previous:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def quit_at_once():
    """End this process, for a second Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)

"""SIGTERM and SIGUSR1 as a polite request to save and stop."""

import signal
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`name` is the signal that asked for the end, or None while nobody did."""

    name: str | None = None


@contextmanager
def stop_requests():
    """Inside, the two signals set the request that is yielded; outside they act as before.

    A request that came too late for the block to act on (by an exception) is a signal again after it.
    """
    request = StopRequest()

    def note(number, _frame):
        request.name = signal.Signals(number).name

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if request.name:
        signal.raise_signal(signal.Signals[request.name])

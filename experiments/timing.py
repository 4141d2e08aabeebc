"""Timing of functions, here or in a process of its own, which has its own allocator, threads and kinds of products."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch


def timed(function: Callable, device: str) -> float:
    """Seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(functions: dict, repeats: int, device: str, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each function, all measured in turn; a PreparedCall is timed in its own process.

    In its turn a function is called twice, of which the second counts: the first finds the caches full of another
    one's data, and the threads of another process still waiting for more to do.
    """
    times = {name: [] for name in functions}
    for i in range(warm_up + repeats):
        for name, function in functions.items():
            measure = function.seconds if isinstance(function, PreparedCall) else partial(timed, function, device)
            measure()
            seconds = measure()
            if i >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


class OtherProcess:
    """A fresh Python process, for a `with` block. `prepare` makes a function there, `run` calls and times it.

    threads: of torch there (None: its default).
    """

    def __init__(self, device: str, threads: int | None = None):
        context = multiprocessing.get_context("spawn")  # a fork would inherit this process's state
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, device, threads))
        self.process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()  # which ends its loop
        self.process.join()

    def prepare(self, make: Callable, *arguments):
        """Call `make(*arguments)` there, which returns the function to time; both must be importable."""
        self.connection.send((make, arguments))
        self.connection.recv()

    def start(self, products: str = "highest", calls: int = 1):
        """Begin `calls` calls with torch's float32 products set so; `seconds` waits for them."""
        self.connection.send((products, calls))

    def seconds(self) -> float:
        return self.connection.recv()


class PreparedCall:
    """What was last prepared in `process`, to be called with one kind of float32 products."""

    def __init__(self, process: OtherProcess, products: str = "highest"):
        self.process, self.products = process, products

    def seconds(self) -> float:
        self.process.start(self.products)
        return self.process.seconds()


def _serve(connection, device, threads):
    if threads is not None:
        torch.set_num_threads(threads)
    function = None
    while True:
        try:
            first, second = connection.recv()
        except EOFError:
            return
        if callable(first):
            function = first(*second)
            connection.send(None)
        else:
            torch.set_float32_matmul_precision(first)
            connection.send(timed(partial(_repeat, function, second), device))


def _repeat(function, calls):
    for _ in range(calls):
        function()

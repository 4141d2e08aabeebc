"""Medians of times measured in turn, here or in another process."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from experiments.other_process import OtherProcess


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
    """Median seconds of each function, all measured in turn; a RemoteTimer's is measured in its own process.

    In its turn a function is called twice, of which the second counts: the first finds the caches full of another
    one's data, and the threads of another process still waiting for more to do.
    """
    times = {name: [] for name in functions}
    for i in range(warm_up + repeats):
        for name, function in functions.items():
            measure = function.seconds if isinstance(function, RemoteTimer) else partial(timed, function, device)
            measure()
            seconds = measure()
            if i >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


class RemoteTimer:
    """Times in `process` what was prepared there last, with torch's float32 products set as named."""

    def __init__(self, process: OtherProcess, device: str, products: str = "highest"):
        self.process, self.device, self.products = process, device, products

    def prepare(self, make: Callable, *arguments):
        """Call `make(*arguments)` there, which returns the function to time."""
        self.process.call(_prepare, make, arguments)

    def start(self, calls: int = 1):
        """Begin `calls` calls; `process.receive` waits for their seconds."""
        self.process.send(_time_prepared, calls, self.device, self.products)

    def seconds(self) -> float:
        self.start()
        return self.process.receive()


def _prepare(make, arguments):
    _prepare.function = make(*arguments)


def _time_prepared(calls, device, products):
    torch.set_float32_matmul_precision(products)
    return timed(partial(_repeat, _prepare.function, calls), device)


def _repeat(function, calls):
    for _ in range(calls):
        function()

"""Measure times in turn, here or in another process, and take their medians."""

import math
import statistics
import time
from collections.abc import Callable

import torch

from diffusion_lib.system.other_process import OtherProcess

WARM_UP = 5.0  # seconds; on a virtual machine memory is fast only some seconds after its first use
SETTLE = 0.05  # seconds; OpenBLAS's threads, for one, spin for about 20 ms after their work


def timed(function: Callable, device: str, calls: int = 1) -> float:
    """Return the seconds of `calls` calls, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def settled(function: Callable, device: str) -> float:
    """Return the seconds of one call, after others that do not count.

    The first find the caches full of somebody's data, the processor's clock low, and another process's threads still
    waiting for more to do.
    """
    settling = 0.0
    while settling < SETTLE:
        settling += timed(function, device)
    return timed(function, device)


def alternate(
    functions: dict, repeats: int, device: str, warm_up: float | None = None, limit: float = math.inf
) -> dict[str, float]:
    """Return the median seconds of each function, all measured in turn; a RemoteTimer's in its own process.

    warm_up: seconds of turns that do not count; None: WARM_UP.
    limit: seconds after which no further turn begins, but for the first that counts.
    """
    warm_up = WARM_UP if warm_up is None else warm_up
    times, started, turns = {name: [] for name in functions}, time.perf_counter(), 0
    while turns < repeats and (not turns or time.perf_counter() - started < limit):
        counts = time.perf_counter() - started >= warm_up
        for name, function in functions.items():
            seconds = function.seconds() if isinstance(function, RemoteTimer) else settled(function, device)
            if counts:
                times[name].append(seconds)
        turns += counts
    return {name: statistics.median(values) for name, values in times.items()}


class RemoteTimer:
    """A timer, in `process`, of what was prepared there last, with torch's float32 products set to `products`."""

    def __init__(self, process: OtherProcess, device: str, products: str = "highest"):
        self.process, self.device, self.products = process, device, products

    def prepare(self, make: Callable, *arguments):
        """Call `make(*arguments)` there, which returns the function to time."""
        self.process.call(_prepare, make, arguments)

    def seconds(self) -> float:
        """Return the seconds of a call there, as `settled` measures them."""
        return self.process.call(_measure_prepared, settled, self.products, self.device)

    def start(self, calls: int):
        """Begin `calls` calls; `process.receive` waits for their seconds."""
        self.process.send(_measure_prepared, timed, self.products, self.device, calls)


def _prepare(make, arguments):
    _prepare.function = make(*arguments)


def _measure_prepared(measure, products, *arguments):
    torch.set_float32_matmul_precision(products)
    return measure(_prepare.function, *arguments)

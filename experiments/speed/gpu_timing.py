"""Time this project's steps on a device: by strategy and precision, and of several runs at once."""

import statistics
from contextlib import ExitStack
from typing import NamedTuple

import torch

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.flops import step_flops
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.precision import choose_products
from diffusion_lib.system.environment import granted_cores
from diffusion_lib.system.other_process import OtherProcess
from diffusion_lib.training.step import EAGER_STEPS
from experiments.speed.gpu_correctness import precisions
from experiments.speed.gpu_sharing import mps
from experiments.speed.our_step import MODES, our_step
from experiments.speed.timing import alternate, timed

IN_BF16 = ("bf16", "compiled")


class Sizes(NamedTuple):
    """How much is measured.

    rank, batch_size: those of the steps that are timed.
    peak_side: side of the product that is the peak.
    calls, repeats: steps between two looks at the clock, and measurements of each.
    at_once: numbers of runs at once.
    models, examples, checked_rank: those of the checks of numbers.
    """

    rank: int
    batch_size: int
    peak_side: int
    calls: int
    repeats: int
    at_once: tuple[int, ...]
    models: tuple[str, ...]
    examples: int
    checked_rank: int


def peak_flops(precision: str, side: int, device: torch.device, repeats: int) -> float:
    """Return the FLOP/s of a side x side product, the best of `repeats`."""
    dtype = torch.bfloat16 if precision in IN_BF16 else torch.float32
    choose_products("bf16" if precision in IN_BF16 else precision, device)
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    timed(lambda: left @ right, device.type, 3)
    return 2 * side**3 / min(timed(lambda: left @ right, device.type) for _ in range(repeats))


def measure_steps(sizes: Sizes, device: torch.device) -> list[dict]:
    """Return a row for each mode: ms of a step by precision and without a graph, and shares of the peaks."""
    names = precisions(device)
    peaks = {name: peak_flops(name, sizes.peak_side, device, sizes.repeats) for name in names}
    functions = {}
    for mode in MODES:
        for name in names:
            functions[mode, name] = many_steps(mode, name, sizes, device)
        functions[mode, "eager"] = many_steps(mode, "float32", sizes, device, cuda_graph=False)
    seconds = {key: value / sizes.calls for key, value in alternate(functions, sizes.repeats, device.type).items()}
    rows = []
    for mode in MODES:
        row = {"mode": mode, "eager_ms": 1e3 * seconds[mode, "eager"]}
        for name in names:
            row[f"{name}_ms"] = 1e3 * seconds[mode, name]
            config = ExperimentConfig(rank=sizes.rank, mining=MiningConfig(mode))
            rate = step_flops(config, sizes.batch_size) / seconds[mode, name]
            row |= {f"{name}_tflops": rate / 1e12, f"{name}_share": rate / peaks[name]}
        rows.append(row)
    choose_products("float32", device)
    return [*rows, {"mode": "peak, TFLOP/s", **{f"{name}_tflops": peak / 1e12 for name, peak in peaks.items()}}]


def many_steps(mode, precision, sizes: Sizes, device, cuda_graph: bool = True):
    """Make a function of `sizes.calls` steps; the first steps and the capture are behind it."""
    products = "bf16" if precision in IN_BF16 else precision
    choose_products(products, device)
    chosen = {"bf16": precision == "bf16", "compiled": precision == "compiled", "cuda_graph": cuda_graph}
    step = our_step(mode, "mlp", sizes.rank, sizes.batch_size, device.type, **chosen)
    for _ in range(EAGER_STEPS + 1):
        step()

    def run():
        choose_products(products, device)
        for _ in range(sizes.calls):
            step()

    return run


def measure_at_once(sizes: Sizes, device: torch.device, with_mps: bool) -> list[dict]:
    """Time, for each number of runs at once, one step of every strategy, and divide by that number."""
    most = max(sizes.at_once)
    threads = max(1, granted_cores() // most)
    rows = []
    with mps(with_mps), ExitStack() as stack:
        processes = [stack.enter_context(OtherProcess(threads)) for _ in range(most)]
        for process in processes:
            process.send(_prepare_round, sizes, device)
        for process in processes:
            process.receive()
        for number in sizes.at_once:
            times = []
            for _ in range(sizes.repeats):
                for process in processes[:number]:
                    process.send(_run_round)
                times.append(max(process.receive() for process in processes[:number]))
            seconds = statistics.median(times[1:] or times) / (number * sizes.calls)  # the first wakes the processes
            rows.append({"at_once": number, "mps": with_mps, "round_ms": 1e3 * seconds})
    for each in rows:
        each["gain"] = rows[0]["round_ms"] / each["round_ms"]
    return rows


def _prepare_round(sizes, device):
    steps = [many_steps(mode, "float32", sizes, device) for mode in MODES]
    _run_round.function, _run_round.device = (lambda: [step() for step in steps]), device.type


def _run_round() -> float:
    """Return the seconds of `calls` steps of every strategy."""
    return timed(_run_round.function, _run_round.device)

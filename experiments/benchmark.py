"""Speed of this project against the released way of working, both measured in one run.

    python experiments/benchmark.py                 # on an idle machine; writes results/benchmark.csv and a figure

Every pair is measured in turn, again and again, and medians are compared, so that a machine that slows down
slows both. FLOP counts are multiply-adds times two; the peak is this machine's own best float32 product.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tabulate import tabulate  # noqa: E402

from dataset import Inverse, seeded_generator  # noqa: E402
from diffusion_lib.denoising_diffusion_pytorch_1d import GaussianDiffusion1D, Trainer1D  # noqa: E402
from diffusion_lib.environment import environment  # noqa: E402
from diffusion_lib.errors import exit_status  # noqa: E402
from diffusion_lib.files import write_csv  # noqa: E402
from diffusion_lib.trainer import make_ema  # noqa: E402
from experiments.config import RECIPES  # noqa: E402
from experiments.plots import plt, save_figure  # noqa: E402
from experiments.released_way import PlainTrainer, item_batches, plain_sample  # noqa: E402
from models import EBM, MODELS, DiffusionWrapper  # noqa: E402
from models.mlp import HIDDEN  # noqa: E402

MODES = ("none", "random", "adversarial")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each of a pair")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of the released way")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the sweeps of batch size and rank")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    return parser.parse_args(arguments)


def timed(function, device) -> float:
    """Seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(functions: dict, repeats: int, device: str, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each function, all measured in turn."""
    times = {name: [] for name in functions}
    for i in range(warm_up + repeats):
        for name, function in functions.items():
            seconds = timed(function, device)
            if i >= warm_up:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_peak(batch_size, device, repeats) -> float:
    """FLOP/s of the best of the float32 products that a step consists of."""
    best = 0.0
    for rows, inner, columns in ((batch_size, HIDDEN, HIDDEN), (HIDDEN, batch_size, HIDDEN), (4096, 1024, 1024)):
        left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
        for a, b in ((left, right), (left.t().contiguous().t(), right), (left, right.t().contiguous().t())):
            seconds = alternate({"product": lambda a=a, b=b: a @ b}, max(repeats, 9), device)["product"]
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def step_flops(mode: str, rank: int, batch_size: int, opt_steps: int = 2) -> float:
    """Multiply-adds times two that one step cannot do without, by matrix products alone."""
    size = rank * rank
    project, middle = size * HIDDEN, 2 * HIDDEN * HIDDEN
    path, inner = middle + 2 * size * HIDDEN, middle + size * HIDDEN  # forward; cotangents without d/dx of fc1
    denoise = 2 * path + path + inner + 2 * path  # E and dE/dx; tangent; cotangent; weights
    macs = 2 * project + denoise  # the input's share of fc1, forward and its weight gradient
    if mode != "none":
        macs += 2 * (path + inner + path)  # two energies: forward, cotangent, weights
    if mode == "adversarial":
        macs += opt_steps * 2 * path + path
    return 2.0 * macs * batch_size


def make_pair(mode, options, folder, model="mlp"):
    """A step of this project's trainer and one of the released way, from the same weights."""
    def diffusion():
        torch.manual_seed(0)
        size = options.rank**2
        ebm = MODELS[model](size, size)
        return GaussianDiffusion1D(DiffusionWrapper(ebm), mining_config={"mode": mode}).to(options.device)

    trainer = Trainer1D(diffusion(), Inverse("train", options.rank), train_batch_size=options.batch_size,
                        results_folder=folder, device=options.device)  # fmt: skip
    plain = diffusion()
    batches = item_batches(options.rank, options.batch_size, options.workers)
    released = PlainTrainer(plain, make_ema(plain, 0.995, 10), batches, options.device)
    return trainer.run_one_step, released


def measure_steps(options, peak) -> list[dict]:
    rows = []
    for mode in MODES:
        ours, released = make_pair(mode, options, options.results)
        times = alternate({"ours": ours, "released": released}, options.repeats, options.device, warm_up=4)
        flops = step_flops(mode, options.rank, options.batch_size)
        rows.append(row(f"step, {mode}", times, gflop=flops / 1e9, share_of_peak=flops / times["ours"] / peak))
    return rows


def measure_matrix_steps(options) -> list[dict]:
    """Steps of MatrixEBM at the batch size that it is trained with."""
    batch_size, rows = RECIPES["matrix"]["batch_size"], []
    changed = argparse.Namespace(**{**vars(options), "batch_size": batch_size})
    for mode in MODES:
        ours, released = make_pair(mode, changed, options.results, "matrix")
        times = alternate({"ours": ours, "released": released}, options.repeats, options.device, warm_up=4)
        rows.append(row(f"matrix step, {mode}, batch {batch_size}", times) | {"batch_size": batch_size})
    return rows


def row(name, times, **more) -> dict:
    return {"measured": name, "released_ms": 1e3 * times["released"], "ours_ms": 1e3 * times["ours"],
            "ratio": times["released"] / times["ours"], **more}  # fmt: skip


def measure_data(options) -> dict:
    task, generator = Inverse("train", options.rank), seeded_generator(1, device=options.device)
    batches = item_batches(options.rank, options.batch_size, options.workers)
    chunk = 16 if options.device == "cuda" else 1
    times = alternate({
        "ours": lambda: task.sample(chunk * options.batch_size, generator, options.device),
        "released": lambda: [part.to(options.device) for part in next(batches)],
    }, options.repeats, options.device)  # fmt: skip
    return row("data, one batch", times | {"ours": times["ours"] / chunk})


def measure_sampling(options) -> list[dict]:
    size, rows = options.rank**2, []
    torch.manual_seed(0)
    diffusion = GaussianDiffusion1D(DiffusionWrapper(EBM(size, size))).to(options.device)
    inp, _ = Inverse("val", options.rank).sample(options.batch_size, device=options.device)
    start = torch.randn(options.batch_size, size, device=options.device)
    for name, inner in (("plain", 0), ("innerloop", 5)):
        times = alternate({
            "ours": lambda inner=inner: diffusion.p_sample_loop(inp, start=start, inner_steps=inner),
            "released": lambda inner=inner: plain_sample(diffusion, inp, start, inner),
        }, max(3, options.repeats // 3), options.device, warm_up=1)  # fmt: skip
        rows.append(row(f"sampling, {name}", times))
    return rows


def measure_scaling(options) -> list[dict]:
    """Steps of both ways over batch sizes at this rank, and over ranks at this batch size (adversarial)."""
    sweeps = [("batch_size", size) for size in (256, 512, 1024, 2048, 4096, 8192)]
    sweeps += [("rank", rank) for rank in (5, 10, 20, 30, 40)]
    rows = []
    for name, value in sweeps:
        changed = argparse.Namespace(**{**vars(options), name: value})
        ours, released = make_pair("adversarial", changed, options.results)
        times = alternate({"ours": ours, "released": released}, 3, options.device, warm_up=1)
        rows.append(row(f"scaling, {name} {value}", times) | {name: value})
    return rows


def scaling_figure(rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, name in zip(axes, ("batch_size", "rank"), strict=True):
        chosen = [r for r in rows if r["measured"].startswith(f"scaling, {name}")]
        axis.plot([r[name] for r in chosen], [r["released_ms"] for r in chosen], "o-", label="released way")
        axis.plot([r[name] for r in chosen], [r["ours_ms"] for r in chosen], "o-", label="this project")
        axis.set(xlabel=name, ylabel="ms a step, adversarial", xscale="log", yscale="log")
        axis.legend(frameon=False)
    save_figure(figure, path)


def main(arguments=None):
    options = parse_arguments(arguments)
    peak = matmul_peak(options.batch_size, options.device, options.repeats)
    rows = [*measure_steps(options, peak), *measure_matrix_steps(options)]
    rows += [measure_data(options), *measure_sampling(options)]
    if not options.no_scaling:
        rows += measure_scaling(options)
        scaling_figure(rows, options.results / "benchmark.png")
    about = environment()
    machine = f"{about['gpu'] or about['cpu']}, {about['threads']} threads"
    print(f"{machine}, torch {about['torch']}, commit {about['commit']}; "
          f"float32 product peak {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    columns = ("measured", "released_ms", "ours_ms", "ratio", "share_of_peak")
    print(tabulate([[r.get(column) for column in columns] for r in rows], columns, floatfmt=".3g"))
    fixed = {key: about[key] for key in ("cpu", "gpu", "threads", "torch", "python", "commit", "command")}
    settings = {"rank": options.rank, "batch_size": options.batch_size, "peak_gflops": peak / 1e9}
    write_csv(options.results / "benchmark.csv", [{**settings, **r, **fixed} for r in rows])


if __name__ == "__main__":
    with exit_status():
        main()

"""Speed of this project against the released way of working, both measured in one run.

    python experiments/benchmark.py                 # on an idle machine; writes results/benchmark.csv and a figure

Every set is measured in turn, again and again, and medians are compared, so that a machine that slows down slows
all. The released way runs in a process of its own, as torch is by default; `released, same products` is the same
with the products that this project has chosen, so that their share in a ratio shows. FLOP counts are those of
diffusion_lib/flops.py; a peak is this machine's own best product of the precision.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.benchmark")

import statistics
import time
from contextlib import ExitStack

import torch
from tabulate import tabulate

from diffusion_lib.build import check_fits
from diffusion_lib.compiling import compiles_bf16
from diffusion_lib.config import RECIPES, ExperimentConfig, add_flags, configure, given
from diffusion_lib.energies.mlp import HIDDEN
from diffusion_lib.flops import step_flops
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.precision import choose_products, multiplies_bf16
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.arguments import Parser, directory, header, whole
from diffusion_lib.system.device import chosen_device
from diffusion_lib.system.environment import ROOT, environment
from diffusion_lib.system.errors import one_line_for_full_memory
from diffusion_lib.system.files import require_writable, write_csv
from diffusion_lib.system.other_process import OtherProcess
from diffusion_lib.tasks import Inverse
from diffusion_lib.training.trainer import make_ema
from experiments.analysis.figures import choose_scale, drawing, guarded, legend_below, plotted
from experiments.speed import timing
from experiments.speed.our_step import MODES, initial_diffusion, our_step
from experiments.speed.released_way import PlainTrainer, item_batches, plain_loss, plain_sample
from experiments.speed.timing import RemoteTimer, alternate

CHECKED = 256  # rows of the step whose numbers are compared with the plain path's
SHARES = {"ours": "share_of_peak", "bf16": "share_of_bf16_peak", "compiled": "compiled_share_of_bf16_peak"}
CALLS = 5  # steps of each run between two looks at the clock, where several share the machine


def parse_arguments(arguments=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(parser, ExperimentConfig, only=("rank", "batch_size"))
    add("--device", metavar="{cpu,cuda}", help="default: cuda where there is one")
    add("--repeats", type=whole(1, 10**6), default=9, metavar="N", help="measurements of each of a set (default 9)")
    add("--workers", type=whole(0, 64), default=0, metavar="N", help="the released way's loader processes (default 0)")
    add("--at-once", type=whole(1, 64), metavar="N", help="runs that share the machine; default: torch's threads")
    add("--no-scaling", action="store_true", help="leave out the sweeps of batch size and rank")
    add("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def resolve(options) -> torch.device:
    """Put the defaults into `options` and return the device. Raises ConfigError, and OSError for its results."""
    device = chosen_device(options.device)
    config = configure(given(options))
    check_fits(config, device)
    require_writable(options.results)
    options.device, options.rank, options.batch_size = device.type, config.rank, config.batch_size
    options.at_once = options.at_once or torch.get_num_threads()
    return device


def matmul_peak(batch_size, device, repeats, dtype=torch.float32) -> float:
    """Return the FLOP/s of the fastest of the products that a step consists of, as torch is set."""
    best = 0.0
    for rows, inner, columns in ((batch_size, HIDDEN, HIDDEN), (HIDDEN, batch_size, HIDDEN), (4096, 1024, 1024)):
        left, right = (torch.randn(size, device=device).to(dtype) for size in ((rows, inner), (inner, columns)))
        pairs = ((left, right), (left.t().contiguous().t(), right), (left, right.t().contiguous().t()))
        layouts = {i: lambda a=a, b=b: a @ b for i, (a, b) in enumerate(pairs)}
        seconds = min(alternate(layouts, max(repeats, 9), device).values())
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def released_step(mode, model, rank, batch_size, device, workers):
    """Make the same step in the released way, from the same weights."""
    diffusion = initial_diffusion(mode, model, rank, device)
    return PlainTrainer(diffusion, make_ema(diffusion, 0.995, 10), item_batches(rank, batch_size, workers), device)


def released_data(rank, batch_size, device, workers):
    batches = item_batches(rank, batch_size, workers)
    return lambda: [part.to(device) for part in next(batches)]


def sampling_problem(rank, batch_size, device):
    """Make an untrained model, inputs, and the noise to start from."""
    inp, _ = Inverse("val", rank).sample(batch_size, device=device)
    start = torch.randn(batch_size, rank**2, device=device)
    return initial_diffusion("none", "mlp", rank, device), inp, start


def released_sampling(inner_steps, rank, batch_size, device):
    diffusion, inp, start = sampling_problem(rank, batch_size, device)
    return lambda: plain_sample(diffusion, inp, start, inner_steps)


def compare(name, ours: dict, released: RemoteTimer, options, repeats=None) -> dict:
    """Time `ours`, and what `released` has prepared, by torch's default and with our products; return a table's row."""
    products = torch.get_float32_matmul_precision()
    functions = {**ours, "released": released}
    if products != released.products:
        functions["released_same_products"] = RemoteTimer(released.process, options.device, products)
    times = alternate(functions, repeats or options.repeats, options.device)
    times.setdefault("released_same_products", times["released"])
    return {
        "measured": name,
        **{f"{key}_ms": 1e3 * value for key, value in times.items()},
        "ratio": times["released"] / times["ours"],
        **{f"ratio_{name}": times["released"] / times[name] for name in ours if name != "ours"},
        "ratio_same_products": times["released_same_products"] / times["ours"],
    }


def measure_steps(options, peaks, released) -> list[dict]:
    """Time steps of the MLP by strategy; peaks: FLOP/s of the products, by precision."""
    rows = []
    for mode in MODES:
        setting = (mode, "mlp", options.rank, options.batch_size, options.device)
        released.prepare(released_step, *setting, options.workers)
        ours = {"ours": our_step(*setting), "bf16": our_step(*setting, bf16=True)}
        if compiles_bf16(torch.device(options.device)):
            ours["compiled"] = our_step(*setting, compiled=True)
        measured = compare(f"step, {mode}", ours, released, options)
        flops = step_flops(ExperimentConfig(rank=options.rank, mining=MiningConfig(mode)), options.batch_size)
        measured["gflop"] = flops / 1e9
        for name in ours:
            measured[SHARES[name]] = flops / (measured[f"{name}_ms"] / 1e3) / peaks[name]
        rows.append(measured | step_errors(mode, options))
    return rows


def step_errors(mode, options) -> dict:
    """Return relative errors of a step's loss and gradients, against the plain path in float64."""
    size = options.rank**2
    inp, target = Inverse("train", options.rank).sample(CHECKED, seeded_generator("benchmark data"), "cpu")
    t, noise = torch.arange(CHECKED) % 10, torch.randn(2, CHECKED, size, generator=seeded_generator("benchmark noise"))
    plain, ours = (initial_diffusion(mode, "mlp", options.rank, device) for device in ("cpu", options.device))
    expected = plain_loss(plain.double(), inp.double(), target.double(), t, *noise.double())
    loss, _ = ours.p_losses(
        *(part.to(options.device) for part in (inp, target)), None, t.to(options.device), *noise.to(options.device)
    )
    expected.backward()
    loss.backward()
    found, exact = (torch.cat([p.grad.flatten().double().cpu() for p in d.parameters()]) for d in (ours, plain))
    return {
        "loss_error": abs(loss.item() / expected.item() - 1),
        "gradient_error": ((found - exact).norm() / exact.norm()).item(),
    }


def measure_matrix_steps(options, released) -> list[dict]:
    """Time steps of MatrixEBM at the batch size that it is trained with."""
    batch_size, rows = RECIPES["matrix"]["batch_size"], []
    for mode in MODES:
        setting = (mode, "matrix", options.rank, batch_size, options.device)
        released.prepare(released_step, *setting, options.workers)
        measured = compare(f"matrix step, {mode}, batch {batch_size}", {"ours": our_step(*setting)}, released, options)
        rows.append(measured | {"batch_size": batch_size})
    return rows


def measure_data(options, released) -> dict:
    task, generator = Inverse("train", options.rank), seeded_generator("benchmark data", device=options.device)
    released.prepare(released_data, options.rank, options.batch_size, options.device, options.workers)
    ours = {"ours": lambda: task.sample(options.batch_size, generator, options.device)}
    return compare("data, one batch", ours, released, options)


def measure_sampling(options, released) -> list[dict]:
    rows, setting = [], (options.rank, options.batch_size, options.device)
    diffusion, inp, start = sampling_problem(*setting)
    for name, inner in (("plain", 0), ("innerloop", 5)):
        released.prepare(released_sampling, inner, *setting)
        ours = {"ours": lambda inner=inner: diffusion.sample_loop(inp, start=start, inner_steps=inner)}
        repeats = max(1, options.repeats // 3)
        rows.append(compare(f"sampling, {name}", ours, released, options, repeats))
    return rows


def measure_runs_at_once(options) -> list[dict]:
    """Time a step of one run that has the machine to itself, and of several that share it, divided by their number."""
    rows, products = [], torch.get_float32_matmul_precision()
    threads = max(1, torch.get_num_threads() // options.at_once)
    with ExitStack() as stack:
        processes = [stack.enter_context(OtherProcess(threads)) for _ in range(options.at_once)]
        timers = [RemoteTimer(process, options.device, products) for process in processes]
        for model, batch_size in (("mlp", options.batch_size), ("mlp", 128), ("matrix", 128)):
            for mode in MODES:
                setting = (mode, model, options.rank, batch_size, options.device)
                for timer in timers:
                    timer.prepare(our_step, *setting)
                alone = alternate({"alone": our_step(*setting)}, options.repeats, options.device)["alone"]
                shared = shared_seconds(timers, options.repeats)
                times = {"alone_ms": 1e3 * alone, "shared_ms": 1e3 * shared, "ratio_alone": alone / shared}
                rows.append(
                    {"measured": f"{model} step, {mode}, batch {batch_size}", "batch_size": batch_size, **times}
                )
    return rows


def shared_seconds(timers, repeats) -> float:
    """Return the median seconds of a step, divided by the number of processes that work at the same time."""
    times, started = [], time.perf_counter()
    while len(times) < repeats:
        counts = time.perf_counter() - started >= timing.WARM_UP
        for timer in timers:
            timer.start(CALLS)
        seconds = max(timer.process.receive() for timer in timers) / (CALLS * len(timers))
        times += [seconds] if counts else []
    return statistics.median(times)


def measure_scaling(options, released) -> list[dict]:
    """Time adversarial steps of both ways, over batch sizes at this rank and over ranks at this batch size."""
    sweeps = [("batch_size", size) for size in (256, 512, 1024, 2048, 4096, 8192)]
    sweeps += [("rank", rank) for rank in (5, 10, 20, 30, 40)]
    rows = []
    for name, value in sweeps:
        changed = {"rank": options.rank, "batch_size": options.batch_size, name: value}
        setting = ("adversarial", "mlp", changed["rank"], changed["batch_size"], options.device)
        released.prepare(released_step, *setting, options.workers)
        measured = compare(f"scaling, {name} {value}", {"ours": our_step(*setting)}, released, options, 3)
        rows.append(measured | {name: value})
    return rows


@guarded
def scaling_figure(rows, path):
    """Draw the time of an adversarial step of both ways, over batch sizes and over ranks."""
    panels = (("batch_size", "matrices a step"), ("rank", "rank n of the matrices"))
    with drawing(path, (9, 3.4), 1, 2) as axes:
        for axis, (name, label) in zip(axes.flat, panels, strict=True):
            chosen = [r for r in rows if r["measured"].startswith(f"scaling, {name}")]
            values = [r[name] for r in chosen]
            axis.plot(values, [r["released_ms"] for r in chosen], "o-", label="released way")
            axis.plot(values, [r["ours_ms"] for r in chosen], "o-", label="this project")
            choose_scale(axis, "x", values)
            choose_scale(axis, "y", plotted(axis))
            axis.set(xlabel=label, ylabel="ms", title=f"an adversarial training step over {name}")
            axis.set_xticks(values, [str(value) for value in values])
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        legend_below(axes)


def print_table(rows, columns: str):
    """Print columns, named in one text, as far as the rows have them."""
    names = columns.split()
    print(tabulate([[r.get(name) for name in names] for r in rows], names, floatfmt=".3g"))


@one_line_for_full_memory()
def main(arguments=None):
    options = parse_arguments(arguments)
    device = resolve(options)
    about = environment(device)
    header(benchmark=options.results, rank=options.rank, batch_size=options.batch_size, device=options.device)
    plain_peak = matmul_peak(options.batch_size, options.device, options.repeats)
    choose_products("auto", device)
    peak = matmul_peak(options.batch_size, options.device, options.repeats)
    bf16 = torch.bfloat16 if multiplies_bf16(options.device) else torch.float32
    bf16_peak = matmul_peak(options.batch_size, options.device, options.repeats, bf16)
    with OtherProcess() as process:
        released = RemoteTimer(process, options.device)
        rows = measure_steps(options, {"ours": peak, "bf16": bf16_peak, "compiled": bf16_peak}, released)
        rows += measure_matrix_steps(options, released)
        rows += [measure_data(options, released), *measure_sampling(options, released)]
        if not options.no_scaling:
            rows += measure_scaling(options, released)
            scaling_figure(rows, path=options.results / "benchmark.png")
    shared = measure_runs_at_once(options)
    about["float32_products"] = torch.get_float32_matmul_precision()
    print(
        f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {about['torch']}, commit "
        f"{about['commit']}; float32 product peak {peak / 1e9:.0f} GFLOP/s (products: {about['float32_products']}), "
        f"{plain_peak / 1e9:.0f} by torch's default, of bf16's {bf16_peak / 1e9:.0f}"
    )
    print_table(
        rows,
        "measured released_ms released_same_products_ms ours_ms ratio ratio_same_products share_of_peak bf16_ms "
        "ratio_bf16 share_of_bf16_peak compiled_ms ratio_compiled compiled_share_of_bf16_peak loss_error "
        "gradient_error",
    )
    print(f"\n{options.at_once} runs at once, {max(1, about['threads'] // options.at_once)} threads each:")
    print_table(shared, "measured alone_ms shared_ms ratio_alone")
    made_by = ("cpu", "gpu", "threads", "float32_products", "torch", "python", "commit", "command")
    fixed = {key: about[key] for key in made_by}
    settings = {
        "rank": options.rank,
        "batch_size": options.batch_size,
        "peak_gflops": peak / 1e9,
        "default_peak_gflops": plain_peak / 1e9,
        "bf16_peak_gflops": bf16_peak / 1e9,
    }
    write_csv(options.results / "benchmark.csv", [settings | r | fixed for r in rows])
    fixed = {"at_once": options.at_once, **fixed}
    write_csv(options.results / "benchmark-at-once.csv", [settings | r | fixed for r in shared])

"""What a GPU does with this project: whether its numbers are right, how fast it is, and the settings that suit it.

    python experiments/check_gpu.py                     # about five minutes on a card; writes results/check-gpu.md

The report can be attached to an issue. How many runs at once were best is kept in results/check-gpu.json, and is from
then on the default of the comparison on this card. `--device cpu --quick` does the same on a CPU, at small sizes, to
try the check itself. Exit status: 0 all right, 2 no CUDA device, or a check failed (the report says which).
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.check_gpu")


import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate

from diffusion_lib.energies import MODELS
from diffusion_lib.system.arguments import Parser, directory, header
from diffusion_lib.system.device import check_device_name, chosen_device
from diffusion_lib.system.environment import ROOT, environment
from diffusion_lib.system.errors import EXIT_BAD_INPUT, ConfigError, first_line, say, show
from diffusion_lib.system.files import write_atomic
from experiments.speed import timing
from experiments.speed.gpu_correctness import check_everything
from experiments.speed.gpu_sharing import has_mps, record_best
from experiments.speed.gpu_timing import Sizes, measure_at_once, measure_steps
from experiments.study.flags import parse_command

FULL = Sizes(20, 2048, 8192, 32, 7, at_once=(1, 2, 4, 8), models=tuple(MODELS), examples=8, checked_rank=20)
QUICK = Sizes(2, 4, 64, 1, 1, at_once=(1, 2), models=("mlp", "gnn"), examples=4, checked_rank=2)
WORTH = 1.03  # more runs at once must be so much faster to be recommended
STUDY = "experiments/matrix_inversion_mining_comparison.py --preset full"


def parse_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", metavar="{cpu,cuda}", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="few models and small sizes, whose times say nothing")
    parser.add_argument("--check", action="store_true", help="measure nothing; check the command, as slurm/submit does")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    options, started = parse_arguments(arguments), time.monotonic()
    if options.check:
        check_device_name(options.device)  # the login node that submits need not have one
        return 0
    device = chosen_device(options.device)
    if device.type == "cpu" and not options.quick:
        raise ConfigError("device is 'cpu', whose speed experiments/benchmark.py measures; here --quick goes with it")
    sizes = QUICK if options.quick else FULL
    if options.quick:
        timing.WARM_UP = timing.SETTLE = 0.0
    header(models=" ".join(sizes.models), device=device.type, results=options.results)
    say("checking the numbers")
    checks = check_everything(device, sizes.models, sizes.checked_rank, sizes.examples)
    say("timing the steps")
    steps = measure_steps(sizes, device)
    say("timing several runs at once")
    shared, notes = measure_sharing(sizes, device)
    best = {mps: best_at_once([row for row in shared if row["mps"] == mps]) for mps in (False, True)}
    if device.type == "cuda":
        record_best(options.results, {mps: row["at_once"] for mps, row in best.items()})
    path = options.results / "check-gpu.md"
    notes.append(f"The check took {time.monotonic() - started:.0f} s.")
    text = report(device, sizes, checks, steps, shared, best, notes)
    write_atomic(path, text)
    show(text)
    say(f"written to {path}")
    failed = [row for row in checks if not row["ok"]]
    for row in failed:
        say(f"failed: {row['check']}: {row['found']}, allowed {row['allowed']}")
    return EXIT_BAD_INPUT if failed else 0


def measure_sharing(sizes: Sizes, device) -> tuple[list[dict], list[str]]:
    """Time several runs at once, without and with MPS; return the rows, and notes of what could not be measured."""
    rows, notes = measure_at_once(sizes, device, False), []
    if not has_mps():
        return rows, ["With MPS nothing was measured: this machine has no nvidia-cuda-mps-control."]
    try:
        rows += measure_at_once(sizes, device, True)
    except (OSError, RuntimeError) as error:
        notes.append(f"With MPS nothing was measured: {first_line(error)}")
    return rows, notes


def best_at_once(rows: list[dict]) -> dict:
    """Return the row of the fewest runs at once from which more gain little; one run where nothing was measured."""
    fastest = min((row["round_ms"] for row in rows), default=float("inf"))
    none = {"at_once": 1, "round_ms": float("inf")}
    return next((row for row in rows if row["round_ms"] <= WORTH * fastest), none)


def projected_seconds(round_ms: float) -> float:
    """Project the seconds of the full preset's steps: its strategies take turns, evaluation and report are left out."""
    full = parse_command("", ["--preset", "full"]).study
    return len(full.seeds) * full.config.train_steps * round_ms / 1e3


def settings(best: dict) -> list[str]:
    """Return the commands that suit the card."""
    alone, mps = best[False], best[True]
    if mps["round_ms"] * WORTH < alone["round_ms"]:
        return ["nvidia-cuda-mps-control -d", f"python {STUDY} --at-once {mps['at_once']}"]
    return [f"python {STUDY} --at-once {alone['at_once']}"]


def report(device, sizes: Sizes, checks, steps, shared, best, notes) -> str:
    about = environment(device)
    failed = sum(not row["ok"] for row in checks)
    name = about["gpu"] or f"{about['cpu']} (a trial of the check: its times say nothing of a GPU)"
    fastest = min(row["round_ms"] for row in best.values())
    times = [{**row, "projected_hours": projected_seconds(row["round_ms"]) / 3600} for row in shared]
    parts = [
        f"# Check of {name}",
        f"torch {about['torch']}, CUDA {torch.version.cuda}, Python {about['python']}, commit {about['commit']}, "
        f"`{about['command']}`",
        f"**{len(checks)} checks of its numbers: {f'{failed} failed' if failed else 'all passed'}.** The full preset's "
        f"steps: {projected_seconds(fastest) / 60:.0f} minutes, projected from the times below, by",
        "\n".join(f"    {command}" for command in settings(best)),
        "## Several runs at once",
        f"A round is one step of every strategy, rank {sizes.rank}, batch {sizes.batch_size}, float32, over the number "
        "of runs at once. Evaluation and report are not in it; from two runs at once on they overlap with training.",
        table(times),
        "\n".join(notes),
        "## A step",
        "Of one run alone. A share is that of the card's own rate in a square product of "
        f"{sizes.peak_side} x {sizes.peak_side} with the same precision; `eager`: float32 without a CUDA graph; "
        "`compiled`: bf16 with `--compile on`.",
        table(steps),
        "## Numbers",
        "Relative errors: of loss and gradient as a whole, of negatives and samples the median over examples.",
        table([{**row, "ok": "yes" if row["ok"] else "NO"} for row in checks]),
    ]
    return "\n\n".join(parts) + "\n"


def table(rows: list[dict]) -> str:
    return tabulate(rows, "keys", tablefmt="github", floatfmt=".3g")

"""How far the trained runs of a study carry: other sizes of the matrix, other ridges, and at what cost.

    python experiments/matrix_generalisation.py --study custom-matrix

Reads the averaged weights of the finished runs in results/STUDY and writes there: sizes.csv (errors at other n, for a
model whose weights do not depend on n), ridge.csv and ridge.png (error as the ridge of A = 2 R R^T + ridge I falls,
beside linear regression and Newton-Schulz), scale.csv (error without the one factor that fits the solutions best to
the targets), and timing.csv. Exit status: 0 done, 2 bad input.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("experiments.matrix_generalisation")

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from diffusion_lib.build import check_fits
from diffusion_lib.config import ExperimentConfig, add_flags, configure, given
from diffusion_lib.evaluation import EvaluationSet, prediction_metrics, sampler_metrics
from diffusion_lib.inference import load_model
from diffusion_lib.names import SAMPLERS
from diffusion_lib.precision import choose_products
from diffusion_lib.run_folder import recorded_config
from diffusion_lib.system.arguments import Parser, directory, header, whole
from diffusion_lib.system.checks import check_name
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, one_line_for_full_memory, say, show
from diffusion_lib.system.files import require_writable, write_csv
from diffusion_lib.tasks import Inverse
from diffusion_lib.tasks.matrix_references import exact_inverse, fitted, newton_schulz
from experiments.analysis.figures import choose_scale, drawing, guarded, legend_below
from experiments.analysis.landscape_figures import draw
from experiments.analysis.runs import read_runs
from experiments.speed.timing import alternate

SIZES = (10, 20, 30, 40)
RIDGES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)  # 0.5 is the training task's, 0.1 the harder one's
BATCH = 512  # matrices at a time: a polynomial's features of large matrices fill the memory soon
DEFAULTS = {"evaluation_size": 2048}
TIMED = 1000  # matrices behind a time


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--study", required=True, metavar="NAME", help="a folder of results/")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    add_flags(parser, ExperimentConfig, only=("evaluation_size",), defaults=DEFAULTS)
    times = "measurements behind each time (default 7)"
    parser.add_argument("--repeats", type=whole(1, 10**6), default=7, metavar="N", help=times)
    return parser.parse_args(arguments)


def finished_runs(study: Path) -> dict[tuple[str, int], Path]:
    """Return (strategy, seed) -> folder of every finished run. Raises ConfigError where there is none."""
    runs, damaged = read_runs(study)
    for reason in damaged.values():
        say(f"left out: {reason}")
    finished = {(run.strategy, run.seed): study / run.run for run in runs.itertuples() if run.status == "finished"}
    found = {key: folder for key, folder in finished.items() if (folder / "last.pt").exists()}
    if not found:
        raise ConfigError(f"{study} has no finished run with its last.pt; train first, or name another --study")
    return found


def inverse_task(config: ExperimentConfig, n: int, ridge: float | None = None) -> Inverse:
    """Make the validation task, on which the sampler keeps the bound that the study's `clamp` says."""
    task = Inverse("val", n, ridge=ridge)
    if config.clamp == "training":
        task.rules = Inverse("val", n).rules
    return task


def sampler_rows(models: dict, chosen: EvaluationSet, **columns) -> list[dict]:
    """Return a row of errors per run and sampler on one set."""
    return [
        {"strategy": strategy, "seed": seed, "sampler": sampler, **columns}
        | sampler_metrics(diffusion, chosen, sampler, BATCH)
        for (strategy, seed), diffusion in models.items()
        for sampler in SAMPLERS
    ]


def size_rows(models: dict, config: ExperimentConfig, count: int) -> list[dict]:
    """Return a row per n, run and sampler at the training ridge; none where the weights depend on n."""
    if not all(diffusion.model.ebm.any_size for diffusion in models.values()):
        return []
    sets = {n: EvaluationSet(inverse_task(config, n), count, "cpu") for n in SIZES}
    return [row for n, chosen in sets.items() for row in sampler_rows(models, chosen, n=n)]


def ridge_rows(models: dict, config: ExperimentConfig, count: int) -> list[dict]:
    """Return a row per ridge, run and sampler, and per ridge and reference, at the rank of the study."""
    rank, rows = config.rank, []
    references = {
        "linear regression": fitted(Inverse("train", rank)).linear_regression,
        "Newton-Schulz 12": lambda inp: newton_schulz(inp, rank, 12),
    }
    for ridge in RIDGES:
        chosen = EvaluationSet(inverse_task(config, rank, ridge), count, "cpu")
        rows += sampler_rows(models, chosen, ridge=ridge)
        for name, solve in references.items():
            errors = prediction_metrics(chosen, solve(chosen.inp.double()))
            rows.append({"strategy": name, "sampler": "reference", "ridge": ridge, **errors})
    return rows


@guarded
def ridge_figure(rows: list[dict], path: Path):
    """Draw the error against the ridge, a panel per sampler: mean over seeds, their range, references dashed."""
    strategies = list(dict.fromkeys(row["strategy"] for row in rows if row["sampler"] in SAMPLERS))
    references = list(dict.fromkeys(row["strategy"] for row in rows if row["sampler"] == "reference"))
    with drawing(path, (9, 3.6), 1, len(SAMPLERS), sharey=True) as axes:
        for axis, sampler in zip(axes.flat, SAMPLERS, strict=True):
            draw(axis, [row for row in rows if row["sampler"] == sampler], strategies, "ridge", "mse")
            for name, style in zip(references, ("--", ":"), strict=True):
                line = [(row["ridge"], row["mse"]) for row in rows if row["strategy"] == name]
                axis.plot(*zip(*line, strict=True), color="black", ls=style, lw=0.9, label=name)
            axis.set(xlabel="ridge of A (training: 0.5)", title=f"{sampler} sampler")
            choose_scale(axis, "x", RIDGES)
            choose_scale(axis, "y", [row["mse"] for row in rows])
            axis.set_xticks(RIDGES, [f"{ridge:g}" for ridge in RIDGES])
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes[0, 0].set_ylabel("mean squared error of an entry")
        legend_below(axes)


def solutions(diffusion, chosen: EvaluationSet, sampler: str, batch_size: int = BATCH) -> torch.Tensor:
    """Return what a sampler makes of the whole set, (size, n * n)."""
    inner_steps = SAMPLERS[sampler](diffusion.rules)
    return torch.cat([chosen.sample(diffusion, rows, inner_steps) for rows in chosen.batches(batch_size)])


def scale_rows(models: dict, config: ExperimentConfig, count: int) -> list[dict]:
    """Return a row per run and sampler at the training ridge: a factor, and the mean squared error before and after it.

    The factor brings the solutions nearest to the targets (least squares). An energy with the residual A x - c I built
    in learns c, so its error is mostly (factor - 1)^2 mean(target^2): what is left after the factor is what its
    products contribute.
    """
    chosen, rows = EvaluationSet(inverse_task(config, config.rank), count, "cpu"), []
    for (strategy, seed), diffusion in models.items():
        for sampler in SAMPLERS:
            found = solutions(diffusion, chosen, sampler).double()
            scale = (found * chosen.target).sum() / found.square().sum()
            mse, rescaled = ((each - chosen.target).square().mean().item() for each in (found, scale * found))
            errors = {"scale": scale.item(), "mse": mse, "mse_rescaled": rescaled}
            rows.append({"strategy": strategy, "seed": seed, "sampler": sampler, **errors})
    return rows


def timing_rows(diffusion, config: ExperimentConfig, repeats: int) -> list[dict]:
    """Time the model's samplers and two solvers in turn: milliseconds per 1000 float32 matrices."""
    chosen = EvaluationSet(inverse_task(config, config.rank), TIMED, "cpu")
    functions = {
        f"{config.model}, {sampler}": lambda sampler=sampler: solutions(diffusion, chosen, sampler, TIMED)
        for sampler in SAMPLERS
    }
    functions["Newton-Schulz 12"] = lambda: newton_schulz(chosen.inp, config.rank, 12)
    functions["torch.linalg.inv"] = lambda: exact_inverse(chosen.inp, config.rank)
    seconds = alternate(functions, repeats, "cpu")
    return [
        {"solver": name, "n": config.rank, "ms_per_1000": value * 1e6 / TIMED, "threads": torch.get_num_threads()}
        for name, value in seconds.items()
    ]


@one_line_for_full_memory()
def main(arguments=None):
    options = parse_arguments(arguments)
    study = options.results / check_name(options.study)
    runs = finished_runs(study)
    config = recorded_config(study)
    count = configure(DEFAULTS | given(options)).evaluation_size
    check_fits(replace(config, evaluation_size=count), torch.device("cpu"))
    require_writable(study)
    header(study=study, model=config.model, runs=len(runs), matrices=count, device="cpu")
    choose_products("auto" if config.precision == "tf32" else config.precision, torch.device("cpu"))  # a GPU's
    models = {key: load_model(folder) for key, folder in runs.items()}
    sizes = size_rows(models, config, count)
    if sizes:
        write_csv(study / "sizes.csv", sizes)
    else:
        say(f"sizes left out: the weights of {config.model} depend on n")
    ridges = ridge_rows(models, config, count)
    write_csv(study / "ridge.csv", ridges)
    ridge_figure(ridges, path=study / "ridge.png")
    write_csv(study / "scale.csv", scale_rows(models, config, count))
    write_csv(study / "timing.csv", timing_rows(next(iter(models.values())), config, options.repeats))
    written = ["sizes.csv"] * bool(sizes) + ["ridge.csv", "ridge.png", "scale.csv", "timing.csv"]
    show(f"{len(models)} runs; written to {study}: {', '.join(written)}")

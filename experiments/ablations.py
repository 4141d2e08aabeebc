"""One setting of the mining varied, everything else as in the main comparison.

    python experiments/ablations.py opt_steps --seeds 0-2 --train-steps 10000
    python experiments/ablations.py rank --values 10 20 30

A setting of the mining becomes one study with a strategy per value beside the baseline; another rank is another
task, so each rank is a study of its own with all strategies, and a curve joins them. Everything that the main
comparison takes (--preset, --seeds, --model, …) can follow.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.arguments import Parser
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.tasks import TASKS
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.analysis.figures import (
    COLORS,
    drawing,
    guarded,
    join_pairs,
    legend_below,
    metric_scale,
    name_ticks,
    points_and_interval,
)
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.tables import run_rows

# What can be varied, and the values where --values does not say otherwise.
ABLATIONS = {
    "opt_steps": (1, 2, 5, 10),
    "scale_factor": (0.5, 1.0, 2.0),
    "noise_scale": (0.3, 1.0, 3.0),
    "weight": (0.005, 0.05, 0.5),
    "rank": (10, 20, 30),
}


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The main comparison's options, with the ablation and its values. Raises ConfigError."""
    parser = Parser(__doc__)
    parser.add_argument("ablation", choices=ABLATIONS, help="what is varied")
    shown = "; ".join(f"{key}: {' '.join(map(str, values))}" for key, values in ABLATIONS.items())
    parser.add_argument("--values", nargs="+", metavar="VALUE", help=f"default: of {shown}")
    comparison.add_study_flags(parser)
    options = parser.parse_args(arguments)
    varied = options.ablation
    if getattr(options, varied) is not None:
        raise ConfigError(f"--{varied.replace('_', '-')} is what this ablation varies; allowed: --values")
    if varied != "rank" and options.strategies:
        raise ConfigError("--strategies is not for this ablation, which has one for each value; allowed: with rank")
    kind = type(ABLATIONS[varied][0])
    try:
        options.values = [kind(text) for text in options.values or ABLATIONS[varied]]
    except ValueError:
        raise ConfigError(f"values are {' '.join(options.values)}; allowed for {varied}: {kind.__name__}s") from None
    return options


def ablation_strategies(key: str, values, config: ExperimentConfig) -> dict[str, dict]:
    """Name -> mining_config: the baseline, and IRED's adversarial mining at each value of the setting."""
    return {"baseline": config.mining_config("none")} | {
        f"{key}={value}": replace(config.mining, mode="adversarial", **{key: value}).to_dict() for value in values
    }


def run_mining(key, values, options) -> int:
    """One study, a strategy per value; returns the exit status."""
    config, seeds, name = comparison.resolve(options)
    study = options.results / f"ablation-{key}-{name}"
    status = comparison.run_study(options, config, study, ablation_strategies(key, values, config), seeds)
    if reports(options):
        places = {value: (study, f"{key}={value}") for value in values}
        draw_curve(key, places, study, deciding(config), path=study / "ablation.png")
    return status


def run_ranks(values, options) -> int:
    """A study per rank, with all strategies; returns the exit status."""
    base, resolved = "ablation" if options.name is None else options.name, {}
    for rank in values:  # all are checked before the first is trained
        options.rank, options.name = rank, f"{base}-rank-{rank}"
        config, seeds, name = comparison.resolve(options)
        names = options.strategies or comparison.possible_strategies(config)
        strategies = {strategy: comparison.get_mining_config(strategy, config) for strategy in names}
        resolved[rank] = options, config, options.results / name, strategies, seeds
    statuses = comparison.run_studies(list(resolved.values()))
    if reports(options):
        studies = {rank: (study, "adversarial") for rank, (_, _, study, _, _) in resolved.items()}
        draw_curve("rank", studies, None, deciding(config), path=studies[values[0]][0] / "ablation.png")
    return max(statuses)


def deciding(config: ExperimentConfig) -> tuple[Metric, ...]:
    """The task's first metric, on both difficulties."""
    return task_metrics(TASKS[config.dataset])[:2]


def reports(options) -> bool:
    return options.task is None and not (options.status or options.check)


@guarded
def draw_curve(key, places: dict, baseline_of: Path | None, metrics: tuple[Metric, ...], path: Path):
    """Two metrics against the value: every run as a point, those of a seed joined, the mean and its 95% interval.

    places: value -> study and strategy. baseline_of: the study whose baseline's mean is drawn.
    """
    with drawing(path, (9, 3.6), 1, 2) as axes:
        for axis, metric in zip(axes.flat, metrics, strict=True):
            runs = [strategy_values(study, strategy, metric.column) for study, strategy in places.values()]
            values = np.array([[run.get(seed, np.nan) for seed in sorted(set().union(*runs))] for run in runs])
            join_pairs(axis, values)
            if baseline_of:
                untreated = strategy_values(baseline_of, "baseline", metric.column)
                mean = metric.mean(list(untreated.values())).mean
                axis.axhline(mean, color=COLORS["baseline"], ls="--", label="baseline's mean")
            for place, row in enumerate(values):
                points_and_interval(axis, place, row, COLORS["adversarial"], metric)
            metric_scale(axis, metric, values)
            axis.set(xlabel=key, title=f"{metric.column} of adversarial, plain sampler")
            axis.set_ylabel(metric.column)
            name_ticks(axis, [str(value) for value in places])
        legend_below(axes)


def strategy_values(study: Path, strategy: str, metric: str) -> dict[int, float]:
    """Seed -> a metric under the plain sampler, of the strategy's runs that ended; nan for a failed one."""
    rows = [row for row in run_rows(study) if (row["strategy"], row["sampler"]) == (strategy, "plain")]
    return {row["seed"]: row.get(metric, np.nan) for row in rows}


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    if options.ablation == "rank":
        return run_ranks(options.values, options)
    return run_mining(options.ablation, options.values, options)


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())

"""One setting of the mining varied, everything else as in the main comparison.

    python experiments/ablations.py opt_steps --seeds 0-2 --train-steps 10000
    python experiments/ablations.py rank --values 10 20 30

A setting of the mining becomes one study with a strategy per value beside the baseline; another rank is another
task, so each rank is a study of its own with all strategies, and a curve joins them. Everything that the main
comparison takes (--preset, --seeds, --model, …) can follow.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.errors import ConfigError, exit_status
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.analysis.figures import (
    COLORS,
    ERROR_LABEL,
    drawing,
    guarded,
    join_pairs,
    legend_below,
    metric_scale,
    name_ticks,
    points_and_interval,
)
from experiments.analysis.metrics import Metric
from experiments.analysis.tables import run_rows

# What can be varied, and the values where --values does not say otherwise.
ABLATIONS = {
    "opt_steps": (1, 2, 5, 10),
    "scale_factor": (0.5, 1.0, 2.0),
    "noise_scale": (0.3, 1.0, 3.0),
    "weight": (0.005, 0.05, 0.5),
    "rank": (10, 20, 30),
}


def parse_arguments(arguments):
    """The ablation and its values, and the options of the main comparison. Raises ConfigError."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        sys.exit(0)
    if not arguments or arguments[0] not in ABLATIONS:
        given = repr(arguments[0]) if arguments else "missing"
        raise ConfigError(f"the ablation is {given}; allowed: {', '.join(ABLATIONS)}")
    key, rest, values = arguments[0], arguments[1:], ABLATIONS[arguments[0]]
    if "--values" in rest:
        first = rest.index("--values")
        end = next((i for i in range(first + 1, len(rest)) if rest[i].startswith("--")), len(rest))
        kind = type(values[0])
        try:
            values = tuple(kind(text) for text in rest[first + 1 : end])
        except ValueError:
            raise ConfigError(f"values are {rest[first + 1 : end]}; allowed for {key}: {kind.__name__}s") from None
        rest = rest[:first] + rest[end:]
    if not values:
        raise ConfigError("no value follows --values")
    return key, values, comparison.parse_arguments(rest)


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
    if not options.status:
        draw_curve(key, {value: (study, f"{key}={value}") for value in values}, study, path=study / "ablation.png")
    return status


def run_ranks(values, options) -> int:
    """A study per rank, with all strategies; returns the exit status."""
    statuses, studies = [], {}
    base = options.name
    for rank in values:
        options.rank = rank
        options.name = f"{base or 'ablation'}-rank-{rank}"
        config, seeds, name = comparison.resolve(options)
        studies[rank] = (options.results / name, "adversarial")
        mining_configs = {strategy: comparison.get_mining_config(strategy, config) for strategy in options.strategies}
        statuses.append(comparison.run_study(options, config, options.results / name, mining_configs, seeds))
    if not options.status:
        draw_curve("rank", studies, None, path=studies[values[0]][0] / "ablation.png")
    return max(statuses)


@guarded
def draw_curve(key, places: dict, baseline_of: Path | None, path: Path):
    """Both errors against the value: every run as a point, those of a seed joined, the mean and its 95% interval.

    places: value -> study and strategy. baseline_of: the study whose baseline's mean is drawn.
    """
    with drawing(path, (9, 3.6), 1, 2) as axes:
        for axis, metric in zip(axes.flat, (Metric("val_mse"), Metric("ood_mse")), strict=True):
            runs = [strategy_values(study, strategy, metric.column) for study, strategy in places.values()]
            values = np.array([[run.get(seed, np.nan) for seed in sorted(set().union(*runs))] for run in runs])
            join_pairs(axis, values)
            if baseline_of:
                untreated = strategy_values(baseline_of, "baseline", metric.column)
                mean = metric.mean(list(untreated.values())).mean
                axis.axhline(mean, color=COLORS["baseline"], ls="--", label="baseline, geometric mean")
            for place, row in enumerate(values):
                points_and_interval(axis, place, row, COLORS["adversarial"], metric)
            metric_scale(axis, metric, values)
            axis.set(xlabel=key, title=f"{metric.column} of adversarial, plain sampler")
            axis.set_ylabel(ERROR_LABEL)
            name_ticks(axis, [str(value) for value in places])
        legend_below(axes)


def strategy_values(study: Path, strategy: str, metric: str) -> dict[int, float]:
    """Seed -> a metric under the plain sampler, of the strategy's runs that ended; nan for a failed one."""
    rows = [row for row in run_rows(study) if (row["strategy"], row["sampler"]) == (strategy, "plain")]
    return {row["seed"]: row.get(metric, np.nan) for row in rows}


def main(arguments=None) -> int:
    key, values, options = parse_arguments(arguments)
    return run_ranks(values, options) if key == "rank" else run_mining(key, values, options)


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())

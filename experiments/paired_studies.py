"""Two studies of the same strategies and seeds that differ in a setting (the precision, say), compared seed by seed.

    python experiments/paired_studies.py mlp-cpu-5k mlp-bf16-5k

Reads results/<study>.runs.csv of both; prints a row per strategy and sampler, and writes it to
results/<second>/against-<first>.csv, or for another metric than the task's first to against-<first>-<metric>.csv.
`inside_spread`: whether the second study's mean lies between the least and the greatest run of the first.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import argparse
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.config import check_name
from diffusion_lib.run_folder import read_config, read_data, recorded_config, require_same_data
from diffusion_lib.system.arguments import Parser, directory, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.system.files import read_csv, write_csv
from diffusion_lib.tasks import TASKS
from diffusion_lib.tasks.base import Task
from experiments.analysis.metrics import Metric, chosen_metric


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("first", metavar="FIRST", help="name of the study to compare with")
    parser.add_argument("second", metavar="SECOND", help="name of the other study")
    parser.add_argument("--metric", metavar="NAME", help="a column of the task's metrics; default: its first")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def task_of(results: Path, name: str) -> type[Task]:
    """The task of a study. Raises ConfigError for a study that is not there."""
    study = results / check_name(name)
    if not (study / "config.json").exists():
        raise ConfigError(f"there is no study {study}; allowed: the name of one that has a report")
    return TASKS[recorded_config(study).dataset]


def read_runs(results: Path, name: str, metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """(strategy, sampler) -> seed -> metric. Raises ConfigError for a study or a column that is not there."""
    path = results / f"{check_name(name)}.runs.csv"
    if not path.exists():
        raise ConfigError(f"there is no {path}; allowed: the name of a study that has a report")
    runs = {}
    for row in read_csv(path, "seed", metric):
        runs.setdefault((row["strategy"], row["sampler"]), {})[int(row["seed"])] = row[metric]
    return runs


def paired_rows(first: dict, second: dict, metric: Metric) -> list[dict]:
    """A row per strategy and sampler of both, over the seeds of both. Raises ConfigError if there is none."""
    rows = []
    for strategy, sampler in (key for key in first if key in second):
        one, two = first[strategy, sampler], second[strategy, sampler]
        seeds = sorted(one.keys() & two.keys())
        before, after = ([values[seed] for seed in seeds] for values in (one, two))
        if metric.zeros(before) or metric.zeros(after):
            raise ConfigError(f"a {metric.column} of {strategy} under {sampler} is exactly 0, which has no ratio")
        second_mean = metric.mean(after).mean
        rows.append(
            {
                "strategy": strategy,
                "sampler": sampler,
                "first_mean": metric.mean(before).mean,
                "second_mean": second_mean,
                **metric.columns(metric.compare(after, before)),
                "inside_spread": bool(before) and min(before) <= second_mean <= max(before),
            }
        )
    if not any(row["pairs"] for row in rows):
        raise ConfigError("the two studies have no strategy and seed in common")
    return rows


def differing_settings(results: Path, first: str, second: str) -> str:
    """'precision: float32, bf16' for each setting that is not the same. Raises ConfigError for other data."""
    require_same_data(results / second, read_data(results / first), f"It is compared with {first}")
    one, two = (read_config(results / name) for name in (first, second))
    return "; ".join(f"{key}: {one.get(key)}, {two.get(key)}" for key in one | two if one.get(key) != two.get(key))


def main(arguments=None):
    options = parse_arguments(arguments)
    task = task_of(options.results, options.first)
    metric, usual = chosen_metric(task, options.metric), chosen_metric(task, None)
    runs = [read_runs(options.results, name, metric.column) for name in (options.first, options.second)]
    rows = paired_rows(*runs, metric)
    settings = differing_settings(options.results, options.first, options.second)
    header(first=options.first, second=options.second, metric=metric.column, results=options.results)
    of = "" if metric == usual else f"-{metric.column}"
    write_csv(options.results / options.second / f"against-{options.first}{of}.csv", rows)
    print(f"{metric.column}; {settings or 'no setting differs'}")
    effect = (metric.effect, f"{metric.effect}_low", f"{metric.effect}_high")
    shown = ("strategy", "sampler", "pairs", "first_mean", "second_mean", *effect, "p", "inside_spread")
    print(tabulate([[row[key] for key in shown] for row in rows], shown, floatfmt=".3g"))


if __name__ == "__main__":
    with exit_status():
        main()

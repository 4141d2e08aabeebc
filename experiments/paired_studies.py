"""Two studies of the same strategies and seeds that differ in a setting (the precision, say), compared seed by seed.

    python experiments/paired_studies.py mlp-cpu-5k mlp-bf16-5k

Reads results/<study>.runs.csv of both; prints a row per strategy and sampler, and writes it to
results/<second>/against-<first>.csv, or for another metric than val_mse to against-<first>-<metric>.csv.
`inside_spread`: whether the mean difference is smaller than the standard deviation over the first study's seeds.
"""

if __name__ == "__main__":
    from diffusion_lib.system import startup

    startup.begin()

import argparse
import csv
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.config import check_name
from diffusion_lib.system.arguments import Parser, directory, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.system.files import write_csv
from diffusion_lib.training.run_folder import read_config
from experiments.analysis.statistics import mean_interval, paired_difference
from experiments.analysis.tables import METRICS

SHOWN = (
    "strategy",
    "sampler",
    "n",
    "first_mean",
    "first_std",
    "second_mean",
    "second_std",
    "difference",
    "low",
    "high",
    "p",
    "inside_spread",
)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("first", metavar="FIRST", help="name of the study to compare with")
    parser.add_argument("second", metavar="SECOND", help="name of the other study")
    parser.add_argument("--metric", choices=METRICS, default="val_mse", help="default val_mse")
    parser.add_argument("--results", type=directory, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def read_runs(results: Path, name: str, metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """(strategy, sampler) -> seed -> metric. Raises ConfigError for a study or a column that is not there."""
    path = results / f"{check_name(name)}.runs.csv"
    if not path.exists():
        raise ConfigError(f"there is no {path}; allowed: the name of a study that has a report")
    runs = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                runs.setdefault((row["strategy"], row["sampler"]), {})[int(row["seed"])] = float(row[metric])
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path} is no table of runs with numbers for seed and {metric} ({error})") from None
    return runs


def paired_rows(first: dict, second: dict) -> list[dict]:
    """A row per strategy and sampler of both, over the seeds of both. Raises ConfigError if there is none."""
    rows = []
    for strategy, sampler in (key for key in first if key in second):
        one, two = first[strategy, sampler], second[strategy, sampler]
        seeds = sorted(one.keys() & two.keys())
        pair = [[values[seed] for seed in seeds] for values in (one, two)]
        before, after = (mean_interval(values) for values in pair)
        found = paired_difference(pair[1], pair[0])
        rows.append(
            {
                "strategy": strategy,
                "sampler": sampler,
                "n": found.n,
                "first_mean": before.mean,
                "first_std": before.std,
                "second_mean": after.mean,
                "second_std": after.std,
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "smallest_detectable": found.smallest_detectable,
                "inside_spread": abs(found.difference) < before.std,
            }
        )
    if not any(row["n"] for row in rows):
        raise ConfigError("the two studies have no strategy and seed in common")
    return rows


def differing_settings(results: Path, first: str, second: str) -> str:
    """'precision: float32, bf16' for each setting that is not the same."""
    one, two = (read_config(results / name) for name in (first, second))
    return "; ".join(f"{key}: {one.get(key)}, {two.get(key)}" for key in one | two if one.get(key) != two.get(key))


def main(arguments=None):
    options = parse_arguments(arguments)
    rows = paired_rows(*(read_runs(options.results, name, options.metric) for name in (options.first, options.second)))
    header(first=options.first, second=options.second, metric=options.metric, results=options.results)
    of = "" if options.metric == "val_mse" else f"-{options.metric}"
    settings = differing_settings(options.results, options.first, options.second)
    write_csv(options.results / options.second / f"against-{options.first}{of}.csv", rows)
    print(f"{options.metric}; {settings or 'no setting differs'}")
    print(tabulate([[row[key] for key in SHOWN] for row in rows], SHOWN, floatfmt=".3g"))


if __name__ == "__main__":
    with exit_status():
        main()

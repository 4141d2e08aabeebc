"""Adversarial mining against the baseline, at equal steps and at equal compute, each at the best of its own settings.

    python experiments/tuned_comparison.py --train-steps 1250 --batch-size 128 --schedule cosine --seeds 40-44

First a search: every strategy at each learning rate, adversarial at each weight of its contrast too, on seeds and a
small evaluation set of their own. A strategy's choice is the setting with the best mean under IRED's inner loop. Then
the choices are trained on --seeds. Each learning rate of the search, and each choice, is a study of its own,
<name>-search-<rate> and <name>-<strategy>, and the same command continues them. Everything that the main comparison
takes can follow, but for --strategies and --task. Writes <results>/<name>/: search.csv, report.md, search.png.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig, parse_seeds
from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.system.arguments import Parser
from diffusion_lib.system.errors import ConfigError, exit_status, show
from diffusion_lib.system.files import write_atomic, write_csv
from diffusion_lib.tasks import TASKS
from diffusion_lib.training.run_folder import ended_runs
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.analysis.figures import drawing, guarded, label_log, legend_below, metric_scale, strategy_colors
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.tables import Study, printed_table, run_rows, summary_rows
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE, verdict_lines

STRATEGIES = (BASELINE, ADVERSARIAL, COMPUTE)
CHOSEN_UNDER = "innerloop"  # IRED's own sampler


class Setting(NamedTuple):
    """A strategy's learning rate, and its contrast's weight, None without one. `name`: its strategy in a search."""

    strategy: str
    learning_rate: float
    weight: float | None

    @property
    def name(self) -> str:
        return self.strategy if self.weight is None else f"weight={self.weight}"

    def describe(self) -> str:
        return f"learning rate {self.learning_rate:g}" + ("" if self.weight is None else f", weight {self.weight:g}")


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The main comparison's options, with the search's. Raises ConfigError."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--learning-rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3], metavar="RATE")
    add("--weights", nargs="+", type=float, default=[0.5, 0.05], metavar="WEIGHT", help="of adversarial's contrast")
    add("--search-seeds", nargs="+", default=["100-101"], metavar="SEED", help="default 100-101")
    add("--search-size", type=int, default=2048, metavar="N", help="examples in the search's sets (default 2048)")
    comparison.add_study_flags(parser, leave_out=("learning_rate", "weight"))
    options = parser.parse_args(arguments)
    for flag in ("strategies", "task"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag} is not for this comparison, which has strategies and parts of its own")
    if options.name is None:
        options.name = f"tuned-{comparison.resolve(options)[2]}"
    shared = set(parse_seeds(options.search_seeds)) & set(comparison.resolve(options)[1])
    if shared:
        raise ConfigError(f"seeds {' '.join(map(str, sorted(shared)))} are in the search too; allowed: other ones")
    return options


def settings_at(rate: float, weights: list[float]) -> list[Setting]:
    """All settings of the search with one learning rate."""
    mined = [Setting(ADVERSARIAL, rate, weight) for weight in dict.fromkeys(weights)]
    return [Setting(BASELINE, rate, None), *mined, Setting(COMPUTE, rate, None)]


def part(options, settings: list[Setting], names: list[str], study: str, **changed):
    """The arguments of `run_study` for settings of one learning rate, as strategies `names` of one study."""
    own = argparse.Namespace(**{**vars(options), "learning_rate": settings[0].learning_rate, "name": study, **changed})
    config, seeds, _ = comparison.resolve(own)
    mining = {name: mining_config(setting, config) for name, setting in zip(names, settings, strict=True)}
    return own, config, options.results / study, mining, seeds


def mining_config(setting: Setting, config: ExperimentConfig) -> dict:
    """Raises ConfigError for a weight that is not allowed."""
    own = MiningConfig(**comparison.get_mining_config(setting.strategy, config))
    return (own if setting.weight is None else replace(own, weight=setting.weight)).to_dict()


def search_parts(options, name: str) -> dict[float, tuple]:
    """Learning rate -> the arguments of `run_study` of its search."""
    changed, parts = {"seeds": options.search_seeds, "evaluation_size": options.search_size}, {}
    for rate in options.learning_rates:
        settings = settings_at(rate, options.weights)
        parts[rate] = part(options, settings, [each.name for each in settings], f"{name}-search-{rate}", **changed)
    return parts


def found(parts: dict[float, tuple], options, metric: Metric) -> list[dict]:
    """A row per setting, by strategy: its runs' mean of the metric under each sampler, and whether it is the choice.

    nan where a run diverged. Raises ConfigError where that leaves a strategy without a setting.
    """
    rows = []
    for rate, (_, _, study, _, _) in parts.items():
        runs = run_rows(study)
        for setting in settings_at(rate, options.weights):
            own = [row for row in runs if row["strategy"] == setting.name]
            means = {sampler: whole_mean(metric, own, sampler) for sampler in SAMPLERS}
            rows.append({**setting._asdict(), "n": len({row["seed"] for row in own}), **means, "chosen": 0})
    rows.sort(key=lambda row: STRATEGIES.index(row["strategy"]))
    for strategy in STRATEGIES:
        whole = [row for row in rows if row["strategy"] == strategy and not math.isnan(row[CHOSEN_UNDER])]
        if not whole:
            raise ConfigError(f"no setting of {strategy} trained without divergence; allowed: other --learning-rates")
        best = (max if metric.rate else min)(whole, key=lambda row: row[CHOSEN_UNDER])
        best["chosen"] = 1
    return rows


def whole_mean(metric: Metric, runs: list[dict], sampler: str) -> float:
    values = [row.get(metric.column, math.nan) for row in runs if row["sampler"] == sampler]
    return metric.mean(values).mean if np.isfinite(values).all() else math.nan


def chosen_settings(rows: list[dict]) -> dict[str, Setting]:
    """By strategy, of the rows of search.csv."""
    return {row["strategy"]: Setting(*(row[key] for key in Setting._fields)) for row in rows if int(row["chosen"])}


def edge_words(setting: Setting, rates: list[float]) -> str:
    """What to say of a choice at an end of the learning rates that were searched."""
    at_edge = len(set(rates)) > 1 and setting.learning_rate in (min(rates), max(rates))
    return ", an end of the grid: a better one may lie beyond it" if at_edge else ""


def final_study(studies: list[Path], metrics: tuple[Metric, ...]) -> Study:
    """The choices' runs as one study."""
    return Study([row for study in studies for row in run_rows(study)], list(STRATEGIES), metrics)


def report(options, folder: Path, config: ExperimentConfig, rows: list[dict], studies: list[Path]):
    """Write and print what the search chose, and how the choices compare."""
    metrics = task_metrics(TASKS[config.dataset])
    study = final_study(studies, metrics)
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    search = tabulate(cells, rows[0].keys(), tablefmt="github", disable_numparse=True)
    sentences = [
        f"- {strategy}: {setting.describe()}{edge_words(setting, options.learning_rates)}"
        for strategy, setting in chosen_settings(rows).items()
    ]
    searched = f"{metrics[0].column} on seeds {' '.join(options.search_seeds)}, {options.search_size:,} examples"
    words = [
        f"Search: {searched}; means over seeds",
        search,
        f"Chosen, under {CHOSEN_UNDER}:",
        "\n".join(sentences),
        printed_table(summary_rows(study, []), metrics, "github"),
        "\n".join(verdict_lines(study, config)),
    ]
    text = "\n\n".join(words)
    search_figure(rows, metrics[0], path=folder / "search.png")
    write_csv(folder / "search.csv", rows)
    write_atomic(folder / "report.md", f"# {folder.name}\n\n{text}\n\n![the search](search.png)\n")
    show(f"{text}\nReport: {folder / 'report.md'}")


@guarded
def search_figure(rows: list[dict], metric: Metric, path: Path):
    """The metric against the learning rate, a line per strategy and weight; the choices are filled points."""
    with drawing(path, (9, 3.8), 1, len(SAMPLERS), sharey=True) as axes:
        for axis, sampler in zip(axes.flat, SAMPLERS, strict=True):
            for strategy, color in strategy_colors(STRATEGIES).items():
                mine = [row for row in rows if row["strategy"] == strategy]
                for place, weight in enumerate(dict.fromkeys(row["weight"] for row in mine)):
                    line = sorted((row["learning_rate"], row[sampler]) for row in mine if row["weight"] == weight)
                    style = ("-", "--", ":", "-.")[place % 4]
                    label = strategy if weight is None else f"{strategy}, weight {weight:g}"
                    axis.plot(*zip(*line, strict=True), "o", ls=style, color=color, mfc="none", label=label)
                best = next(row for row in mine if row["chosen"])
                axis.plot(best["learning_rate"], best[sampler], "o", color=color)
            rates = [row["learning_rate"] for row in rows]
            axis.set_xscale("log")
            label_log(axis.xaxis, min(rates), max(rates))
            metric_scale(axis, metric, [row[sampler] for row in rows])
            axis.set(xlabel="learning rate", title=f"{metric.column} in the search, {sampler} sampler")
        legend_below(axes)


def all_ended(arguments: tuple) -> bool:
    _, _, study, mining, seeds = arguments
    return ended_runs(study).issuperset(comparison.run_folder(study, name, seed) for name in mining for seed in seeds)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    config, seeds, name = comparison.resolve(options)
    folder = options.results / name
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is a study; choose another --name")
    searches = search_parts(options, name)  # all are checked before the first is trained
    if comparison.trains(options):  # the choices' too, whatever the search will find
        for strategy in STRATEGIES:
            comparison.check_here(options, config, options.results / f"{name}-{strategy}", len(seeds))
    statuses = comparison.run_studies(list(searches.values()))
    if options.check or not all(map(all_ended, searches.values())):
        return max(statuses)
    rows = found(searches, options, task_metrics(TASKS[config.dataset])[0])
    finals = {
        strategy: part(options, [setting], [strategy], f"{name}-{strategy}")
        for strategy, setting in chosen_settings(rows).items()
    }
    statuses = comparison.run_studies(list(finals.values()))
    studies = [study for _, _, study, _, _ in finals.values()]
    if not options.status and any(map(ended_runs, studies)):
        report(options, folder, config, rows, studies)
    return max(statuses)


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())

"""A metric against training compute over any studies, and mining against none at equal steps and equal FLOPs.

    python experiments/budget.py ladder-1250 ladder-5000 ladder-14000

A study is a folder, or the name of one in --results; its runs may have been made by an earlier version. All must agree
in everything but train_steps and mining. Runs without negatives are the baseline, whatever their strategy is called;
the others are called by their mode, and by those settings of the mining in which the studies differ.
Writes <results>/<name>/: budget.png, budget.md, and runs.csv and ratios.csv, which results/README.md explains.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.begin()


import argparse
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from diffusion_lib.config import check_name, setting_names
from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.flops import recorded_flops
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.run_folder import read_data, require_same_data, require_study, say_once
from diffusion_lib.system.arguments import Parser, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import EXIT_BAD_INPUT, ConfigError, exit_status, say
from diffusion_lib.system.files import write_atomic, write_csv
from diffusion_lib.tasks import TASKS
from experiments.analysis.figures import ERROR_LABEL, choose_scale, drawing, guarded, legend_below, strategy_colors
from experiments.analysis.metrics import Metric, chosen_metric
from experiments.analysis.runs import EndedRun, read_ended
from experiments.analysis.statistics import holm
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, scenario

TOLERANCE = 0.02  # of the FLOPs of two runs that count as equal
# The protocol's primary tests: val_mse at equal FLOPs, under each sampler, at these steps of adversarial.
PRIMARY_METRIC, PRIMARY_STEPS = "val_mse", (5_000, 10_000)
MIN_SEEDS = 3


class Run(NamedTuple):
    """A run that ended. strategy: what it is drawn and compared as. values: by sampler, nan where it diverged."""

    strategy: str
    seed: int
    steps: int
    flops: int
    status: str
    values: dict[str, float]
    folder: Path


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="a folder, or a name in --results")
    parser.add_argument("--metric", metavar="NAME", help="a column of the task's metrics; default: its first")
    parser.add_argument("--name", default="budget", help="of the folder to write (default budget)")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: results/ of this project")
    return parser.parse_args(arguments)


def read_comparable(studies: list[Path]) -> tuple[list[EndedRun], dict[Path, str]]:
    """As `read_ended`. Raises ConfigError where no run has ended, or two differ in more than budget and mining."""
    ended, damaged = read_ended(*studies)
    if not ended:
        nothing = f"no run in {', '.join(map(str, studies))} has ended; nothing to compare"
        raise ConfigError("; ".join(damaged.values()) or nothing)
    for run in ended:
        require_comparable(ended[0], run)
    return ended, damaged


def read_runs(ended: list[EndedRun], metric: Metric) -> list[Run]:
    """The runs that ended, each once."""
    settings, runs = mining_settings(ended), {}
    differing = [key for key, values in settings.items() if len(values) > 1]
    for folder, config, result in ended:
        samplers = result.get("samplers", {})
        values = {sampler: samplers.get(sampler, {}).get(metric.column, math.nan) for sampler in SAMPLERS}
        about = (strategy_name(config.mining, differing), result["seed"], config.train_steps)
        if about in runs:
            say(f"{folder} repeats {runs[about].folder}, and is left out")
        runs.setdefault(about, Run(*about, recorded_flops(folder), result["status"], values, folder))
    return [runs[key] for key in sorted(runs)]


def require_comparable(one: EndedRun, other: EndedRun):
    """Raises ConfigError where two runs differ in more than their budget and mining, or were made from other data."""
    require_same_data(other.folder, read_data(one.folder), f"It is compared with {one.folder}")
    here, there = ({**each.config.to_dict(), "train_steps": 0, "mining": {}} for each in (one, other))
    differing = [f"{key} {here[key]!r} and {there[key]!r}" for key in here if here[key] != there[key]]
    if differing:
        raise ConfigError(
            f"{one.folder} and {other.folder} differ in {', '.join(differing)}; allowed: train_steps and mining"
        )


def mining_settings(ended: list[EndedRun]) -> dict[str, set]:
    """By setting, the values that the runs with negatives have of it."""
    mined = [run.config.mining for run in ended if run.config.mining.mode != "none"]
    return {key: {getattr(mining, key) for mining in mined} for key in setting_names(MiningConfig)}


def shared_settings(ended: list[EndedRun]) -> str:
    """What all runs with negatives have in common and not by default, such as `weight 0.05`."""
    default = vars(MiningConfig())
    shared = {key: next(iter(values)) for key, values in mining_settings(ended).items() if len(values) == 1}
    return ", ".join(f"{key} {value}" for key, value in shared.items() if key != "mode" and value != default[key])


def strategy_name(mining: MiningConfig, differing: list[str]) -> str:
    """`baseline` without negatives, else the mode, and what of `differing` is not as by default."""
    if mining.mode == "none":
        return BASELINE
    own, default = vars(mining), vars(MiningConfig(mining.mode))
    return ", ".join([mining.mode, *(f"{key} {own[key]}" for key in differing if own[key] != default[key])])


def comparison_rows(runs: list[Run], metric: Metric, decides: bool) -> list[dict]:
    """Each strategy's runs of each budget against the baseline's, at equal steps and at equal FLOPs, paired by seed.

    decides: whether the metric is the task's first, which the protocol's verdict reads.
    """
    groups = {}
    for run in runs:
        groups.setdefault((run.strategy, run.steps), {})[run.seed] = run
    rows = []
    for (strategy, steps), treated in groups.items():
        if strategy == BASELINE:
            continue
        for matched, baseline in (("steps", groups.get((BASELINE, steps))), ("FLOPs", equal_flops(groups, treated))):
            seeds = sorted(treated.keys() & (baseline or {}).keys())
            ruled = decides and (strategy, matched) == (ADVERSARIAL, "FLOPs")
            for sampler in SAMPLERS if seeds else ():
                rows.append(comparison(matched, sampler, treated, baseline, seeds, metric, ruled))
    rows.sort(key=lambda row: (row["strategy"], row["matched"], row["sampler"], row["train_steps"]))
    return with_primary_tests(rows, metric)


def equal_flops(groups: dict, treated: dict[int, Run]) -> dict[int, Run] | None:
    """The baseline's runs, by seed, whose FLOPs are nearest to those of `treated`, if they count as equal."""
    wanted = flops(treated)
    baselines = [group for (strategy, _), group in groups.items() if strategy == BASELINE]
    nearest = min(baselines, key=lambda group: abs(flops(group) / wanted - 1), default=None)
    return nearest if nearest and abs(flops(nearest) / wanted - 1) <= TOLERANCE else None


def flops(group: dict[int, Run]) -> int:
    """Of one of the group's runs: all have the same."""
    return next(iter(group.values())).flops


def comparison(
    matched: str,
    sampler: str,
    treated: dict[int, Run],
    baseline: dict[int, Run],
    seeds: list[int],
    metric: Metric,
    ruled: bool,
) -> dict:
    """A row; `ruled`: whether the protocol's rule gives a verdict on it."""
    pairs = [(treated[seed].values[sampler], baseline[seed].values[sampler]) for seed in seeds]
    pairs = [pair for pair in pairs if not metric.zeros(pair)]  # an error of exactly 0 has no ratio
    found = metric.compare([one for one, _ in pairs], [other for _, other in pairs])
    one, other = treated[seeds[0]], baseline[seeds[0]]
    diverged = sum(not math.isfinite(run.values[sampler]) for run in treated.values())
    return {
        "strategy": one.strategy,
        "matched": matched,
        "sampler": sampler,
        "train_steps": one.steps,
        "baseline_steps": other.steps,
        "train_flops": one.flops,
        "baseline_flops": other.flops,
        "n": found.n,
        metric.effect: metric.value(found),
        f"{metric.effect}_low": found.low,
        f"{metric.effect}_high": found.high,
        "ahead": sum(metric.better(*pair) for pair in pairs),
        "p": found.p,
        "p_signflip": found.p_signflip,
        "p_wilcoxon": found.p_wilcoxon,
        "verdict": (ruled and scenario(metric, found, diverged)) or "",
    }


def with_primary_tests(rows: list[dict], metric: Metric) -> list[dict]:
    """`p_holm` for the protocol's primary tests, over all of their family: one that is not there counts as p = 1."""
    primary = [row for row in rows if metric.column == PRIMARY_METRIC and is_primary(row)]
    missing = len(PRIMARY_STEPS) * len(SAMPLERS) - len(primary)
    adjusted = holm([*(1.0 if math.isnan(row["p"]) else row["p"] for row in primary), *[1.0] * missing])
    for row in rows:
        row["p_holm"] = float(adjusted[primary.index(row)]) if row in primary else ""
    return rows


def is_primary(row: dict) -> bool:
    return row["strategy"] == ADVERSARIAL and row["matched"] == "FLOPs" and row["train_steps"] in PRIMARY_STEPS


def endings(rows: list[dict], metric: Metric) -> list[str]:
    """For each kind of match and sampler, the budgets at which adversarial's whole interval is on the better side."""
    sentences = []
    for matched in ("steps", "FLOPs"):
        for sampler in SAMPLERS:
            chosen = [r for r in rows if (r["strategy"], r["matched"], r["sampler"]) == (ADVERSARIAL, matched, sampler)]
            chosen = [row for row in chosen if row["n"] >= MIN_SEEDS]
            if chosen:
                words = where_ahead(chosen, metric)
                sentences.append(f"At equal {matched}, {sampler} sampler: adversarial is {words}.")
    return sentences or [f"Adversarial and baseline share {MIN_SEEDS} seeds at no budget yet."]


def where_ahead(rows: list[dict], metric: Metric) -> str:
    """rows: of one match and sampler, by steps."""
    low, high = f"{metric.effect}_low", f"{metric.effect}_high"
    ahead = [row for row in rows if (row[low] > 0 if metric.rate else row[high] < 1)]
    others = [row for row in rows if row not in ahead]
    if not ahead:
        return "ahead at no budget (steps: " + ", ".join(f"{row['train_steps']:,}" for row in rows) + ")"
    if ahead != rows[: len(ahead)]:
        return f"ahead at {listed(ahead, metric)}, but not at {listed(others, metric)}"
    words = f"ahead up to {ahead[-1]['train_steps']:,} steps, {shown(ahead[-1], metric)}"
    return f"{words}, and no longer at {listed(others[:1], metric)}" if others else f"{words}, the largest budget"


def listed(rows: list[dict], metric: Metric) -> str:
    return "; ".join(f"{row['train_steps']:,}, {shown(row, metric)}" for row in rows)


def shown(row: dict, metric: Metric) -> str:
    return metric.effect_words(*(row[metric.effect + ending] for ending in ("", "_low", "_high")))


@guarded
def budget_figure(runs: list[Run], metric: Metric, path: Path):
    """The metric against training FLOPs under both samplers: each run a point, lines through the means."""
    strategies, name = list(dict.fromkeys(run.strategy for run in runs)), metric.column
    with drawing(path, (9, 3.8), 1, len(SAMPLERS), sharey=True) as axes:
        for axis, sampler in zip(axes.flat, SAMPLERS, strict=True):
            for strategy, color in strategy_colors(strategies).items():
                chosen = [run for run in runs if run.strategy == strategy and np.isfinite(run.values[sampler])]
                axis.plot(*points(chosen, sampler), "o", ms=3.5, alpha=0.6, color=color, label=f"{strategy}, a run")
                label = "mean" if metric.rate else "geometric mean"
                axis.plot(*means(chosen, sampler, metric), "-", lw=1.2, color=color, label=label)
            axis.set(xlabel="training FLOPs", title=f"{name}, {sampler} sampler")
            choose_scale(axis, "x", [run.flops for run in runs])
            choose_scale(axis, "y", [value for run in runs for value in run.values.values()])
        axes[0, 0].set_ylabel(ERROR_LABEL if name.endswith("mse") else name.replace("_", " "))
        legend_below(axes)


def points(runs: list[Run], sampler: str) -> tuple[list, list]:
    return [run.flops for run in runs], [run.values[sampler] for run in runs]


def means(runs: list[Run], sampler: str, metric: Metric) -> tuple[list, list]:
    """FLOPs and mean of each budget, in order."""
    by_flops = {}
    for run in runs:
        by_flops.setdefault(run.flops, []).append(run.values[sampler])
    order = sorted(by_flops)
    return order, [metric.mean(by_flops[flops]).mean for flops in order]


def run_table(runs: list[Run], metric: Metric, folder: Path) -> list[dict]:
    """A row per run and sampler; the runs' folders seen from `folder`, so that results may be moved as a whole."""
    return [
        {
            "strategy": run.strategy,
            "seed": run.seed,
            "sampler": sampler,
            "status": run.status,
            "train_steps": run.steps,
            "train_flops": run.flops,
            metric.column: value,
            "run": os.path.relpath(run.folder, folder),
        }
        for run in runs
        for sampler, value in run.values.items()
    ]


def comparison_table(rows: list[dict], metric: Metric) -> str:
    """The comparisons as a markdown table."""
    headers = (
        "strategy",
        "equal",
        "sampler",
        "steps",
        "baseline's",
        "FLOPs",
        "n",
        f"{metric.effect} [95%]",
        "ahead",
        "p",
        "p (Holm)",
        "p (sign flip)",
        "verdict",
    )
    cells = [
        [
            *(row[key] for key in ("strategy", "matched", "sampler")),
            *(f"{row[key]:,}" for key in ("train_steps", "baseline_steps")),
            f"{row['train_flops']:.3g}",
            row["n"],
            shown(row, metric),
            row["ahead"],
            f"{row['p']:.3g}",
            f"{row['p_holm']:.3g}" if row["p_holm"] != "" else "",
            f"{row['p_signflip']:.3g}",
            row["verdict"],
        ]
        for row in rows
    ]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    studies = [Path(word) if Path(word).is_dir() else options.results / word for word in options.studies]
    folder = options.results / check_name(options.name)
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is a study; choose another --name")
    for study in studies:
        require_study(study)
    ended, damaged = read_comparable(studies)
    task = TASKS[ended[0].config.dataset]
    metric = chosen_metric(task, options.metric)
    header(studies=" ".join(options.studies), metric=metric.column, folder=folder)
    runs = read_runs(ended, metric)
    rows = comparison_rows(runs, metric, decides=metric == chosen_metric(task, None))
    budget_figure(runs, metric, path=folder / "budget.png")
    write_csv(folder / "runs.csv", run_table(runs, metric, folder))
    write_csv(folder / "ratios.csv", rows)
    sentences = "\n".join(endings(rows, metric))
    what = "differences of means to the baseline's" if metric.rate else "ratios of geometric means to the baseline's"
    mining = shared_settings(ended)
    about = f"{what}, paired by seed{f'; all mining with {mining}' if mining else ''}"
    text = f"{metric.column}: {about}\n\n{comparison_table(rows, metric)}\n\n"
    write_atomic(folder / "budget.md", f"{text}{sentences}\n\n![{metric.column} against FLOPs](budget.png)\n")
    print(f"{text}{sentences}\nWritten: {folder}")
    for reason in damaged.values():
        say_once(f"left out: {reason}")
    return EXIT_BAD_INPUT if damaged else 0


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())

"""The MLP at one learning rate and every budget that was run: errors, ratios, and what the text says of them."""

import math
from functools import cache
from pathlib import Path

from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.system.files import read_csv
from experiments.analysis.metrics import Metric
from experiments.analysis.references import REGRESSION
from experiments.analysis.verdict import ADVERSARIAL, BASELINE
from experiments.budget import (
    PRIMARY_METRIC,
    PRIMARY_STEPS,
    Run,
    comparison_rows,
    is_primary,
    read_comparable,
    read_runs,
)
from experiments.pages.words import (
    change_words,
    mean_words,
    p_words,
    ratio_words,
    summary_row,
    table,
    verdict_cells,
    with_interval,
)

METRICS = ("val_mse", "ood_mse", "recon_error")
RATIO_COLUMNS = ("ratio", "ratio_low", "ratio_high", "ahead", "n")


@cache
def ladder_runs(root: Path, metric: str = "val_mse") -> list[Run]:
    """The runs of all budgets. Raises ConfigError where none is published."""
    return read_runs(read_comparable(sorted(root.glob("ladder-*/")))[0], Metric(metric))


@cache
def ladder_rows(root: Path, metric: str = PRIMARY_METRIC) -> list[dict]:
    """The comparisons of all budgets."""
    return comparison_rows(ladder_runs(root, metric), Metric(metric), decides=metric == PRIMARY_METRIC)


def means_table(root: Path) -> str:
    """A row per strategy and budget: geometric means over seeds with their 95% intervals."""
    metric, groups = Metric("val_mse"), {}
    for run in ladder_runs(root):
        groups.setdefault((run.steps, run.strategy), []).append(run)
    rows = []
    for (steps, strategy), runs in sorted(groups.items()):
        errors = [mean_words(metric.mean([run.values[sampler] for run in runs])) for sampler in SAMPLERS]
        rows.append([strategy, f"{steps:,}", f"{runs[0].flops:.2g}", len(runs), *errors])
    return table(rows, ("strategy", "steps", "FLOPs", "seeds", "val_mse, plain", "val_mse, inner loop"))


def rises_table(root: Path) -> str:
    """A row per strategy and budget: how far the runs' denoising loss rose again, least and most over seeds."""
    groups = {}
    for run in ladder_runs(root):
        groups.setdefault((run.strategy, run.steps), []).append(loss_rise(run.folder))
    rows = [
        [strategy, f"{steps:,}", len(rises), f"{min(rises):.2f}", f"{max(rises):.2f}"]
        for (strategy, steps), rises in sorted(groups.items())
    ]
    return table(rows, ("strategy", "steps", "seeds", "least rise", "largest rise"))


@cache
def loss_rise(folder: Path) -> float:
    """The largest ratio of a row's denoising loss in metrics.csv to the least before it, past a fifth of the rows."""
    losses = [row["loss_denoise"] for row in read_csv(folder / "metrics.csv", "loss_denoise")]
    first = len(losses) // 5 + 1
    return max(losses[i] / min(losses[:i]) for i in range(first, len(losses)))


def secondary_table(root: Path, metric: str) -> str:
    return ratios_table(metric, ratio_cells(root, metric))


def ratios_table(metric: str, cells: list[list[str]]) -> str:
    samplers = ("plain sampler; seeds ahead", "IRED's inner loop; seeds ahead")
    return table(cells, (f"{metric}, adversarial against baseline, steps", "equal", *samplers))


def ratio_cells(root: Path, metric: str = "val_mse") -> list[list[str]]:
    """Adversarial over baseline at each budget, at equal FLOPs and at equal steps, paired by seed."""
    found = {}
    for row in ladder_rows(root, metric):
        if row["strategy"] == ADVERSARIAL:
            found.setdefault((row["matched"], row["train_steps"], row["baseline_steps"]), {})[row["sampler"]] = row
    return [
        [
            f"{steps:,} against {baseline:,}",
            matched,
            *(ratio_words(*(row[sampler][key] for key in RATIO_COLUMNS)) for sampler in SAMPLERS),
        ]
        for (matched, steps, baseline), row in sorted(found.items())
    ]


def verdict_rows(root: Path) -> list[list[str]]:
    """Adversarial against the baseline at equal FLOPs: the primary comparisons, then the other budgets."""
    rows = [row for row in ladder_rows(root) if row["verdict"]]
    rows.sort(key=lambda row: (not is_primary(row), row["train_steps"], row["sampler"] != "plain"))
    return [
        verdict_cells(
            f"MLP{', primary' if is_primary(row) else ''}",
            row["train_steps"],
            row["baseline_steps"],
            row["sampler"],
            ratio_words(*(row[key] for key in RATIO_COLUMNS)),
            p_words(row["p"], row["p_holm"]),
            row["verdict"],
        )
        for row in rows
    ]


def answer_words(root: Path) -> list[str]:
    """The primary comparison, the longest runs, single ones, and what needs no training, in the README's words."""
    words = []
    for metric in METRICS:
        for row in filter(is_primary, ladder_rows(root, metric)):
            if metric == PRIMARY_METRIC:
                words.append(change_words(row["ratio"]))
            elif (row["sampler"], row["train_steps"]) == ("innerloop", PRIMARY_STEPS[0]):
                words.append(f"{metric} {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]")
    return [*words, *longest_words(root), *run_words(root), *reference_words(root)]


def longest_words(root: Path) -> list[str]:
    """Adversarial over the baseline at the most steps that both were trained, under each sampler."""
    rows = [row for row in ladder_rows(root) if (row["strategy"], row["matched"]) == (ADVERSARIAL, "steps")]
    most = max(row["train_steps"] for row in rows)
    return [
        with_interval(f"{row['ratio']:.3f}", row["ratio_low"], row["ratio_high"], "{:.3f}")
        for row in rows
        if row["train_steps"] == most
    ]


def run_words(root: Path) -> list[str]:
    runs = ladder_runs(root)
    baselines = [run for run in runs if (run.strategy, run.steps) == (BASELINE, PRIMARY_STEPS[0])]
    worst = max(run.values["innerloop"] for run in baselines)
    mined = [loss_rise(run.folder) for run in runs if (run.strategy, run.steps) == (ADVERSARIAL, PRIMARY_STEPS[-1])]
    others = max(loss_rise(run.folder) for run in runs if run.strategy != ADVERSARIAL)
    return [
        f"({worst:.4f})",
        f"{min(mined):.1f} to {max(mined):.1f} times its least value",
        f"never by more than {math.ceil(100 * (others - 1))}%",
    ]


def reference_words(root: Path) -> list[str]:
    summary = root / "ladder-5000.summary.csv"
    regression = summary_row(summary, REGRESSION, "val_mse_mean")["val_mse_mean"]
    zero = summary_row(summary, "zero matrix", "recon_error_mean")["recon_error_mean"]
    best = min(error for run in ladder_runs(root, "recon_error") for error in run.values.values())
    return [
        f"a linear regression reaches {regression:.4f}",
        f"{best / zero:.1f} times that of answering zero ({zero:.2f})",
    ]

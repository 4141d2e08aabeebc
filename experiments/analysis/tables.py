"""From the folders of the runs to rows, and from rows to the summary and the printed table."""

import math
from pathlib import Path

import numpy as np
from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.flops import recorded_flops
from experiments.analysis.metrics import Metric, number
from experiments.analysis.runs import read_ended
from experiments.analysis.statistics import Paired, compare_to_baseline, interquartile_mean, with_holm
from experiments.study.study import Pair, Study, known_strategy

EXTRA = ("energy_auc_random", "energy_auc_adversarial")
COSTS = ("train_seconds", "steps_per_second", "train_flops", "peak_memory_bytes", "parameters")
HEADLINE_SAMPLER = "plain"
BOOTSTRAP_SEED = 161803
SCREEN = 150  # columns of the printed table, at most


def run_rows(study: Path) -> list[dict]:
    """A row per strategy, seed and sampler of the runs that ended; a failed run's metrics are nan.

    A sampler that no run has, since the model has no energy, has no rows; nor has a run whose files are damaged.
    """
    runs, _ = read_ended(study)
    runs.sort(key=lambda run: (run.result["strategy"], run.result["seed"]))
    samplers = [name for name in SAMPLERS if any(name in run.samplers for run in runs)]
    measured = {name: math.nan for run in runs for part in run.samplers.values() for name in part}
    return [
        {
            "strategy": run.result["strategy"],
            "seed": run.result["seed"],
            "sampler": sampler,
            "status": run.result["status"],
            "train_steps": run.config.train_steps,
            **measured,
            **run.samplers.get(sampler, {}),
            **{name: run.result.get(name, math.nan) for name in COSTS},
            **({"train_flops": recorded_flops(run.folder)} if run.samplers else {}),  # also of an earlier version's
            "run": str(run.folder.relative_to(study)),
        }
        for run in runs
        for sampler in samplers or SAMPLERS
    ]


class Results:
    """The rows of a study as arrays over its seeds; nan where a run is absent or failed.

    study: whose strategies are compared; without one the usual names say how. metrics: the task's. mean_error: the mean
    predictor's first metric, where that is an error: a run with a larger one is spoiled.
    """

    def __init__(
        self, rows: list[dict], study: Study | list[str], metrics: tuple[Metric, ...], mean_error: float = math.nan
    ):
        present = {row["strategy"] for row in rows}
        self.rows, self.metrics, self.mean_error = rows, metrics, mean_error
        if not isinstance(study, Study):
            study = Study("", {}, [], {name: known_strategy(name) for name in study if name in present})
        labels = [name for name in study.variants() if name in present]
        self.strategies = labels + sorted(present - set(labels))
        self.seeds = sorted({row["seed"] for row in rows})
        self.samplers = [name for name in SAMPLERS if name in {row["sampler"] for row in rows}]
        self.treated, self.base = study.compare[0], study.base()
        self.bases = {name: base for name, base in study.bases().items() if {name, base} <= present}
        pairs = {sampler: study.pairs(sampler) for sampler in SAMPLERS}
        self.pairs = {s: [pair for pair in each if present.issuperset(pair[1:])] for s, each in pairs.items()}

    def values(self, column: str, sampler: str) -> dict[str, np.ndarray]:
        """By strategy, a column under one sampler (seeds,)."""
        found = {name: np.full(len(self.seeds), np.nan) for name in self.strategies}
        for row in self.rows:
            if row["sampler"] == sampler:
                found[row["strategy"]][self.seeds.index(row["seed"])] = row.get(column, np.nan)
        return found

    def count(self, strategy: str, status: str | None = None) -> int:
        return sum(
            row["strategy"] == strategy and row["sampler"] == HEADLINE_SAMPLER and status in (None, row["status"])
            for row in self.rows
        )

    def measured(self, metric: Metric, sampler: str) -> bool:
        """Whether any run has a finite value: a metric that none has is not defined on these problems."""
        return any(np.isfinite(row).any() for row in self.values(metric.column, sampler).values())

    def diverged(self, strategy: str, metrics, samplers) -> int:
        """How many of its runs failed, or lack a finite value of one of the metrics under one of the samplers."""
        asked = [(each, name) for each in metrics for name in samplers if self.measured(each, name)]
        lacking = {
            row["seed"]
            for row in self.rows
            if row["strategy"] == strategy
            and (
                row["status"] == "failed"
                or any(name == row["sampler"] and not np.isfinite(row.get(m.column, np.nan)) for m, name in asked)
            )
        }
        return len(lacking)

    def spoiled(self, strategy: str, sampler: str) -> int | str:
        """How many of its runs have a larger error than the mean predictor; nothing where no error decides."""
        if math.isnan(self.mean_error):
            return ""
        return int(np.sum(self.values(self.metrics[0].column, sampler)[strategy] > self.mean_error))

    def train_steps(self, strategy: str) -> list[int]:
        """The numbers of steps of a strategy's runs: one, unless a run was trained otherwise."""
        return sorted({row["train_steps"] for row in self.rows if row["strategy"] == strategy})

    def comparisons(self, metric: Metric, sampler: str) -> dict[str, Paired]:
        """Each strategy's comparison with its base, one Holm family; none of errors that are exactly 0."""
        found = {
            name: pair
            for name in self.strategies
            if name in self.bases and (pair := self.comparison(name, self.bases[name], metric, sampler))
        }
        return with_holm(found)

    def pair(self, account: str | None = None) -> dict[str, Pair]:
        """By sampler, the pair that decides: the first, or the first of an account; nothing where none is."""
        found = {
            sampler: next((pair for pair in pairs if account in (None, pair.account)), None)
            for sampler, pairs in self.pairs.items()
        }
        return {sampler: pair for sampler, pair in found.items() if pair}

    def label(self, sampler: str) -> str | None:
        """The label of the treatment that decides under a sampler; None where it was not run."""
        pair = self.pair().get(sampler)
        return pair.treated if pair else self.treated if self.treated in self.strategies else None

    def comparison(self, strategy: str, baseline: str, metric: Metric, sampler: str) -> Paired | None:
        """One strategy against another, a family of its own."""
        values = self.values(metric.column, sampler)
        pair = {name: values[name] for name in (strategy, baseline) if name in values}
        if len(pair) < 2 or any(map(metric.zeros, pair.values())):
            return None
        return compare_to_baseline(pair, baseline, metric.compare)[strategy]


def tidy_rows(study: Study, name: str, task: str, config: ExperimentConfig) -> list[dict]:
    """One row for each value of each run; what no sampler decides stands once, without a sampler."""
    metrics, tidy = tuple(metric.column for metric in study.metrics), []
    for row in study.rows:
        setting, _, setting_value = row["strategy"].partition(",")[2].partition("=")
        about = {
            "study": name,
            "model": config.model,
            "task": task,
            "rank": config.rank,
            "strategy": row["strategy"],
            "setting": setting if setting_value else "",
            "setting_value": setting_value,
            "seed": row["seed"],
        }
        parts = {row["sampler"]: metrics} | ({"": EXTRA + COSTS} if row["sampler"] == HEADLINE_SAMPLER else {})
        for sampler, columns in parts.items():
            tidy += [
                {**about, "sampler": sampler, "metric": column, "value": row.get(column, math.nan)}
                for column in columns
            ]
    return tidy


def summary_rows(study: Study, references: list[dict]) -> list[dict]:
    """A row per strategy and sampler, with each metric's means and comparison with the baseline; then references."""
    rows = []
    for sampler in study.samplers:
        values = {name: study.values(name, sampler) for name in (*_columns(study.metrics), *EXTRA, *COSTS)}
        comparisons = {metric: study.comparisons(metric, sampler) for metric in study.metrics}
        for strategy in study.strategies:
            row = {
                "strategy": strategy,
                "sampler": sampler,
                "n": study.count(strategy, "finished"),
                "failed": study.count(strategy, "failed"),
                "spoiled": study.spoiled(strategy, sampler),
            }
            for metric in study.metrics:
                columns = _mean_columns(metric, values[metric.column][strategy])
                if strategy in comparisons[metric]:
                    columns |= metric.columns(comparisons[metric][strategy])
                row |= {f"{metric.column}_{ending}": value for ending, value in columns.items()}
            row |= {f"{name}_mean": _finite_mean(values[name][strategy]) for name in EXTRA + COSTS}
            rows.append(row)
    columns = _columns(study.metrics)
    return rows + [
        {(f"{key}_mean" if key in columns else key): value for key, value in row.items() if key != "examples"}
        for row in references
    ]


def _columns(metrics) -> list[str]:
    return [metric.column for metric in metrics]


def _mean_columns(metric: Metric, values: np.ndarray) -> dict:
    """What the summary says of a metric's values (seeds,), by the endings of the columns."""
    mean = metric.mean(values)
    middle = interquartile_mean(values, np.random.default_rng(BOOTSTRAP_SEED))
    return {
        "n": mean.n,
        "zeros": metric.zeros(values),
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "iqm": middle.point,
        "iqm_low": middle.low,
        "iqm_high": middle.high,
    }


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def format_table(summary: list[dict], metrics: tuple[Metric, ...], base: str, style: str = "simple") -> str:
    """All metrics that any row has, as a table, with effects in relation to the strategy `base`.

    style: one of tabulate's ('github', 'latex_booktabs', …).
    """
    first, *others = defined(metrics, summary, "_mean")
    headers = [
        *("strategy", "sampler", "n", f"{first.column} [95% interval]", f"{first.effect} to {base}", "Holm p"),
        *_columns(others),
        "train s",
    ]
    return tabulate(table_cells(summary, [first, *others], base), headers, tablefmt=style, disable_numparse=True)


def printed_table(summary: list[dict], metrics: tuple[Metric, ...], base: str, style: str = "simple") -> str:
    """The table of the first metrics that a screen is wide enough for: see `first_metrics`."""
    shown = first_metrics(defined(metrics, summary, "_mean"))
    while True:
        table = format_table(summary, shown, base, style)
        if len(shown) == 1 or max(map(len, table.splitlines())) <= SCREEN:
            return table
        shown = shown[:-1]


def defined(metrics: tuple[Metric, ...], rows: list[dict], ending: str = "") -> list[Metric]:
    """The metrics that any row has in the column with that ending: some sets have no problem of some kinds."""
    found = [m for m in metrics[1:] if any(math.isfinite(row.get(m.column + ending, math.nan)) for row in rows)]
    return [metrics[0], *found]


def first_metrics(metrics: list[Metric]) -> list[Metric]:
    """The first three of each difficulty at most, those that a table keeps longest first.

    That is the one that decides, on both difficulties; then the others on the usual one, then on the harder one.
    """
    usual, harder = ([m for m in metrics if m.column.startswith("ood_") is ood][:3] for ood in (False, True))
    return [*usual[:1], *harder[:1], *usual[1:], *harder[1:]]


def table_cells(summary: list[dict], metrics: list[Metric], base: str) -> list[list[str]]:
    """The summary as the cells of a table."""
    first, *others = metrics
    return [
        [
            row["strategy"],
            row["sampler"],
            runs_cell(row),
            mean_cell(row, first, interval=True),
            effect_cell(row, first, base),
            *([f"{p:.2g}"] if math.isfinite(p := row.get(f"{first.column}_p_holm", math.nan)) else [""]),
            *(mean_cell(row, metric) for metric in others),
            f"{seconds:.0f}" if math.isfinite(seconds := row.get("train_seconds_mean", math.nan)) else "",
        ]
        for row in summary
    ]


def runs_cell(row: dict) -> str:
    """`5`, or `4 (1 failed, 1 spoiled)`."""
    apart = ", ".join(f"{row[name]} {name}" for name in ("failed", "spoiled") if row.get(name))
    return f"{row.get('n', '')}{f' ({apart})' if apart else ''}"


def mean_cell(row: dict, metric: Metric, interval: bool = False) -> str:
    """The mean, its interval, and what stands behind it where that is not all finished runs."""
    name = metric.column
    if row.get(f"{name}_zeros"):
        return f"0 in {row[f'{name}_zeros']} of {row[f'{name}_n']} runs"
    cell = number(row.get(f"{name}_mean"))
    if interval and math.isfinite(row.get(f"{name}_low", math.nan)):
        cell += f" [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"
    if row.get(f"{name}_n", row.get("n")) != row.get("n"):
        cell += f" ({row[f'{name}_n']} of {row['n']} finite)"
    return cell


def effect_cell(row: dict, metric: Metric, base: str) -> str:
    """`0.752× [0.681, 0.824]`; '-' for a strategy without one, nothing for the baseline and references."""
    start = f"{metric.column}_{metric.effect}"
    if "failed" not in row or row["strategy"].partition(",")[0] == base:
        return ""
    return metric.effect_words(*(row.get(start + ending, math.nan) for ending in ("", "_low", "_high")))


def original_pairing(study: Study) -> str:
    """The comparison as first proposed, in one line: each strategy under a sampler of its own."""
    samplers = {"baseline": "plain", "random": "plain", "adversarial": "innerloop"}
    metric = study.metrics[0]
    means = {
        f"{strategy}/{sampler}": metric.mean(study.values(metric.column, sampler)[strategy]).mean
        for strategy, sampler in samplers.items()
        if strategy in study.strategies
    }
    parts = ", ".join(f"{name} {number(mean)}" for name, mean in means.items())
    return f"Original pairing of strategy and sampler, {metric.column}: {parts}"

"""From the folders of the runs to rows, and from rows to the summary and the printed table."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.system.files import read_json
from diffusion_lib.training.run_folder import read_result, run_folders
from experiments.analysis.statistics import compare_to_baseline, mean_interval
from experiments.analysis.verdict import BASELINE, StrategyEvidence

METRICS = ("val_mse", "ood_mse", "recon_error", "ood_recon_error")
EXTRA = ("energy_auc_random", "energy_auc_adversarial")
COSTS = ("train_seconds", "steps_per_second", "peak_memory_bytes", "parameters")
HEADLINE_SAMPLER = "plain"
BOOTSTRAP_SEED = 161803


def run_rows(study: Path) -> list[dict]:
    """A row per strategy, seed and sampler of the runs that ended; a failed run's metrics are nan."""
    rows = []
    for folder in sorted(run_folders(study), key=lambda f: (f.parent.name, int(f.name[5:]))):
        result = read_result(folder)
        if not result:
            continue
        steps = read_json(folder / "config.json")["config"]["train_steps"]
        for sampler in SAMPLERS:
            metrics = result.get("samplers", {}).get(sampler, {})
            rows.append(
                {
                    "strategy": result["strategy"],
                    "seed": result["seed"],
                    "sampler": sampler,
                    "status": result["status"],
                    "train_steps": steps,
                    **{name: metrics.get(name, math.nan) for name in METRICS + EXTRA},
                    **{name: result.get(name, math.nan) for name in COSTS},
                    "run": str(folder.relative_to(study)),
                }
            )
    return rows


class Study:
    """The rows of a study as arrays (strategies, seeds); nan where a run is absent or failed."""

    def __init__(self, rows: list[dict], strategies: list[str]):
        present = {row["strategy"] for row in rows}
        self.rows = rows
        self.strategies = [name for name in strategies if name in present] + sorted(present - set(strategies))
        self.seeds = sorted({row["seed"] for row in rows})

    def values(self, metric: str, sampler: str) -> np.ndarray:
        array = np.full((len(self.strategies), len(self.seeds)), np.nan)
        for row in self.rows:
            if row["sampler"] == sampler:
                array[self.strategies.index(row["strategy"]), self.seeds.index(row["seed"])] = row[metric]
        return array

    def count(self, strategy: str, status: str | None = None) -> int:
        return sum(
            row["strategy"] == strategy and row["sampler"] == HEADLINE_SAMPLER and status in (None, row["status"])
            for row in self.rows
        )

    def comparisons(self, metric: str, sampler: str) -> dict:
        """PairedDifference to the baseline, by strategy; empty where the baseline has no runs."""
        if BASELINE not in self.strategies:
            return {}
        generator = np.random.default_rng(BOOTSTRAP_SEED)
        return compare_to_baseline(self.values(metric, sampler), self.strategies, BASELINE, generator)

    def evidence(self) -> list[StrategyEvidence]:
        """What the verdict needs, under the headline sampler."""
        recon, seconds = (
            dict(zip(self.strategies, self.values(m, HEADLINE_SAMPLER), strict=True))
            for m in ("recon_error", "train_seconds")
        )
        comparisons = self.comparisons("val_mse", HEADLINE_SAMPLER)
        return [
            StrategyEvidence(
                name,
                comparisons.get(name),
                _mean(recon[name]),
                _mean(seconds[name]) / _mean(seconds[BASELINE]),
                self.count(name, "failed"),
                self.count(name),
            )
            for name in self.strategies
        ]


def tidy_rows(rows: list[dict], study: str, config: ExperimentConfig) -> list[dict]:
    """One row for each value of each run; what no sampler decides stands once, without a sampler."""
    tidy = []
    for row in rows:
        setting, _, setting_value = row["strategy"].partition("=")
        about = {
            "study": study,
            "model": config.model,
            "task": "inverse",
            "rank": config.rank,
            "strategy": row["strategy"],
            "setting": setting if setting_value else "",
            "setting_value": setting_value,
            "seed": row["seed"],
        }
        parts = {row["sampler"]: METRICS} | ({"": EXTRA + COSTS} if row["sampler"] == HEADLINE_SAMPLER else {})
        for sampler, names in parts.items():
            tidy += [{**about, "sampler": sampler, "metric": name, "value": row[name]} for name in names]
    return tidy


def _mean(values) -> float:
    return mean_interval(values[np.isfinite(values)]).mean


def summary_rows(study: Study, references: list[dict]) -> list[dict]:
    """A row per strategy and sampler, with each metric's interval and paired difference, then the references."""
    rows = []
    for sampler in SAMPLERS:
        values = {metric: study.values(metric, sampler) for metric in METRICS + EXTRA + COSTS}
        comparisons = {metric: study.comparisons(metric, sampler) for metric in METRICS}
        for i, strategy in enumerate(study.strategies):
            row = {
                "strategy": strategy,
                "sampler": sampler,
                "n": study.count(strategy, "finished"),
                "failed": study.count(strategy, "failed"),
            }
            for metric in METRICS:
                finite = values[metric][i][np.isfinite(values[metric][i])]
                interval = asdict(mean_interval(finite))
                row |= {f"{metric}_{key}": interval[key] for key in ("mean", "std", "low", "high")}
                if strategy in comparisons[metric]:
                    row |= _difference_columns(metric, comparisons[metric][strategy])
            row |= {f"{name}_mean": _mean(values[name][i]) for name in EXTRA + COSTS}
            rows.append(row)
    for reference in references:
        rows.append(
            {
                "strategy": reference["strategy"],
                "sampler": "reference",
                **{f"{metric}_mean": reference[metric] for metric in METRICS},
            }
        )
    return rows


def _difference_columns(metric, comparison):
    names = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    return {f"{metric}_{names.get(key, key)}": value for key, value in asdict(comparison).items() if key != "n"}


HEADERS = (
    "strategy",
    "sampler",
    "n",
    "val_mse [95% interval]",
    "vs baseline, % better",
    "p (Holm)",
    "ood_mse",
    "recon_error",
    "ood recon",
    "train s",
)


def table_cells(summary: list[dict]) -> list[list[str]]:
    """The summary as the cells of the printed table."""
    cells = []
    for row in summary:
        interval, versus, p = _number(row["val_mse_mean"]), "", ""
        if _finite(row.get("val_mse_low")):
            interval += f" [{_number(row['val_mse_low'])}, {_number(row['val_mse_high'])}]"
        if _finite(row.get("val_mse_improvement_percent")):
            versus = f"{row['val_mse_improvement_percent']:+.2f}"
            if _finite(row["val_mse_improvement_low"]):
                versus += f" [{row['val_mse_improvement_low']:+.2f}, {row['val_mse_improvement_high']:+.2f}]"
                p = f"{row['val_mse_p_holm']:.3g}"
        seconds = row.get("train_seconds_mean", math.nan)
        cells.append(
            [
                row["strategy"],
                row["sampler"],
                str(row.get("n", "")),
                interval,
                versus,
                p,
                _number(row["ood_mse_mean"]),
                _number(row["recon_error_mean"]),
                _number(row["ood_recon_error_mean"]),
                f"{seconds:.0f}" if _finite(seconds) else "",
            ]
        )
    return cells


def format_table(summary: list[dict], style: str = "simple") -> str:
    """The printed table; `style` is one of tabulate's ('github', 'latex_booktabs', …)."""
    return tabulate(table_cells(summary), HEADERS, tablefmt=style, disable_numparse=True)


def original_pairing(study: Study) -> str:
    """The comparison as first proposed, in one line: each strategy under a sampler of its own."""
    samplers = {"baseline": "plain", "random": "plain", "adversarial": "innerloop"}
    parts = []
    for strategy, sampler in samplers.items():
        if strategy in study.strategies:
            values = study.values("val_mse", sampler)[study.strategies.index(strategy)]
            parts.append(f"{strategy}/{sampler} {_number(_mean(values))}")
    return "Original pairing of strategy and sampler, val_mse: " + ", ".join(parts)


def _finite(value) -> bool:
    return value is not None and math.isfinite(value)


def _number(value) -> str:
    return f"{value:.4g}" if _finite(value) else "-"

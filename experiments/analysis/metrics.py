"""The metrics of a study: their columns in runs.csv, and the scale on which each is compared."""

from dataclasses import dataclass, fields
from math import isfinite

import numpy as np

from diffusion_lib.names import DIFFICULTIES, column
from experiments.analysis.statistics import (
    ROUNDING,
    Mean,
    Paired,
    difference,
    geometric_mean,
    mean_rate,
    mean_score,
    ratio,
    score_difference,
)


@dataclass(frozen=True)
class Metric:
    """A task's metric at one difficulty. `rate`: higher is better; else a positive error. `share`: a rate in [0, 1]."""

    column: str
    rate: bool = False
    share: bool = True

    @property
    def effect(self) -> str:
        """The name of what a comparison estimates: a `difference` in percentage points, or a `ratio`."""
        return "difference" if self.rate else "ratio"

    def zeros(self, values) -> int:
        """Count the errors that are exactly 0, which have no ratio; of rates none count."""
        return 0 if self.rate else int(np.sum(np.asarray(values) == 0))

    def possible(self, value: float) -> bool:
        """Return whether a run can have the value: no error is negative, and a share lies in [0, 1]."""
        return not (value < 0 if not self.rate else self.share and (value < -ROUNDING or value > 1 + ROUNDING))

    def mean(self, values) -> Mean:
        """Return the geometric mean of errors or the mean of rates, with interval; nan where an error is exactly 0."""
        if self.zeros(values):
            return Mean(int(np.isfinite(values).sum()), np.nan, np.nan, np.nan)
        if not self.rate:
            return geometric_mean(values)
        return (mean_rate if self.share else mean_score)(values)

    @property
    def compare(self):
        """The function of statistics.py that compares it: `difference`, `score_difference` or `ratio`."""
        if not self.rate:
            return ratio
        return difference if self.share else score_difference

    def effect_words(self, effect: float, low: float, high: float) -> str:
        """Write an effect: `0.752× [0.681, 0.824]`, `+3.20 points [+1.10, +5.30]`; '-' where there is none."""
        if not isfinite(effect):
            return "-"
        write = "{:+.2f}".format if self.rate else _factor
        words = write(effect) + (" points" if self.rate else "×")
        return words if np.isnan(low) else f"{words} [{write(low)}, {write(high)}]"

    def words(self, comparison: Paired | None) -> str:
        """Write the effect of a comparison."""
        if comparison is None:
            return "-"
        return self.effect_words(comparison.effect, comparison.low, comparison.high)

    def columns(self, comparison: Paired) -> dict[str, float]:
        """Return a comparison's fields by the endings of their columns: `ratio`, `pairs`, `ratio_low`, `p`, …"""
        ends = {"low": f"{self.effect}_low", "high": f"{self.effect}_high"}
        renamed = {"n": "pairs", "effect": self.effect, **ends}
        return {renamed.get(each.name, each.name): getattr(comparison, each.name) for each in fields(comparison)}

    def better(self, one: float, other: float) -> bool:
        """Return whether the value `one` is better than `other`; False where one is nan."""
        return one > other if self.rate else one < other


def task_metrics(task) -> tuple[Metric, ...]:
    """Return the metrics of a task, or task class, in order: each on the usual problems, then on the harder ones."""
    return tuple(
        Metric(column(difficulty, name), name in task.higher_is_better, name not in task.beyond_shares)
        for name in task.metrics
        for difficulty in DIFFICULTIES
    )


def _factor(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 10 else f"{value:.3g}"


def number(value) -> str:
    """Write four digits, or '-' for what is missing or nan."""
    return f"{value:.4g}" if value is not None and isfinite(value) else "-"

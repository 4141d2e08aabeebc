"""How the pages write tables, intervals, ratios and p-values."""

import math
from pathlib import Path

import numpy as np
from tabulate import tabulate

from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_csv
from experiments.analysis.metrics import Metric
from experiments.analysis.statistics import Mean
from experiments.analysis.tables import Results
from experiments.analysis.verdict import ADVERSARIAL, COMPUTE, equal_compute, scenario

SAMPLER_WORDS = {"plain": "plain", "innerloop": "IRED's inner loop"}
VERDICT_HEADERS = (
    "energy",
    "steps, with mining against without",
    "sampler",
    "error, with over without [95%]; seeds ahead",
    "p (Holm's)",
    "verdict",
)


def table(rows, headers) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def summary_row(path: Path, strategy: str, *numbers: str) -> dict:
    """A strategy's row, or a reference's, of a summary.csv. Raises ConfigError where that has none."""
    row = next((row for row in read_csv(path, *numbers) if row.get("strategy") == strategy), None)
    if row is None:
        raise ConfigError(f"{path} is damaged (no row of {strategy})")
    return row


def with_interval(words: str, low: float, high: float, write: str) -> str:
    """The words and the interval, which one seed alone has not."""
    return words if math.isnan(low) else f"{words} [{write.format(low)}, {write.format(high)}]"


def mean_words(mean: Mean, write: str = "{:.5f}") -> str:
    return with_interval(write.format(mean.mean), mean.low, mean.high, write)


def ratio_words(ratio: float, low: float, high: float, ahead: int, n: int) -> str:
    """A ratio of errors, its interval, and in how many of n seeds it is below 1."""
    return f"{with_interval(f'{ratio:.3f}', low, high, '{:.3f}')}; {ahead} of {n}"


def effect_words(study: Results, strategy: str, baseline: str, metric: Metric, sampler: str) -> str:
    """One strategy against another in one metric, with the interval; nothing against itself."""
    return "" if strategy == baseline else metric.words(study.comparison(strategy, baseline, metric, sampler))


def pairs_ahead(study: Results, baseline: str, metric: Metric, sampler: str) -> int:
    """In how many seeds adversarial's error is below that of `baseline`."""
    values = study.values(metric.column, sampler)
    return int(np.sum(values[ADVERSARIAL] < values[baseline]))


def change_words(ratio: float) -> str:
    """A ratio of errors in a sentence: percents where it is near 1."""
    if 0.8 < ratio < 1.25:
        return f"{100 * abs(ratio - 1):.1f}% {'larger' if ratio > 1 else 'smaller'}"
    return f"{ratio:.2g} times"


def verdict_cells(about: str, steps: int, others: int, sampler: str, ratio: str, p: str, verdict: str) -> list[str]:
    """A row in the columns of VERDICT_HEADERS."""
    return [about, f"{steps:,} against {others:,}", SAMPLER_WORDS[sampler], ratio, p, verdict]


def study_verdicts(about: str, study: Results, metric: Metric) -> list[list[str]]:
    """Adversarial against baseline-compute by the protocol's rule, a row per sampler; they are the Holm family."""
    (steps,), (others,) = study.train_steps(ADVERSARIAL), study.train_steps(COMPUTE)
    comparisons, rows = equal_compute(study, metric), []
    for sampler, found in comparisons.items():
        diverged = study.diverged(ADVERSARIAL, [metric], [sampler])
        ahead = pairs_ahead(study, COMPUTE, metric, sampler)
        ratio = ratio_words(found.ratio, found.low, found.high, ahead, found.n)
        p, verdict = p_words(found.p, found.p_holm), scenario(metric, found, diverged)
        rows.append(verdict_cells(about, steps, others, sampler, ratio, p, verdict))
    return rows


def p_words(p: float, p_holm: float | str) -> str:
    """The value and Holm's; a test outside the protocol's families has none."""
    return f"{p:.2g}, exploratory" if p_holm == "" else f"{p:.2g} ({p_holm:.2g})"

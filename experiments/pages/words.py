"""How the pages write tables, intervals, ratios and p-values."""

import math

from tabulate import tabulate

from experiments.analysis.metrics import Metric
from experiments.analysis.statistics import Mean
from experiments.analysis.tables import Study


def table(rows, headers) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def with_interval(words: str, low: float, high: float, write: str) -> str:
    """The words and the interval, which one seed alone has not."""
    return words if math.isnan(low) else f"{words} [{write.format(low)}, {write.format(high)}]"


def mean_words(mean: Mean, write: str = "{:.5f}") -> str:
    return with_interval(write.format(mean.mean), mean.low, mean.high, write)


def ratio_words(ratio: float, low: float, high: float, ahead: int, n: int) -> str:
    """A ratio of errors, its interval, and in how many of n seeds it is below 1."""
    return f"{with_interval(f'{ratio:.3f}', low, high, '{:.3f}')}; {ahead} of {n}"


def effect_words(study: Study, strategy: str, baseline: str, metric: Metric, sampler: str) -> str:
    """One strategy against another in one metric, with the interval; nothing against itself."""
    return "" if strategy == baseline else metric.words(study.comparison(strategy, baseline, metric, sampler))


def change_words(ratio: float) -> str:
    """A ratio of errors in a sentence: percents where it is near 1."""
    if 0.8 < ratio < 1.25:
        return f"{100 * abs(ratio - 1):.1f}% {'larger' if ratio > 1 else 'smaller'}"
    return f"{ratio:.2g} times"


def p_words(p: float, p_holm: float) -> str:
    return f"{p:.2g} ({p_holm:.2g} by Holm's method)"

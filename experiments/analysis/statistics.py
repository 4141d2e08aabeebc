"""Statistics of paired runs: every strategy is trained on the same seeds and compared seed by seed.

Pure functions on float arrays; ``values`` has shape (strategies, seeds). A metric is an error, so lower is
better and a negative difference (treatment - baseline) is an improvement. A run that diverged or is absent is
a non-finite entry: it is left out, a pair is used only where both of its runs are finite, and ``n`` counts
what was used. What cannot be computed from so few values is nan, never a guess.
"""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from math import nan, sqrt

import numpy as np
from scipy import optimize, stats

# Relative spread below which values are equal up to float64 rounding: a t-test on that would test rounding.
ROUNDING = 1e-13


@dataclass(frozen=True)
class MeanInterval:
    """Mean of ``n`` runs, their sample standard deviation (ddof=1) and the t-interval of the mean."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Treatment minus baseline over ``n`` paired seeds; the first three and the last three in metric units.

    difference, low, high: mean difference and its t-interval; negative means the treatment is better.
    p: two-sided paired t-test. p_holm: the same, adjusted for all strategies compared with this baseline.
    improvement_*: -100 x difference, and its interval, over the baseline's mean on the paired seeds, which is
        taken as exact; positive means better. nan where that mean is not positive.
    smallest_detectable: size of the true difference that this n and spread would find in 80% of studies.
    bootstrap_low, bootstrap_high: bootstrap interval of the difference, a check that assumes no normality.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    improvement_percent: float
    improvement_low: float
    improvement_high: float
    smallest_detectable: float
    p_holm: float = nan
    bootstrap_low: float = nan
    bootstrap_high: float = nan


def _check_fraction(name, value):
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


def _vector(name, values):
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must have shape (seeds,), got {vector.shape}")
    return vector


def _t_interval(values, confidence, scale):
    """MeanInterval of finite ``values`` (n,); a spread within rounding of ``scale`` counts as none."""
    n = values.size
    if n == 0:
        return MeanInterval(0, nan, nan, nan, nan)
    if n == 1:
        return MeanInterval(1, float(values[0]), nan, nan, nan)
    if np.ptp(values) <= ROUNDING * scale:
        mean = float(np.median(values))  # the mean of equal values can be off by one rounding, the median not
        mean = 0.0 if abs(mean) <= ROUNDING * scale else mean
        return MeanInterval(n, mean, 0.0, mean, mean)
    mean, std = float(values.mean()), float(values.std(ddof=1))
    half_width = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * std / sqrt(n)
    return MeanInterval(n, mean, std, mean - half_width, mean + half_width)


def mean_interval(values, confidence=0.95):
    """Mean and t-interval of the finite entries of ``values`` (seeds,).

    One finite entry: std and bounds are nan; none: all nan. Raises ValueError for another shape or a
    confidence outside (0, 1).
    """
    _check_fraction("confidence", confidence)
    vector = _vector("values", values)
    finite = vector[np.isfinite(vector)]
    return _t_interval(finite, confidence, scale=np.abs(finite).max(initial=0.0))


def paired_difference(treatment, baseline, confidence=0.95):
    """Paired comparison of ``treatment`` with ``baseline``, both (seeds,) in the same seed order.

    p is scipy's ``ttest_rel``. Equal arrays give p = 1, a constant non-zero difference p = 0 (both up to
    rounding). With one pair only the difference and the improvement are known; with none all is nan.
    p_holm and the bootstrap bounds stay nan: ``compare_to_baseline`` fills them. Raises ValueError for
    mismatched shapes or a confidence outside (0, 1).
    """
    _check_fraction("confidence", confidence)
    treatment, baseline = _vector("treatment", treatment), _vector("baseline", baseline)
    treatment, baseline = _finite_pairs(treatment, baseline)
    scale = max(np.abs(treatment).max(initial=0.0), np.abs(baseline).max(initial=0.0))
    interval = _t_interval(treatment - baseline, confidence, scale)
    if interval.n < 2:
        p = nan
    elif interval.std == 0:
        p = 1.0 if interval.mean == 0 else 0.0
    else:
        p = float(stats.ttest_rel(treatment, baseline).pvalue)
    baseline_mean = float(baseline.mean()) if interval.n else nan
    percent = -100 / baseline_mean if baseline_mean > 0 else nan
    return PairedDifference(
        n=interval.n,
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p=p,
        improvement_percent=percent * interval.mean,
        improvement_low=percent * interval.high,
        improvement_high=percent * interval.low,
        smallest_detectable=smallest_detectable_difference(interval.std, interval.n, alpha=1 - confidence),
    )


def _finite_pairs(treatment, baseline):
    """Both arrays, (n,) each, at the seeds where both are finite."""
    if treatment.shape != baseline.shape:
        raise ValueError(f"paired runs must share their seeds: shapes {treatment.shape} and {baseline.shape}")
    both = np.isfinite(treatment) & np.isfinite(baseline)
    return treatment[both], baseline[both]


def holm(p_values):
    """Holm's step-down adjustment (Scand. J. Statist. 1979) of one family of p-values, in the given order.

    A nan stays nan and does not count in the family. Raises ValueError for values outside [0, 1].
    """
    p = _vector("p_values", p_values)
    tested = np.flatnonzero(~np.isnan(p))
    if np.any((p[tested] < 0) | (p[tested] > 1)):
        raise ValueError(f"p-values must lie in [0, 1], got {p.tolist()}")
    ascending = tested[np.argsort(p[tested], kind="stable")]
    hypotheses_left = np.arange(ascending.size, 0, -1)
    adjusted = np.full(p.shape, nan)
    adjusted[ascending] = np.minimum(1.0, np.maximum.accumulate(hypotheses_left * p[ascending]))
    return adjusted


def bootstrap_interval(differences, generator, confidence=0.95, resamples=10000):
    """Bootstrap interval (low, high) of the mean of the finite ``differences`` (seeds,).

    BCa, or the percentile interval where BCa is undefined (all differences equal). ``generator`` is the
    caller's numpy Generator. Fewer than two finite differences give (nan, nan). With few seeds it is too
    narrow: read it beside the t-interval, not instead. Raises ValueError for another shape or a confidence
    outside (0, 1).
    """
    _check_fraction("confidence", confidence)
    vector = _vector("differences", differences)
    finite = vector[np.isfinite(vector)]
    if finite.size < 2:
        return nan, nan
    bounds = nan, nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            # a degenerate sample shows as nan bounds, which the next method replaces
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            result = stats.bootstrap(
                (finite,), np.mean, confidence_level=confidence, n_resamples=resamples, method=method, rng=generator
            )
        bounds = float(result.confidence_interval.low), float(result.confidence_interval.high)
        if np.all(np.isfinite(bounds)):
            break
    return bounds


def smallest_detectable_difference(std_of_differences, n, alpha=0.05, power=0.8):
    """Size of the true mean difference that a two-sided paired t-test on ``n`` pairs finds with ``power``.

    In the units of ``std_of_differences`` (the ddof=1 spread between pairs); nan for n < 2 or a nan spread.
    From the noncentral t distribution. Only a finding with the right sign counts; scipy also returns nan for
    the far tail of the wrong sign. Raises ValueError unless 0 < alpha < power < 1 and the spread is not
    negative.
    """
    if not 0 < alpha < power < 1:
        raise ValueError(f"0 < alpha < power < 1 is needed, got alpha {alpha} and power {power}")
    if std_of_differences < 0:
        raise ValueError(f"std_of_differences must not be negative, got {std_of_differences}")
    if n < 2:
        return nan
    return _detectable_noncentrality(n, alpha, power) * std_of_differences / sqrt(n)


@lru_cache(maxsize=256)
def _detectable_noncentrality(n, alpha, power):
    """Noncentrality sqrt(n) x difference / std at which the t-test on ``n`` pairs reaches ``power``."""
    critical = stats.t.isf(alpha / 2, n - 1)

    def missing_power(noncentrality):
        return stats.nct.sf(critical, n - 1, noncentrality) - power

    upper = 4.0
    while missing_power(upper) < 0:
        upper *= 2
    return optimize.brentq(missing_power, 0.0, upper)  # at 0 the power is alpha / 2, below the one asked for


def compare_to_baseline(values, names, baseline, generator, confidence=0.95):
    """Every strategy but ``baseline`` compared with it: dict of name to PairedDifference, in ``names`` order.

    ``values``: (strategies, seeds), row i belonging to ``names[i]``. The Holm family is all strategies
    compared here. ``generator`` draws the bootstrap resamples, in ``names`` order. Raises ValueError for an
    unknown baseline, repeated names, or names that do not match the rows.
    """
    values = np.asarray(values, dtype=np.float64)
    names = list(names)
    if values.ndim != 2 or values.shape[0] != len(names):
        raise ValueError(f"values must have shape ({len(names)} strategies, seeds), got {values.shape}")
    if len(set(names)) != len(names):
        raise ValueError(f"strategy names must differ, got {names}")
    if baseline not in names:
        raise ValueError(f"unknown baseline {baseline!r}, have {names}")
    rows = dict(zip(names, values, strict=True))
    reference = rows.pop(baseline)
    comparisons = {name: paired_difference(row, reference, confidence) for name, row in rows.items()}
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    for (name, comparison), p_holm in zip(comparisons.items(), adjusted, strict=True):
        treated, untreated = _finite_pairs(rows[name], reference)
        low, high = bootstrap_interval(treated - untreated, generator, confidence)
        comparisons[name] = replace(comparison, p_holm=float(p_holm), bootstrap_low=low, bootstrap_high=high)
    return comparisons

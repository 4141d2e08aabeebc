"""Statistics of runs that share their seeds: each strategy is trained on the same seeds and compared seed by seed.

All are pure functions on float arrays of shape (seeds,). Errors span decades, so they are compared as ratios, on the
log scale. Scores, which are higher where they are better, are compared as differences in percentage points; rates are
scores in [0, 1], others may lie outside (a gain over chance is negative where chance is better). A run that diverged or
is absent is a non-finite entry and left out: a pair is used only where both of its runs are finite, and `n` counts what
was used. What so few values cannot tell is nan, never a guess.
"""

import warnings
from dataclasses import dataclass, replace
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special, stats

# Relative spread below which values are equal up to float64 rounding: a t-test on that would test rounding.
ROUNDING = 1e-13
BOOTSTRAP_SEED = 161803
BOUNDS = ("low", "high", "welch_low", "welch_high")  # of Paired
FLIPS = 2**16  # sign flips of an exact test: all of them up to 16 pairs, drawn at random beyond


class Mean(NamedTuple):
    """Mean of `n` runs, geometric for errors and arithmetic for scores, and its t-interval."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Treatment against baseline over `n` paired seeds.

    low, high: paired t-interval of the effect.
    p: two-sided paired t-test; p_holm: the same, adjusted by Holm's method within the family that was tested together.
    p_signflip: permutation test that flips the signs of the pairs' differences, exact up to 16 pairs.
    p_wilcoxon: Wilcoxon's signed-rank test.
    correlation: of the pairs.
    welch_low, welch_high, welch_p: the same runs taken as unpaired.
    smallest_detectable: the true effect that this n and spread would show in 80% of studies.
    """

    n: int
    low: float
    high: float
    p: float
    p_signflip: float
    p_wilcoxon: float
    correlation: float
    welch_low: float
    welch_high: float
    welch_p: float
    smallest_detectable: float
    p_holm: float = nan


@dataclass(frozen=True, kw_only=True)
class Ratio(Paired):
    """Geometric mean of treatment over that of baseline: below 1 the treatment has the smaller error.

    All tests and the correlation are those of the logs. smallest_detectable is a ratio below 1.
    """

    ratio: float


@dataclass(frozen=True, kw_only=True)
class Difference(Paired):
    """Mean of treatment minus that of baseline, of scores; effects and intervals in percentage points."""

    difference: float


def geometric_mean(values) -> Mean:
    """Return the geometric mean of the finite entries of `values` (seeds,), and the t-interval of their mean log.

    One finite entry: the bounds are nan; none: all nan. Raises ValueError for values that are not positive.
    """
    n, *logs = _t_interval(_logs(finite(values)))
    return Mean(n, *map(_exp, logs))


def arithmetic_mean(values, share: bool = True) -> Mean:
    """Return the mean of the finite entries of `values` (seeds,) and its t-interval; share: cut at 0 and 1."""
    values = finite(values)
    if not share:
        return _t_interval(values)
    n, mean, *bounds = _t_interval(_shares(values))
    return Mean(n, mean, *_shares(bounds).tolist())


def interquartile_mean(values) -> Mean:
    """Return the mean of the middle half of the finite `values` (seeds,), and its bootstrap interval over seeds.

    As in rliable (Agarwal et al. 2021) the interval is the percentile one, so it lies within the values. One value has
    no interval; no value gives nan.
    """
    values = finite(values)
    if values.size == 0:
        return Mean(0, nan, nan, nan)
    low = high = nan
    if values.size > 1:
        low, high = stats.bootstrap(
            (values,), _middle_mean, n_resamples=10_000, method="percentile", rng=BOOTSTRAP_SEED
        ).confidence_interval
    least, greatest = values.min(), values.max()  # a mean of equal values can leave them by one rounding
    return Mean(values.size, *np.clip((_middle_mean(values), low, high), least, greatest).tolist())


def _middle_mean(values, axis=-1):
    return stats.trim_mean(values, 0.25, axis=axis)


def ratio(treatment, baseline) -> Ratio:
    """Compare errors in pairs, both (seeds,) in the same order of seeds; see Ratio.

    p is scipy's `ttest_rel` of the logs. Equal arrays give p = 1, a constant other ratio p = 0 (both up to rounding).
    One pair has a ratio alone, no pair has nothing. Raises ValueError for errors that are not positive.
    """
    found = _compare(*map(_logs, _pairs(treatment, baseline)))
    found |= {name: _exp(found[name]) for name in ("effect", *BOUNDS)}
    found["smallest_detectable"] = _exp(-found["smallest_detectable"])
    return Ratio(ratio=found.pop("effect"), **found)


def difference(treatment, baseline, share: bool = True) -> Difference:
    """Compare scores in pairs, both (seeds,) in the same order of seeds; see Difference.

    share: they lie in [0, 1]; intervals are cut at -100 and 100.
    """
    pairs = _pairs(treatment, baseline)
    found = _compare(*(100 * (_shares(row) if share else row) for row in pairs))
    if share:
        found |= {name: float(np.clip(found[name], -100, 100)) for name in BOUNDS}
        if found["smallest_detectable"] > 100:
            found["smallest_detectable"] = nan  # so few seeds would not show any difference
    return Difference(difference=found.pop("effect"), **found)


def _compare(treatment, baseline) -> dict:
    """Return what Paired holds, of finite pairs (n,), and `effect`: the mean of treatment - baseline."""
    away = treatment - baseline
    scale = max(1.0, np.abs([treatment, baseline]).max(initial=0.0))
    n, effect, low, high = _t_interval(away, scale)
    std = nan if n < 2 else 0.0 if low == high else float(away.std(ddof=1))
    away = np.round(away / scale, 12)  # equal differences tie, whatever float64 made of them
    welch_low, welch_high, welch_p = _welch(treatment, baseline)
    return {
        "n": n,
        "effect": effect,
        "low": low,
        "high": high,
        "p": float(stats.ttest_rel(treatment, baseline).pvalue) if std > 0 else _certain(n, effect),
        "p_signflip": _signflip_p(away),
        "p_wilcoxon": _signflip_p(_signed_ranks(away)),
        "correlation": _correlation(treatment, baseline),
        "welch_low": welch_low,
        "welch_high": welch_high,
        "welch_p": welch_p,
        "smallest_detectable": smallest_detectable_difference(std, n),
    }


def _t_interval(values, scale=1.0) -> Mean:
    """Return mean and t-interval of finite `values` (n,); a spread within rounding of `scale` counts as none."""
    n = values.size
    if n < 2:
        return Mean(n, float(values[0]) if n else nan, nan, nan)
    if np.ptp(values) <= ROUNDING * scale:
        middle = float(np.median(values))  # the mean of equal values can be off by one rounding, the median not
        middle = 0.0 if abs(middle) <= ROUNDING * scale else middle
        return Mean(n, middle, middle, middle)
    middle, half_width = float(values.mean()), float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return Mean(n, middle, middle - half_width, middle + half_width)


def _certain(n, effect) -> float:
    """Return the p-value where `n` pairs have no spread: 1 without an effect, else 0; nan for fewer than two."""
    return nan if n < 2 else float(effect == 0)


def _signflip_p(values) -> float:
    """Return the two-sided p of the mean of `values` (n,) if each sign were a coin's; nan for fewer than two.

    All 2^n signs up to 16 values; beyond that FLIPS drawn ones, the same at each call.
    """
    if values.size < 2:
        return nan
    found = stats.permutation_test(
        (values,), np.mean, vectorized=True, permutation_type="samples", n_resamples=FLIPS, rng=0
    )
    return float(found.pvalue)


def _signed_ranks(away):
    """Return Wilcoxon's signed ranks (1945), (n,): that of a difference of 0 is 0, and ties share theirs.

    The permutation test of their signs is his test, and stays exact where there are ties.
    """
    ranks = np.zeros(away.shape)
    moved = away != 0
    ranks[moved] = np.sign(away[moved]) * stats.rankdata(np.abs(away[moved]))
    return ranks


def _correlation(treatment, baseline) -> float:
    """Return Pearson's correlation of two arrays (n,); nan where one of them does not vary."""
    if treatment.size < 2 or min(np.ptp(treatment), np.ptp(baseline)) <= ROUNDING:
        return nan
    return float(np.corrcoef(treatment, baseline)[0, 1])


def _welch(treatment, baseline) -> tuple[float, float, float]:
    """Return interval and p of the difference of means, of unpaired runs whose spreads may differ (Welch 1947)."""
    if treatment.size < 2:
        return nan, nan, nan
    if max(np.ptp(treatment), np.ptp(baseline)) <= ROUNDING:
        effect = float(np.median(treatment) - np.median(baseline))
        return effect, effect, _certain(treatment.size, effect)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the two may not vary: scipy fears for its precision
        found = stats.ttest_ind(treatment, baseline, equal_var=False)
        return *map(float, found.confidence_interval()), float(found.pvalue)


def finite(values) -> np.ndarray:
    """Return the finite ones of `values` (n,)."""
    vector = np.asarray(values, dtype=np.float64)
    return vector[np.isfinite(vector)]


def _pairs(treatment, baseline) -> np.ndarray:
    """Return both arrays, (2, n), at the seeds where both are finite."""
    pairs = np.array([treatment, baseline], dtype=np.float64)
    return pairs[:, np.isfinite(pairs).all(0)]


def _logs(errors):
    if np.any(errors <= 0):
        raise ValueError(f"errors must be positive to be compared as ratios, got {errors.min():g}")
    return np.log(errors)


def _shares(values):
    """Return the values within [0, 1]: a sum of shares may pass 1 by its rounding."""
    return np.clip(values, 0, 1)


def _exp(value) -> float:
    """Return exp(value), inf where float64 ends: two runs of very different errors have such intervals."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def holm(p_values):
    """Adjust one family of p-values, in their order, by Holm's step-down method (Scand. J. Statist. 1979).

    A nan stays nan and does not count in the family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    ascending = tested[np.argsort(p[tested], kind="stable")]
    hypotheses_left = np.arange(ascending.size, 0, -1)
    adjusted = np.full(p.shape, nan)
    adjusted[ascending] = np.minimum(1.0, np.maximum.accumulate(hypotheses_left * p[ascending]))
    return adjusted


def smallest_detectable_difference(std_of_differences, n):
    """Return the true mean difference that a two-sided paired t-test on `n` pairs finds, at 5%, in 80% of studies.

    It is in the units of `std_of_differences` (the ddof=1 spread between pairs); nan for n < 2 or a nan spread. From
    the noncentral t distribution; only a finding with the right sign counts.
    """
    if n < 2:
        return nan
    noncentrality = special.nctdtrinc(n - 1, 1 - 0.8, stats.t.isf(0.025, n - 1))
    return float(noncentrality * std_of_differences / sqrt(n))


def with_holm(family: dict[str, Paired]) -> dict[str, Paired]:
    """Return the comparisons of one family, by name, with `p_holm`."""
    adjusted = holm([each.p for each in family.values()])
    return {key: replace(each, p_holm=float(p)) for (key, each), p in zip(family.items(), adjusted, strict=True)}

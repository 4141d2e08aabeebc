"""Statistics of runs that share their seeds: each strategy is trained on the same seeds and compared seed by seed.

All are pure functions on float arrays of shape (seeds,). Errors span decades, so they are compared as ratios, on the
log scale. Scores, which are higher where they are better, are compared as differences in percentage points; rates are
scores in [0, 1], others may lie outside (a gain over chance is negative where chance is better). A run that diverged or
is absent is a non-finite entry and left out: a pair is used only where both of its runs are finite, and `n` counts what
was used. What so few values cannot tell is nan, never a guess.
"""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

# Relative spread below which values are equal up to float64 rounding: a t-test on that would test rounding.
ROUNDING = 1e-13
CONFIDENCE = 0.95  # of all intervals
POWER = 0.8
FLIPS = 2**16  # sign flips of an exact test: all of them up to 16 pairs, drawn at random beyond


class Mean(NamedTuple):
    """Mean of `n` runs, geometric for errors and arithmetic for scores, and its t-interval."""

    n: int
    mean: float
    low: float
    high: float


class PointInterval(NamedTuple):
    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Treatment against baseline over `n` paired seeds.

    effect, low, high: of errors the ratio of their geometric means, below 1 where the treatment is better; of scores
    the difference of their means, in percentage points; and its paired t-interval. All tests of errors are of logs.
    p: two-sided paired t-test; p_holm: the same, adjusted by Holm's method within the family that was tested together.
    p_signflip: permutation test that flips the signs of the pairs' differences, exact up to 16 pairs.
    p_wilcoxon: Wilcoxon's signed-rank test.
    correlation: of the pairs.
    welch_low, welch_high, welch_p: the same runs taken as unpaired.
    smallest_detectable: the true effect that this n and spread would show in 80% of studies; a ratio is below 1.
    """

    effect: float
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


def geometric_mean(values) -> Mean:
    """Return the geometric mean of the finite entries of `values` (seeds,), and the t-interval of their mean log.

    One finite entry: the bounds are nan; none: all nan. Raises ValueError for values that are not positive, or another
    shape.
    """
    n, *logs = _t_interval(_logs("values", _finite("values", values)))
    return Mean(n, *map(_exp, logs))


def mean_rate(values) -> Mean:
    """Return the mean of the finite entries of `values` (seeds,), rates in [0, 1], and its t-interval, cut at 0 and 1.

    Raises ValueError for values outside [0, 1], or another shape.
    """
    n, mean, low, high = mean_score(_rates("values", _finite("values", values)))
    return Mean(n, mean, *np.clip((low, high), 0, 1).tolist())


def mean_score(values) -> Mean:
    """Return the mean of the finite entries of `values` (seeds,) and its t-interval; they may lie outside [0, 1]."""
    return _t_interval(_finite("values", values))


def interquartile_mean(values, generator, resamples: int = 10_000) -> PointInterval:
    """Return the mean of the middle half of the finite `values` (seeds,), and its bootstrap interval over seeds.

    As in rliable (Agarwal et al. 2021) the interval is the percentile one, so it lies within the values. One value has
    no interval; no value gives nan. generator: numpy's.
    """
    finite = _finite("values", values)
    if finite.size == 0:
        return PointInterval(nan, nan, nan)
    low = high = nan
    if finite.size > 1:
        low, high = stats.bootstrap(
            (finite,),
            _middle_mean,
            confidence_level=CONFIDENCE,
            n_resamples=resamples,
            method="percentile",
            rng=generator,
        ).confidence_interval
    least, greatest = finite.min(), finite.max()  # a mean of equal values can leave them by one rounding
    return PointInterval(*np.clip((_middle_mean(finite), low, high), least, greatest).tolist())


def _middle_mean(values, axis=-1):
    return stats.trim_mean(values, 0.25, axis=axis)


def ratio(treatment, baseline) -> Paired:
    """Compare errors in pairs, both (seeds,) in the same order of seeds; see Paired.

    p is scipy's `ttest_rel` of the logs. Equal arrays give p = 1, a constant other ratio p = 0 (both up to rounding).
    One pair has a ratio alone, no pair has nothing. Raises ValueError for errors that are not positive, and for shapes
    that differ.
    """
    logs = [_logs(name, row) for name, row in _pairs(treatment, baseline).items()]
    found = _compare(*logs)
    ratios = {name: _exp(getattr(found, name)) for name in ("effect", "low", "high", "welch_low", "welch_high")}
    return replace(found, **ratios, smallest_detectable=_exp(-found.smallest_detectable))


def difference(treatment, baseline) -> Paired:
    """Compare rates in [0, 1] in pairs, both (seeds,) in the same order of seeds; see Paired.

    Intervals are cut at -100 and 100. Raises ValueError as `ratio`, and for values outside [0, 1].
    """
    rates = [_rates(name, row) for name, row in _pairs(treatment, baseline).items()]
    found = score_difference(*rates)
    cut = {name: float(np.clip(getattr(found, name), -100, 100)) for name in ("low", "high", "welch_low", "welch_high")}
    if found.smallest_detectable > 100:
        cut["smallest_detectable"] = nan  # so few seeds would not show any difference
    return replace(found, **cut)


def score_difference(treatment, baseline) -> Paired:
    """Do as `difference` for scores that may lie outside [0, 1], with nothing cut."""
    return _compare(*(100 * row for row in _pairs(treatment, baseline).values()))


def _compare(treatment, baseline) -> Paired:
    """Compare finite pairs (n,); the effect is the mean of treatment - baseline."""
    away = treatment - baseline
    scale = max(1.0, np.abs([treatment, baseline]).max(initial=0.0))
    n, effect, low, high = _t_interval(away, scale)
    std = nan if n < 2 else 0.0 if low == high else float(away.std(ddof=1))
    away = np.round(away / scale, 12)  # equal differences tie, whatever float64 made of them
    welch_low, welch_high, welch_p = _welch(treatment, baseline)
    return Paired(
        effect=effect,
        n=n,
        low=low,
        high=high,
        p=float(stats.ttest_rel(treatment, baseline).pvalue) if std > 0 else _certain(n, effect),
        p_signflip=_signflip_p(away),
        p_wilcoxon=_signflip_p(_signed_ranks(away)),
        correlation=_correlation(treatment, baseline),
        welch_low=welch_low,
        welch_high=welch_high,
        welch_p=welch_p,
        smallest_detectable=smallest_detectable_difference(std, n),
    )


def _t_interval(values, scale=1.0) -> Mean:
    """Return mean and t-interval of finite `values` (n,); a spread within rounding of `scale` counts as none."""
    n = values.size
    if n < 2:
        return Mean(n, float(values[0]) if n else nan, nan, nan)
    if np.ptp(values) <= ROUNDING * scale:
        middle = float(np.median(values))  # the mean of equal values can be off by one rounding, the median not
        middle = 0.0 if abs(middle) <= ROUNDING * scale else middle
        return Mean(n, middle, middle, middle)
    middle, half_width = float(values.mean()), float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * stats.sem(values))
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
        return *map(float, found.confidence_interval(CONFIDENCE)), float(found.pvalue)


def _vector(name, values):
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must have shape (seeds,), got {vector.shape}")
    return vector


def _finite(name, values):
    vector = _vector(name, values)
    return vector[np.isfinite(vector)]


def _pairs(treatment, baseline) -> dict:
    """Return both arrays, (n,) each, at the seeds where both are finite, by their names."""
    treatment, baseline = _vector("treatment", treatment), _vector("baseline", baseline)
    if treatment.shape != baseline.shape:
        raise ValueError(f"paired runs must share their seeds: shapes {treatment.shape} and {baseline.shape}")
    both = np.isfinite(treatment) & np.isfinite(baseline)
    return {"treatment": treatment[both], "baseline": baseline[both]}


def _logs(name, errors):
    if np.any(errors <= 0):
        raise ValueError(f"{name} must be positive to be compared as ratios, got {errors.min():g}")
    return np.log(errors)


def _exp(value) -> float:
    """Return exp(value), inf where float64 ends: two runs of very different errors have such intervals."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _rates(name, values):
    """Return the values as shares: a sum of shares may pass 1 by its rounding."""
    if np.any((values < -ROUNDING) | (values > 1 + ROUNDING)):
        raise ValueError(f"{name} must lie in [0, 1], got {values.min():g} to {values.max():g}")
    return np.clip(values, 0, 1)


def holm(p_values):
    """Adjust one family of p-values, in their order, by Holm's step-down method (Scand. J. Statist. 1979).

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


def smallest_detectable_difference(std_of_differences, n):
    """Return the true mean difference that a two-sided paired t-test on `n` pairs finds in 80% of studies.

    It is in the units of `std_of_differences` (the ddof=1 spread between pairs); nan for n < 2 or a nan spread. From
    the noncentral t distribution. Only a finding with the right sign counts; scipy also returns nan for the far tail of
    the wrong sign.
    """
    return _detectable_noncentrality(n) * std_of_differences / sqrt(n) if n > 1 else nan


@lru_cache(maxsize=256)
def _detectable_noncentrality(n):
    """Return the noncentrality sqrt(n) x difference / std at which the t-test on `n` pairs reaches POWER."""
    critical = stats.t.isf((1 - CONFIDENCE) / 2, n - 1)

    def missing_power(noncentrality):
        return stats.nct.sf(critical, n - 1, noncentrality) - POWER

    upper = 4.0
    while missing_power(upper) < 0:
        upper *= 2
    return optimize.brentq(missing_power, 0.0, upper)  # at 0 the power is half of 1 - CONFIDENCE, below POWER


def with_holm(family: dict) -> dict:
    """Return the comparisons of one family, each a Paired, by the same keys with `p_holm`.

    One without a p-value does not count in the family, and its p_holm is nan.
    """
    adjusted = holm([each.p for each in family.values()])
    return {key: replace(each, p_holm=float(p)) for (key, each), p in zip(family.items(), adjusted, strict=True)}

"""Paired statistics against scipy, against hand examples, by property and on simulated runs."""

from dataclasses import replace
from itertools import combinations
from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.analysis.statistics import (
    bootstrap_interval,
    compare_to_baseline,
    holm,
    mean_interval,
    paired_difference,
    smallest_detectable_difference,
)

quick = settings(max_examples=50, deadline=None)  # no deadline: the machine may be busy
# Whole numbers: sums and differences are exact, so no tolerance hides a wrong formula.
whole = st.integers(1, 1000).map(float)
pairs = st.lists(st.tuples(whole, whole), min_size=2, max_size=12).map(lambda rows: np.array(rows).T)


def runs(seed, n=8):
    """Treatment and baseline (n,) with a common seed effect far larger than their difference."""
    generator = np.random.default_rng(seed)
    seed_effect = generator.normal(10, 3, n)
    return seed_effect + generator.normal(-0.2, 0.3, n), seed_effect


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_is_scipys(confidence):
    values = np.random.default_rng(0).normal(3, 2, 7)
    got = mean_interval(values, confidence)
    low, high = stats.t.interval(confidence, 6, values.mean(), stats.sem(values))
    assert (got.n, got.mean, got.std) == (7, pytest.approx(values.mean()), pytest.approx(stats.tstd(values)))
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))


def test_mean_interval_leaves_out_what_is_not_finite():
    assert mean_interval([nan, 1.0, inf, 2.0, 4.0, -inf]) == mean_interval([1.0, 2.0, 4.0])


def test_mean_interval_of_one_and_of_no_run():
    one, none = mean_interval([nan, 5.0]), mean_interval([nan, inf])
    assert (one.n, one.mean) == (1, 5.0) and isnan(one.std) and isnan(one.low) and isnan(one.high)
    assert none.n == 0 and all(map(isnan, (none.mean, none.std, none.low, none.high)))


def test_mean_interval_of_equal_runs_has_no_width():
    got = mean_interval([0.1, 0.1, 0.1])  # their float64 mean is not 0.1
    assert (got.mean, got.std, got.low, got.high) == (0.1, 0.0, 0.1, 0.1)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_paired_difference_is_scipys(confidence):
    treatment, baseline = runs(1)
    got = paired_difference(treatment, baseline, confidence)
    expected = stats.ttest_rel(treatment, baseline)
    low, high = expected.confidence_interval(confidence)
    percent = 100 / baseline.mean()
    assert (got.n, got.difference) == (8, pytest.approx((treatment - baseline).mean()))
    assert got.p == pytest.approx(expected.pvalue)
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert got.improvement_percent == pytest.approx(-percent * got.difference)
    assert (got.improvement_low, got.improvement_high) == (
        pytest.approx(-percent * high),
        pytest.approx(-percent * low),
    )
    assert got.smallest_detectable == pytest.approx(
        smallest_detectable_difference(stats.tstd(treatment - baseline), 8, alpha=1 - confidence)
    )


def test_paired_difference_by_hand():
    got = paired_difference([8.0, 9.0, 10.0], [10.0, 10.0, 10.0])  # differences -2, -1, 0: mean -1, std 1
    half = 4.302653 / sqrt(3)  # t quantile, 2 degrees of freedom
    assert (got.difference, got.improvement_percent) == (-1.0, 10.0)
    assert (got.improvement_low, got.improvement_high) == (
        pytest.approx(10 * (1 - half)),
        pytest.approx(10 * (1 + half)),
    )
    assert isnan(got.p_holm) and isnan(got.bootstrap_low) and isnan(got.bootstrap_high)


def test_only_seeds_finite_in_both_are_paired():
    treatment, baseline = runs(2)
    holed_treatment, holed_baseline = treatment.copy(), baseline.copy()
    holed_treatment[1], holed_baseline[4], holed_baseline[6] = nan, nan, inf
    kept = [0, 2, 3, 5, 7]
    got = paired_difference(holed_treatment, holed_baseline)
    assert got.n == 5
    assert repr(got) == repr(paired_difference(treatment[kept], baseline[kept]))  # repr: nan fields are equal


def test_one_pair_has_no_interval_and_no_pair_has_nothing():
    one, none = paired_difference([9.0, nan], [10.0, 3.0]), paired_difference([nan, 1.0], [1.0, nan])
    assert (one.n, one.difference, one.improvement_percent) == (1, -1.0, 10.0)
    assert none.n == 0 and isnan(none.difference) and isnan(none.improvement_percent)
    for got in (one, none):
        assert all(map(isnan, (got.low, got.high, got.p, got.improvement_low, got.smallest_detectable)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.1, 0.0), (-0.1, 0.0)])
def test_constant_difference_has_p_one_only_when_zero(shift, p):
    baseline = np.array([0.3, 0.7, 1.1, 2.3])  # + 0.1 - itself differs from 0.1 by rounding
    got = paired_difference(baseline + shift, baseline)
    assert got.p == p and got.smallest_detectable == 0
    assert got.difference == got.low == got.high == pytest.approx(shift, abs=1e-15)


@pytest.mark.filterwarnings("error")
def test_a_difference_of_one_rounding_is_none():
    baseline = np.array([0.3, 0.7, 1.1, 2.3])
    got = paired_difference(np.nextafter(baseline, inf), baseline)
    assert (got.difference, got.p) == (0.0, 1.0)


def test_improvement_needs_a_positive_baseline():
    assert isnan(paired_difference([1.0, 2.0], [-1.0, 1.0]).improvement_percent)
    assert isnan(paired_difference([1.0, 2.0], [-1.0, -3.0]).improvement_low)


@quick
@given(pairs)
def test_swapping_the_strategies_flips_the_sign(pair):
    forth, back = paired_difference(*pair), paired_difference(*pair[::-1])
    assert (forth.difference, forth.low, forth.high) == (-back.difference, -back.high, -back.low)
    assert (forth.p, forth.smallest_detectable) == (pytest.approx(back.p), back.smallest_detectable)


@quick
@given(pairs, st.data())
def test_what_a_seed_adds_to_both_strategies_cancels(pair, data):
    seed_effect = np.array(data.draw(st.lists(whole, min_size=pair.shape[1], max_size=pair.shape[1])))
    plain, shifted = paired_difference(*pair), paired_difference(*(pair + seed_effect))
    assert (plain.difference, plain.low, plain.high, plain.p) == (
        shifted.difference,
        shifted.low,
        shifted.high,
        shifted.p,
    )


@quick
@given(pairs, st.sampled_from([0.25, 8.0, 1024.0]))
def test_units_cancel_in_the_improvement(pair, unit):
    plain, scaled = paired_difference(*pair), paired_difference(*(pair * unit))
    assert scaled.improvement_low == pytest.approx(plain.improvement_low)
    assert scaled.improvement_high == pytest.approx(plain.improvement_high)
    assert scaled.difference == pytest.approx(unit * plain.difference)


@quick
@given(pairs)
def test_p_and_interval_agree(pair):
    got = paired_difference(*pair)
    assert (got.p < 0.05) == (not got.low <= 0 <= got.high)


@pytest.mark.parametrize(
    "function",
    [
        mean_interval,
        lambda v, c: paired_difference(v, v, c),
        lambda v, c: bootstrap_interval(v, np.random.default_rng(0), c),
    ],
)
def test_confidence_must_be_a_fraction(function):
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence must lie"):
            function(np.array([1.0, 2.0]), confidence)


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"share their seeds: shapes \(3,\) and \(2,\)"):
        paired_difference(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"values must have shape \(seeds,\), got \(2, 2\)"):
        mean_interval(np.ones((2, 2)))


def test_holm_by_hand():
    # ascending 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_passes_nan_through_without_counting_it():
    assert holm([0.01, nan, 0.03]) == pytest.approx([0.02, nan, 0.03], nan_ok=True)
    assert holm([]).shape == (0,)


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Adjusted p = the largest Bonferroni p of any subset of hypotheses that contains this one."""
    family = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in combinations(family, size)]
    bonferroni = {s: min(1, len(s) * min(p_values[i] for i in s)) for s in subsets}
    expected = [max(bonferroni[s] for s in subsets if i in s) for i in family]
    assert holm(p_values) == pytest.approx(expected)


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_monotone_and_never_below_the_raw_p(p_values):
    adjusted = holm(p_values)
    assert np.all(adjusted >= p_values) and np.all(adjusted <= 1)
    assert np.all(np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0)


def test_holm_refuses_what_is_no_probability():
    for wrong in (-0.1, 1.1, inf):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            holm([0.5, wrong])


def test_bootstrap_is_scipys_bca():
    differences = np.random.default_rng(3).exponential(1, 12)
    expected = stats.bootstrap(
        (differences,), np.mean, method="BCa", n_resamples=2000, confidence_level=0.9, rng=np.random.default_rng(4)
    ).confidence_interval
    holed = np.insert(differences, 5, nan)
    got = bootstrap_interval(holed, np.random.default_rng(4), confidence=0.9, resamples=2000)
    assert got == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_bootstrap_is_near_the_t_interval_for_many_normal_differences():
    differences = np.random.default_rng(5).normal(1, 1, 200)
    exact = mean_interval(differences)
    width = exact.high - exact.low
    low, high = bootstrap_interval(differences, np.random.default_rng(6))
    assert abs(low - exact.low) < 0.05 * width and abs(high - exact.high) < 0.05 * width


@pytest.mark.filterwarnings("error")
def test_bootstrap_of_equal_differences_falls_back_to_the_percentile_interval():
    assert bootstrap_interval([2.0, 2.0, 2.0], np.random.default_rng(0)) == (2.0, 2.0)


def test_bootstrap_needs_two_differences():
    assert all(map(isnan, bootstrap_interval([1.0, nan], np.random.default_rng(0))))


def test_detectable_difference_matches_tables():
    # Cohen, Statistical Power Analysis (1988): a paired effect of 0.5 needs 34 pairs, of 1.0 about 10
    assert smallest_detectable_difference(1, 34) == pytest.approx(0.5, abs=0.01)
    assert smallest_detectable_difference(1, 10) == pytest.approx(1.0, abs=0.01)
    # normal limit: (1.95996 + 0.84162) / sqrt(n)
    assert smallest_detectable_difference(1, 10**5) == pytest.approx(2.80158 / sqrt(10**5), rel=1e-3)


@quick
@given(st.integers(2, 60), st.sampled_from([0.001, 0.05, 0.2]), st.sampled_from([0.5, 0.8, 0.95]))
def test_detectable_difference_is_finite_and_shrinks_with_n(n, alpha, power):
    here = smallest_detectable_difference(2.0, n, alpha, power)
    assert here > smallest_detectable_difference(2.0, n + 1, alpha, power) > 0
    assert smallest_detectable_difference(6.0, n, alpha, power) == pytest.approx(3 * here)


def test_detectable_difference_edges():
    assert isnan(smallest_detectable_difference(1.0, 1)) and isnan(smallest_detectable_difference(nan, 5))
    assert smallest_detectable_difference(0.0, 5) == 0
    for wrong in ({"alpha": 0}, {"power": 1}, {"alpha": 0.9}):
        with pytest.raises(ValueError, match="0 < alpha < power < 1"):
            smallest_detectable_difference(1.0, 5, **wrong)
    with pytest.raises(ValueError, match="must not be negative"):
        smallest_detectable_difference(-1.0, 5)


# Simulated studies with a known answer: differences have standard deviation 1, the seed effect 10

STUDIES = 1000


def simulated_studies(difference, n, seed):
    """Yield STUDIES pairs of treatment and baseline (n,) whose true mean difference is ``difference``."""
    generator = np.random.default_rng(seed)
    baseline = generator.normal(100, 10, (STUDIES, n))
    return zip(baseline + generator.normal(difference, 1, (STUDIES, n)), baseline, strict=True)


def assert_rate(count, rate):
    """``count`` of STUDIES lies in the central 99.9% of the binomial distribution with this rate."""
    low, high = stats.binom.interval(0.999, STUDIES, rate)
    assert low <= count <= high, f"{count} of {STUDIES}, expected {low} to {high}"


@pytest.mark.parametrize("n", [3, 6])
def test_interval_covers_the_truth_in_95_percent_of_studies(n):
    results = [paired_difference(*study) for study in simulated_studies(-0.7, n, seed=n)]
    assert_rate(sum(r.low <= -0.7 <= r.high for r in results), 0.95)


def test_false_positives_are_5_percent():
    assert_rate(sum(paired_difference(*study).p < 0.05 for study in simulated_studies(0.0, 5, seed=11)), 0.05)


@pytest.mark.parametrize("n", [3, 10])
def test_power_is_80_percent_at_the_smallest_detectable_difference(n):
    truth = smallest_detectable_difference(1.0, n)
    found = sum(paired_difference(*study).p < 0.05 for study in simulated_studies(truth, n, seed=20 + n))
    assert_rate(found, 0.8)


NAMES = ["random", "baseline", "adversarial"]


def three_strategies():
    generator = np.random.default_rng(7)
    values = generator.normal(10, 1, 6) + generator.normal(0, 0.2, (3, 6)) - np.array([[0.3], [0], [0.1]])
    values[2, 4] = nan
    return values


def test_every_other_strategy_is_compared_with_the_baseline():
    values = three_strategies()
    got = compare_to_baseline(values, NAMES, "baseline", np.random.default_rng(0))
    assert list(got) == ["random", "adversarial"]
    assert [comparison.n for comparison in got.values()] == [6, 5]
    generator = np.random.default_rng(0)
    p_holm = holm([paired_difference(values[row], values[1]).p for row in (0, 2)])
    for name, row, adjusted in (("random", 0, p_holm[0]), ("adversarial", 2, p_holm[1])):
        low, high = bootstrap_interval(values[row] - values[1], generator)
        plain = paired_difference(values[row], values[1])
        assert got[name] == replace(plain, p_holm=adjusted, bootstrap_low=low, bootstrap_high=high)


def test_a_strategy_without_pairs_leaves_the_family():
    values = three_strategies()
    values[2] = nan
    got = compare_to_baseline(values, NAMES, "baseline", np.random.default_rng(0))
    assert got["random"].p_holm == got["random"].p
    assert got["adversarial"].n == 0 and isnan(got["adversarial"].p_holm)


def test_the_confidence_reaches_every_interval():
    values = three_strategies()
    wide, narrow = (
        compare_to_baseline(values, NAMES, "baseline", np.random.default_rng(0), c)["random"] for c in (0.99, 0.8)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.bootstrap_low < narrow.bootstrap_low < narrow.bootstrap_high < wide.bootstrap_high


def test_same_generator_seed_same_result_and_a_lone_baseline_gives_nothing():
    first, second = (
        compare_to_baseline(three_strategies(), NAMES, "baseline", np.random.default_rng(1)) for _ in range(2)
    )
    assert first == second
    assert compare_to_baseline(np.ones((1, 4)), ["baseline"], "baseline", np.random.default_rng(0)) == {}


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((3, 6), ["a", "b", "c"], "unknown baseline 'baseline', have"),
        ((2, 6), NAMES, r"values must have shape \(3 strategies, seeds\), got \(2, 6\)"),
        ((3,), NAMES, r"got \(3,\)"),
        ((3, 6), ["baseline", "random", "random"], "names must differ"),
    ],
)
def test_wrong_input_is_one_clear_line(shape, names, message):
    with pytest.raises(ValueError, match=message) as raised:
        compare_to_baseline(np.ones(shape), names, "baseline", np.random.default_rng(0))
    assert "\n" not in str(raised.value)

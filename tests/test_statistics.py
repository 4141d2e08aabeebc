"""Paired statistics against scipy, against hand examples, by property and on simulated runs."""

from dataclasses import astuple
from itertools import combinations
from math import exp, inf, isnan, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.analysis.statistics import (
    Paired,
    difference,
    geometric_mean,
    holm,
    interquartile_mean,
    mean_rate,
    ratio,
    smallest_detectable_difference,
    with_holm,
)

quick = settings(max_examples=25, deadline=None)  # no deadline: the machine may be busy
errors = st.floats(1e-6, 1e3)
pairs = st.lists(st.tuples(errors, errors), min_size=2, max_size=8).map(lambda rows: np.array(rows).T)
rates = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8).map(lambda rows: np.array(rows).T)


def runs(seed, n=8, factor=0.8):
    """Treatment and baseline (n,), errors over two decades whose seeds have a common effect."""
    generator = np.random.default_rng(seed)
    common = generator.normal(-4, 1, n)
    return factor * np.exp(common + generator.normal(0, 0.1, n)), np.exp(common)


# Means


def test_a_geometric_mean_is_scipys_mean_of_logs():
    values, _ = runs(0)
    got = geometric_mean(values)
    low, high = stats.t.interval(0.95, 7, np.log(values).mean(), stats.sem(np.log(values)))
    assert (got.n, got.mean) == (8, pytest.approx(stats.gmean(values)))
    assert (got.low, got.high) == (pytest.approx(exp(low)), pytest.approx(exp(high)))


def test_a_geometric_mean_by_hand():
    got = geometric_mean([0.1, 10.0])  # logs -2.3026 and 2.3026; the t quantile of one degree of freedom is 12.7062
    assert got.mean == pytest.approx(1) and log(got.high) == pytest.approx(12.7062 * 2.302585, rel=1e-5)


def test_five_runs_of_which_one_is_an_outlier_have_a_positive_interval():
    """The study whose arithmetic interval was [-0.0126, 0.0575]."""
    assert geometric_mean([0.0098, 0.0098, 0.0099, 0.0097, 0.073]).low > 0


def test_what_is_not_finite_is_left_out():
    assert geometric_mean([nan, 1.0, inf, 2.0, 4.0]) == geometric_mean([1.0, 2.0, 4.0])
    assert geometric_mean([nan, 1.0, inf, 2.0, 4.0]).n == 3


def test_the_mean_of_one_and_of_no_run():
    one, none = geometric_mean([nan, 5.0]), geometric_mean([nan, inf])
    assert (one.n, one.mean) == (1, pytest.approx(5.0)) and isnan(one.low) and isnan(one.high)
    assert none.n == 0 and all(map(isnan, none[1:]))


def test_equal_runs_have_an_interval_without_width():
    got = geometric_mean([0.1, 0.1, 0.1])
    assert got.mean == got.low == got.high == pytest.approx(0.1)
    assert tuple(mean_rate([0.1, 0.1, 0.1])) == (3, 0.1, 0.1, 0.1)  # their float64 mean is not 0.1


@pytest.mark.parametrize("wrong", [0.0, -0.1])
def test_an_error_that_is_not_positive_has_no_geometric_mean(wrong):
    with pytest.raises(ValueError, match="values must be positive"):
        geometric_mean([1.0, wrong])
    with pytest.raises(ValueError, match="treatment must be positive"):
        ratio([1.0, wrong], [1.0, 1.0])


@quick
@given(st.lists(errors, min_size=1, max_size=8))
def test_an_interval_contains_its_point(values):
    got = geometric_mean(values)
    assert min(values) * (1 - 1e-9) <= got.mean <= max(values) * (1 + 1e-9)
    assert len(values) < 2 or 0 <= got.low <= got.mean <= got.high


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_rates_interval_stays_in_0_to_1(values):
    got = mean_rate(values)
    assert 0 <= got.low <= got.mean <= got.high <= 1
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
    assert got.low == pytest.approx(max(low, 0), abs=1e-9) and got.high == pytest.approx(min(high, 1), abs=1e-9)


def test_a_rate_that_passes_1_by_its_rounding_is_1():
    above = [1 + 2.3e-16, 1.0, 1.0]
    assert above[0] > 1
    assert mean_rate(above) == mean_rate([1.0, 1.0, 1.0])
    assert difference(above, [0.5, 0.6, 0.7]) == difference([1.0, 1.0, 1.0], [0.5, 0.6, 0.7])


def test_a_rate_outside_0_to_1_is_refused():
    for function in (mean_rate, lambda values: difference(values, values)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 0.5 to 1.1"):
            function([0.5, 1.1])


def test_an_interquartile_mean_is_scipys():
    values = np.random.default_rng(3).exponential(1, 12)
    got = interquartile_mean(np.insert(values, 5, nan), np.random.default_rng(4), resamples=2000)
    expected = stats.bootstrap(
        (values,),
        lambda rows, axis=-1: stats.trim_mean(rows, 0.25, axis=axis),
        method="percentile",
        n_resamples=2000,
        confidence_level=0.95,
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert got == pytest.approx((np.sort(values)[3:9].mean(), expected.low, expected.high))


@quick
@given(st.lists(errors, min_size=1, max_size=8))
def test_an_interquartile_mean_and_its_interval_stay_within_the_data(values):
    got = interquartile_mean(values, np.random.default_rng(0), resamples=200)
    assert min(values) <= got.point <= max(values)
    if len(values) == 1:
        assert isnan(got.low)
    else:
        assert min(values) <= got.low <= got.high <= max(values)


def test_an_interquartile_mean_of_nothing():
    assert all(map(isnan, interquartile_mean([nan], np.random.default_rng(0))))


# Ratios and differences


def test_a_ratio_is_scipys_paired_test_of_logs():
    treatment, baseline = runs(1)
    got, logs = ratio(treatment, baseline), (np.log(treatment), np.log(baseline))
    paired, unpaired = stats.ttest_rel(*logs), stats.ttest_ind(*logs, equal_var=False)
    low, high = paired.confidence_interval(0.95)
    assert (got.n, got.effect) == (8, pytest.approx(stats.gmean(treatment) / stats.gmean(baseline)))
    assert (got.low, got.high, got.p) == pytest.approx((exp(low), exp(high), paired.pvalue))
    low, high = unpaired.confidence_interval(0.95)
    assert (got.welch_low, got.welch_high, got.welch_p) == pytest.approx((exp(low), exp(high), unpaired.pvalue))
    assert got.correlation == pytest.approx(stats.pearsonr(*logs)[0])
    assert got.p_wilcoxon == stats.wilcoxon(logs[0] - logs[1], method="exact").pvalue
    detectable = smallest_detectable_difference(stats.tstd(logs[0] - logs[1]), 8)
    assert got.smallest_detectable == pytest.approx(exp(-detectable)) and got.smallest_detectable < 1
    assert isnan(got.p_holm)


def test_a_ratio_by_hand():
    got = ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])  # log2 ratios -1, 0, 1: mean 0, standard deviation 1
    half = 4.302653 / sqrt(3)  # t quantile, 2 degrees of freedom
    assert (got.effect, got.p) == (1.0, 1.0)
    assert (got.low, got.high) == pytest.approx((2**-half, 2**half), rel=1e-6)


def test_the_sign_flips_by_hand():
    log_ratios = np.array([0.3, 0.2, 0.1, -0.05])
    # of 16 sign patterns the sum is at least 0.55 in +++-, ++++, and at most -0.55 in their opposites
    assert ratio(np.exp(log_ratios), np.ones(4)).p_signflip == 4 / 16


def test_five_pairs_on_one_side_have_the_least_p_that_five_pairs_can_have():
    got = ratio([0.9, 0.8, 0.7, 0.95, 0.85], np.ones(5))
    assert (got.p_signflip, got.p_wilcoxon) == (2 / 32, 2 / 32)


def test_wilcoxon_stays_exact_with_ties_and_zeros():
    # ranks of |difference|: none for 0, 1.5 and 1.5 for the ties, 3: the sum is 6 at best, in 1 of 8 sign patterns
    got = difference([0.5, 0.6, 0.6, 0.9], [0.5, 0.5, 0.5, 0.5])
    assert got.p_wilcoxon == 2 / 8


def test_many_pairs_are_flipped_at_random_and_always_alike():
    treatment, baseline = runs(5, n=20, factor=0.97)
    one, two = ratio(treatment, baseline), ratio(treatment, baseline)
    assert one == two and one.p_signflip == pytest.approx(one.p, abs=0.03)


def test_a_difference_is_scipys_in_percentage_points():
    generator = np.random.default_rng(2)
    treatment, baseline = generator.uniform(0.4, 0.6, (2, 6))
    got, paired = difference(treatment, baseline), stats.ttest_rel(100 * treatment, 100 * baseline)
    assert got.effect == pytest.approx(100 * (treatment - baseline).mean())
    assert (got.low, got.high, got.p) == pytest.approx((*paired.confidence_interval(0.95), paired.pvalue))
    assert got.p_wilcoxon == stats.wilcoxon(treatment, baseline, method="exact").pvalue


@quick
@given(rates)
def test_a_difference_stays_on_the_scale_and_contains_its_point(pair):
    got = difference(*pair)
    slack = 1e-9
    assert -100 <= got.low <= got.effect + slack <= got.high + 2 * slack <= 100 + 2 * slack
    assert -100 <= got.welch_low <= got.welch_high <= 100
    assert isnan(got.smallest_detectable) or got.smallest_detectable <= 100


def test_only_seeds_finite_in_both_are_paired():
    treatment, baseline = runs(2)
    holed_treatment, holed_baseline = treatment.copy(), baseline.copy()
    holed_treatment[1], holed_baseline[4], holed_baseline[6] = nan, nan, inf
    kept = [0, 2, 3, 5, 7]
    got = ratio(holed_treatment, holed_baseline)
    assert got.n == 5
    assert repr(got) == repr(ratio(treatment[kept], baseline[kept]))  # repr: nan fields are equal


def test_one_pair_has_no_interval_and_no_pair_has_nothing():
    one, none = ratio([9.0, nan], [10.0, 3.0]), ratio([nan, 1.0], [1.0, nan])
    assert (one.n, one.effect) == (1, pytest.approx(0.9))
    assert none.n == 0 and isnan(none.effect)
    for got in (one, none):
        rest = [value for value in astuple(got) if value not in (got.n, got.effect)]
        assert all(map(isnan, rest))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("factor", "p"), [(1.0, 1.0), (1.1, 0.0), (0.9, 0.0)])
def test_a_constant_ratio_has_p_one_only_when_it_is_one(factor, p):
    baseline = np.array([0.3, 0.7, 1.1, 2.3])
    got = ratio(factor * baseline, baseline)
    assert got.p == p and got.smallest_detectable == 1
    assert got.effect == got.low == got.high == pytest.approx(factor)


@pytest.mark.filterwarnings("error")
def test_a_ratio_of_one_rounding_is_none():
    baseline = np.array([0.3, 0.7, 1.1, 2.3])
    got = ratio(np.nextafter(baseline, inf), baseline)
    assert (got.effect, got.p, got.p_signflip, got.p_wilcoxon) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.filterwarnings("error")
def test_a_strategy_that_does_not_vary_has_no_correlation():
    got = ratio([0.9, 0.8, 0.7], [1.0, 1.0, 1.0])
    assert isnan(got.correlation) and got.welch_low < got.effect < got.welch_high
    both = ratio([0.5, 0.5], [1.0, 1.0])
    assert (both.welch_low, both.welch_high, both.welch_p) == (pytest.approx(0.5), pytest.approx(0.5), 0.0)


@pytest.mark.filterwarnings("error")
def test_errors_too_far_apart_for_float64_have_an_open_interval():
    got = ratio([1e-300, 1.0], [1.0, 1e-3])
    assert (got.low, got.high) == (0.0, inf)


@quick
@given(pairs)
def test_swapping_the_strategies_inverts_the_ratio(pair):
    forth, back = ratio(*pair), ratio(*pair[::-1])
    assert (forth.effect, forth.low, forth.high) == pytest.approx((1 / back.effect, 1 / back.high, 1 / back.low))
    assert (forth.p, forth.p_signflip, forth.p_wilcoxon) == pytest.approx((back.p, back.p_signflip, back.p_wilcoxon))
    assert forth.smallest_detectable == pytest.approx(back.smallest_detectable)


@quick
@given(pairs, st.sampled_from([0.25, 8.0, 1024.0]))
def test_units_cancel_in_the_ratio(pair, unit):
    plain, scaled = ratio(*pair), ratio(*(pair * unit))
    assert (plain.effect, plain.low, plain.high) == pytest.approx((scaled.effect, scaled.low, scaled.high))
    assert geometric_mean(unit * pair[0]).high == pytest.approx(unit * geometric_mean(pair[0]).high)


@quick
@given(pairs, st.data())
def test_what_a_seed_does_to_both_strategies_cancels(pair, data):
    factors = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=pair.shape[1], max_size=pair.shape[1])))
    plain, moved = ratio(*pair), ratio(*(pair * factors))
    assert (plain.effect, plain.low, plain.high) == pytest.approx((moved.effect, moved.low, moved.high))


@quick
@given(pairs)
def test_p_and_interval_agree(pair):
    got = ratio(*pair)
    assert got.low <= got.effect * (1 + 1e-9) and got.effect <= got.high * (1 + 1e-9)
    assert (got.p < 0.05) == (not got.low <= 1 <= got.high)


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"share their seeds: shapes \(3,\) and \(2,\)"):
        ratio(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"values must have shape \(seeds,\), got \(2, 2\)"):
        geometric_mean(np.ones((2, 2)))


# Holm's method


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


def test_holm_refuses_what_is_no_probability():
    for wrong in (-0.1, 1.1, inf):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            holm([0.5, wrong])


# Power


def test_detectable_difference_matches_tables():
    # Cohen, Statistical Power Analysis (1988): a paired effect of 0.5 needs 34 pairs, of 1.0 about 10
    assert smallest_detectable_difference(1, 34) == pytest.approx(0.5, abs=0.01)
    assert smallest_detectable_difference(1, 10) == pytest.approx(1.0, abs=0.01)
    # normal limit: (1.95996 + 0.84162) / sqrt(n)
    assert smallest_detectable_difference(1, 10**5) == pytest.approx(2.80158 / sqrt(10**5), rel=1e-3)


@quick
@given(st.integers(2, 60))
def test_detectable_difference_is_finite_and_shrinks_with_n(n):
    here = smallest_detectable_difference(2.0, n)
    assert here > smallest_detectable_difference(2.0, n + 1) > 0
    assert smallest_detectable_difference(6.0, n) == pytest.approx(3 * here)


def test_detectable_difference_edges():
    assert isnan(smallest_detectable_difference(1.0, 1)) and isnan(smallest_detectable_difference(nan, 5))
    assert smallest_detectable_difference(0.0, 5) == 0


# Simulated studies with a known answer: log ratios have standard deviation 0.1, the logs of a seed 1

STUDIES = 300


def simulated_studies(log_ratio, n, seed):
    """Yield STUDIES comparisons over n pairs whose true log ratio is `log_ratio`."""
    generator = np.random.default_rng(seed)
    baseline = generator.normal(-4, 1, (STUDIES, n))
    treatment = baseline + generator.normal(log_ratio, 0.1, (STUDIES, n))
    return [ratio(*np.exp(pair)) for pair in zip(treatment, baseline, strict=True)]


def assert_rate(count, rate):
    """`count` of STUDIES lies in the central 99.9% of the binomial distribution with this rate."""
    low, high = stats.binom.interval(0.999, STUDIES, rate)
    assert low <= count <= high, f"{count} of {STUDIES}, expected {low} to {high}"


@pytest.mark.parametrize("n", [3, 6])
def test_the_interval_covers_the_truth_in_95_percent_of_studies(n):
    results = simulated_studies(log(0.93), n, seed=n)
    assert_rate(sum(r.low <= 0.93 <= r.high for r in results), 0.95)


def test_false_positives_are_5_percent():
    results = simulated_studies(0.0, 6, seed=11)
    assert_rate(sum(r.p < 0.05 for r in results), 0.05)
    assert_rate(sum(r.p_signflip < 0.05 for r in results), 2 / 64)  # the least p of 64 sign patterns, both signs


@pytest.mark.parametrize("n", [3, 6])
def test_power_is_80_percent_at_the_smallest_detectable_ratio(n):
    truth = -smallest_detectable_difference(0.1, n)
    assert_rate(sum(r.p < 0.05 for r in simulated_studies(truth, n, seed=20 + n)), 0.8)


# Families


def of_three_strategies(**changed) -> dict[str, Paired]:
    """random and adversarial against baseline, six seeds."""
    generator = np.random.default_rng(7)
    logs = generator.normal(-4, 1, 6) + generator.normal(0, 0.1, (3, 6)) - np.array([[0.3], [0], [0.1]])
    rows = dict(zip(("random", "baseline", "adversarial"), np.exp(logs), strict=True)) | changed
    return {name: ratio(rows[name], rows["baseline"]) for name in ("random", "adversarial")}


def test_a_family_has_its_own_comparisons_and_holms_p_of_them():
    alone = of_three_strategies()
    got = with_holm(alone)
    assert list(got) == list(alone)
    assert [(each.effect, each.p) for each in got.values()] == [(each.effect, each.p) for each in alone.values()]
    assert [each.p_holm for each in got.values()] == holm([each.p for each in alone.values()]).tolist()
    assert with_holm({}) == {}


def test_a_strategy_without_pairs_leaves_the_family():
    got = with_holm(of_three_strategies(adversarial=np.full(6, nan)))
    assert got["random"].p_holm == got["random"].p
    assert got["adversarial"].n == 0 and isnan(got["adversarial"].p_holm)

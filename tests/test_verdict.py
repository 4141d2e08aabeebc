"""The verdict rule: every scenario, every clause at its boundary, missing values, and its text."""

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.analysis import verdict
from experiments.analysis.statistics import PairedDifference, compare_to_baseline
from experiments.analysis.verdict import RULE, StrategyEvidence, decide, distance_to_reference, reference_sentence


def comparison(improvement, low, high, n=10):
    """A PairedDifference against a baseline whose mean is 100, so that percent and metric units are equal."""
    return PairedDifference(
        n=n,
        difference=-improvement,
        low=-high,
        high=-low,
        p=nan,
        improvement_percent=improvement,
        improvement_low=low,
        improvement_high=high,
        smallest_detectable=nan,
    )


def strategy(name, *interval, recon=0.9, ratio=1.5, diverged=0, n=10):
    compared = comparison(*interval, n=n) if interval else None
    return StrategyEvidence(name, compared, recon, ratio, diverged, runs=n + diverged)


BASE = strategy("baseline", recon=1.0, ratio=1.0)
BETTER, WORSE, UNCLEAR = (8.0, 6.0, 10.0), (-8.0, -10.0, -6.0), (1.0, -1.0, 3.0)


def scenario(*evidence):
    return decide([BASE, *evidence]).scenario


def inconclusive_reasons(*evidence):
    got = decide([BASE, *evidence])
    assert got.scenario == "inconclusive"
    return got.reasons


# ---- success and each of its clauses


def test_success_lists_every_clause_with_its_numbers():
    got = decide([strategy("adversarial", *BETTER), BASE, strategy("random", *UNCLEAR)])
    assert got.scenario == "adversarial succeeds"
    assert got.reasons == (
        "adversarial's improvement in val_mse, 8.00%, is above 5%",
        "adversarial's improvement in val_mse, 8.00%, has an interval [6.00%, 10.00%] over 10 paired seeds "
        "that lies above 0: better than baseline",
        "adversarial's mean recon_error, 0.9, is lower than baseline's, 1",
        "adversarial's training time, 1.50x baseline's, is less than 2x",
        "random's improvement in val_mse, 1.00%, has an interval [-1.00%, 3.00%] over 10 paired seeds that "
        "lies neither wholly above nor wholly below 0",
    )


def test_success_needs_no_random_runs_and_stands_if_random_is_better_still():
    better = strategy("adversarial", *BETTER)
    assert scenario(better) == "adversarial succeeds"
    assert scenario(better, strategy("random", 20, 19, 21)) == "adversarial succeeds"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"interval": (5.0, 4.0, 6.0)}, "adversarial's improvement in val_mse, 5.00%, is not above 5%"),
        ({"interval": (8.0, 0.0, 16.0)}, "[0.00%, 16.00%] over 10 paired seeds that lies neither wholly above"),
        ({"recon": 1.0}, "adversarial's mean recon_error, 1, is not lower than baseline's, 1"),
        ({"recon": nan}, "adversarial's mean recon_error, nan, is not lower"),
        ({"ratio": 2.0}, "adversarial's training time, 2.00x baseline's, is not less than 2x"),
        ({"ratio": nan}, "adversarial's training time, nanx baseline's, is not less than 2x"),
    ],
)
def test_success_fails_at_the_boundary_of_each_clause(changed, reason):
    reasons = inconclusive_reasons(strategy("adversarial", *changed.pop("interval", BETTER), **changed))
    assert len(reasons) == 1 and reason in reasons[0]


def test_success_holds_just_inside_every_boundary():
    assert scenario(strategy("adversarial", 5.001, 0.001, 10, recon=0.999, ratio=1.999, n=3)) == "adversarial succeeds"


def test_unknown_baseline_recon_error_fails_the_clause():
    got = decide([replace(BASE, recon_error_mean=nan), strategy("adversarial", *BETTER)])
    assert got.scenario == "inconclusive" and "baseline's, nan" in got.reasons[0]


def test_every_failed_clause_is_named():
    reasons = inconclusive_reasons(strategy("adversarial", *UNCLEAR, recon=2.0, ratio=3.0))
    assert [
        sum(word in reason for reason in reasons)
        for word in ("not above 5%", "neither wholly", "not lower", "not less than 2x")
    ] == [1, 1, 1, 1]
    assert len(reasons) == 4


# ---- unstable


def test_one_diverged_mining_run_takes_precedence_over_everything():
    better = strategy("adversarial", *BETTER)
    got = decide([BASE, better, strategy("random", *BETTER, diverged=1)])
    assert (got.scenario, got.reasons) == ("unstable", ("random: 1 of 11 runs diverged",))
    assert scenario(replace(better, diverged_runs=2)) == "unstable"
    assert scenario(strategy("random", diverged=1, n=0)) == "unstable"  # every run diverged: nothing to pair


def test_both_diverged_strategies_are_named():
    reasons = decide([BASE, strategy("random", diverged=1), strategy("adversarial", diverged=3)]).reasons
    assert reasons == ("random: 1 of 11 runs diverged", "adversarial: 3 of 13 runs diverged")


def test_a_diverged_baseline_run_is_only_noted():
    got = decide([replace(BASE, diverged_runs=1, runs=11), strategy("adversarial", *BETTER)])
    assert got.scenario == "adversarial succeeds"
    assert got.reasons[-1] == "baseline: 1 of 11 runs diverged; no pair uses them"


# ---- random best


def test_random_best_says_why_adversarial_did_not_succeed():
    got = decide([BASE, strategy("random", *BETTER), strategy("adversarial", *UNCLEAR)])
    assert got.scenario == "random best"
    assert "random's improvement in val_mse, 8.00%, has an interval [6.00%, 10.00%]" in got.reasons[0]
    assert "random's mean val_mse is lower than adversarial's" in got.reasons
    assert any("adversarial's improvement in val_mse, 1.00%, is not above 5%" in r for r in got.reasons)


def test_random_below_5_percent_is_enough_for_random_best():
    assert scenario(strategy("random", 0.2, 0.1, 0.3), strategy("adversarial", *WORSE)) == "random best"


@pytest.mark.parametrize(
    ("random", "adversarial"),
    [
        (strategy("random", 2.0, 0.0, 4.0), strategy("adversarial", *UNCLEAR)),  # touches 0
        (strategy("random", 8.0, 6.0, 10.0), strategy("adversarial", 8.0, -1.0, 17.0)),  # equal means
        (strategy("random", *BETTER), strategy("adversarial", *BETTER, recon=2.0)),
        (strategy("random", *BETTER, n=2), strategy("adversarial", *UNCLEAR)),
        (strategy("random", *BETTER), strategy("adversarial", *UNCLEAR, n=2)),
        (strategy("random", *BETTER), strategy("adversarial")),  # nothing paired
        (strategy("random", *BETTER), replace(strategy("adversarial"), runs=0)),  # not run
    ],
)
def test_random_is_not_best(random, adversarial):
    assert scenario(random, adversarial) == "inconclusive"


# ---- baseline best


def test_baseline_best_when_every_mining_strategy_is_worse():
    got = decide([BASE, strategy("random", *WORSE), strategy("adversarial", -1.0, -1.9, -0.1)])
    assert got.scenario == "baseline best"
    assert len(got.reasons) == 2 and all("below 0: worse than baseline" in r for r in got.reasons)


def test_baseline_best_ignores_a_strategy_that_was_not_run():
    absent = replace(strategy("random"), runs=0)
    assert scenario(strategy("adversarial", *WORSE), absent) == "baseline best"
    assert scenario(strategy("adversarial", *WORSE)) == "baseline best"


@pytest.mark.parametrize(
    "random", [strategy("random", -4.0, -8.0, 0.0), strategy("random", *WORSE, n=2), strategy("random")]
)
def test_baseline_is_not_best_while_one_strategy_is_open(random):
    assert scenario(random, strategy("adversarial", *WORSE)) == "inconclusive"


# ---- inconclusive


@pytest.mark.parametrize("interval", [BETTER, WORSE, UNCLEAR])
def test_two_paired_seeds_are_always_inconclusive(interval):
    two = [strategy(name, *interval, n=2) for name in ("adversarial", "random")]
    assert inconclusive_reasons(*two) == (
        "adversarial's paired seeds, 2, are fewer than 3",
        "random's paired seeds, 2, are fewer than 3",
    )


def test_one_seed_with_nan_bounds_is_inconclusive():
    reasons = inconclusive_reasons(strategy("adversarial", 9.0, nan, nan, n=1))
    assert reasons == ("adversarial's paired seeds, 1, are fewer than 3",)


def test_nan_improvement_fails_its_clauses():
    reasons = inconclusive_reasons(strategy("adversarial", nan, nan, nan))
    assert "nan%, is not above 5%" in reasons[0] and "neither wholly" in reasons[1]


def test_nothing_but_the_baseline_is_inconclusive():
    assert inconclusive_reasons() == ("adversarial was not run",)


def test_wrong_evidence_is_refused():
    with pytest.raises(ValueError, match="no evidence for 'baseline', have"):
        decide([strategy("adversarial", *BETTER)])
    with pytest.raises(ValueError, match="names must differ"):
        decide([BASE, BASE])


@settings(deadline=None)
@given(st.permutations([BASE, strategy("random", *BETTER), strategy("adversarial", *UNCLEAR)]))
def test_order_of_evidence_does_not_matter(evidence):
    assert decide(evidence).scenario == "random best"


# ---- from runs to verdict, and the rule's text


@pytest.mark.parametrize(
    ("random_shift", "adversarial_shift", "expected"),
    [
        (0.0, -0.10, "adversarial succeeds"),
        (-0.10, -0.02, "random best"),
        (0.10, 0.10, "baseline best"),
        (0.0, 0.0, "inconclusive"),
        (0.0, nan, "inconclusive"),
    ],
)
def test_verdict_on_simulated_runs(random_shift, adversarial_shift, expected):
    generator = np.random.default_rng(0)
    values = generator.normal(1, 0.2, 8) + generator.normal(0, 0.01, (3, 8))
    values += np.array([[0.0], [random_shift], [adversarial_shift]])
    names = ["baseline", "random", "adversarial"]
    compared = compare_to_baseline(values, names, "baseline", generator)
    evidence = [
        StrategyEvidence(name, compared.get(name), row.mean(), 1.2, diverged_runs=0, runs=8)
        for name, row in zip(names, values, strict=True)
    ]
    assert decide(evidence).scenario == expected


def test_rule_text_states_every_scenario_and_threshold():
    for name in (verdict.SUCCESS, verdict.RANDOM_BEST, verdict.BASELINE_BEST, verdict.UNSTABLE, verdict.INCONCLUSIVE):
        assert f"{name}: " in RULE
    for threshold in ("fewer than 3 paired seeds", "above 5%", "2x the time"):
        assert threshold in " ".join(RULE.split())


# ---- references


@pytest.mark.parametrize(
    ("mean", "reference", "words"),
    [
        (0.0103, 0.01, "1.03x that of linear regression (3.0% worse)"),
        (0.0097, 0.01, "0.97x that of linear regression (3.0% better)"),
        (0.010001, 0.01, "1x that of linear regression (the same to 0.1%)"),
        (0.02, 0.01, "2x that of linear regression (100.0% worse)"),
        (0.034, 0.01, "3.4x that of linear regression (worse)"),
        (1e-8, 0.01, "1e-06x that of linear regression (better)"),
    ],
)
def test_reference_sentence(mean, reference, words):
    assert distance_to_reference(mean, reference) == pytest.approx(mean / reference)
    for metric in ("val_mse", "ood_mse"):
        got = reference_sentence("adversarial", mean, "linear regression", reference, metric)
        assert got == f"adversarial's {metric} is {words}"
    assert "'s val_mse is" in reference_sentence("adversarial", mean, "linear regression", reference)


@pytest.mark.parametrize(("mean", "reference"), [(0.01, 0.0), (0.01, nan), (nan, 0.01), (0.01, -1.0)])
def test_no_ratio_without_a_positive_reference(mean, reference):
    assert isnan(distance_to_reference(mean, reference))
    got = reference_sentence("adversarial", mean, "an oracle", reference, metric="ood_mse")
    assert got.startswith("adversarial's ood_mse, ") and "has no ratio to an oracle's" in got

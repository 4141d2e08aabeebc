"""The verdict: every scenario at its boundary, missing values, the criteria, the objections, and the rule's text."""

import re
from dataclasses import replace
from math import isnan, nan
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import study_of

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import SAMPLERS
from experiments.analysis import verdict
from experiments.analysis.metrics import Metric
from experiments.analysis.objections import objections
from experiments.analysis.screen import what_was_trained
from experiments.analysis.statistics import Paired, difference, ratio
from experiments.analysis.tables import Results
from experiments.analysis.verdict import RULE, compare_pairs, criteria_lines, scenario, time_clause, verdict_lines
from experiments.study.study import Pair

MSE, ACCURACY = Metric("val_mse"), Metric("val_accuracy", rate=True)
METRICS = (MSE, Metric("ood_mse"), Metric("recon_error"), Metric("ood_recon_error"))
CONFIG = ExperimentConfig(batch_size=128, train_steps=5000)
UNKNOWN = dict.fromkeys(("p_signflip", "p_wilcoxon", "correlation", "welch_low", "welch_high", "welch_p"), nan)


def compared(effect, low, high, n=5):
    return Paired(effect=effect, n=n, low=low, high=high, p=nan, smallest_detectable=nan, **UNKNOWN)


# The families


def test_holm_is_over_all_tests_at_equal_compute_and_those_at_equal_steps_are_apart():
    p = {"FLOPs": (0.001, 0.01), "time": (0.02, 0.03), "steps": (0.04, 0.004)}
    pairs = {s: [Pair(account, "adversarial", account) for account in p] for s in SAMPLERS}
    own = {(s, account): each[i] for account, each in p.items() for i, s in enumerate(SAMPLERS)}

    def comparison(_treated, other, _metric, sampler):
        return replace(compared(1.1, 1.0, 1.2), p=own[sampler, other])

    found = compare_pairs(SimpleNamespace(pairs=pairs, comparison=comparison), MSE)
    adjusted = {account: [found[s, pairs[s][i]].p_holm for s in SAMPLERS] for i, account in enumerate(p)}
    # 0.001 x 4, 0.01 x 3, 0.02 x 2, then 0.03 raised to the one before; apart from them 0.004 x 2, 0.04
    assert adjusted["FLOPs"] == pytest.approx([0.004, 0.03]) and adjusted["time"] == pytest.approx([0.04, 0.04])
    assert adjusted["steps"] == pytest.approx([0.04, 0.008])


# The rule


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.75, 0.68, 0.82), "helps"),
        ((0.95, 0.91, 0.999), "helps"),
        ((0.9501, 0.91, 0.999), "helps, by less than 5%"),
        ((0.97, 0.96, 0.98), "helps, by less than 5%"),
        ((0.97, 0.94, 1.0), "undecided"),
        ((5.4, 3.0, 9.0), "hurts"),
        ((1.05, 1.001, 1.1), "hurts"),
        ((1.0499, 1.001, 1.1), "hurts, by less than 5%"),
        ((1.02, 1.01, 1.03), "hurts, by less than 5%"),
        ((1.0, 0.95, 1.05), "no difference beyond 5%"),
        ((1.0, 1.0, 1.0), "no difference beyond 5%"),
        ((1.0, 0.9499, 1.05), "undecided"),
        ((1.0, 0.95, 1.0501), "undecided"),
        ((0.6, 0.2, 1.7), "undecided"),
    ],
)
def test_the_interval_of_the_ratio_decides(interval, expected):
    assert scenario(MSE, compared(*interval), diverged=0) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((7.0, 2.0, 12.0), "helps"),
        ((4.9, 2.0, 8.0), "helps, by less than 5 points"),
        ((-7.0, -12.0, -2.0), "hurts"),
        ((-4.9, -8.0, -2.0), "hurts, by less than 5 points"),
        ((0.0, -5.0, 5.0), "no difference beyond 5 points"),
        ((0.0, -6.0, 5.0), "undecided"),
    ],
)
def test_more_of_a_rate_is_better(interval, expected):
    assert scenario(ACCURACY, compared(*interval), diverged=0) == expected


def test_a_diverged_run_makes_it_unstable_whatever_the_others_reached():
    assert scenario(MSE, compared(0.5, 0.4, 0.6), diverged=1) == "unstable"
    assert scenario(MSE, compared(nan, nan, nan, n=0), diverged=5) == "unstable"


@pytest.mark.parametrize("comparison", [compared(0.5, 0.4, 0.6, n=2), compared(0.5, nan, nan, n=1), None])
def test_fewer_than_three_pairs_decide_nothing(comparison):
    assert scenario(MSE, comparison, diverged=0) is None


def test_the_rule_states_every_scenario_and_threshold():
    for name in (verdict.UNSTABLE, verdict.HELPS, verdict.HURTS, f"{verdict.NO_DIFFERENCE} 5%", verdict.UNDECIDED):
        assert f"*{name}*" in RULE
    for words in ("at least 3 paired seeds", "r > 0.95", "r < 1.05", "[0.95, 1.05]", "2 times the time"):
        assert words in " ".join(RULE.split())


# A study's lines


def study(values: dict, metrics=METRICS, steps=None, failed=(), **columns) -> Results:
    """values: strategy -> main metric of each seed, under plain and, 1% lower, under innerloop."""
    rows = [
        {
            "strategy": strategy,
            "seed": seed,
            "sampler": sampler,
            "status": "failed" if (strategy, seed) in failed else "finished",
            "train_steps": (steps or {}).get(strategy, 5000),
            "commit": "0",
            "run": f"runs/{strategy}/seed-{seed}",
            **{metric.column: value * scale for metric in metrics},
            **{column: by_strategy[strategy] for column, by_strategy in columns.items()},
        }
        for strategy, row in values.items()
        for seed, value in enumerate(row)
        for sampler, scale in (("plain", 1), ("innerloop", 0.99))
    ]
    return Results(rows, study_of(*values), metrics)


BASE = np.array([0.010, 0.011, 0.0105, 0.0098, 0.0102])
NOISE = np.array([1.0, 1.01, 0.99, 1.02, 0.98])
ALL = {"baseline": 1.4 * BASE, "adversarial": BASE * NOISE, "baseline-compute": BASE}
STEPS = {"baseline-compute": 14_000}


def test_a_verdict_names_model_budget_and_sampler():
    lines = verdict_lines(study(ALL, steps=STEPS), CONFIG)
    assert lines[0] == "Verdict at equal FLOPs (mlp, 5,000 steps × 128, plain): no difference beyond 5%."
    assert lines[2] == "Verdict at equal FLOPs (mlp, 5,000 steps × 128, innerloop): no difference beyond 5%."
    found = ratio(ALL["adversarial"], BASE)
    assert lines[1].startswith(
        f"- val_mse {found.effect:.3f}× [{found.low:.3f}, {found.high:.3f}] over 5 paired seeds, p "
    )
    assert lines[1].endswith("baseline-compute: 14,000 steps × 128.") and len(lines) == 8
    assert lines[4].startswith("Verdict at equal steps (mlp, 5,000 steps × 128, plain): helps")


def test_the_verdict_compares_with_the_longer_baseline():
    """Against the baseline of equal steps adversarial would help."""
    worse = {**ALL, "adversarial": 1.2 * BASE * NOISE}
    assert "plain): hurts." in verdict_lines(study(worse), CONFIG)[0]


@pytest.mark.parametrize("absent", ["baseline-compute", "adversarial"])
def test_without_equal_compute_one_line_says_so(absent):
    lines = verdict_lines(study({name: row for name, row in ALL.items() if name != absent}), CONFIG)
    reason = (
        f"{absent} was not run" if absent == "adversarial" else "no baseline was trained for the FLOPs of adversarial"
    )
    assert lines[0] == f"No verdict at equal FLOPs, since {reason}."
    assert (len(lines) == 1) is (absent == "adversarial")  # else there are still equal steps


def test_too_few_seeds_and_errors_of_zero_are_said():
    few = verdict_lines(study({name: row[:2] for name, row in ALL.items()}), CONFIG)
    assert few[0] == "No verdict at equal FLOPs (mlp, 5,000 steps × 128, plain): the paired seeds, 2, are fewer than 3."
    assert "over 2 paired seeds" in few[1]
    one = verdict_lines(study({name: row[:1] for name, row in ALL.items()}), CONFIG)
    assert len(one) == 4 and not any("nan" in line for line in one)
    zero = verdict_lines(study({**ALL, "adversarial": np.array([0.0, *BASE[1:]])}), CONFIG)
    assert zero[0].endswith("plain): a val_mse of exactly 0 has no ratio.") and len(zero) == 4


def test_diverged_runs_are_counted():
    values = {**ALL, "adversarial": np.array([nan, *BASE[1:]])}
    lines = verdict_lines(study(values, failed=[("adversarial", 0)]), CONFIG)
    assert lines[0].endswith("plain): unstable.") and lines[1] == "- 1 of 5 runs of adversarial diverged."
    assert "over 4 paired seeds" in lines[2]
    values = {**ALL, "baseline-compute": np.array([nan, *BASE[1:]])}
    lines = verdict_lines(study(values, failed=[("baseline-compute", 0)]), CONFIG)
    assert lines[1] == "- 1 of 5 runs of baseline-compute diverged."


# The criteria of the first protocol


def test_a_run_without_a_finite_metric_diverged():
    """In the verdict, where that is the metric and the sampler that decide; in the criterion, whichever it is."""
    chosen = study(ALL)
    plain = chosen.frame["strategy"].eq("adversarial") & chosen.frame["sampler"].eq("plain")
    chosen.frame.loc[plain & chosen.frame["seed"].eq(1), "ood_mse"] = nan
    assert "- no divergence: not met, 1 of 5 runs of adversarial diverged." in criteria_lines(chosen, CONFIG, None)
    assert "unstable" not in "".join(verdict_lines(chosen, CONFIG))
    chosen.frame.loc[plain & chosen.frame["seed"].eq(2), "val_mse"] = nan
    lines = verdict_lines(Results(chosen.frame, study_of(*chosen.strategies), METRICS), CONFIG)
    assert lines[0].endswith("plain): unstable.") and lines[1] == "- 1 of 5 runs of adversarial diverged."
    assert not any("innerloop): unstable" in line for line in lines)


def test_each_criterion_is_met_or_not():
    timing = {"baseline": 1.0, "adversarial": 1.9, "batch_size": 128, "threads": 2}
    lines = criteria_lines(study(ALL), CONFIG, timing)
    found = ratio(ALL["adversarial"], ALL["baseline"])
    words = f"{found.effect:.3f}× [{found.low:.3f}, {found.high:.3f}]"
    assert lines[1:] == [
        f"- val_mse better by more than 5%, plain: met, {words}; innerloop: met, {words}.",
        f"- recon_error better, plain: met, {words}; innerloop: met, {words}.",
        "- no divergence: met, 0 of 5 runs of adversarial diverged.",
        "- less than 2× the time: met, 1.90× a step of baseline (2 threads).",
    ]


@pytest.mark.parametrize(
    ("factor", "main", "second"),
    [(0.955, "not met", "met"), (1.05, "not met", "not met"), (1.0, "not met", "not met"), (0.94, "met", "met")],
)
def test_a_criterion_at_its_boundary(factor, main, second):
    lines = criteria_lines(study({"baseline": BASE, "adversarial": factor * BASE}), CONFIG, None)
    assert f"plain: {main}, " in lines[1] and f"plain: {second}, " in lines[2]


def test_a_gain_whose_interval_reaches_1_is_not_met():
    wide = BASE * np.array([0.5, 1.2, 0.9, 1.1, 0.7])
    assert "plain: not met, 0." in criteria_lines(study({"baseline": BASE, "adversarial": wide}), CONFIG, None)[1]


def test_criteria_with_too_few_seeds_or_a_diverged_run():
    lines = criteria_lines(study({name: row[:2] for name, row in ALL.items()}), CONFIG, None)
    assert "plain: not met, the paired seeds, 2, are fewer than 3" in lines[1]
    values = {**ALL, "adversarial": np.array([nan, *BASE[1:]])}
    lines = criteria_lines(study(values, failed=[("adversarial", 0)]), CONFIG, None)
    assert lines[3] == "- no divergence: not met, 1 of 5 runs of adversarial diverged."
    assert criteria_lines(study({"baseline": BASE, "random": BASE}), CONFIG, None) == []


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        (None, "not timed"),
        ({"baseline": 1.0, "adversarial": 1.5, "batch_size": 2048}, "not timed at batch 128, only at 2,048"),
        ({"baseline": 1.0, "adversarial": 2.0, "batch_size": 128, "threads": 1}, "not met, 2.00×"),
        ({"baseline": 0.0, "adversarial": 2.0, "batch_size": 128, "threads": 1}, "not met, nan×"),
    ],
)
def test_time_is_judged_by_steps_timed_at_the_studys_batch(timing, words):
    assert time_clause(CONFIG.batch_size, timing).startswith(words)


def test_a_task_of_rates_has_criteria_in_percentage_points():
    metrics = (ACCURACY, Metric("ood_accuracy", rate=True))
    values = {"baseline": np.array([0.5, 0.6, 0.55]), "adversarial": np.array([0.6, 0.71, 0.64])}
    found = difference(values["adversarial"], values["baseline"])
    lines = criteria_lines(study(values, metrics), CONFIG, None)
    assert lines[1].startswith("- val_accuracy better by more than 5 points, plain: met, ")
    assert f"plain: met, +{found.effect:.2f} points [+{found.low:.2f}, +{found.high:.2f}]" in lines[1]
    assert len(lines) == 4  # no second metric


def test_a_batch_of_a_strategys_own_is_named():
    chosen = study(ALL)
    strategies = chosen.study.strategies.items()
    own = {name: replace(each, settings={**each.settings, "batch_size": 16}) for name, each in strategies}
    chosen.study = replace(chosen.study, strategies=own, declared=own)
    assert "5,000 steps × 16, plain" in verdict_lines(chosen, CONFIG)[0]
    assert "batches of 16, judged" in what_was_trained("it", CONFIG, chosen)


# What speaks against it


def against(chosen, references=()):
    return "\n".join(objections(chosen, list(references)))


def test_equal_steps_are_not_equal_compute():
    assert "no baseline was trained for the FLOPs of adversarial, which has more compute" in against(
        study({"baseline": BASE, "adversarial": BASE})
    )
    flops = {"baseline": 1.0, "adversarial": 2.8, "baseline-compute": 2.8}
    assert "compute" not in against(study(ALL, train_flops=flops)).replace("baseline-compute", "")
    assert "1.40× the FLOPs" in against(study(ALL, train_flops={**flops, "baseline-compute": 2.0}))
    assert "were not counted" in against(study(ALL))
    for alone in ("baseline", "baseline-compute"):  # a part of a tuned comparison
        assert "compute" not in against(study({alone: BASE}))


def test_what_so_few_seeds_cannot_show_is_said():
    text = against(study(ALL))
    assert "5 pairs cannot give an exact two-sided p below 0.0625" in text
    found = ratio(ALL["adversarial"], BASE)
    assert f"under plain an effect smaller than {found.smallest_detectable:.3f}× stays unseen" in text
    assert "pairing brought nothing" not in text
    opposite = {**ALL, "adversarial": 1e-4 / BASE}
    assert (
        "pairing brought nothing under plain, the correlation of adversarial and baseline-compute is -1.00"
        in against(study(opposite))
    )
    assert "cannot give" not in against(study({name: np.tile(row, 2) for name, row in ALL.items()}))


def test_a_metric_that_says_otherwise_is_named():
    chosen = study({"baseline": BASE, "adversarial": 0.8 * BASE * NOISE})
    chosen.frame.loc[chosen.frame["strategy"].eq("adversarial"), "recon_error"] *= 2
    (line,) = [line for line in objections(chosen, []) if "recon_error under plain" in line]
    assert line.startswith("by val_mse under plain adversarial is better than baseline, but worse (p not adjusted) by ")
    assert re.search(r"recon_error under plain 1\.6\d\d× \[.*\], p .*, recon_error under innerloop 1\.6", line)
    assert "ood_mse under" not in against(chosen)


def test_outliers_and_diverged_runs_are_named():
    values = {**ALL, "baseline": np.array([0.073, 0.0098, 0.0099, 0.0097, nan])}
    text = against(study(values, failed=[("baseline", 4)]))
    assert "val_mse of one run far above the median: baseline under plain 0.073 beside 0.00985" in text
    assert "runs that diverged, and are in no pair: baseline 1 of 5" in text


def test_samples_that_diverged_on_one_set_are_named():
    chosen = study(ALL)
    chosen.frame["ood_recon_error"] = nan  # of no run: not defined on these problems
    plain = chosen.frame["strategy"].eq("adversarial") & chosen.frame["sampler"].eq("plain")
    chosen.frame.loc[plain & chosen.frame["seed"].isin(chosen.seeds[:2]), "ood_mse"] = nan
    (line,) = [line for line in objections(chosen, []) if "without finite" in line]
    assert line == "runs without finite values, which means leave out: adversarial under plain ood_mse in 2 of 5."


def test_predictors_that_are_not_beaten_and_a_small_budget_are_named():
    zero = {"strategy": "zero matrix", "sampler": "reference", "val_mse": 0.0208, "recon_error": 0.001}
    newton = {"strategy": "newton", "sampler": "reference", "val_mse": nan, "ood_mse": 0.0001}
    published = {"strategy": "public", "sampler": "published, not rerun", "val_mse": 1e-9, "examples": 64_000_000}
    text = against(study(ALL), [zero, newton, published])
    assert "by ood_mse, 0.01019, adversarial does not beat newton (0.0001)." in text
    assert text.count("does not beat") == 1  # the zero matrix by another metric alone
    assert "the budget, 640,000 examples, is 1% of the published 64,000,000." in text


def test_a_curve_that_still_falls_is_named():
    text = against(study({**ALL, "baseline-compute": 0.5 * BASE * NOISE}))
    assert re.search(r"val_mse still improves, .*: baseline-compute against baseline under plain 0\.\d{3}× \[", text)
    assert "still improves" not in against(study({**ALL, "baseline-compute": 1.4 * BASE * NOISE}))


def test_there_are_at_most_five_objections_whatever_was_wrong():
    names = [f"s{i}" for i in range(20)]
    values = {**ALL, "adversarial": 100 * BASE / NOISE, **dict.fromkeys(names, 100 * BASE)}
    chosen = study(values, failed=[("adversarial", 0), ("s3", 1)], train_flops=dict.fromkeys(values, 1.0))
    chosen.mean_error = 0.02
    references = [{"strategy": "zero matrix", "sampler": "reference", "val_mse": 0.0208, "ood_mse": 0.02}]
    lines = objections(chosen, references)
    assert 3 <= len(lines) <= 5
    assert "spoiled" in lines[0] and "and 38 more" in lines[0] and "adversarial under plain 5 of 5" in lines[0]


@pytest.mark.filterwarnings("error")
def test_a_study_where_everything_diverged_has_its_lines():
    nothing = {name: np.full(3, nan) for name in ALL}
    failed = [(name, seed) for name in ALL for seed in range(3)]
    chosen = study(nothing, failed=failed)
    assert verdict_lines(chosen, CONFIG)[0].endswith("unstable.")
    assert "are in no pair: adversarial 3 of 3" in against(chosen) and criteria_lines(chosen, CONFIG, None)
    assert isnan(chosen.comparison("adversarial", "baseline", MSE, "plain").effect)

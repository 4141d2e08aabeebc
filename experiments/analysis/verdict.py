"""Give the verdict of a study, by a rule fixed before its runs; `RULE` states it in full for reports to print."""

import math

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import SAMPLERS
from experiments.analysis.metrics import Metric
from experiments.analysis.statistics import Paired, with_holm
from experiments.study.study import FLOPS, STEPS, TIME, Pair

BASELINE, ADVERSARIAL, COMPUTE = "baseline", "adversarial", "baseline-compute"

MIN_PAIRED_SEEDS = 3
SMALL = 5.0  # percent of an error, or percentage points of a rate
MAX_TIME_RATIO = 2.0
ACCOUNTS = FLOPS, TIME, STEPS

UNSTABLE, UNDECIDED = "unstable", "undecided"
HELPS, HURTS = "helps", "hurts"
BY_LITTLE, NO_DIFFERENCE = "by less than", "no difference beyond"  # both followed by SMALL, as `small` writes it

RULE = f"""\
The rule was fixed before any run. At equal FLOPs, for each sampler, it reads the interval [low, high] of the ratio r
of geometric means of val_mse, {ADVERSARIAL} over {COMPUTE} ({BASELINE} trained as long as the training FLOPs of
{ADVERSARIAL} last), paired by seed, 95%, with at least {MIN_PAIRED_SEEDS} paired seeds. At equal measured time and at
equal steps, and for another pair that a study names, it reads theirs. The first that holds is the verdict:

1. *{UNSTABLE}*: a run of {ADVERSARIAL} diverged.
2. *{HELPS}*: high < 1. Below a gain of {SMALL:g}% (r > {1 - SMALL / 100:g}) it is *{HELPS}, {BY_LITTLE} {SMALL:g}%*.
3. *{HURTS}*: low > 1. Below a loss of {SMALL:g}% (r < {1 + SMALL / 100:g}) it is *{HURTS}, {BY_LITTLE} {SMALL:g}%*.
4. *{NO_DIFFERENCE} {SMALL:g}%*: the interval lies within [{1 - SMALL / 100:g}, {1 + SMALL / 100:g}].
5. *{UNDECIDED}*: anything else.

For a task that is judged by a rate (a share of right answers), the difference in percentage points takes the place of
the ratio: 0 that of 1, {SMALL:g} points that of {SMALL:g}%, also in the verdict's words, and more is better.

Beside it stand the four criteria of the first protocol, of {ADVERSARIAL} against {BASELINE} at equal steps: more than
{SMALL:g}% lower val_mse with an interval that excludes no change; a lower reconstruction error; no divergence; less
than {MAX_TIME_RATIO:g} times the time, by steps of both timed in turn in one process at the study's batch size.

A run diverged where its loss is not finite, or the metric under the sampler that is judged; for the criterion, any
metric under any sampler.
"""


def scenario(metric: Metric, comparison: Paired | None, diverged: int) -> str | None:
    """Return one of the five verdicts that `RULE` names; None where too few seeds, or none with a ratio, are paired.

    A strategy that diverged is unstable, however few pairs it left.
    """
    if diverged:
        return UNSTABLE
    if comparison is None or comparison.n < MIN_PAIRED_SEEDS:
        return None
    effect, low, high = as_loss(metric, comparison)
    if high < 0:
        return HELPS + (f", {BY_LITTLE} {small(metric)}" if effect > -SMALL else "")
    if low > 0:
        return HURTS + (f", {BY_LITTLE} {small(metric)}" if effect < SMALL else "")
    return f"{NO_DIFFERENCE} {small(metric)}" if low >= -SMALL and high <= SMALL else UNDECIDED


def small(metric: Metric) -> str:
    """Write SMALL in the metric's units."""
    return f"{SMALL:g} points" if metric.rate else f"{SMALL:g}%"


def pair_scenario(study, pair: Pair, sampler: str, comparison: Paired | None) -> str | None:
    """Return the verdict on a pair under a sampler, by the first metric."""
    metric = study.metrics[0]
    return scenario(metric, comparison, study.diverged(pair.treated, [metric], [sampler]))


def as_loss(metric: Metric, comparison: Paired) -> tuple[float, float, float]:
    """Return effect and interval, negative where the treatment is better: percent of an error, points of a rate."""
    effect, low, high = comparison.effect, comparison.low, comparison.high
    # rounded: 0.95 is 5% below 1, which float64 alone would not say
    return (-effect, -high, -low) if metric.rate else tuple(round(100 * (r - 1), 10) for r in (effect, low, high))


def compare_pairs(study, metric: Metric) -> dict[tuple, Paired | None]:
    """Return by sampler and pair all comparisons in one metric, with p-values by Holm's method.

    Those at equal compute, by FLOPs and by time, are the primary family, those at equal steps another.
    """
    found = {
        (sampler, pair): study.comparison(pair.treated, pair.other, metric, sampler)
        for sampler, pairs in study.pairs.items()
        for pair in pairs
    }
    for secondary in (False, True):
        family = {key: each for key, each in found.items() if each and (key[1].account == STEPS) == secondary}
        found |= with_holm(family)
    return found


def verdict_lines(study, config: ExperimentConfig) -> list[str]:
    """Write, for each account, pair and sampler, a line with the verdict and one with its numbers."""
    found = compare_pairs(study, study.metrics[0])
    by_account = sorted(found, key=lambda key: ACCOUNTS.index(key[1].account))  # which keeps the samplers' order
    return [*not_run(study), *(line for key in by_account for line in _pair_lines(study, config, *key, found[key]))]


def not_run(study) -> list[str]:
    """Say why there is no verdict at equal FLOPs, where there is none."""
    if any(pair.account == FLOPS for pairs in study.pairs.values() for pair in pairs):
        return []
    trained = any(label.partition(",")[0] == study.treated for label in study.strategies)
    reason = (
        f"no {study.base} was trained for the FLOPs of {study.treated}" if trained else f"{study.treated} was not run"
    )
    return [f"No verdict at equal FLOPs, since {reason}."]


def _pair_lines(study, config: ExperimentConfig, sampler: str, pair: Pair, comparison: Paired | None) -> list[str]:
    metric = study.metrics[0]
    found = pair_scenario(study, pair, sampler, comparison)
    label = "" if pair.treated == study.treated else f"{pair.treated}, "
    about = f"equal {pair.account} ({label}{config.model}, {budget(study, pair.treated)}, {sampler})"
    lines = [f"Verdict at {about}: {found}." if found else f"No verdict at {about}: {too_few(metric, comparison)}."]
    for name in (pair.treated, pair.other):  # of the other the rule counts none: its pairs are left out
        diverged = study.diverged(name, [metric], [sampler])
        if diverged:
            lines.append(f"- {diverged} of {study.count(name)} runs of {name} diverged.")
    if comparison and comparison.n > 1:
        other = f"{pair.other}: {budget(study, pair.other)}"
        family = "those at equal steps" if pair.account == STEPS else "all at equal compute"
        lines.append(f"- {metric.column} {numbers(metric, comparison, family)}; {other}.")
    return lines


def too_few(metric: Metric, comparison: Paired | None) -> str:
    if comparison is None:
        return f"a {metric.column} of exactly 0 has no ratio"
    return f"the paired seeds, {comparison.n}, are fewer than {MIN_PAIRED_SEEDS}"


def numbers(metric: Metric, comparison: Paired, family: str) -> str:
    """Write the effect, its interval, pairs and p-values; family: what Holm's method is over, in words."""
    return (
        f"{metric.words(comparison)} over {comparison.n} paired seeds, p {comparison.p:.2g} (Holm, over {family}: "
        f"{comparison.p_holm:.2g}), sign-flip p {comparison.p_signflip:.2g}, Wilcoxon p {comparison.p_wilcoxon:.2g}"
    )


def budget(study, strategy: str) -> str:
    """Write steps and batch of a strategy's runs, such as `5,000 steps × 128`."""
    steps = " or ".join(f"{steps:,}" for steps in study.train_steps(strategy))
    return f"{steps} steps × {study.batch_sizes([strategy])[0]:,}"


def criteria_lines(study, config: ExperimentConfig, timing: dict | None) -> list[str]:
    """Write the four criteria of the first protocol at equal steps, each met or not, under each sampler.

    timing: seconds a step of both and the batch size, or None.
    Returns nothing unless just one pair has equal steps.
    """
    pairs = {pair for pairs in study.pairs.values() for pair in pairs if pair.account == STEPS}
    if len(pairs) != 1:
        return []
    _, treated, other = next(iter(pairs))
    names = treated, other
    main, *others = study.metrics[::2]
    lines = [f"The four criteria at equal steps ({treated} against {other}, {config.model}):"]
    first = _under_each(study, names, main, _clearly_better)
    lines.append(f"- {main.column} better by more than {small(main)}, {first}.")
    lines += [f"- {metric.column} better, {_under_each(study, names, metric, _better)}." for metric in others[:1]]
    diverged, runs = study.diverged(treated, study.metrics, SAMPLERS), study.count(treated)
    lines.append(f"- no divergence: {_met(not diverged)}, {diverged} of {runs} runs of {treated} diverged.")
    time = time_clause(study.batch_sizes([treated])[0], timing, treated, other)
    return [*lines, f"- less than {MAX_TIME_RATIO:g}× the time: {time}."]


def _under_each(study, pair: tuple[str, str], metric: Metric, clause) -> str:
    parts = []
    for sampler in SAMPLERS:
        found = study.comparison(*pair, metric, sampler)
        if found is None or found.n < MIN_PAIRED_SEEDS:
            parts.append(f"{sampler}: not met, {too_few(metric, found)}")
        else:
            parts.append(f"{sampler}: {_met(clause(metric, found))}, {metric.words(found)}")
    return "; ".join(parts)


def _clearly_better(metric, comparison) -> bool:
    effect, _, high = as_loss(metric, comparison)
    return effect < -SMALL and high < 0


def _better(metric, comparison) -> bool:
    return as_loss(metric, comparison)[0] < 0


def _met(holds: bool) -> str:
    return "met" if holds else "not met"


def time_clause(batch_size: int, timing: dict | None, treated=ADVERSARIAL, other=BASELINE) -> str:
    """Say whether a timing of both strategies in turn at their batch size meets the criterion, or is missing."""
    if timing is None:
        return "not timed"
    if timing["batch_size"] != batch_size:
        return f"not timed at batch {batch_size:,}, only at {timing['batch_size']:,}"
    ratio = timing[treated] / timing[other] if timing[other] > 0 else math.nan
    return f"{_met(ratio < MAX_TIME_RATIO)}, {ratio:.2f}× a step of {other} ({timing.get('threads', '?')} threads)"

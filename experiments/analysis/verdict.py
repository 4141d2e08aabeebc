"""The verdict of a study, by a rule fixed before any run; ``RULE`` states it in full for reports to print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.analysis.statistics import PairedDifference

BASELINE, RANDOM, ADVERSARIAL = "baseline", "random", "adversarial"

MIN_PAIRED_SEEDS = 3
MIN_IMPROVEMENT_PERCENT = 5.0
MAX_TRAIN_SECONDS_RATIO = 2.0

SUCCESS = "adversarial succeeds"
RANDOM_BEST = "random best"
BASELINE_BEST = "baseline best"
UNSTABLE = "unstable"
INCONCLUSIVE = "inconclusive"

RULE = f"""\
The rule was fixed before any run. Improvement is the mean paired difference in val_mse to {BASELINE}, in
percent of the mean of {BASELINE} over the paired seeds, positive when lower than {BASELINE}; its interval is
the paired 95% t-interval, not adjusted for the number of strategies. A mining strategy is any strategy but
{BASELINE}. A strategy with fewer than {MIN_PAIRED_SEEDS} paired seeds supports no conclusion. The first
scenario that holds is the verdict:

1. {UNSTABLE}: a run of a mining strategy diverged. (A diverged run of {BASELINE} only drops its seed.)
2. {SUCCESS}: the improvement of {ADVERSARIAL} is above {MIN_IMPROVEMENT_PERCENT:g}%, its interval lies above
   0, its mean recon_error is lower than that of {BASELINE}, and its training takes less than
   {MAX_TRAIN_SECONDS_RATIO:g}x the time of {BASELINE}.
3. {RANDOM_BEST}: the improvement interval of {RANDOM} lies above 0, and its mean paired difference in
   val_mse is lower than that of {ADVERSARIAL}.
4. {BASELINE_BEST}: the improvement interval of every mining strategy that was run lies below 0.
5. {INCONCLUSIVE}: anything else; the reasons name the clauses that failed.
"""


@dataclass(frozen=True)
class StrategyEvidence:
    """What the verdict needs to know of one strategy.

    comparison: val_mse against the baseline; None for the baseline itself or where nothing could be paired.
    recon_error_mean: mean over its runs, nan if unknown. train_seconds_ratio: its training time over the
    baseline's, nan if unknown. runs: runs made, the diverged ones included; 0 means the strategy was not run.
    """

    name: str
    comparison: PairedDifference | None
    recon_error_mean: float
    train_seconds_ratio: float
    diverged_runs: int
    runs: int

    @property
    def paired_seeds(self):
        return self.comparison.n if self.comparison else 0

    @property
    def enough_seeds(self):
        return self.paired_seeds >= MIN_PAIRED_SEEDS

    @property
    def significantly_better(self):
        return self.enough_seeds and self.comparison.improvement_low > 0

    @property
    def significantly_worse(self):
        return self.enough_seeds and self.comparison.improvement_high < 0


@dataclass(frozen=True)
class Verdict:
    """The scenario, one of the five named in ``RULE``, and the sentences that led to it."""

    scenario: str
    reasons: tuple[str, ...]


def decide(evidence: Sequence[StrategyEvidence]) -> Verdict:
    """Apply ``RULE`` to the evidence of all strategies, in any order.

    Raises ValueError if a name repeats or the baseline is missing.
    """
    by_name = {strategy.name: strategy for strategy in evidence}
    if len(by_name) != len(evidence):
        raise ValueError(f"strategy names must differ, got {[strategy.name for strategy in evidence]}")
    if BASELINE not in by_name:
        raise ValueError(f"no evidence for {BASELINE!r}, have {sorted(by_name)}")
    baseline = by_name.pop(BASELINE)
    mining = {name: strategy for name, strategy in by_name.items() if strategy.runs > 0}
    notes = _baseline_notes(baseline)

    diverged = [strategy for strategy in mining.values() if strategy.diverged_runs > 0]
    if diverged:
        return Verdict(UNSTABLE, tuple(map(_divergence, diverged)) + notes)

    random, adversarial = mining.get(RANDOM), mining.get(ADVERSARIAL)
    clauses = _success_clauses(adversarial, baseline)
    others = tuple(_standing(strategy) for name, strategy in mining.items() if name != ADVERSARIAL)
    if all(holds for holds, _ in clauses):
        return Verdict(SUCCESS, tuple(sentence for _, sentence in clauses) + others + notes)

    failed = tuple(sentence for holds, sentence in clauses if not holds)
    if random and random.significantly_better and _lower_mean(random, adversarial):
        order = f"{RANDOM}'s mean val_mse is lower than {ADVERSARIAL}'s"
        return Verdict(RANDOM_BEST, others + (order,) + failed + notes)
    if mining and all(strategy.significantly_worse for strategy in mining.values()):
        return Verdict(BASELINE_BEST, tuple(map(_standing, mining.values())) + notes)
    return Verdict(INCONCLUSIVE, failed + others + notes)


def _baseline_notes(baseline):
    return (_divergence(baseline) + "; no pair uses them",) if baseline.diverged_runs else ()


def _divergence(strategy):
    return f"{strategy.name}: {strategy.diverged_runs} of {strategy.runs} runs diverged"


def _lower_mean(strategy, other):
    """Whether ``strategy`` has the lower mean val_mse; False where ``other`` has too few seeds to tell."""
    if other is None or not other.enough_seeds:
        return False
    return strategy.comparison.difference < other.comparison.difference


def _success_clauses(adversarial, baseline):
    """The clauses of success as (holds, sentence) pairs; a value that is nan fails its clause."""
    if adversarial is None:
        return [(False, f"{ADVERSARIAL} was not run")]
    if not adversarial.enough_seeds:
        return [(False, _too_few_seeds(adversarial))]
    gain, ratio = adversarial.comparison.improvement_percent, adversarial.train_seconds_ratio
    error, baseline_error = adversarial.recon_error_mean, baseline.recon_error_mean
    large, lower = gain > MIN_IMPROVEMENT_PERCENT, error < baseline_error
    fast = ratio < MAX_TRAIN_SECONDS_RATIO
    return [
        (
            large,
            f"{ADVERSARIAL}'s improvement in val_mse, {gain:.2f}%, is {_negated(large)}above "
            f"{MIN_IMPROVEMENT_PERCENT:g}%",
        ),
        (adversarial.significantly_better, _standing(adversarial)),
        (
            lower,
            f"{ADVERSARIAL}'s mean recon_error, {error:.4g}, is {_negated(lower)}lower than "
            f"{BASELINE}'s, {baseline_error:.4g}",
        ),
        (
            fast,
            f"{ADVERSARIAL}'s training time, {ratio:.2f}x {BASELINE}'s, is {_negated(fast)}less than "
            f"{MAX_TRAIN_SECONDS_RATIO:g}x",
        ),
    ]


def _negated(holds):
    return "" if holds else "not "


def _too_few_seeds(strategy):
    return f"{strategy.name}'s paired seeds, {strategy.paired_seeds}, are fewer than {MIN_PAIRED_SEEDS}"


def _standing(strategy):
    """One sentence: where a strategy's improvement interval lies."""
    if not strategy.enough_seeds:
        return _too_few_seeds(strategy)
    gain = strategy.comparison.improvement_percent
    low, high = strategy.comparison.improvement_low, strategy.comparison.improvement_high
    if strategy.significantly_better:
        where = f"above 0: better than {BASELINE}"
    elif strategy.significantly_worse:
        where = f"below 0: worse than {BASELINE}"
    else:
        where = "neither wholly above nor wholly below 0"
    return (
        f"{strategy.name}'s improvement in val_mse, {gain:.2f}%, has an interval "
        f"[{low:.2f}%, {high:.2f}%] over {strategy.paired_seeds} paired seeds that lies {where}"
    )


def distance_to_reference(strategy_mean, reference_mean):
    """Ratio of a strategy's mean error to a reference solver's; nan unless the reference is above 0."""
    return strategy_mean / reference_mean if reference_mean > 0 else math.nan


def reference_sentence(name, mean, reference_name, reference_mean, metric="val_mse"):
    """A sentence such as "adversarial's val_mse is 1.03x that of linear regression (3.0% worse)"."""
    ratio = distance_to_reference(mean, reference_mean)
    if not math.isfinite(ratio):
        return f"{name}'s {metric}, {mean:.3g}, has no ratio to {reference_name}'s, {reference_mean:.3g}"
    percent = 100 * abs(ratio - 1)
    if percent < 0.05:
        words = "the same to 0.1%"
    elif 0.5 <= ratio <= 2:
        words = f"{percent:.1f}% {'worse' if ratio > 1 else 'better'}"
    else:  # a percentage far from 100 hides the size of the gap, the ratio shows it
        words = "worse" if ratio > 1 else "better"
    return f"{name}'s {metric} is {ratio:.3g}x that of {reference_name} ({words})"

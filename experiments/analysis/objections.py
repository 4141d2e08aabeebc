"""Say what speaks against a study's verdict, a sentence a kind, from its own numbers."""

import math

import numpy as np

from experiments.analysis.metrics import Metric, number
from experiments.analysis.references import PUBLISHED, main_references
from experiments.analysis.statistics import Paired
from experiments.analysis.tables import Results
from experiments.analysis.verdict import as_loss
from experiments.study.study import FLOPS, STEPS, Pair

EXACT_PAIRS = 6  # pairs that an exact two-sided test at 5% needs: 2 of 2^5 sign flips are 0.063
OUTLIER = 2.0  # times the median
COMPUTE_TOLERANCE = 0.02
LISTED = 4  # strategies that a sentence names


def objections(study: Results, references: list[dict]) -> list[str]:
    """Return at most five sentences, the gravest first; references: rows of predictors and of published results."""
    kinds = (
        compute_objections(study),
        run_objections(study),
        budget_objections(study, references),
        metric_objections(study),
        [*seed_objections(study), *reference_objections(study, references)],
    )
    return [f"{'; '.join(parts)}." for parts in kinds if parts]


def compute_objections(study: Results) -> list[str]:
    """Say that nothing, or not quite the same, was trained at equal compute."""
    if not study.label("plain"):
        return []
    pairs = dict.fromkeys(study.pair(FLOPS).values())
    if not pairs:
        return [f"no {study.base} was trained for the FLOPs of {study.treated}, which has more compute at equal steps"]
    flops, lines = study.values("train_flops", "plain"), []
    for _, treated, other in pairs:
        share = flops[treated] / flops[other]
        if not np.isfinite(share).any():
            lines.append(f"the training FLOPs of {treated} and {other} were not counted")
        elif abs(np.nanmean(share) - 1) > COMPUTE_TOLERANCE:
            spent = np.nanmean(share)
            lines.append(f"the compute is not equal: {treated} was trained with {spent:.2f}× the FLOPs of {other}")
    return lines


def seed_objections(study: Results) -> list[str]:
    """Say what so few pairs cannot show, and whether pairing them brought anything."""
    lines, metric = [], study.metrics[0]
    known = {sampler: each for sampler, each in main_comparisons(study).items() if each[1] and each[1].n > 1}
    fewest = min((found.n for _, found in known.values()), default=EXACT_PAIRS)
    if fewest < EXACT_PAIRS:
        lines.append(f"{fewest} pairs cannot give an exact two-sided p below {2 / 2**fewest:.3g}")
    for sampler, (pair, found) in known.items():
        least = metric.effect_words(found.smallest_detectable, math.nan, math.nan)
        lines.append(f"under {sampler} an effect smaller than {least} stays unseen in 20% of such studies or more")
        if found.correlation <= 0:
            welch = metric.effect_words(found.effect, found.welch_low, found.welch_high)
            lines.append(
                f"pairing brought nothing under {sampler}, the correlation of {pair.treated} and {pair.other} is "
                f"{found.correlation:.2f}; unpaired {welch}, p {found.welch_p:.2g}"
            )
    return lines


def main_comparisons(study: Results) -> dict[str, tuple[Pair, Paired | None]]:
    """Return by sampler the pair that decides, at equal FLOPs where that was run, and its comparison."""
    pairs = study.pair()
    return {s: (pair, study.comparison(pair.treated, pair.other, study.metrics[0], s)) for s, pair in pairs.items()}


def metric_objections(study: Results) -> list[str]:
    """Say where another metric or sampler disagrees with the metric that decides, under the first sampler."""
    main = main_comparisons(study)
    known = [(study.metrics[0], sampler, found) for sampler, (_, found) in main.items() if found and found.n > 1]
    if not known:
        return []
    others = [
        (metric, sampler, study.comparison(pair.treated, pair.other, metric, sampler))
        for metric in study.metrics[1:]
        for sampler, (pair, _) in main.items()
    ]
    first, *rest = known
    pair = main[first[1]][0]
    here = _side(first[0], first[2])
    otherwise = {side: [] for side in ("better", "neither better nor worse", "worse") if side != here}
    for metric, sampler, found in [*rest, *others]:
        if found and found.n > 1 and (side := _side(metric, found)) != here:
            otherwise[side].append(f"{metric.column} under {sampler} {metric.words(found)}, p {found.p:.2g}")
    ways = [f"{side} (p not adjusted) by {', '.join(numbers)}" for side, numbers in otherwise.items() if numbers]
    start = f"by {first[0].column} under {first[1]} {pair.treated} is {here} than {pair.other}, but "
    return [start + "; ".join(ways)] if ways else []


def _side(metric: Metric, comparison: Paired) -> str:
    """Return on which side of no change the whole interval lies."""
    _, low, high = as_loss(metric, comparison)
    return "better" if high < 0 else "worse" if low > 0 else "neither better nor worse"


def run_objections(study: Results) -> list[str]:
    """Name the runs that diverged or are spoiled, those without a finite metric, and those that alone decide a mean."""
    metric, compared = study.metrics[0], {name for pair in study.pair().values() for name in pair[1:]}
    spoiled, far, absent = [], [], []
    names = sorted(study.strategies, key=lambda name: name not in compared)  # the compared ones are named first
    counts = {name: study.count(name) for name in names}
    failed = [f"{name} {n} of {counts[name]}" for name in names if (n := study.count(name, "failed"))]
    for name, sampler in ((name, sampler) for name in names for sampler in study.samplers):
        where, values = f"{name} under {sampler}", study.values(metric.column, sampler)[name]
        if count := study.spoiled(name, sampler):
            spoiled.append(f"{where} {count} of {counts[name]}")
        middle = np.nanmedian(values) if np.isfinite(values).any() else math.nan
        if not metric.rate and np.nanmax(values, initial=0) > OUTLIER * middle > 0:
            far.append(f"{where} {number(np.nanmax(values))} beside {number(middle)}")
        lacking = {}
        for each in study.metrics:
            count = study.diverged(name, [each], [sampler]) - study.count(name, "failed")
            lacking.setdefault(count, []).append(each.column)
        finished = study.count(name, "finished")
        absent += [f"{where} {', '.join(each)} in {count} of {finished}" for count, each in lacking.items() if count]
    commits = [f"{commit} {n}" for commit, n in study.frame.groupby("commit")["run"].nunique().items()]
    found = {
        "runs that diverged, and are in no pair": failed,
        f"runs that are spoiled, above the mean predictor's {number(study.mean_error)}": spoiled,
        "runs without finite values, which means leave out": absent,
        f"{metric.column} of one run far above the median": far,
        "runs of several commits, between which the code may differ": commits if len(commits) > 1 else [],
    }
    return [f"{what}: {listed(where)}" for what, where in found.items() if where]


def listed(parts: list[str]) -> str:
    rest = len(parts) - LISTED
    return ", ".join([*parts[:LISTED], *([f"and {rest} more"] if rest > 0 else [])])


def reference_objections(study: Results, references: list[dict]) -> list[str]:
    """Name the main predictors without training that adversarial, under its better sampler, does not beat.

    They are compared by the first metric, on the usual problems and on the harder ones.
    """
    lines = []
    for metric in study.metrics[:2]:
        mean = _best_mean(study, metric)
        unbeaten = [
            f"{row['strategy']} ({number(row[metric.column])})"
            for row in main_references(references, metric)
            if math.isfinite(mean) and not metric.better(mean, row[metric.column])
        ]
        if unbeaten:
            lines.append(f"by {metric.column}, {number(mean)}, {study.treated} does not beat {', '.join(unbeaten)}")
    return lines


def _best_mean(study: Results, metric: Metric) -> float:
    """Return the treatment's mean under the sampler where it is better; nan where none has one."""
    labels = {sampler: label for sampler in study.samplers if (label := study.label(sampler))}
    means = [metric.mean(study.values(metric.column, sampler)[label]).mean for sampler, label in labels.items()]
    means = [mean for mean in means if math.isfinite(mean)]
    return (max if metric.rate else min)(means, default=math.nan)


def budget_objections(study: Results, references: list[dict]) -> list[str]:
    """Say where training is far from its end, and how small the budget is beside a published one."""
    lines, metric, bases = [], study.metrics[0], study.pair(STEPS)
    for sampler, (_, _, longer) in study.pair(FLOPS).items():
        base = bases[sampler].other if sampler in bases else study.base
        found = study.comparison(longer, base, metric, sampler)
        if found and found.n > 1 and _side(metric, found) == "better":
            lines.append(f"{longer} against {base} under {sampler} {metric.words(found)}")
    if lines:
        lines = [f"{metric.column} still improves, and later the verdict may be another: {', '.join(lines)}"]
    label = study.label("plain")
    seen = max(study.train_steps(label), default=0) * study.batch_sizes([label])[0]
    published = max((row.get("examples", 0) for row in references if row["sampler"] == PUBLISHED), default=0)
    if 0 < seen < published:
        lines.append(f"the budget, {seen:,} examples, is {100 * seen / published:.2g}% of the published {published:,}")
    return lines

"""What speaks against a study's verdict, sentence by sentence, from its own numbers."""

import math

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import SAMPLERS
from experiments.analysis.metrics import Metric, number
from experiments.analysis.references import PUBLISHED, REFERENCE
from experiments.analysis.statistics import Paired
from experiments.analysis.tables import Results
from experiments.analysis.verdict import COMPUTE, as_loss
from experiments.study.study import FLOPS, Pair

EXACT_PAIRS = 6  # pairs that an exact two-sided test at 5% needs: 2 of 2^5 sign flips are 0.063
OUTLIER = 2.0  # times the median
COMPUTE_TOLERANCE = 0.02


def objections(study: Results, config: ExperimentConfig, references: list[dict]) -> list[str]:
    """Sentences; references: the rows of predictors and of what others published."""
    return [
        *compute_objections(study),
        *seed_objections(study),
        *metric_objections(study),
        *outlier_objections(study),
        *finite_objections(study),
        *reference_objections(study, references),
        *budget_objections(study, config, references),
    ]


def compute_objections(study: Results) -> list[str]:
    """That nothing, or not quite the same, was trained at equal compute."""
    if not study.label("plain"):
        return []
    pairs = dict.fromkeys(study.pair(FLOPS).values())
    if not pairs:
        return [f"{COMPUTE} was not run: at equal steps mining has more compute than {study.base}."]
    flops, lines = study.values("train_flops", "plain"), []
    for _, treated, other in pairs:
        share = flops[treated] / flops[other]
        if not np.isfinite(share).any():
            lines.append(f"the training FLOPs of {treated} and {other} were not counted.")
        elif abs(np.nanmean(share) - 1) > COMPUTE_TOLERANCE:
            spent = np.nanmean(share)
            lines.append(f"the compute is not equal: {treated} was trained with {spent:.2f}× the FLOPs of {other}.")
    return lines


def seed_objections(study: Results) -> list[str]:
    """What so few pairs cannot show, and whether pairing them brought anything."""
    lines, metric = [], study.metrics[0]
    known = {sampler: each for sampler, each in main_comparisons(study).items() if each[1] and each[1].n > 1}
    for sampler, (pair, found) in known.items():
        lines.append(
            f"{sampler}: in 80% of studies {found.n} seeds of this spread show an effect of "
            f"{metric.effect_words(found.smallest_detectable, math.nan, math.nan)} or a larger one; a smaller one "
            "stays unseen."
        )
        if found.correlation <= 0:
            welch = metric.effect_words(metric.value(found), found.welch_low, found.welch_high)
            lines.append(
                f"{sampler}: pairing brought nothing, the correlation of {pair.treated} and {pair.other} is "
                f"{found.correlation:.2f}; unpaired: {welch}, p {found.welch_p:.2g}."
            )
    fewest = min((found.n for _, found in known.values()), default=EXACT_PAIRS)
    if fewest < EXACT_PAIRS:
        lines.append(
            f"{fewest} pairs cannot give an exact two-sided p below {2 / 2**fewest:.3g}; the intervals rest on normal "
            "differences."
        )
    return lines


def main_comparisons(study: Results) -> dict[str, tuple[Pair, Paired | None]]:
    """By sampler the pair that decides, at equal FLOPs where that was run, and its comparison."""
    pairs = study.pair()
    return {s: (pair, study.comparison(pair.treated, pair.other, study.metrics[0], s)) for s, pair in pairs.items()}


def metric_objections(study: Results) -> list[str]:
    """Where another metric or sampler says otherwise than the metric that decides, under the first sampler.

    A sentence for each way in which they do.
    """
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
    return [
        f"by {first[0].column} under {first[1]} {pair.treated} is {here} than {pair.other}, but {side} (p not "
        f"adjusted) by {'; '.join(numbers)}."
        for side, numbers in otherwise.items()
        if numbers
    ]


def _side(metric: Metric, comparison: Paired) -> str:
    """On which side of no change the whole interval lies."""
    _, low, high = as_loss(metric, comparison)
    return "better" if high < 0 else "worse" if low > 0 else "neither better nor worse"


def outlier_objections(study: Results) -> list[str]:
    """Strategies that one run can decide, and the runs that diverged or are spoiled."""
    lines, metric = [], study.metrics[0]
    for strategy in study.strategies:
        failed = study.count(strategy, "failed")
        if failed:
            lines.append(f"{failed} of {study.count(strategy)} runs of {strategy} diverged, and no pair has them.")
        for sampler in SAMPLERS:
            if spoiled := study.spoiled(strategy, sampler):
                lines.append(
                    f"{spoiled} of {study.count(strategy)} runs of {strategy} are spoiled under {sampler}: their "
                    f"{metric.column} is above the mean predictor's, {number(study.mean_error)}."
                )
            values = study.values(metric.column, sampler)[strategy]
            middle = np.nanmedian(values) if np.isfinite(values).any() else math.nan
            if not metric.rate and np.nanmax(values, initial=0) > OUTLIER * middle > 0:
                lines.append(
                    f"{strategy} under {sampler} has a run of {metric.column} {number(np.nanmax(values))}, beside a "
                    f"median of {number(middle)}."
                )
    return lines


def finite_objections(study: Results) -> list[str]:
    """Strategies whose samples of one set diverged in some runs, which means and pairs leave out."""
    lines = []
    for strategy in study.strategies:
        for sampler in study.samplers:
            absent, finished = {}, study.count(strategy, "finished")
            for metric in study.metrics:
                count = study.diverged(strategy, [metric], [sampler]) - study.count(strategy, "failed")
                absent.setdefault(count, []).append(metric.column)
            lines += [
                f"{strategy} under {sampler} has no finite {', '.join(columns)} in {count} of {finished} runs, which "
                "means and pairs leave out."
                for count, columns in absent.items()
                if count
            ]
    return lines


def reference_objections(study: Results, references: list[dict]) -> list[str]:
    """The predictors without training that adversarial, under its better sampler, does not beat in the first metric.

    On the usual problems, the harder ones, or both; in one sentence.
    """
    best = {metric: mean for metric in study.metrics[:2] if math.isfinite(mean := _best_mean(study, metric))}
    unbeaten = []
    for row in (row for row in references if row["sampler"] == REFERENCE):
        better = [
            f"{metric.column} {number(mean)} against {number(row[metric.column])}"
            for metric, mean in best.items()
            if math.isfinite(row.get(metric.column, math.nan)) and not metric.better(mean, row[metric.column])
        ]
        if better:
            unbeaten.append(f"{row['strategy']} ({', '.join(better)})")
    return [f"{study.treated} does not beat {'; '.join(unbeaten)}."] if unbeaten else []


def _best_mean(study: Results, metric: Metric) -> float:
    """The treatment's under the sampler where it is better; nan where none has one."""
    labels = {sampler: label for sampler in study.samplers if (label := study.label(sampler))}
    means = [metric.mean(study.values(metric.column, sampler)[label]).mean for sampler, label in labels.items()]
    means = [mean for mean in means if math.isfinite(mean)]
    return (max if metric.rate else min)(means, default=math.nan)


def budget_objections(study: Results, config: ExperimentConfig, references: list[dict]) -> list[str]:
    """How small the budget is beside a published one."""
    steps = study.train_steps(study.label("plain"))
    seen, published = max(steps, default=0) * config.batch_size, _published_examples(references)
    if not seen or seen >= published:
        return []
    return [f"the budget, {seen:,} examples, is {100 * seen / published:.2g}% of the published {published:,}."]


def _published_examples(references) -> int:
    return max((row.get("examples", 0) for row in references if row["sampler"] == PUBLISHED), default=0)

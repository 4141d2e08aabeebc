"""Draw the metric against training FLOPs, and against what else a study varies."""

from pathlib import Path

import numpy as np

from experiments.analysis.figures import (
    NEAR,
    drawing,
    guarded,
    label_log,
    legend_below,
    metric_scale,
    name_line,
    name_ticks,
    reference_lines,
    strategy_colors,
)
from experiments.analysis.metrics import Metric
from experiments.analysis.references import main_references
from experiments.analysis.tables import Results
from experiments.study.study import STEPS, Study, Variant

BUDGET = "train_steps"
HEADROOM = 1.2  # beyond the references, to where the axis of errors reaches
SAME = 1.02  # FLOPs that differ by less are one budget


def has_budgets(results: Results, study: Study) -> bool:
    """Return whether its strategies differ in how long they are trained, and no further setting is varied."""
    paired = any(pair.account != STEPS for pairs in results.pairs.values() for pair in pairs)
    return study.vary.keys() == {BUDGET} or (paired and not study.vary)


@guarded
def budget_figure(results: Results, study: Study, references: list[dict], path: Path):
    """Draw under IRED's sampler every run against its training FLOPs, and a line through each strategy's medians.

    Strategies that differ only in how long they are trained share a line; spoiled runs are counted at the upper edge.
    """
    metric, sampler = results.metrics[0], results.samplers[-1]
    lines = budget_lines(results, study, sampler)
    values, flops = (results.values(column, sampler) for column in (metric.column, "train_flops"))
    shown = np.concatenate([values[label] for labels in lines.values() for label in labels])
    main, edge = main_references(references, metric), []
    low = np.min(shown[shown > 0], initial=np.inf)
    limits = [row for row in main if metric.rate or row[metric.column] > low / NEAR]
    with drawing(path, (6.8, 4.4)) as axes:
        axis = axes[0, 0]
        for (name, color), labels in zip(strategy_colors(list(lines)).items(), lines.values(), strict=True):
            x, y = (np.concatenate([each[label] for label in labels]) for each in (flops, values))
            draw_budgets(axis, x, y, color, f"{name}, median", results.mean_error, edge)
        metric_scale(axis, metric, shown)
        if np.isfinite(results.mean_error):
            ends = [results.mean_error, *(row[metric.column] for row in limits)]
            axis.set_ylim(min(low, *ends) / HEADROOM, max(ends) * HEADROOM)
            label_log(axis.yaxis, *axis.get_ylim())
        for row in limits:
            name_line(axis, row[metric.column], row["strategy"])
        axis.set(xscale="log", xlabel="training FLOPs", ylabel=f"{metric.column}, {sampler} sampler")
        label_log(axis.xaxis, *axis.get_xlim())
        legend_below(axes)


def draw_budgets(axis, flops: np.ndarray, values: np.ndarray, color: str, label: str, mean_error: float, edge: list):
    """Draw a dot for each finite run, a line through the medians, and an arrow with the number of spoiled runs.

    mean_error: of the mean predictor, above which a run is spoiled.
    edge: the places of the arrows so far, to which this adds its own.
    """
    x, y = (each[np.isfinite(flops) & np.isfinite(values)] for each in (flops, values))
    spoiled = y > mean_error
    axis.plot(x[~spoiled], y[~spoiled], "o", ms=4, alpha=0.5, color=color)
    axis.plot(*np.reshape(budgets(x, y), (-1, 2)).T, "D-", ms=5, color=color, label=label)
    for place, runs in budgets(x[spoiled], y[spoiled], len):
        tier = sum(abs(place / other - 1) < 0.1 for other in edge)
        words = {"s": f"\N{UPWARDS ARROW}{runs}", "ha": "center", "va": "bottom", "color": color}
        axis.text(place, 1 + 0.05 * tier, **words, transform=axis.get_xaxis_transform())
        edge.append(place)


def budget_lines(results: Results, study: Study, sampler: str) -> dict[str, list[str]]:
    """Return the labels whose runs differ only in how long they were trained, by the name of the first of them.

    Of the choices of a search those under this sampler; in their settings too they may differ.
    """
    variants, names, lines = study.variants(), {}, {}
    for label in results.strategies:
        each = variants.get(label)
        if each and sampler not in each.strategy.samplers:
            continue
        if not each:
            alike = name = label
        elif each.strategy.origin == each.strategy.name:
            alike, name = str(each.config.change(train_steps=1).to_dict()), each.strategy.name
        else:
            alike = name = study.alike[0] if each.strategy.origin in study.alike else each.strategy.origin
        lines.setdefault(names.setdefault(alike, name), []).append(label)
    return lines


def budgets(flops: np.ndarray, values: np.ndarray, summary=np.median) -> list[tuple[float, float]]:
    """Return FLOPs and the summary of the values there of each budget; one within SAME of the last belongs to it."""
    order = np.argsort(flops)
    starts = np.flatnonzero(np.diff(flops[order]) > (SAME - 1) * flops[order][:-1]) + 1
    return [(float(np.median(flops[part])), summary(values[part])) for part in np.split(order, starts) if part.size]


@guarded
def setting_figure(results: Results, study: Study, references: list[dict], path: Path):
    """Draw under IRED's sampler every run, a line through the means: a panel for each value of a second setting.

    A strategy that does not use the setting is a dashed line. Each combination of further settings is a line.
    """
    key, *others = sorted(study.vary, key=lambda name: name == BUDGET)  # the budget last, which has its own figure
    columns = list(study.vary[others[0]]) if others else [None]
    variants = [each for label, each in study.variants().items() if label in results.strategies]
    metric, sampler = results.metrics[0], results.samplers[-1]
    values = results.values(metric.column, sampler)
    with drawing(path, (3.6 * len(columns) + 1, 3.4), 1, len(columns), sharey=True) as axes:
        for axis, column in zip(axes.flat, columns, strict=True):
            shown = [v for v in variants if column is None or v.values.get(others[0], column) == column]
            for name, color in strategy_colors(list(study.strategies)).items():
                lines = {}
                for each in (each for each in shown if each.strategy.name == name):
                    lines.setdefault(tuple(each.values.get(other) for other in others[1:]), []).append(each)
                for part in lines.values():
                    draw_line(axis, part, key, study, values, metric, color)
            words = f", {others[0]} {column}" if others else ""
            axis.set(title=f"{metric.column}, {sampler}{words}", xlabel=key, ylabel=metric.column)
            reference_lines(axis, references, metric)
            metric_scale(axis, metric, np.concatenate(list(values.values())))
            name_ticks(axis, [str(value) for value in study.vary[key]])
        legend_below(axes)


def draw_line(axis, variants: list[Variant], key: str, study: Study, values: dict, metric: Metric, color: str):
    """Draw runs and means of variants in order of the setting; one mean for a strategy that does not use it."""
    label = variants[0].strategy.name
    if key not in variants[0].values:
        axis.axhline(metric.mean(values[variants[0].label]).mean, color=color, ls="--", label=label)
        return
    points = []
    for each in variants:
        place, runs = study.vary[key].index(each.values[key]), values[each.label]
        axis.plot(np.full(runs.size, place), runs, "o", ms=3, alpha=0.5, color=color)
        points.append((place, metric.mean(runs).mean))
    axis.plot(*zip(*sorted(points), strict=True), "-", lw=1.2, color=color, label=label)

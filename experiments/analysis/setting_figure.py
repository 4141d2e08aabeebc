"""The metric against what a study varies, or against training FLOPs where that is the budget."""

from pathlib import Path

import numpy as np

from diffusion_lib.flops import train_flops
from experiments.analysis.figures import (
    choose_scale,
    drawing,
    guarded,
    legend_below,
    metric_scale,
    name_ticks,
    reference_lines,
    strategy_colors,
)
from experiments.analysis.metrics import Metric
from experiments.analysis.tables import Results
from experiments.study.study import Study, Variant

BUDGET = "train_steps"


@guarded
def setting_figure(results: Results, study: Study, references: list[dict], path: Path):
    """Every run as a point, a line through the means: a row a sampler, a column for each value of a second setting.

    A strategy that does not use the setting is a dashed line. Each combination of further settings is a line.
    """
    key, *others = sorted(study.vary, key=lambda name: name != BUDGET)  # the budget first
    columns = list(study.vary[others[0]]) if others else [None]
    variants = [each for label, each in study.variants().items() if label in results.strategies]
    metric, colors = results.metrics[0], strategy_colors(list(study.strategies))
    samplers = results.samplers
    size = (3.6 * len(columns) + 1, 3.2 * len(samplers))
    with drawing(path, size, len(samplers), len(columns), sharey="row") as axes:
        for row, sampler in zip(axes, samplers, strict=True):
            values = results.values(metric.column, sampler)
            for axis, column in zip(row, columns, strict=True):
                shown = [v for v in variants if column is None or v.values.get(others[0], column) == column]
                for name, color in colors.items():
                    own = [each for each in shown if each.strategy.name == name]
                    for part in by_further_settings(own, others[1:]):
                        draw_line(axis, part, key, study, values, metric, color)
                words = f", {others[0]} {column}" if others else ""
                axis.set(title=f"{metric.column}, {sampler}{words}", ylabel=metric.column)
                axis.set_xlabel("training FLOPs" if key == BUDGET else key)
                reference_lines(axis, references, metric)
                metric_scale(axis, metric, np.concatenate(list(values.values())))
                if key == BUDGET:
                    choose_scale(axis, "x", [train_flops(each.config) for each in shown])
                else:
                    name_ticks(axis, [str(value) for value in study.vary[key]])
        legend_below(axes)


def by_further_settings(variants: list[Variant], others: list[str]) -> list[list[Variant]]:
    """The variants of one strategy in lines: those of a line have the same values of the `others`."""
    lines = {}
    for each in variants:
        lines.setdefault(tuple(each.values.get(other) for other in others), []).append(each)
    return list(lines.values())


def draw_line(axis, variants: list[Variant], key: str, study: Study, values: dict, metric: Metric, color: str):
    """Runs and means of the variants in order of the setting; one mean for all of a strategy that does not use it."""
    label = variants[0].strategy.name
    if key not in variants[0].values and key != BUDGET:
        axis.axhline(metric.mean(values[variants[0].label]).mean, color=color, ls="--", label=label)
        return
    points = []
    for each in variants:
        place = train_flops(each.config) if key == BUDGET else study.vary[key].index(each.values[key])
        runs = values[each.label]
        axis.plot(np.full(runs.size, place), runs, "o", ms=3, alpha=0.5, color=color)
        points.append((place, metric.mean(runs).mean))
    axis.plot(*zip(*sorted(points), strict=True), "-", lw=1.2, color=color, label=label)

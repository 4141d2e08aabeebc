"""Two figures that explain a study's answer: what the energies rank and why, and how the gap to a line closes."""

from pathlib import Path

import numpy as np

from diffusion_lib.flops import recorded_flops
from diffusion_lib.run_folder import read_config
from experiments.analysis.figures import (
    choose_scale,
    drawing,
    guarded,
    legend_below,
    metric_scale,
    panels,
    plotted,
    share_scale,
    strategy_colors,
)
from experiments.analysis.landscape_figures import LEVEL_PANELS, draw, ranked_panels, rows_with_runs
from experiments.analysis.references import REGRESSION
from experiments.analysis.runs import read_curves
from experiments.analysis.tables import Results

OWN = "auc_adversarial"


@guarded
def causes_figure(study_folder: Path, diagnoses, study: Results, path: Path):
    """What the energies rank, by level; what more descents do to the metric; how often the gradient was clipped.

    Of a model without an energy the last one alone.
    """
    levels, effort = (rows_with_runs(diagnoses, part) for part in ("levels", "inner_steps"))
    ranked = ranked_panels(levels) | {OWN: LEVEL_PANELS[OWN]} if levels else {}
    with panels(path, len(ranked) + (2 if levels else 1), most=3) as axes:
        for axis, (column, (title, label)) in zip(axes.flat, ranked.items(), strict=False):
            draw(axis, levels, study.strategies, "t", column)
            axis.set(xlabel="noise level t", title=title, ylabel=label)
            share_scale(axis)
        if levels:
            descents, metric = axes.flat[len(ranked)], study.metrics[0]
            draw(descents, effort, study.strategies, "inner_steps", metric.column)
            descents.set(xlabel="descents a level (0: plain)", title=metric.column, ylabel=metric.column)
            metric_scale(descents, metric, plotted(descents))
        draw_clipped(axes.flat[-1], study_folder, study.strategies)
        legend_below(axes)


def draw_clipped(axis, study_folder: Path, strategies: list[str]):
    """Share of the steps whose gradient was clipped, over the course of a run: the mean over its seeds."""
    for strategy, color in strategy_colors(strategies).items():
        tables = [
            [(row["step"], row.get("clipped", np.nan)) for row in rows]
            for rows in read_curves(study_folder, strategy).values()
        ]
        if tables:
            length = min(map(len, tables))
            points = np.array([table[:length] for table in tables])
            axis.plot(points[0, :, 0] / points[0, -1, 0], points[:, :, 1].mean(0), color=color, label=strategy)
    axis.set(xlabel="share of the run", title="gradients clipped", ylabel="share of steps")
    share_scale(axis)


@guarded
def gap_figure(study_folder: Path, study: Results, references: list[dict], path: Path):
    """Errors along the training over linear regression's, against the training's FLOPs: a line for each seed."""
    line = next(row for row in references if row["strategy"] == REGRESSION)
    with drawing(path, (9, 3.6), 1, 2) as axes:
        for axis, metric in zip(axes.flat, (metric.column for metric in study.metrics[:2]), strict=True):
            for strategy, color in strategy_colors(study.strategies).items():
                for seed, rows in read_curves(study_folder, strategy).items():
                    rate = flops_of_a_step(study_folder / "runs" / strategy / f"seed-{seed}")
                    points = [(rate * r["step"], r[metric] / line[metric]) for r in rows if np.isfinite(r[metric])]
                    axis.plot(*zip(*points, strict=True), "-", lw=1, alpha=0.8, color=color, label=strategy)
            axis.axhline(1, color="black", ls="--", lw=0.8, label=REGRESSION)
            axis.set(xlabel="training FLOPs", title=f"{metric} over linear regression's, plain sampler")
            curves = axis.lines[:-1]  # without the line at 1
            choose_scale(axis, "x", [flops for curve in curves for flops in curve.get_xdata()])
            choose_scale(axis, "y", plotted(axis))
        axes[0, 0].set_ylabel("ratio of errors")
        legend_below(axes)


def flops_of_a_step(run: Path) -> float:
    return recorded_flops(run) / read_config(run)["train_steps"]

"""Two figures that explain a study's answer: what the energies rank and why, and how the gap to a line closes."""

from pathlib import Path

import numpy as np

from diffusion_lib.training.flops import recorded_flops
from diffusion_lib.training.run_folder import read_config
from experiments.analysis.figures import (
    choose_scale,
    drawing,
    guarded,
    legend_below,
    plotted,
    read_curves,
    strategy_colors,
)
from experiments.analysis.landscape_figures import draw, rows_with_runs
from experiments.analysis.references import REGRESSION

RANKED = (
    ("auc_regression", "a linear regression's answer ranked behind"),
    ("auc_other", "another matrix's inverse ranked behind"),
    ("auc_adversarial", "own mined negatives ranked behind"),
)
GAPS = (("val_mse", "val_mse"), ("ood_mse", "ood_mse (harder)"))


@guarded
def causes_figure(study_folder: Path, diagnoses, strategies: list[str], path: Path):
    """What the energies rank, by level; what more descents do to the error; how often the gradient was clipped."""
    levels, effort = (rows_with_runs(diagnoses, part) for part in ("levels", "inner_steps"))
    with drawing(path, (15, 3.4), 1, 5) as axes:
        *ranked, descents, clipped = axes.flat
        for axis, (column, title) in zip(ranked, RANKED, strict=True):
            draw(axis, levels, strategies, "t", column)
            axis.set(xlabel="noise level t", title=title, ylim=(-0.03, 1.03))
        ranked[0].set_ylabel("P(E(real) < E(fake))")
        draw(descents, effort, strategies, "inner_steps", "val_mse")
        descents.set(xlabel="descents a level (0: plain)", title="val_mse")
        choose_scale(descents, "y", plotted(descents))
        draw_clipped(clipped, study_folder, strategies)
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
    axis.set(xlabel="share of the run", title="gradients clipped", ylim=(-0.03, 1.03), ylabel="share of steps")


@guarded
def gap_figure(study_folder: Path, strategies: list[str], references: list[dict], path: Path):
    """Errors along the training over linear regression's, against the training's FLOPs: a line for each seed."""
    line = next(row for row in references if row["strategy"] == REGRESSION)
    with drawing(path, (9, 3.6), 1, 2) as axes:
        for axis, (metric, title) in zip(axes.flat, GAPS, strict=True):
            for strategy, color in strategy_colors(strategies).items():
                for seed, rows in read_curves(study_folder, strategy).items():
                    rate = flops_of_a_step(study_folder / "runs" / strategy / f"seed-{seed}")
                    points = [(rate * r["step"], r[metric] / line[metric]) for r in rows if np.isfinite(r[metric])]
                    axis.plot(*zip(*points, strict=True), "-", lw=1, alpha=0.8, color=color, label=strategy)
            axis.axhline(1, color="black", ls="--", lw=0.8, label=REGRESSION)
            axis.set(xlabel="training FLOPs", title=f"{title} over linear regression's, plain sampler", xscale="log")
            choose_scale(axis, "y", plotted(axis))
        axes[0, 0].set_ylabel("ratio of errors")
        legend_below(axes)


def flops_of_a_step(run: Path) -> float:
    return recorded_flops(run) / read_config(run)["train_steps"]

"""Figures of a study, as PNG."""

import csv
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a cluster's node
import matplotlib.pyplot as plt
import numpy as np

from diffusion_lib.system.files import write_atomic
from experiments.analysis.statistics import mean_interval
from experiments.analysis.tables import HEADLINE_SAMPLER, Study

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130})


def save_figure(figure, path: Path):
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def read_curves(study_folder: Path, strategy: str) -> dict[int, list[dict]]:
    """The rows of metrics.csv of a strategy's runs, by seed."""
    curves = {}
    for path in sorted(study_folder.glob(f"runs/{strategy}/seed-*/metrics.csv")):
        with open(path, newline="") as file:
            curves[int(path.parent.name[5:])] = [
                {key: float(value) if value else np.nan for key, value in row.items()} for row in csv.DictReader(file)
            ]
    return curves


def learning_curves(study_folder: Path, strategies: list[str], references: list[dict], path: Path):
    """Loss and the two errors against the step: mean over seeds, and the band from the least to the greatest."""
    panels = (("loss_denoise", "denoising loss"), ("val_mse", "val_mse"), ("ood_mse", "ood_mse"))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for strategy in strategies:
        curves = read_curves(study_folder, strategy)
        for axis, (column, _) in zip(axes, panels, strict=True):
            steps, values = _aligned(curves, column)
            if steps.size:
                (line,) = axis.plot(steps, values.mean(0), label=f"{strategy} (n={len(values)})")
                axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, lw=0)
    for axis, (column, title) in zip(axes, panels, strict=True):
        axis.set(xlabel="step", title=title, yscale="log")
        for row in references:
            if row["strategy"] == "linear regression" and column in row:
                axis.axhline(row[column], color="black", ls="--", lw=0.8, label="linear regression")
    axes[1].legend(frameon=False)
    save_figure(figure, path)


def _aligned(curves: dict[int, list[dict]], column: str):
    """Steps (k,) at which every seed has a value, and the values (seeds, k)."""
    tables = [
        {row["step"]: row[column] for row in rows if np.isfinite(row.get(column, np.nan))} for rows in curves.values()
    ]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return np.array(steps), np.array([[table[step] for step in steps] for table in tables])


def points_and_interval(axis, place: float, values: np.ndarray, color: str):
    """Every value as a point, and beside them the mean with its 95% t-interval."""
    interval = mean_interval(values)
    axis.plot(np.full(values.size, place - 0.12), values, "o", ms=3.5, alpha=0.6, color=color)
    if np.isfinite(interval.low):
        spread = [[interval.mean - interval.low], [interval.high - interval.mean]]
        axis.errorbar([place + 0.12], [interval.mean], spread, fmt="s", capsize=3, color=color)


def interval_plot(study: Study, references: list[dict], path: Path):
    """Every run as a point beside the mean and its 95% interval, for both difficulties."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, metric in zip(axes, ("val_mse", "ood_mse"), strict=True):
        for i, values in enumerate(study.values(metric, HEADLINE_SAMPLER)):
            points_and_interval(axis, i, values[np.isfinite(values)], f"C{i}")
        for row in references:
            if row["strategy"] == "linear regression":
                axis.axhline(row[metric], color="black", ls="--", lw=0.8, label="linear regression")
        axis.set(title=f"{metric}, {HEADLINE_SAMPLER} sampler", xticks=range(len(study.strategies)))
        axis.set_xticklabels(study.strategies)
        axis.legend(frameon=False)
    save_figure(figure, path)

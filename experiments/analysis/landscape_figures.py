"""Figures and a table of what landscape.diagnose measured, over the runs of a study."""

from pathlib import Path

import numpy as np

from experiments.analysis.figures import plt, save_figure

LEVEL_PANELS = (
    ("auc_random", "P(E(real) < E(fake)), random"),
    ("auc_adversarial", "P(E(real) < E(fake)), adversarial"),
    ("gap_adversarial", "E(fake) - E(real), adversarial"),
    ("distance_adversarial", "distance of mined negatives"),
    ("accepted", "share of opt_steps kept"),
    ("alignment", "cos(dE/dx, x - x*)"),
)


def rows_with_runs(diagnoses: dict[tuple[str, int], dict], part: str) -> list[dict]:
    """The rows of one part of all diagnoses, each with its strategy and seed."""
    return [
        {"strategy": strategy, "seed": seed, **row}
        for (strategy, seed), diagnosis in diagnoses.items()
        for row in diagnosis[part]
    ]


def draw(axis, rows, strategies, x, y):
    """Mean over seeds and the band from the least to the greatest, a line per strategy."""
    for i, strategy in enumerate(strategies):
        chosen = [row for row in rows if row["strategy"] == strategy]
        places = sorted({row[x] for row in chosen})
        values = [[row[y] for row in chosen if row[x] == place] for place in places]
        axis.plot(places, [np.mean(v) for v in values], "o-", ms=3, color=f"C{i}", label=strategy)
        axis.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=f"C{i}", alpha=0.2, lw=0)


def level_figure(diagnoses, strategies, path: Path):
    rows = rows_with_runs(diagnoses, "levels")
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.4))
    for axis, (column, title) in zip(axes.flat, LEVEL_PANELS, strict=True):
        draw(axis, rows, strategies, "t", column)
        axis.set(xlabel="level t", title=title)
    axes.flat[0].legend(frameon=False)
    save_figure(figure, path)


def effort_figure(diagnoses, strategies, path: Path):
    """Errors against inner steps and against diffusion steps, and against the condition number."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    panels = (
        ("inner_steps", "inner_steps", "val_mse"),
        ("inner_steps", "inner_steps", "ood_mse"),
        ("diffusion_steps", "diffusion_steps", "val_mse"),
        ("conditioning", "condition_from", "mse"),
    )
    for axis, (part, x, y) in zip(axes, panels, strict=True):
        draw(axis, rows_with_runs(diagnoses, part), strategies, x, y)
        axis.set(xlabel={"condition_from": "condition number of A, from"}.get(x, x), title=y, yscale="log")
    axes[0].legend(frameon=False)
    save_figure(figure, path)


def slice_figure(diagnoses, strategies, path: Path):
    """The energy around one solution, for each strategy's first seed."""
    first = {strategy: min(key for key in diagnoses if key[0] == strategy) for strategy in strategies}
    figure, axes = plt.subplots(1, len(first), figsize=(3.6 * len(first), 3.2), squeeze=False)
    for axis, (strategy, key) in zip(axes[0], first.items(), strict=True):
        part = diagnoses[key]["slice"]
        filled = axis.contourf(part["axis"], part["axis"], np.array(part["energy"]), levels=20)
        axis.plot([0], [0], "w*", ms=9)
        axis.plot([1], [0], "rx", ms=7)
        axis.set(title=f"{strategy}, seed {key[1]}, t = {part['level']}", xlabel="to the mined negative")
        figure.colorbar(filled, ax=axis)
    axes[0][0].set_ylabel("random direction")
    save_figure(figure, path)

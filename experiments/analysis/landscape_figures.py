"""Figures and tables of what landscape.diagnose measured, over the runs of a study."""

from pathlib import Path

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.inference import load_model
from diffusion_lib.system.errors import say
from diffusion_lib.system.files import read_json, write_csv, write_json
from experiments.analysis.figures import (
    ERROR_LABEL,
    choose_scale,
    drawing,
    guarded,
    legend_below,
    plotted,
    strategy_colors,
)
from experiments.analysis.landscape import diagnose
from experiments.analysis.tables import HEADLINE_SAMPLER, Study
from experiments.study.run import diagnosed_size, evaluation_sets

LEVEL_PANELS = (
    ("auc_regression", "linear regression's answer ranked behind", "P(E(real) < E(fake))"),
    ("auc_adversarial", "own mined negatives ranked behind", "P(E(real) < E(fake))"),
    ("gap_adversarial", "gap to own mined negatives", "E(fake) - E(real), energy units"),
    ("distance_adversarial", "distance of own mined negatives", "root mean square of an entry"),
    ("accepted", "descents of the mining kept", "share of opt_steps"),
    ("alignment", "gradient and way from the solution", "cos(dE/dx, x - x*)"),
)
SHARES = ("auc_regression", "auc_other", "auc_adversarial", "accepted")  # drawn from 0 to 1
EFFORT_PANELS = (
    ("inner_steps", "inner_steps", "val_mse", "val_mse, innerloop sampler", "descents a level (0: plain)"),
    ("inner_steps", "inner_steps", "ood_mse", "ood_mse (harder), innerloop sampler", "descents a level (0: plain)"),
    ("diffusion_steps", "diffusion_steps", "val_mse", "val_mse, plain sampler", "levels visited"),
    ("conditioning", "condition_from", "mse", "both difficulties, plain sampler", "condition number of A, from"),
)


def read_diagnoses(folder: Path, config: ExperimentConfig, study: Study) -> dict[tuple[str, int], dict]:
    """(strategy, seed) -> the diagnosis of each finished run of a study; without those that cannot be diagnosed."""
    finished = [r for r in study.rows if r["sampler"] == HEADLINE_SAMPLER and r["status"] == "finished"]
    found = {(row["strategy"], row["seed"]): run_diagnosis(folder / row["run"], config) for row in finished}
    missing = sum(diagnosis is None for diagnosis in found.values())
    if missing:
        say(f"{missing} runs have neither diagnostics.json nor last.pt: their energy landscape is not shown")
    return {key: diagnosis for key, diagnosis in found.items() if diagnosis}


def run_diagnosis(run: Path, config: ExperimentConfig) -> dict | None:
    """The run's own, or one made of its weights where an earlier version left none; None without weights."""
    path = run / "diagnostics.json"
    if not path.exists():
        if not (run / "last.pt").exists():
            return None
        write_json(path, diagnose(load_model(run), *evaluation_sets(config, diagnosed_size(config), "cpu")))
    return read_json(path)


def write_landscape(folder: Path, strategies: list[str], diagnoses: dict[tuple[str, int], dict]):
    """The figures of all diagnoses and their CSVs."""
    level_figure(diagnoses, strategies, path=folder / "landscape.png")
    effort_figure(diagnoses, strategies, path=folder / "effort.png")
    slice_figure(diagnoses, strategies, path=folder / "slice.png")
    for part in ("levels", "inner_steps", "diffusion_steps", "conditioning"):
        write_csv(folder / f"{part}.csv", rows_with_runs(diagnoses, part))


def rows_with_runs(diagnoses: dict[tuple[str, int], dict], part: str) -> list[dict]:
    """The rows of one part of all diagnoses, each with its strategy and seed."""
    return [
        {"strategy": strategy, "seed": seed, **row}
        for (strategy, seed), diagnosis in diagnoses.items()
        for row in diagnosis[part]
    ]


def draw(axis, rows, strategies, x, y):
    """Mean over seeds and the band from the least to the greatest, a line per strategy that has rows."""
    for strategy, color in strategy_colors(strategies).items():
        chosen = [row for row in rows if row["strategy"] == strategy and y in row]  # an earlier version's may lack it
        if not chosen:
            continue
        places = sorted({row[x] for row in chosen})
        values = [[row[y] for row in chosen if row[x] == place] for place in places]
        axis.plot(places, [np.mean(v) for v in values], "o-", ms=3, color=color, label=strategy)
        axis.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0)


@guarded
def level_figure(diagnoses, strategies, path: Path):
    """What the energy does at each noise level. strategies: all of the study, for their colours."""
    rows = rows_with_runs(diagnoses, "levels")
    with drawing(path, (11, 5.6), 2, 3) as axes:
        for axis, (column, title, label) in zip(axes.flat, LEVEL_PANELS, strict=True):
            draw(axis, rows, strategies, "t", column)
            axis.set(xlabel="noise level t", title=title, ylabel=label)
            if column in SHARES:
                axis.set_ylim(-0.03, 1.03)
            else:
                choose_scale(axis, "y", plotted(axis))
        legend_below(axes)


@guarded
def effort_figure(diagnoses, strategies, path: Path):
    """Errors against inner steps and against diffusion steps, and against the condition number."""
    with drawing(path, (14, 3.4), 1, len(EFFORT_PANELS)) as axes:
        for axis, (part, x, y, title, label) in zip(axes.flat, EFFORT_PANELS, strict=True):
            rows = rows_with_runs(diagnoses, part)
            draw(axis, rows, strategies, x, y)
            axis.set(xlabel=label, title=title)
            choose_scale(axis, "x", [row[x] for row in rows])
            choose_scale(axis, "y", plotted(axis))
        axes[0, 0].set_ylabel(ERROR_LABEL)
        legend_below(axes)


@guarded
def slice_figure(diagnoses, strategies, path: Path):
    """The energy around one solution, for each strategy's first seed."""
    first = {key[0]: key for key in sorted(diagnoses, reverse=True)}
    shown = [first[strategy] for strategy in strategies if strategy in first]
    with drawing(path, (3.6 * len(shown), 3.2), 1, len(shown), sharey=True) as axes:
        for axis, key in zip(axes.flat, shown, strict=True):
            part = diagnoses[key]["slice"]
            filled = axis.contourf(part["axis"], part["axis"], np.array(part["energy"]), levels=20)
            axis.plot([0], [0], "w*", ms=9)
            axis.plot([1], [0], "rx", ms=7)
            axis.set(title=f"{key[0]}, seed {key[1]}, level t = {part['level']}", xlabel="to the mined negative (= 1)")
            axis.figure.colorbar(filled, ax=axis, label="energy")
        axes[0, 0].set_ylabel("random direction")

"""Figures and tables of what landscape.diagnose measured, over the runs of a study: a panel for all that is there."""

from pathlib import Path

import numpy as np

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.inference import load_model
from diffusion_lib.system.errors import say
from diffusion_lib.system.files import read_json, write_json
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
from experiments.analysis.metrics import Metric
from experiments.analysis.tables import HEADLINE_SAMPLER, Results
from experiments.study.landscape import MINED, diagnose
from experiments.study.run import diagnosed_size, evaluation_sets

RANKED = "P(E(real) < E(fake))"
# What is ranked behind the solution, by the name of a task's wrong answers; another name stands for itself.
ANSWERS = {
    "regression": "a linear regression's answer",
    "other": "another problem's solution",
    "corrupted": "a spoiled solution",
}
# What is measured at each level, with titles and the labels of the axis.
LEVEL_PANELS = {
    "auc_adversarial": ("own mined negatives ranked behind", RANKED),
    "gap_adversarial": ("gap to own mined negatives", "E(fake) - E(real), energy units"),
    "distance_adversarial": ("distance of own mined negatives", "root mean square of an entry"),
    "accepted": ("descents of the mining kept", "share of opt_steps"),
    "alignment": ("gradient and way from the solution", "cos(dE/dx, x - x*)"),
}


def read_diagnoses(folder: Path, config: ExperimentConfig, study: Results) -> dict[tuple[str, int], dict]:
    """(strategy, seed) -> the diagnosis of each finished run of a study; without those that cannot be diagnosed."""
    runs = study.frame[study.frame["sampler"] == HEADLINE_SAMPLER].query("status == 'finished'")
    found = {
        (label, seed): run_diagnosis(folder / run, config)
        for label, seed, run in zip(runs["strategy"], runs["seed"], runs["run"], strict=True)
    }
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


def write_landscape(folder: Path, study: Results, task, diagnoses: dict[tuple[str, int], dict]):
    """The figures of all diagnoses, of the parts that the task and its model have."""
    if rows_with_runs(diagnoses, "levels"):
        level_figure(diagnoses, study.strategies, path=folder / "landscape.png")
    effort_figure(diagnoses, study, task, path=folder / "effort.png")
    if any(diagnosis["slice"] for diagnosis in diagnoses.values()):
        slice_figure(diagnoses, study.strategies, path=folder / "slice.png")


def rows_with_runs(diagnoses: dict[tuple[str, int], dict], part: str) -> list[dict]:
    """The rows of one part of all diagnoses, each with its strategy and seed."""
    return [
        {"strategy": strategy, "seed": seed, **row}
        for (strategy, seed), diagnosis in diagnoses.items()
        for row in diagnosis[part]
    ]


def first_seeds(diagnoses: dict, strategies: list[str], part: str) -> list[tuple[str, int]]:
    """(strategy, seed) of each strategy's first run whose diagnosis has the part; an earlier version's may lack it."""
    first = {key[0]: key for key in sorted(diagnoses, reverse=True) if diagnoses[key].get(part)}
    return [first[strategy] for strategy in strategies if strategy in first]


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


def ranked_panels(rows: list[dict]) -> dict[str, tuple[str, str]]:
    """Of the task's wrong answers that were measured: column -> title and label."""
    columns = dict.fromkeys(key for row in rows for key in row if key.startswith("auc_"))
    names = [name for name in (column.removeprefix("auc_") for column in columns) if name not in MINED]
    return {f"auc_{name}": (f"{ANSWERS.get(name, name)} ranked behind", RANKED) for name in names}


@guarded
def level_figure(diagnoses, strategies, path: Path):
    """What the energy does at each noise level. strategies: all of the study, for their colours."""
    rows = rows_with_runs(diagnoses, "levels")
    shown = ranked_panels(rows) | LEVEL_PANELS
    with panels(path, len(shown), most=4) as axes:
        for axis, (column, (title, label)) in zip(axes.flat, shown.items(), strict=True):
            draw(axis, rows, strategies, "t", column)
            axis.set(xlabel="noise level t", title=title, ylabel=label)
            if column.startswith("auc_") or column == "accepted":
                share_scale(axis)
            elif column.startswith(("gap_", "distance_")):
                choose_scale(axis, "y", plotted(axis))
        legend_below(axes)


def effort_panels(diagnoses, study: Results, task) -> list[tuple[str, str, str, Metric, str, str]]:
    """Part, x, y, the metric of y, title and label of x: of the parts that have more than one place."""
    val, hardness = study.metrics[0], f"{task.difficulty_name}, from"
    shown = [
        *(("inner_steps", "inner_steps", m.column, m, m.column, "descents a level") for m in study.metrics[:2]),
        ("diffusion_steps", "diffusion_steps", val.column, val, f"{val.column}, plain sampler", "levels visited"),
        ("conditioning", "condition_from", task.metrics[0], val, "both difficulties, plain sampler", hardness),
    ]
    return [panel for panel in shown if len({row[panel[1]] for row in rows_with_runs(diagnoses, panel[0])}) > 1]


@guarded
def effort_figure(diagnoses, study: Results, task, path: Path):
    """The first metric against inner steps, against diffusion steps, and against how hard a problem is."""
    shown = effort_panels(diagnoses, study, task)
    with panels(path, len(shown), most=4) as axes:
        for axis, (part, x, y, metric, title, label) in zip(axes.flat, shown, strict=True):
            rows = rows_with_runs(diagnoses, part)
            draw(axis, rows, study.strategies, x, y)
            axis.set(xlabel=label, ylabel=task.metrics[0], title=title)
            choose_scale(axis, "x", [row[x] for row in rows])
            metric_scale(axis, metric, plotted(axis))
        legend_below(axes)


@guarded
def slice_figure(diagnoses, strategies, path: Path):
    """The energy around one solution, for each strategy's first seed."""
    shown = first_seeds(diagnoses, strategies, "slice")
    with drawing(path, (3.6 * len(shown), 3.2), 1, len(shown), sharey=True) as axes:
        for axis, key in zip(axes.flat, shown, strict=True):
            part = diagnoses[key]["slice"]
            filled = axis.contourf(part["axis"], part["axis"], np.array(part["energy"]), levels=20)
            axis.plot([0], [0], "w*", ms=9)
            axis.plot([1], [0], "rx", ms=7)
            axis.set(title=f"{key[0]}, seed {key[1]}, level t = {part['level']}", xlabel="to the mined negative (= 1)")
            axis.figure.colorbar(filled, ax=axis, label="energy")
        axes[0, 0].set_ylabel("random direction")

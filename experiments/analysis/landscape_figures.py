"""Draw what landscape.diagnose measured over the runs of a study, a panel for each part that is there."""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import gmean

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import EvaluationSet
from diffusion_lib.inference import load_model
from diffusion_lib.system.errors import ConfigError, say
from diffusion_lib.system.files import read_json, write_json
from diffusion_lib.tasks import Inverse
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
from experiments.analysis.runs import read_curve
from experiments.analysis.tables import HEADLINE_SAMPLER, Results
from experiments.study.landscape import MINED, diagnose
from experiments.study.run import diagnosed_size, evaluation_sets

MOST_LINES = 10  # of a panel: as many as have colours that were chosen
RANKED = "P(E(real) < E(fake))"
# What is ranked behind the solution, by the name of a task's wrong answers; another name stands for itself.
ANSWERS = {
    "regression": "a linear regression's answer",
    "other": "another problem's solution",
    "corrupted": "a spoiled solution",
    "adversarial": "own mined negatives",
}


def read_diagnoses(folder: Path, config: ExperimentConfig, study: Results) -> dict[tuple[str, int], dict]:
    """Return (strategy, seed) -> the diagnosis of each finished run of a study, without those that have none."""
    runs = study.frame[study.frame["sampler"] == HEADLINE_SAMPLER].query("status == 'finished'")
    found = {
        (label, seed): readable_diagnosis(folder / run, config)
        for label, seed, run in zip(runs["strategy"], runs["seed"], runs["run"], strict=True)
    }
    missing = sum(diagnosis is None for diagnosis in found.values())
    if missing:
        say(f"{missing} runs have neither diagnostics.json nor last.pt: their energy landscape is not shown")
    return {key: diagnosis for key, diagnosis in found.items() if diagnosis}


def readable_diagnosis(run: Path, config: ExperimentConfig) -> dict | None:
    """Return the run's diagnosis; {}, with a line, where its file is damaged."""
    try:
        return run_diagnosis(run, config)
    except ConfigError as error:
        say(f"warning: {error}; deleted, it is made anew from the run's weights")
        return {}


def run_diagnosis(run: Path, config: ExperimentConfig) -> dict | None:
    """Return the run's diagnosis, made from its weights where an earlier version left none; None without weights."""
    path = run / "diagnostics.json"
    if not path.exists():
        if not (run / "last.pt").exists():
            return None
        write_json(path, diagnose(load_model(run), *evaluation_sets(config, diagnosed_size(config), "cpu")))
    return read_json(path)


def rows_with_runs(diagnoses: dict[tuple[str, int], dict], part: str) -> list[dict]:
    """Return the rows of one part of all diagnoses, each with its strategy and seed."""
    return [
        {"strategy": strategy, "seed": seed, **row}
        for (strategy, seed), diagnosis in diagnoses.items()
        for row in diagnosis[part]
    ]


def draw(axis, rows, strategies, x, y, average=np.mean):
    """Draw the average over seeds and the band from the least to the greatest, a line per strategy that has rows."""
    for strategy, color in strategy_colors(strategies).items():
        chosen = [row for row in rows if row["strategy"] == strategy and y in row]  # undefined, or an earlier version's
        if not chosen:
            continue
        places = sorted({row[x] for row in chosen})
        values = [[row[y] for row in chosen if row[x] == place] for place in places]
        axis.plot(places, [average(v) for v in values], "o-", ms=3, color=color, label=strategy)
        axis.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0)


def ranked_columns(diagnoses: dict) -> list[str]:
    """Return what the energies rank behind the solution: the task's wrong answers, then their own mined negatives."""
    columns = dict.fromkeys(key for row in rows_with_runs(diagnoses, "levels") for key in row if key.startswith("auc_"))
    return [*(name for name in columns if name[4:] not in MINED), *(["auc_adversarial"] if columns else [])]


def with_lines(study: Results) -> list[str]:
    """Return the strategies that panels show: all, or, of more than MOST_LINES, those of the last sampler's verdict."""
    pairs = study.pairs[study.samplers[-1]] if len(study.strategies) > MOST_LINES else []
    if not pairs:
        return study.strategies
    treated = pairs[0].treated
    return [treated, *(pair.other for pair in pairs if pair.treated == treated)]


def effort_panels(diagnoses, study: Results, task) -> list[tuple[str, str, str, str, str]]:
    """Return part, x, y, title and label of x, for the parts that have more than one place."""
    column, hardness = study.metrics[0].column, f"{task.difficulty_name}, from"
    shown = [
        ("inner_steps", "inner_steps", column, f"{column}, descents", "descents a level (0: plain)"),
        ("diffusion_steps", "diffusion_steps", column, f"{column}, plain sampler", "levels visited"),
        ("conditioning", "condition_from", task.metrics[0], "both difficulties, plain sampler", hardness),
    ]
    return [panel for panel in shown if len({row[panel[1]] for row in rows_with_runs(diagnoses, panel[0])}) > 1]


@guarded
def causes_figure(study_folder: Path, diagnoses, study: Results, task, path: Path):
    """Draw what energies rank, by level; the metric by effort of sampling and by difficulty; gradients clipped."""
    shown = with_lines(study)
    diagnoses = {key: diagnosis for key, diagnosis in diagnoses.items() if key[0] in shown}
    ranked, effort = ranked_columns(diagnoses), effort_panels(diagnoses, study, task)
    metric = study.metrics[0]
    with panels(path, len(ranked) + len(effort) + 1) as axes:
        for axis, column in zip(axes.flat, ranked, strict=False):
            draw(axis, rows_with_runs(diagnoses, "levels"), study.strategies, "t", column)
            axis.set(
                xlabel="noise level t", title=f"{ANSWERS.get(column[4:], column[4:])} ranked behind", ylabel=RANKED
            )
            share_scale(axis)
        for axis, (part, x, y, title, label) in zip(axes.flat[len(ranked) :], effort, strict=False):
            rows = rows_with_runs(diagnoses, part)
            draw(axis, rows, study.strategies, x, y, np.mean if metric.rate else gmean)
            axis.set(xlabel=label, ylabel=task.metrics[0], title=title)
            choose_scale(axis, "x", [row[x] for row in rows])
            metric_scale(axis, metric, plotted(axis))
        draw_clipped(axes.flat[-1], study_folder, study, shown)
        legend_below(axes, study.shortened)


def draw_clipped(axis, study_folder: Path, study: Results, shown: list[str]):
    """Draw the share of steps whose gradient was clipped over the course of a run, the mean over its seeds."""
    colors = strategy_colors(study.strategies)
    for strategy in shown:
        clipped = read_curve(study_folder, study.frame, strategy, "clipped")
        if clipped.size:
            mean = clipped.mean(axis=1)
            axis.plot(clipped.index / clipped.index[-1], mean, color=colors[strategy], label=strategy)
    axis.set(xlabel="share of the run", title="gradients clipped", ylabel="share of steps")
    share_scale(axis)


@guarded
def example_figure(diagnoses: dict, shown: list[tuple[str, int]], chosen: EvaluationSet, path: Path):
    """Draw the first problem of `chosen`, the set that was diagnosed: a row a run, as the task draws its answer.

    For matrix inversion these are the matrix, its inverse, the answer on the same scale, and the matrix times the
    answer.
    """
    problem, target = chosen.exact_inp[0].cpu(), chosen.target[0].cpu()
    matrices = isinstance(chosen.task, Inverse)
    columns = 4 if matrices else 1
    with drawing(path, (2.2 * columns, 2.3 * len(shown)), len(shown), columns) as axes:
        for row, key in zip(axes, shown, strict=True):
            answer = torch.tensor(diagnoses[key]["example"]["prediction"]).to(target).view_as(target)
            row[0].set_ylabel(f"{key[0].partition(',')[0]}, seed {key[1]}")
            if not matrices:
                chosen.task.draw(row[0], chosen.inp[0], target, answer)
                continue
            a, inverse, y = (each.view(chosen.task.rank, -1) for each in (problem, target, answer))
            pictures = {"A": (a, a), "inverse of A": (inverse, inverse), "answer Y": (y, inverse)}
            pictures["A Y, ideally the identity"] = (a @ y, torch.ones(1))
            for axis, (title, (matrix, scale)) in zip(row, pictures.items(), strict=True):
                limit = float(scale.abs().max())
                axis.imshow(matrix.numpy(), vmin=-limit, vmax=limit, cmap="coolwarm")
                axis.set(xticks=[], yticks=[], title=title)

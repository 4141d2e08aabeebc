"""Find each strategy's best setting under each sampler, from the runs of a search."""

import math
from pathlib import Path

import numpy as np

from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.errors import ConfigError, show
from diffusion_lib.system.files import write_atomic
from diffusion_lib.tasks import TASKS
from experiments.analysis.figures import choose_scale, drawing, guarded, legend_below, metric_scale, strategy_colors
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.runs import read_runs
from experiments.analysis.tables import markdown
from experiments.study.study import Study, agree


def choose(study: Study, folder: Path, writes: bool) -> dict[str, dict[str, dict]]:
    """Return, by sampler and strategy, the values of its best setting.

    study: the search's, all runs of which have ended.
    writes: whether search.md is written and printed, and search.png drawn.
    Raises ConfigError where a strategy trained at no setting without divergence.
    """
    metric = task_metrics(TASKS[study.config.dataset])[0]
    rows = search_rows(study, read_runs(folder)[0].to_dict("records"), metric)
    choices = {sampler: _best(study, rows, sampler, metric) for sampler in SAMPLERS if sampler in rows[0]}
    if writes:
        _report(study, folder, rows, choices, metric)
    return choices


def _report(study: Study, folder: Path, rows: list[dict], choices: dict, metric: Metric):
    variants = study.variants()
    for row in rows:
        own = variants[row["setting"]]
        row["chosen"] = " ".join(s for s, best in choices.items() if best[own.strategy.name] == own.values)
    search_figure(study, rows, metric, path=folder / "search.png")
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    seeds = " ".join(map(str, study.seeds))
    about = f"{study.name}: {metric.column} on seeds {seeds}, {study.config.evaluation_size:,} examples; means"
    chosen = [
        f"- {name} under {sampler}: {words(values)}{edge_words(study, values)}"
        for sampler, best in choices.items()
        for name, values in best.items()
    ]
    text = "\n\n".join([about, markdown(cells, rows[0].keys()), "\n".join(chosen)])
    write_atomic(folder / "search.md", f"{text}\n\n![the search](search.png)\n")
    show(text)


def search_rows(study: Study, runs: list[dict], metric: Metric) -> list[dict]:
    """Return a row per setting: its strategy, its values and its mean under each sampler, nan where a run diverged."""
    rows = []
    for label, variant in study.variants().items():
        own = [row for row in runs if row["strategy"] == label and row["seed"] in study.seeds]
        means = {s: _whole_mean(metric, own, s) for s in SAMPLERS if any(row["sampler"] == s for row in runs)}
        named = {key: variant.values.get(key, "") for key in study.vary}
        rows.append(
            {"setting": label, "strategy": variant.strategy.name, **named, "n": len(own) // len(means), **means}
        )
    return rows


def _whole_mean(metric: Metric, runs: list[dict], sampler: str) -> float:
    values = [row.get(metric.column, math.nan) for row in runs if row["sampler"] == sampler]
    return metric.mean(values).mean if values and np.isfinite(values).all() else math.nan


def _best(study: Study, rows: list[dict], sampler: str, metric: Metric) -> dict[str, dict]:
    """Return by strategy the values of its best setting; one that is trained as long as another follows its choice."""
    found, variants = {}, study.variants()
    for each in sorted(study.strategies.values(), key=lambda each: each.reference is not None):
        whole = [row for row in rows if row["strategy"] == each.name and math.isfinite(row[sampler])]
        if each.reference:
            length = {key: value for key, value in found[each.reference].items() if not study.uses(each, key)}
            whole = [row for row in whole if agree(variants[row["setting"]].values, length)]
        if not whole:
            raise ConfigError(f"no setting of {each.name} trained without divergence; allowed: another search")
        best = (max if metric.rate else min)(whole, key=lambda row: row[sampler])
        found[each.name] = variants[best["setting"]].values
    return {name: found[name] for name in study.strategies}


def words(values: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "nothing varied"


def edge_words(study: Study, values: dict) -> str:
    """Say that a choice lies at an end of the numbers that were searched, if it does."""
    numbers = {key: sorted(study.vary[key]) for key in values if not isinstance(values[key], str | bool)}
    ends = [key for key, all_of in numbers.items() if len(all_of) > 1 and values[key] in (all_of[0], all_of[-1])]
    return f" ({', '.join(ends)}: an end of the grid, a better one may lie beyond it)" if ends else ""


@guarded
def search_figure(study: Study, rows: list[dict], metric: Metric, path: Path):
    """Draw the metric against the first setting of the search, a line per strategy and values of the others."""
    key, *others = study.vary
    with drawing(path, (9, 3.8), 1, len(SAMPLERS), sharey=True) as axes:
        for axis, sampler in zip(axes.flat, (s for s in SAMPLERS if s in rows[0]), strict=False):
            for strategy, color in strategy_colors(list(study.strategies)).items():
                mine = [row for row in rows if row["strategy"] == strategy and row[key] != ""]
                for place, rest in enumerate(dict.fromkeys(tuple(row[other] for other in others) for row in mine)):
                    line = [row for row in mine if tuple(row[other] for other in others) == rest]
                    named = ", ".join(f"{o} {v}" for o, v in zip(others, rest, strict=True) if v != "")
                    xs, ys = [row[key] for row in line], [row[sampler] for row in line]
                    style = ("-", "--", ":", "-.")[place % 4]
                    axis.plot(xs, ys, "o", ls=style, color=color, mfc="none", label=f"{strategy} {named}".strip())
                best = [row for row in mine if sampler in row["chosen"].split()]
                axis.plot([row[key] for row in best], [row[sampler] for row in best], "o", color=color)
            if not any(isinstance(value, str | bool) for value in study.vary[key]):
                choose_scale(axis, "x", study.vary[key])
            metric_scale(axis, metric, [row[sampler] for row in rows])
            axis.set(xlabel=key, title=f"{metric.column} in the search, {sampler} sampler")
        legend_below(axes)

"""IRED's other tasks, by the first metric of each, in percent."""

from functools import cache
from pathlib import Path

import numpy as np

from diffusion_lib.evaluation import DIFFICULTIES, SAMPLERS, column
from diffusion_lib.run_folder import recorded_config
from diffusion_lib.tasks import TASKS
from experiments.analysis.metrics import task_metrics
from experiments.analysis.tables import Results, run_rows
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE
from experiments.pages.words import effect_words, summary_row, table

STRATEGIES = (BASELINE, ADVERSARIAL, "corrupt", COMPUTE)
OVER_COMPUTE, OVER_BASELINE = f"{ADVERSARIAL} over {COMPUTE} [95%]", f"{ADVERSARIAL} over {BASELINE} [95%]"


@cache
def studies(root: Path) -> dict[str, Results]:
    """By task; a study's metrics are the task's first, on the usual and the harder examples."""
    found = {}
    for folder in root.glob("task-*/"):
        name = recorded_config(folder).dataset
        metrics = task_metrics(TASKS[name])[: len(DIFFICULTIES)]
        found[name] = Results(run_rows(folder), list(STRATEGIES), metrics)
    return {name: found[name] for name in TASKS if name in found}


def table_of_usual_and_harder(root: Path) -> str:
    """A row per task, under the inner loop."""
    rows = []
    for name, study in studies(root).items():
        usual, harder = (percents(study, metric, "innerloop") for metric in study.metrics)
        seeds = int(np.isfinite(study.values(study.metrics[0].column, "innerloop")[ADVERSARIAL]).sum())
        means = [f"{one} / {other}" for one, other in zip(usual, harder, strict=True)]
        against = [effect_words(study, ADVERSARIAL, COMPUTE, metric, "innerloop") for metric in study.metrics]
        rows.append([name, TASKS[name].metrics[0].replace("_", " "), seeds, *means, *against])
    return table(rows, ("task", "metric, %", "seeds", *STRATEGIES, OVER_COMPUTE, "the same, harder"))


def details_table(root: Path) -> str:
    """A row per task, difficulty and sampler."""
    rows = [
        [
            name,
            examples,
            sampler,
            *percents(study, metric, sampler),
            *(effect_words(study, ADVERSARIAL, baseline, metric, sampler) for baseline in (COMPUTE, BASELINE)),
        ]
        for name, study in studies(root).items()
        for examples, metric in zip(("usual", "harder"), study.metrics, strict=True)
        for sampler in SAMPLERS
    ]
    return table(rows, ("task", "examples", "sampler", *STRATEGIES, OVER_COMPUTE, OVER_BASELINE))


def percents(study: Results, metric, sampler: str) -> list[str]:
    """A mean over seeds for each of STRATEGIES."""
    values = study.values(metric.column, sampler)
    return [f"{100 * np.nanmean(values[name]):.1f}" if name in values else "-" for name in STRATEGIES]


def answer_words(root: Path) -> list[str]:
    """In the README's words: tasks where mining is ahead at equal steps, and the random walk's rate."""
    words = []
    for name, study in studies(root).items():
        metric = study.metrics[0]
        found = study.comparison(ADVERSARIAL, BASELINE, metric, "innerloop")
        words += [f"{name} {metric.words(found)}"] if found and found.low > 0 else []
    return [*words, walker_words(root)]


def walker_words(root: Path) -> str:
    """How often the first step of a random walk shortens the way, on the usual and the harder graphs."""
    columns = [f"{column(each, 'first_step_shortens')}_mean" for each in DIFFICULTIES]
    walk = summary_row(root / "task-shortest-path-10-1d.summary.csv", "random walk", *columns)
    usual, harder = (100 * walk[name] for name in columns)
    return f"a random walk has {usual:.1f} / {harder:.1f}"

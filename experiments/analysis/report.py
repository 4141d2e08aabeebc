"""Write the outputs of a study: CSVs, the printed screen, figures, and a report that reads on its own."""

import json
from functools import partial
from pathlib import Path

from diffusion_lib.build import describe_data
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import SAMPLERS
from diffusion_lib.run_folder import read_environment, require_study_data, shown
from diffusion_lib.system.errors import ConfigError, show
from diffusion_lib.system.files import write_atomic
from experiments.analysis.figures import interval_plot, learning_curves
from experiments.analysis.landscape_figures import causes_figure, example_figure, read_diagnoses
from experiments.analysis.metrics import number, task_metrics
from experiments.analysis.objections import objections
from experiments.analysis.references import mean_error, published_rows, reference_rows
from experiments.analysis.runs import long_form, read_runs
from experiments.analysis.screen import screen
from experiments.analysis.setting_figure import BUDGET, budget_figure, has_budgets, setting_figure
from experiments.analysis.tables import (
    Results,
    cost_table,
    format_table,
    markdown,
    middle_table,
    summarise,
    write_table,
)
from experiments.analysis.verdict import RULE, criteria_lines, verdict_lines
from experiments.study.run import diagnosed_size, evaluation_sets
from experiments.study.study import STEPS, TIME, Study
from experiments.study.timing import read_step_times

OBJECTIONS = 5  # that the report names, at most
# Of each figure its title in the report, and what has to be said of it.
FIGURES = {
    "budget": (
        "Error against training compute",
        "Every run; lines join the medians of a strategy's budgets, and of those that differ only in how long they are "
        "trained. Arrows count spoiled runs, whose error is above the mean predictor's.",
    ),
    "settings": ("By setting", "Every run; lines join the means, a dashed one is of a strategy without the setting."),
    "intervals": ("Runs and means", "Grey lines join the runs of a seed."),
    "learning_curves": ("Learning curves", "Means over the seeds, and bands from the least to the greatest."),
    "causes": (
        "Causes",
        "Whether an energy prefers the true solution to wrong answers, the same for all strategies, and to its own "
        "mined negatives; the error against the effort of sampling and a problem's difficulty; gradients clipped. Of "
        "more than ten strategies those of the last sampler's first verdict.",
    ),
    "example": (
        "One problem, solved",
        "The first of the fixed set, by the first run of each strategy that is compared.",
    ),
}


def write_report(folder: Path, config: ExperimentConfig, declared: Study) -> dict[Path, str]:
    """Collect the runs in `folder`; write and print everything; return, by folder, what is wrong with damaged runs.

    Raises ConfigError where no run has ended.
    """
    runs, damaged = read_runs(folder)
    if runs.empty:
        raise ConfigError("; ".join(damaged.values()) or f"no run in {folder} has ended; nothing to report")
    remedy = "Start it where the first data are, or remove the runs of one of them"
    require_study_data(folder, describe_data(config), remedy)
    sets = evaluation_sets(config, config.evaluation_size, "cpu")
    task = sets[0].task
    metrics = task_metrics(task)
    references = reference_rows(sets) + published_rows(task, config)
    study = Results(runs, declared, metrics, mean_error(references, metrics[0]))
    timing = read_step_times(folder, next(iter(study.pair(STEPS).values()), ())[1:])
    write_table(folder, "csv", summarise(study, declared, references))
    write_table(folder, "runs.csv", long_form(study.frame, declared))
    figures = figure_parts(folder, config, study, declared, task, references)
    left_out = [f"left out: {'; '.join(damaged.values())}"] if damaged else []
    timed = any(pair.account == TIME for pairs in study.pairs.values() for pair in pairs)
    if timed and not (folder / "timing.json").exists():
        left_out.append("timing.json is gone, so nothing says how long an equal time was")
    against = [*left_out, *objections(study, references)][:OBJECTIONS]
    text = screen(folder.name, config, study, references, against)
    in_full = full_parts(folder, config, study, references, against, criteria_lines(study, config, timing))
    parts = [f"# {folder.name}", declared.question, f"```\n{text}\n```", *in_full, *figures]
    parts += ["## The rule", RULE, "## Configuration and command", *configuration_parts(folder, config)]
    write_atomic(folder / "report.md", "\n\n".join(parts) + "\n")
    show(f"{text}\n\nReport: {folder / 'report.md'}")
    return damaged


def figure_parts(folder: Path, config, study: Results, declared: Study, task, references: list[dict]) -> list[str]:
    """Draw the figures for which the study has data; return a section for each, which says where one is missing."""
    diagnoses = read_diagnoses(folder, config, study)
    first = {key[0]: key for key in sorted(diagnoses, reverse=True) if diagnoses[key].get("example")}
    solvers = [first[name] for name in (study.base, study.label(study.samplers[-1])) if name in first]
    draw = {}
    if has_budgets(study, declared):
        draw["budget"] = partial(budget_figure, study, declared, references)
    if declared.vary.keys() - {BUDGET}:
        draw["settings"] = partial(setting_figure, study, declared, references)
    if not declared.vary:
        draw["intervals"] = partial(interval_plot, study, references)
        draw["learning_curves"] = partial(learning_curves, folder, study, references)
    if diagnoses:
        draw["causes"] = partial(causes_figure, folder, diagnoses, study, task)
    if solvers:
        chosen, _ = evaluation_sets(config, diagnosed_size(config), "cpu")
        draw["example"] = partial(example_figure, diagnoses, solvers, chosen)
    parts = []
    for name, figure in draw.items():
        path, (title, words) = folder / f"{name}.png", FIGURES[name]
        figure(path=path)
        image = f"![{title.lower()}]({name}.png)" if path.exists() else f"({name}: the figure was not drawn)"
        parts += [f"## {title}", words, image]
    return parts


def full_parts(folder: Path, config, study: Results, references, against: list[str], criteria: list[str]) -> list[str]:
    """Return the report's parts with all statistics and tables."""
    return [
        "## What speaks against it",
        "\n".join(f"- {line}" for line in against) or "Nothing that the report looks for.",
        "## Verdict in full",
        paragraphs(verdict_lines(study, config)),
        "## The four criteria of the first protocol",
        "\n".join(criteria) or "They are for a study with one pair at equal steps.",
        "## Table",
        table_words(folder, config, study),
        format_table(study, references),
        "## Pairs and tests",
        f"Each strategy's {study.metrics[0].column} against {study.base}. The Holm family is the strategies under one "
        "sampler; these comparisons are secondary and exploratory. Five pairs cannot give an exact two-sided p below "
        "0.063. welch: taken as unpaired. smallest_detectable: what these seeds would show in 80% of studies.",
        pair_table(study),
        middle_table(study),
        "## Cost",
        cost_table(study),
    ]


def paragraphs(lines: list[str]) -> str:
    """Join lines and the lists under them: without a blank line the next one would belong to the list above."""
    return "".join(line + "\n" if line.startswith("- ") else f"\n{line}\n\n" for line in lines).strip()


def table_words(folder: Path, config: ExperimentConfig, study: Results) -> str:
    means = "means" if all(metric.rate for metric in study.metrics) else "geometric means"
    return (
        f"Over seeds {means} with 95% t-intervals, on {config.evaluation_size:,} fixed problems of each difficulty; "
        "Holm's method is over the strategies of one sampler. Rows marked *published, not rerun* are what others "
        f"report, on sets of their own. All metrics are in [{folder.name}.csv](../{folder.name}.csv), all runs in "
        f"[{folder.name}.runs.csv](../{folder.name}.runs.csv)."
    )


def pair_table(study: Results) -> str:
    """Write all that each strategy's comparison with the baseline holds, in the metric that decides."""
    metric = study.metrics[0]
    rows = [
        {"strategy": strategy, "sampler": sampler}
        | {key: number(value) for key, value in metric.columns(found).items()}
        for sampler in SAMPLERS
        for strategy, found in study.comparisons(metric, sampler).items()
    ]
    return markdown(rows, "keys")


def configuration_parts(folder: Path, config: ExperimentConfig) -> list[str]:
    about = read_environment(folder)
    return [
        f"Data: {shown(describe_data(config))}.",
        f"`{about['command']}`, commit {about['commit']}, {about['gpu'] or about['cpu']} "
        f"({about['cpu_cores']} cores, {about['threads']} threads), Python {about['python']}, torch {about['torch']} "
        f"(float32 products: {about.get('float32_products', 'highest')}).",
        "```json\n" + json.dumps(config.to_dict(), indent=2) + "\n```",
    ]

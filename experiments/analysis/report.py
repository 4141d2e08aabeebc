"""The outputs of a study: CSVs, the printed table, figures, and a report that reads on its own."""

import json
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.build import describe_data
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import SAMPLERS
from diffusion_lib.run_folder import read_environment, require_study_data, shown
from diffusion_lib.system.errors import ConfigError, show
from diffusion_lib.system.files import write_atomic
from experiments.analysis.cause_figures import causes_figure, gap_figure
from experiments.analysis.example_figure import example_figure
from experiments.analysis.figures import interval_plot, learning_curves
from experiments.analysis.landscape_figures import read_diagnoses, rows_with_runs, write_landscape
from experiments.analysis.metrics import number, task_metrics
from experiments.analysis.objections import objections
from experiments.analysis.references import REGRESSION, mean_error, published_rows, reference_rows
from experiments.analysis.runs import long_form, read_runs
from experiments.analysis.setting_figure import setting_figure
from experiments.analysis.tables import (
    Results,
    cost_table,
    defined,
    first_metrics,
    format_table,
    middle_table,
    original_pairing,
    printed_table,
    summarise,
)
from experiments.analysis.verdict import RULE, criteria_lines, verdict_lines
from experiments.study.run import diagnosed_size, evaluation_sets
from experiments.study.study import STEPS, Study
from experiments.study.timing import read_step_times


def write_report(folder: Path, config: ExperimentConfig, declared: Study) -> dict[Path, str]:
    """Collect the runs in `folder`; write and print everything; return, by folder, what is wrong with damaged runs.

    Raises ConfigError where no run has ended.
    """
    runs, damaged = read_runs(folder)
    if runs.empty:
        raise ConfigError("; ".join(damaged.values()) or f"no run in {folder} has ended; nothing to report")
    require_study_data(
        folder, describe_data(config), "Start it where the first data are, or remove the runs of one of them"
    )
    sets = evaluation_sets(config, config.evaluation_size, "cpu")
    task = sets[0].task
    metrics = task_metrics(task)
    references = reference_rows(sets, metrics) + published_rows(task, config)
    study = Results(runs, declared, metrics, mean_error(references, metrics[0]))
    timing = read_step_times(folder, next(iter(study.pair(STEPS).values()), ())[1:])
    write_tables(folder, study, declared, references)
    diagnoses = read_diagnoses(folder, config, study)
    write_figures(folder, config, study, task, references, diagnoses)
    if declared.vary:
        setting_figure(study, declared, references, path=folder / "settings.png")
    verdict, criteria = verdict_lines(study, config), criteria_lines(study, config, timing)
    left_out = [f"left out: {reason}" for reason in damaged.values()]
    against = [f"- {sentence}" for sentence in [*left_out, *objections(study, config, references)]]
    parts = [*setting_parts(folder, declared), *gap_parts(folder, references)]
    parts += diagnosis_parts(folder, diagnoses, task)
    text = report_text(folder, config, study, references, (verdict, criteria, against), parts, declared.question)
    write_atomic(folder / "report.md", text)
    show(what_was_trained(folder.name, config, study))
    show(printed_table(study, references))
    show("\n".join([original_pairing(study), *verdict, *criteria, "What speaks against it:", *against]))
    show(f"Report: {folder / 'report.md'}")
    return damaged


def write_figures(folder: Path, config, study: Results, task, references: list[dict], diagnoses: dict):
    """All figures that the references and the diagnoses allow."""
    learning_curves(folder, study, references, path=folder / "learning_curves.png")
    interval_plot(study, references, path=folder / "intervals.png")
    if has_regression(references):
        gap_figure(folder, study, references, path=folder / "gap.png")
    if diagnoses:
        write_landscape(folder, study, task, diagnoses)
        causes_figure(folder, diagnoses, study, path=folder / "causes.png")
    if has_part(diagnoses, "example"):
        chosen, _ = evaluation_sets(config, diagnosed_size(config), "cpu")
        example_figure(diagnoses, study.strategies, chosen, path=folder / "example.png")


def has_regression(references: list[dict]) -> bool:
    return any(row["strategy"] == REGRESSION for row in references)


def has_part(diagnoses: dict, part: str) -> bool:
    """Whether any diagnosis has it; an earlier version's may not."""
    return any(diagnosis.get(part) for diagnosis in diagnoses.values())


def write_tables(folder: Path, study: Results, declared: Study, references: list[dict]):
    """The study's two CSVs, beside its folder."""
    for name, table in (
        ("csv", summarise(study, declared, references)),
        ("runs.csv", long_form(study.frame, declared)),
    ):
        write_atomic(folder.with_name(f"{folder.name}.{name}"), table.to_csv(index=False))


def what_was_trained(name: str, config: ExperimentConfig, study: Results) -> str:
    """What stands above the table: it has the strategies, samplers, seeds (n) and seconds of training."""
    others = [
        f"{strategy} {' or '.join(f'{steps:,}' for steps in study.train_steps(strategy))}"
        for strategy in study.strategies
        if study.train_steps(strategy) != [config.train_steps]
    ]
    after = f" ({', '.join(others)})" if others else ""
    return (
        f"{name}: energy {config.model}, task {config.dataset} of rank {config.rank}, trained {config.train_steps:,} "
        f"steps of batch {config.batch_size:,}{after}, judged by {config.evaluation_size:,} fixed problems of each "
        "difficulty"
    )


def report_text(folder, config, study, references, found: tuple, further: list[str], question: str) -> str:
    """The whole report. found: the lines of verdict, criteria and objections; further: sections of some studies."""
    verdict, criteria, against = found
    first = study.metrics[0]
    parts = [
        f"# {folder.name}",
        question,
        "## Verdict",
        paragraphs(verdict),
        "## The four criteria of the first protocol",
        "\n".join(criteria) or "They are for a study with one pair at equal steps.",
        "## What speaks against it",
        "\n".join(against) or "Nothing that the report looks for.",
        "## Table",
        table_words(folder, config, study),
        format_table(study, references, style="github"),
        original_pairing(study) + ".",
        "## Pairs and tests",
        f"Of {first.column}, each strategy against {study.base}. The Holm family is the strategies of one metric under "
        "one sampler; these comparisons are secondary and exploratory. Five pairs cannot give an exact two-sided p "
        "below 0.063. *Smallest*: the effect that these seeds would show in 80% of studies.",
        pair_table(study),
        middle_table(study),
        "## All runs",
        image(folder, "intervals", "all runs"),
        run_table(study),
        "## Learning curves",
        image(folder, "learning_curves", "learning curves"),
        "## Cost",
        cost_table(study),
        *further,
        "## The rule",
        RULE,
        "## Configuration and command",
        *configuration_parts(folder, config),
    ]
    return "\n\n".join(parts) + "\n"


def paragraphs(lines: list[str]) -> str:
    """Lines and the lists under them: without a blank line the next one would belong to the list above."""
    return "".join(line + "\n" if line.startswith("- ") else f"\n{line}\n\n" for line in lines).strip()


def table_words(folder: Path, config: ExperimentConfig, study: Results) -> str:
    kinds = {metric.rate: metric for metric in study.metrics}
    means = "geometric means" if False in kinds else "means"
    return (
        f"Over seeds {means} with 95% t-intervals, on {config.evaluation_size:,} fixed problems of each difficulty; "
        f"the {study.metrics[0].effect} to {study.base} is paired by seed, its p adjusted by Holm's method over the "
        "strategies of one sampler. Rows marked *published, not rerun* are what others report, on sets of their own. "
        f"All metrics are in [{folder.name}.csv](../{folder.name}.csv), all runs in "
        f"[{folder.name}.runs.csv](../{folder.name}.runs.csv)."
    )


def pair_table(study: Results) -> str:
    """Each strategy against the baseline in the metric that decides: what pairing did, and the exact tests."""
    metric = study.metrics[0]
    return tabulate(
        [
            [
                strategy,
                sampler,
                found.n,
                metric.words(found),
                metric.effect_words(metric.value(found), found.welch_low, found.welch_high),
                *(number(p) for p in (found.correlation, found.p, found.p_holm, found.p_signflip, found.p_wilcoxon)),
                number(found.smallest_detectable),
            ]
            for sampler in SAMPLERS
            for strategy, found in study.comparisons(metric, sampler).items()
        ],
        ["strategy", "sampler", "pairs", "paired", "unpaired (Welch)", "correlation"]
        + ["p", "Holm", "sign flip", "Wilcoxon", "smallest"],
        tablefmt="github",
        disable_numparse=True,
    )


def run_table(study: Results) -> str:
    """Every run that ended, under each sampler."""
    metrics = first_metrics(defined(study, []))
    return tabulate(
        [
            [row["strategy"], row["seed"], row["sampler"], row["status"], f"{row['train_steps']:,}"]
            + [number(row.get(metric.column)) for metric in metrics]
            for row in study.frame.to_dict("records")
        ],
        ["strategy", "seed", "sampler", "status", "steps", *(metric.column for metric in metrics)],
        tablefmt="github",
        disable_numparse=True,
    )


def setting_parts(folder: Path, declared: Study) -> list[str]:
    """The section on what the study varies."""
    if not declared.vary:
        return []
    return [f"## By {' and '.join(declared.vary)}", image(folder, "settings", "the metric against what is varied")]


def gap_parts(folder: Path, references: list[dict]) -> list[str]:
    """The section on linear regression, where the task has one."""
    if not has_regression(references):
        return []
    return [
        "## The gap to linear regression",
        "Error over that of a linear regression, against the compute of the training: points of a learning curve whose "
        "learning rate still falls, so not shorter runs.",
        image(folder, "gap", "error over linear regression's"),
    ]


def diagnosis_parts(folder: Path, diagnoses: dict, task) -> list[str]:
    """The sections of what the diagnoses measured; those of an energy where the model has one."""
    if not diagnoses:
        return []
    return [
        *(example_parts(folder) if has_part(diagnoses, "example") else []),
        "## Causes",
        "Whether an energy prefers the true solution to wrong answers that are the same for all strategies, such as "
        "another problem's; whether to its own mined negatives; what more descents at evaluation do; how often a "
        "gradient was clipped.",
        image(folder, "causes", "causes"),
        *(energy_parts(folder) if has_part(diagnoses, "levels") else []),
        *effort_parts(folder, diagnoses, task),
    ]


def example_parts(folder: Path) -> list[str]:
    return [
        "## One problem, solved",
        "The same problem of the fixed set, as a run of each strategy solves it, and the energy along the sampler: of "
        "its sample and of the true solution. A level has an energy function of its own, and each model its own unit. "
        "Red in a picture is wrong.",
        image(folder, "example", "one problem, solved"),
    ]


def energy_parts(folder: Path) -> list[str]:
    return [
        "## Energy landscape",
        "By noise level, on the fixed set: whether the energy ranks the true solution "
        "first, by how much, how far the mined negatives lie from it, whether the gradient points away from it.",
        image(folder, "landscape", "energy landscape by level"),
        "The energy around one solution (star) towards its mined negative (cross):",
        image(folder, "slice", "slice"),
    ]


def effort_parts(folder: Path, diagnoses: dict, task) -> list[str]:
    words = {
        "inner_steps": "inner steps at each level",
        "diffusion_steps": "levels visited",
        "conditioning": task.difficulty_name,
    }
    known = [words[part] for part in words if rows_with_runs(diagnoses, part)]
    return [
        "## Effort at evaluation and difficulty",
        f"By {', '.join(known)}.",
        image(folder, "effort", "effort"),
    ]


def configuration_parts(folder: Path, config: ExperimentConfig) -> list[str]:
    about = read_environment(folder)
    return [
        f"Data: {shown(describe_data(config))}.",
        f"`{about['command']}`, commit {about['commit']}, {about['gpu'] or about['cpu']} "
        f"({about['cpu_cores']} cores, {about['threads']} threads), Python {about['python']}, torch {about['torch']} "
        f"(float32 products: {about.get('float32_products', 'highest')}).",
        "```json\n" + json.dumps(config.to_dict(), indent=2) + "\n```",
    ]


def image(folder: Path, name: str, words: str) -> str:
    """The figure in the report, or that there is none."""
    return f"![{words}]({name}.png)" if (folder / f"{name}.png").exists() else f"({words}: the figure was not drawn)"

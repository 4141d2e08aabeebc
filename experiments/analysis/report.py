"""The outputs of a study: CSVs, the printed table, figures, and a report that reads on its own."""

import json
import math
from pathlib import Path

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import read_json, write_atomic, write_csv, write_json
from experiments.analysis.cause_figures import causes_figure, gap_figure
from experiments.analysis.figures import interval_plot, learning_curves
from experiments.analysis.landscape_figures import read_diagnoses, write_landscape
from experiments.analysis.reference_solvers import reference_rows
from experiments.analysis.tables import (
    HEADLINE_SAMPLER,
    Study,
    format_table,
    original_pairing,
    run_rows,
    summary_rows,
    tidy_rows,
)
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, RULE, decide, reference_sentence

QUESTION = "Does adversarial negative mining make an IRED energy-based diffusion model better at inverting matrices?"


def write_report(folder: Path, config: ExperimentConfig, strategies: list[str]):
    """Collect the runs in `folder`; write and print everything. Raises ConfigError where no run has ended."""
    rows = run_rows(folder)
    if not rows:
        raise ConfigError(f"no run in {folder} has ended; nothing to report")
    study = Study(rows, strategies)
    references = reference_rows(config.rank, config.evaluation_size)
    summary = summary_rows(study, references)
    write_csv(folder.with_name(f"{folder.name}.runs.csv"), rows)
    write_csv(folder.with_name(f"{folder.name}.summary.csv"), summary)
    write_csv(folder.with_name(f"{folder.name}.tidy.csv"), tidy_rows(rows, folder.name, config))
    runs = dict.fromkeys(row["run"] for row in rows)  # each has a row for every sampler
    write_json(folder / "configs.json", {run: read_json(folder / run / "config.json") for run in runs})
    write_atomic(folder / "table.tex", format_table(summary, "latex_booktabs") + "\n")
    learning_curves(folder, study.strategies, references, path=folder / "learning_curves.png")
    interval_plot(study, references, path=folder / "intervals.png")
    gap_figure(folder, study.strategies, references, path=folder / "gap.png")
    diagnoses = read_diagnoses(folder, config, study)
    if diagnoses:
        write_landscape(folder, study.strategies, diagnoses)
        causes_figure(folder, diagnoses, study.strategies, path=folder / "causes.png")
    verdict = verdict_lines(study, summary)
    write_atomic(folder / "report.md", report_text(folder, config, study, summary, verdict, bool(diagnoses)))
    print(what_was_trained(folder.name, config))
    print(format_table(summary))
    print("\n".join([original_pairing(study), *verdict, f"Report: {folder / 'report.md'}"]))


def what_was_trained(name: str, config: ExperimentConfig) -> str:
    """What stands above the table: it has the strategies, samplers, seeds (n) and seconds of training."""
    return (
        f"{name}: energy {config.model}, {config.rank} x {config.rank} matrices, trained {config.train_steps:,} "
        f"steps of batch {config.batch_size:,}, errors on {config.evaluation_size:,} fixed matrices of each "
        "difficulty"
    )


def verdict_lines(study: Study, summary: list[dict]) -> list[str]:
    """The verdict, its reasons, and how far each strategy stands from linear regression; a line each."""
    lines = []
    if {BASELINE, ADVERSARIAL} <= set(study.strategies):
        verdict = decide(study.evidence())
        lines = [f"Verdict: {verdict.scenario}.", *(f"- {reason}." for reason in verdict.reasons)]
    linear = next(row["val_mse_mean"] for row in summary if row["strategy"] == "linear regression")
    for row in summary:
        if row["sampler"] == HEADLINE_SAMPLER and math.isfinite(row["val_mse_mean"]):
            lines.append(f"- {reference_sentence(row['strategy'], row['val_mse_mean'], 'linear regression', linear)}.")
    return lines


def report_text(folder, config, study, summary, verdict, landscape: bool) -> str:
    about = read_json(folder / "config.json")["environment"]
    parts = [
        f"# {folder.name}",
        QUESTION,
        "## Verdict",
        "\n".join(verdict),
        "## Table",
        f"Mean over seeds with 95% t-intervals; {config.evaluation_size:,} fixed matrices of each difficulty; the "
        "comparison with baseline is paired by seed, its p adjusted by Holm's method. All columns are in "
        f"[{folder.name}.summary.csv](../{folder.name}.summary.csv), all runs in "
        f"[{folder.name}.runs.csv](../{folder.name}.runs.csv), every value of theirs in a row of its own in "
        f"[{folder.name}.tidy.csv](../{folder.name}.tidy.csv), each run's settings and machine in "
        "[configs.json](configs.json).",
        format_table(summary, "github"),
        original_pairing(study) + ".",
        "## All runs and their intervals",
        image(folder, "intervals", "all runs"),
        "## Learning curves",
        image(folder, "learning_curves", "learning curves"),
        "## The gap to linear regression",
        "Error over that of a linear regression, against the compute of the training: points of a learning curve whose "
        "learning rate still falls, so not shorter runs.",
        image(folder, "gap", "error over linear regression's"),
        "## Cost",
        cost_table(summary),
    ]
    if landscape:
        parts += [
            "## Causes",
            "Whether an energy prefers the true inverse to wrong answers that are the same for all strategies, the "
            "linear regression's and another matrix's; whether to its own mined negatives; what more descents at "
            "evaluation do; how often a gradient was clipped.",
            image(folder, "causes", "causes"),
            "## Energy landscape",
            "By noise level, on the fixed set ([levels.csv](levels.csv)): whether the energy ranks the true solution "
            "first, by how much, how far the mined negatives lie from it, whether the gradient points away from it.",
            image(folder, "landscape", "energy landscape by level"),
            "The energy around one solution (star) towards its mined negative (cross):",
            image(folder, "slice", "slice"),
            "## Effort at evaluation and difficulty",
            "Inner steps at each level ([inner_steps.csv](inner_steps.csv)), levels visited "
            "([diffusion_steps.csv](diffusion_steps.csv)), condition number ([conditioning.csv](conditioning.csv)).",
            image(folder, "effort", "effort"),
        ]
    parts += [
        "## The rule",
        RULE,
        "## Configuration and command",
        f"`{about['command']}`, commit {about['commit']}, {about['gpu'] or about['cpu']} "
        f"({about['cpu_cores']} cores, {about['threads']} threads), Python {about['python']}, torch {about['torch']} "
        f"(float32 products: {about.get('float32_products', 'highest')}).",
        "```json\n" + json.dumps(config.to_dict(), indent=2) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def image(folder: Path, name: str, words: str) -> str:
    """The figure in the report, or that there is none."""
    return f"![{words}]({name}.png)" if (folder / f"{name}.png").exists() else f"({words}: the figure was not drawn)"


def cost_table(summary: list[dict]) -> str:
    """What each strategy costs in time and memory, and that in units of the baseline."""
    rows = [row for row in summary if row["sampler"] == HEADLINE_SAMPLER]
    base = next((row for row in rows if row["strategy"] == BASELINE), None)
    lines = [
        "| strategy | runs | train seconds | x baseline | steps/s | peak memory, MB | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row["train_seconds_mean"]
        ratio = f"{seconds / base['train_seconds_mean']:.2f}" if base else "-"
        lines.append(
            f"| {row['strategy']} | {row['n']} | {seconds:.1f} | {ratio} | {row['steps_per_second_mean']:.1f} | "
            f"{row['peak_memory_bytes_mean'] / 1e6:.0f} | {row['parameters_mean']:.0f} |"
        )
    return "\n".join(lines)

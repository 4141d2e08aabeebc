"""The outputs of a study: CSVs, the printed table, figures, and a report that reads on its own."""

from pathlib import Path

from diffusion_lib.errors import ConfigError
from diffusion_lib.files import write_csv
from experiments.config import ExperimentConfig
from experiments.plots import interval_plot, learning_curves
from experiments.reference_solvers import reference_rows
from experiments.tables import Study, format_table, original_pairing, run_rows, summary_rows


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
    learning_curves(folder, study.strategies, references, folder / "learning_curves.png")
    interval_plot(study, references, folder / "intervals.png")
    print(format_table(summary))
    print(original_pairing(study))

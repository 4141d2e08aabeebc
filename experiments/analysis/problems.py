"""Join the reports of a study's problems: the tables, a figure with a panel a problem, and all verdicts."""

from pathlib import Path

import pandas as pd

from diffusion_lib.system.files import write_atomic
from diffusion_lib.tasks import TASKS
from experiments.analysis.figures import draw_runs, drawing, guarded, legend_below
from experiments.analysis.metrics import task_metrics
from experiments.analysis.runs import read_runs
from experiments.analysis.tables import Results, write_table
from experiments.analysis.verdict import verdict_lines
from experiments.study.study import PROBLEM, Study


def join_reports(folder: Path, parts: dict[Path, Study]):
    """Write the study's two tables beside `folder`, and in it report.md with a figure of all problems.

    parts: the folder of each problem -> its study; one without a report yet is left out.
    """
    parts = {path: part for path, part in parts.items() if (path / "report.md").exists()}
    if not parts:
        return
    for ending in ("csv", "runs.csv"):
        tables = [problem_table(path, part, ending) for path, part in parts.items()]
        write_table(folder, ending, pd.concat(tables))
    found = {
        path: Results(read_runs(path)[0], part.as_trained(path), task_metrics(TASKS[part.config.dataset]))
        for path, part in parts.items()
    }
    problems_figure(list(found.values()), [path.name for path in found], path=folder / "problems.png")
    sections = [
        f"## {path.name}\n\n[Its report]({path.name}/report.md)\n\n"
        + "\n".join(verdict_lines(results, parts[path].config))
        for path, results in found.items()
    ]
    question = next(iter(parts.values())).question
    text = "\n\n".join([f"# {folder.name}", question, "![a panel a problem](problems.png)", *sections])
    write_atomic(folder / "report.md", f"{text}\n")


def problem_table(path: Path, part: Study, ending: str) -> pd.DataFrame:
    """Return a problem's table, with its task or rank, where they vary, as columns behind the strategy."""
    table = pd.read_csv(path.with_name(f"{path.name}.{ending}"))
    named = {key: part.settings[key] for key in PROBLEM if f"{key}=" in path.name}
    for place, (key, value) in enumerate(named.items(), 1):
        table.insert(place, key, value)
    return table


@guarded
def problems_figure(problems: list[Results], names: list[str], path: Path):
    """Draw the first metric of every run, a column a problem, a row a sampler; means with their 95% intervals."""
    samplers = max((each.samplers for each in problems), key=len)
    with drawing(path, (4 * len(problems), 3.2 * len(samplers)), len(samplers), len(problems)) as axes:
        for column, (results, name) in enumerate(zip(problems, names, strict=True)):
            for axis, sampler in zip(axes[:, column], results.samplers, strict=False):
                draw_runs(axis, results, sampler)
                axis.set_title(f"{name}: {axis.get_title()}")
        legend_below(axes)

"""The README's two tables, recomputed from the runs in results/published.

    python experiments/published.py

The first has matrix inversion at every budget that was run, the second one row for each of IRED's other tasks.
A test holds the README to what this prints.
"""

import math
from pathlib import Path

from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import DIFFICULTIES, column
from diffusion_lib.system.arguments import Parser
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.tasks import TASKS
from diffusion_lib.training.run_folder import read_config, read_result, run_folders
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE
from experiments.budget import Run, ratio_rows, read_runs

PUBLISHED = ROOT / "results" / "published"
INNERLOOP = "innerloop"
# Of IRED's paper, tables 4 to 7: the same task at its own size and budget, usual and harder, in percent.
PAPER = {"connectivity-2": "99.1 / 93.8", "shortest-path-10-1d": "92.6 / 91.9", "sudoku": "99.4 / 62.1"}
TASK_STRATEGIES = (BASELINE, ADVERSARIAL, "corrupt", COMPUTE)


def ladder_runs(metric: str = "val_mse", root: Path = PUBLISHED) -> list[Run]:
    """The runs of all budgets. Raises ConfigError where none is published."""
    return read_runs(sorted(root.glob("ladder-*")), metric)


def ladder_table(root: Path = PUBLISHED) -> str:
    """A row per strategy and budget: geometric means over seeds with their 95% intervals."""
    metric, groups = Metric("val_mse"), {}
    for run in ladder_runs(root=root):
        groups.setdefault((run.steps, run.strategy), []).append(run)
    rows = [
        [
            strategy,
            f"{steps:,}",
            f"{runs[0].flops:.2g}",
            len(runs),
            *(cell(metric, runs, s) for s in ("plain", INNERLOOP)),
        ]
        for (steps, strategy), runs in sorted(groups.items())
    ]
    return table(rows, ("strategy", "steps", "FLOPs", "seeds", "val_mse, plain", "val_mse, inner loop"))


def cell(metric: Metric, runs: list[Run], sampler: str) -> str:
    found = metric.mean([run.errors[sampler] for run in runs])
    return f"{found.mean:.5f} [{found.low:.5f}, {found.high:.5f}]"


def ladder_ratios(root: Path = PUBLISHED) -> str:
    """Adversarial over baseline at each budget, at equal steps and at equal FLOPs, paired by seed."""
    rows = [row for row in ratio_rows(ladder_runs(root=root), "val_mse") if row["strategy"] == ADVERSARIAL]
    cells = [
        [
            f"{row['train_steps']:,} against {row['baseline_steps']:,}",
            row["matched"],
            "inner loop" if row["sampler"] == INNERLOOP else row["sampler"],
            row["n"],
            f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
        ]
        for row in rows
    ]
    return table(cells, ("adversarial against baseline, steps", "equal", "sampler", "pairs", "ratio of val_mse [95%]"))


def tasks_table(root: Path = PUBLISHED) -> str:
    """A row per task and difficulty: the first metric in percent, under the inner loop."""
    rows = []
    for study in sorted(root.glob("task-*"), key=lambda path: list(TASKS).index(dataset(path))):
        task = TASKS[dataset(study)]
        for difficulty in DIFFICULTIES:
            name = column(difficulty, task.metrics[0])
            metric = next(each for each in task_metrics(task) if each.column == name)
            values = values_by_strategy(study, name)
            against = "-"
            if {ADVERSARIAL, COMPUTE} <= values.keys():
                seeds = sorted(values[ADVERSARIAL].keys() & values[COMPUTE].keys())
                pair = [[values[strategy][seed] for seed in seeds] for strategy in (ADVERSARIAL, COMPUTE)]
                against = metric.words(metric.compare(*pair))
            means = [mean_percent(values.get(strategy, {})) for strategy in TASK_STRATEGIES]
            where = "usual" if difficulty == "val" else "harder"
            rows.append([dataset(study), task.metrics[0].replace("_", " "), where, *means, against])
    return table(rows, ("task", "metric, %", "examples", *TASK_STRATEGIES, "adversarial over baseline-compute [95%]"))


def dataset(study: Path) -> str:
    return ExperimentConfig.from_dict(read_config(study)).dataset


def values_by_strategy(study: Path, name: str) -> dict[str, dict[int, float]]:
    """Strategy -> seed -> a metric under the inner loop, of the runs that finished."""
    values = {}
    for folder in run_folders(study):
        result = read_result(folder)
        if result and result["status"] == "finished":
            value = result["samplers"][INNERLOOP].get(name, math.nan)
            values.setdefault(result["strategy"], {})[result["seed"]] = value
    return values


def mean_percent(values: dict[int, float]) -> str:
    return f"{100 * sum(values.values()) / len(values):.1f} ({len(values)})" if values else "-"


def table(rows, headers) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main(arguments=None):
    Parser(__doc__).parse_args(arguments)
    if not list(PUBLISHED.glob("ladder-*")):
        raise ConfigError(f"no ladder-* in {PUBLISHED}")
    print("\n\n".join([ladder_table(), ladder_ratios(), tasks_table()]))


if __name__ == "__main__":
    with exit_status():
        main()

"""The tables of README.md and docs/results.md, recomputed from the runs in results/published.

    python experiments/published.py

Matrix inversion at every budget that was run, IRED's other tasks, and two studies beside the ladder.
A test holds the pages to what this prints.
"""

if __name__ == "__main__":
    from diffusion_lib.system import startup

    startup.begin()


import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import DIFFICULTIES, column
from diffusion_lib.system.arguments import Parser, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError, exit_status
from diffusion_lib.tasks import TASKS
from diffusion_lib.training.run_folder import read_config, read_result, run_folders
from experiments import tuned_comparison
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.statistics import Paired
from experiments.analysis.tables import Study
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE, equal_compute
from experiments.budget import PRIMARY_STEPS, Run, ratio_rows, read_runs

PUBLISHED = ROOT / "results" / "published"
INNERLOOP = "innerloop"
LADDER_METRICS = ("val_mse", "ood_mse", "recon_error")
MATRIX_STUDY = "matrix-cpu-1k"
OTHER_STUDIES, STRATEGIES = ("mlp-cpu-5k", MATRIX_STUDY), (BASELINE, "random", ADVERSARIAL, COMPUTE)
TASK_STRATEGIES = (BASELINE, ADVERSARIAL, "corrupt", COMPUTE)


def ladder_runs(metric: str = "val_mse", root: Path = PUBLISHED) -> list[Run]:
    """The runs of all budgets. Raises ConfigError where none is published."""
    return read_runs(sorted(root.glob("ladder-*/")), metric)


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
    return with_interval(f"{found.mean:.5f}", found.low, found.high, "{:.5f}")


def with_interval(words: str, low: float, high: float, write: str) -> str:
    """The words and the interval, which one seed alone has not."""
    return words if math.isnan(low) else f"{words} [{write.format(low)}, {write.format(high)}]"


def rises_table(root: Path = PUBLISHED) -> str:
    """A row per strategy and budget: how far the runs' denoising loss rose again, least and most over seeds."""
    groups = {}
    for run in ladder_runs(root=root):
        groups.setdefault((run.strategy, run.steps), []).append(loss_rise(run.folder))
    rows = [
        [strategy, f"{steps:,}", len(rises), f"{min(rises):.2f}", f"{max(rises):.2f}"]
        for (strategy, steps), rises in sorted(groups.items())
    ]
    return table(rows, ("strategy", "steps", "seeds", "least rise", "largest rise"))


def loss_rise(folder: Path) -> float:
    """The largest ratio of a row's denoising loss in metrics.csv to the least before it, past a fifth of the rows."""
    with open(folder / "metrics.csv", newline="") as file:
        losses = [float(row["loss_denoise"]) for row in csv.DictReader(file)]
    first = len(losses) // 5 + 1
    return max(losses[i] / min(losses[:i]) for i in range(first, len(losses)))


def answer_table(root: Path = PUBLISHED) -> str:
    """The README's: adversarial over baseline by val_mse, at one learning rate and each at its own best settings."""
    return ratios_table("val_mse", ladder_ratios("val_mse", root) + tuned_ratios(root))


def secondary_table(metric: str, root: Path = PUBLISHED) -> str:
    return ratios_table(metric, ladder_ratios(metric, root))


def ratios_table(metric: str, cells: list[list[str]]) -> str:
    samplers = ("plain sampler; seeds ahead", "IRED's inner loop; seeds ahead")
    return table(cells, (f"{metric}, adversarial against baseline, steps", "equal", *samplers))


def ladder_ratios(metric: str, root: Path) -> list[list[str]]:
    """Adversarial over baseline at each budget, at equal FLOPs and at equal steps, paired by seed."""
    found = {}
    for row in ratio_rows(ladder_runs(metric, root), metric):
        if row["strategy"] == ADVERSARIAL:
            found.setdefault((row["matched"], row["train_steps"], row["baseline_steps"]), {})[row["sampler"]] = row
    shown = ("ratio", "ratio_low", "ratio_high", "ahead", "n")
    return [
        [
            f"{steps:,} against {baseline:,}",
            matched,
            *(ratio_cell(*(row[sampler][key] for key in shown)) for sampler in ("plain", INNERLOOP)),
        ]
        for (matched, steps, baseline), row in sorted(found.items())
    ]


def ratio_cell(ratio: float, low: float, high: float, ahead: int, n: int) -> str:
    return f"{with_interval(f'{ratio:.3f}', low, high, '{:.3f}')}; {ahead} of {n}"


def ladder_words(root: Path = PUBLISHED) -> list[str]:
    """What the README's text says of the primary comparison beside its table, in these words."""
    words = []
    for metric in LADDER_METRICS:
        for row in ratio_rows(ladder_runs(metric, root), metric):
            if (row["strategy"], row["matched"]) != (ADVERSARIAL, "FLOPs") or row["train_steps"] not in PRIMARY_STEPS:
                continue
            if metric == "val_mse":
                words += [change_words(row["ratio"])]
                words += [f"{row['p']:.2f} ({row['p_holm']:.2f} by Holm's method)"]
            elif (row["sampler"], row["train_steps"]) == (INNERLOOP, PRIMARY_STEPS[0]):
                words.append(f"{metric} {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]")
    return [*words, *reference_words(root)]


def change_words(ratio: float) -> str:
    """A ratio of errors in words: percents where it is near 1."""
    if 0.8 < ratio < 1.25:
        return f"{100 * abs(ratio - 1):.1f}% {'larger' if ratio > 1 else 'smaller'}"
    return f"{ratio:.2g} times"


def reference_words(root: Path) -> list[str]:
    """What the README says of single runs and of what needs no training, in these words."""
    with open(root / "ladder-5000.summary.csv", newline="") as file:
        references = {row["strategy"]: row for row in csv.DictReader(file) if row["sampler"] == "reference"}
    regression, zero = (
        float(references[name][f"{metric}_mean"])
        for name, metric in (("linear regression", "val_mse"), ("zero matrix", "recon_error"))
    )
    all_runs = ladder_runs(root=root)
    baselines = [run for run in all_runs if (run.strategy, run.steps) == (BASELINE, PRIMARY_STEPS[0])]
    worst = max(run.errors[INNERLOOP] for run in baselines)
    best = min(error for run in ladder_runs("recon_error", root) for error in run.errors.values())
    mined = [loss_rise(run.folder) for run in all_runs if (run.strategy, run.steps) == (ADVERSARIAL, PRIMARY_STEPS[-1])]
    others = max(loss_rise(run.folder) for run in all_runs if run.strategy != ADVERSARIAL)
    return [
        f"({worst:.4f})",
        f"{min(mined):.1f} to {max(mined):.1f} times its least value",
        f"never by more than {math.ceil(100 * (others - 1))}%",
        f"a linear regression reaches {regression:.4f}",
        f"{best / zero:.1f} times that of answering zero ({zero:.2f})",
    ]


def tuned_ratios(root: Path) -> list[list[str]]:
    """The same where each strategy has its own best settings, as tuned_comparison.py found them."""
    cells = []
    for folder in tuned_folders(root):
        study, metric = tuned_study(folder), Metric("val_mse")
        for matched, baseline in (("FLOPs", COMPUTE), ("steps", BASELINE)):
            (steps,), (others,) = study.train_steps(ADVERSARIAL), study.train_steps(baseline)
            row = [f"{steps:,} against {others:,}, each tuned", matched]
            for sampler in ("plain", INNERLOOP):
                values = study.values(metric.column, sampler)
                found = study.comparison(ADVERSARIAL, baseline, metric, sampler)
                ahead = int(np.sum(values[ADVERSARIAL] < values[baseline]))
                row.append(ratio_cell(found.ratio, found.low, found.high, ahead, found.n))
            cells.append(row)
    return cells


def tuned_table(root: Path = PUBLISHED) -> str:
    """A row per budget and strategy at its own best settings: what the search chose, and the geometric means."""
    rows, metric = [], Metric("val_mse")
    for folder in tuned_folders(root):
        study = tuned_study(folder)
        with open(folder / "search.csv", newline="") as file:
            settings = tuned_comparison.chosen_settings(csv.DictReader(file))
        for strategy in study.strategies:
            means = [metric.mean(study.values(metric.column, s)[strategy]) for s in ("plain", INNERLOOP)]
            errors = [with_interval(f"{mean.mean:.5f}", mean.low, mean.high, "{:.5f}") for mean in means]
            chosen = settings[strategy]
            steps = f"{study.train_steps(strategy)[0]:,}"
            rows.append([strategy, steps, chosen.learning_rate, chosen.weight or "-", means[0].n, *errors])
    headers = ("strategy", "steps", "learning rate", "weight", "seeds", "val_mse, plain", "val_mse, inner loop")
    return table(rows, headers)


def tuned_folders(root: Path) -> list[Path]:
    """Of the reports of tuned_comparison.py, by budget; the studies behind a report stand beside it."""
    return sorted(
        (path.parent for path in root.glob("tuned/*/search.csv")), key=lambda path: (len(path.name), path.name)
    )


def tuned_study(folder: Path) -> Study:
    studies = [folder.with_name(f"{folder.name}-{strategy}") for strategy in tuned_comparison.STRATEGIES]
    return tuned_comparison.final_study(studies, (Metric("val_mse"),))


def tuned_words(root: Path = PUBLISHED) -> list[str]:
    """What the README says of each strategy at its own best settings and equal FLOPs, in these words."""
    found = [equal_compute(tuned_study(folder), Metric("val_mse")) for folder in tuned_folders(root)]
    return [
        words
        for samplers in found
        for each in samplers.values()
        for words in (change_words(each.ratio), f"{each.p:.2f} ({each.p_holm:.2f} by Holm's method)")
    ]


def tasks_table(root: Path = PUBLISHED) -> str:
    """A row per task: the first metric in percent under the inner loop, on the usual and the harder examples."""
    rows = []
    for study in task_studies(root):
        usual, harder = (task_comparison(study, difficulty, INNERLOOP) for difficulty in DIFFICULTIES)
        means = [f"{usual.means[s]} / {harder.means[s]}" for s in TASK_STRATEGIES]
        against = [each.metric.words(each.equal_flops) for each in (usual, harder)]
        rows.append([dataset(study), TASKS[dataset(study)].metrics[0].replace("_", " "), usual.seeds, *means, *against])
    over = f"{ADVERSARIAL} over {COMPUTE} [95%]"
    return table(rows, ("task", "metric, %", "seeds", *TASK_STRATEGIES, over, "the same, harder"))


def tasks_details(root: Path = PUBLISHED) -> str:
    """A row per task, difficulty and sampler."""
    rows = []
    for study in task_studies(root):
        for difficulty in DIFFICULTIES:
            for sampler in ("plain", INNERLOOP):
                found = task_comparison(study, difficulty, sampler)
                where = "usual" if difficulty == "val" else "harder"
                against = [found.metric.words(each) for each in (found.equal_flops, found.equal_steps)]
                rows.append([dataset(study), where, sampler, *found.means.values(), *against])
    headers = (*TASK_STRATEGIES, f"{ADVERSARIAL} over {COMPUTE} [95%]", f"{ADVERSARIAL} over {BASELINE} [95%]")
    return table(rows, ("task", "examples", "sampler", *headers))


def task_words(root: Path = PUBLISHED) -> list[str]:
    """In the README's words: tasks where mining is ahead at equal steps, and the random walk's rate."""
    found = {dataset(study): task_comparison(study, DIFFICULTIES[0], INNERLOOP) for study in task_studies(root)}
    ahead = [
        f"{name} {each.metric.words(each.equal_steps)}"
        for name, each in found.items()
        if each.equal_steps and each.equal_steps.low > 0
    ]
    return [*ahead, walker_words(root)]


def walker_words(root: Path) -> str:
    """How often the first step of a random walk shortens the way, on the usual and the harder graphs."""
    with open(root / "task-shortest-path-10-1d.summary.csv", newline="") as file:
        walk = next(row for row in csv.DictReader(file) if row["strategy"] == "random walk")
    usual, harder = (100 * float(walk[f"{column(each, 'first_step_shortens')}_mean"]) for each in DIFFICULTIES)
    return f"a random walk has {usual:.1f} / {harder:.1f}"


def task_studies(root: Path) -> list[Path]:
    return sorted(root.glob("task-*/"), key=lambda path: list(TASKS).index(dataset(path)))


class TaskComparison(NamedTuple):
    """Of a task's first metric. seeds: of adversarial. means: by strategy, in percent.

    equal_flops, equal_steps: adversarial against baseline-compute and against baseline, None without a pair.
    """

    metric: Metric
    seeds: int
    means: dict[str, str]
    equal_flops: Paired | None
    equal_steps: Paired | None


def task_comparison(study: Path, difficulty: str, sampler: str) -> TaskComparison:
    task = TASKS[dataset(study)]
    name = column(difficulty, task.metrics[0])
    metric = next(each for each in task_metrics(task) if each.column == name)
    values = values_by_strategy(study, name, sampler)
    mined = values.get(ADVERSARIAL, {})

    def against(strategy: str) -> Paired | None:
        other = values.get(strategy, {})
        seeds = sorted(mined.keys() & other.keys())
        return metric.compare([mined[seed] for seed in seeds], [other[seed] for seed in seeds]) if seeds else None

    means = {strategy: mean_percent(values.get(strategy, {})) for strategy in TASK_STRATEGIES}
    return TaskComparison(metric, len(mined), means, against(COMPUTE), against(BASELINE))


def other_studies_table(root: Path = PUBLISHED) -> str:
    """The studies beside the ladder, from their runs' CSV: geometric means and ratios to the baseline."""
    rows = []
    for study in OTHER_STUDIES:
        with open(root / f"{study}.runs.csv", newline="") as file:
            runs = [run for run in csv.DictReader(file) if run["status"] == "finished"]
        for sampler in ("plain", INNERLOOP):
            val, ood = ({s: values_of(runs, s, sampler, m) for s in STRATEGIES} for m in ("val_mse", "ood_mse"))
            for strategy in STRATEGIES:
                if not val[strategy]:
                    continue
                mean, harder = (Metric("").mean(values[strategy]) for values in (val, ood))
                other = "" if strategy == BASELINE else ratio_words(val[strategy], val[BASELINE])
                errors = f"{mean.mean:.3g} [{mean.low:.3g}, {mean.high:.3g}]"
                rows.append([study, strategy, sampler, mean.n, errors, other, f"{harder.mean:.3g}"])
    return table(rows, ("study", "strategy", "sampler", "seeds", "val_mse [95%]", "ratio to baseline", "ood_mse"))


def scale_table(root: Path = PUBLISHED) -> str:
    """A row per strategy of the matrix energy: its error by sampler before and after the one factor it learned."""
    with open(root / MATRIX_STUDY / "scale.csv", newline="") as file:
        found = list(csv.DictReader(file))
    rows = [
        [strategy]
        + [
            f"{Metric('').mean(values_of(found, strategy, sampler, name)).mean:.2g}"
            for sampler in ("plain", INNERLOOP)
            for name in ("mse", "mse_rescaled")
        ]
        for strategy in STRATEGIES
    ]
    rescaled = "without the factor"
    return table(rows, ("strategy", "val_mse, plain", rescaled, "val_mse, inner loop", rescaled))


def values_of(runs: list[dict], strategy: str, sampler: str, name: str) -> list[float]:
    """By seed."""
    chosen = [run for run in runs if (run["strategy"], run["sampler"]) == (strategy, sampler)]
    return [float(run[name]) for run in sorted(chosen, key=lambda run: int(run["seed"]))]


def ratio_words(values: list[float], baseline: list[float]) -> str:
    metric = Metric("")
    return metric.words(metric.compare(values, baseline))


def dataset(study: Path) -> str:
    return ExperimentConfig.from_dict(read_config(study)).dataset


def values_by_strategy(study: Path, name: str, sampler: str) -> dict[str, dict[int, float]]:
    """Strategy -> seed -> a metric under a sampler, of the runs that finished."""
    values = {}
    for folder in run_folders(study):
        result = read_result(folder)
        if result and result["status"] == "finished":
            value = result["samplers"][sampler].get(name, math.nan)
            values.setdefault(result["strategy"], {})[result["seed"]] = value
    return values


def mean_percent(values: dict[int, float]) -> str:
    return f"{100 * sum(values.values()) / len(values):.1f}" if values else "-"


def table(rows, headers) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main(arguments=None):
    Parser(__doc__).parse_args(arguments)
    if not list(PUBLISHED.glob("ladder-*/")):
        raise ConfigError(f"no ladder-* in {PUBLISHED}")
    header(results=PUBLISHED)
    words = "\n".join(ladder_words() + tuned_words() + task_words())
    tables = [
        ladder_table(),
        rises_table(),
        answer_table(),
        tuned_table(),
        *(secondary_table(metric) for metric in LADDER_METRICS[1:]),
        words,
        tasks_table(),
        tasks_details(),
        other_studies_table(),
        scale_table(),
    ]
    print("\n\n".join(tables))


if __name__ == "__main__":
    with exit_status():
        main()

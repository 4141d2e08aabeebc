"""Read the runs of studies into tables: the one reader, of run folders and of published studies."""

import math
from pathlib import Path

import pandas as pd

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.flops import train_flops
from diffusion_lib.names import SAMPLERS
from diffusion_lib.run_folder import (
    read_data,
    read_environment,
    recorded_config,
    run_folders,
    trusted_result,
)
from diffusion_lib.system.errors import ConfigError, say_once
from diffusion_lib.tasks import TASKS
from experiments.analysis.metrics import task_metrics
from experiments.study.study import Study

COSTS = ["train_seconds", "steps_per_second", "train_flops", "peak_memory_bytes", "parameters"]
ABOUT = ["commit", "command", "hardware"]
AUC = ["energy_auc_random", "energy_auc_adversarial"]


def read_runs(study: Path) -> tuple[pd.DataFrame, dict[Path, str]]:
    """Return a row per label, seed and sampler of the runs that ended, and by folder what is wrong with damaged ones.

    Columns: `strategy`, which is the label, `seed`, `sampler`, `status`, `train_steps`, a column for each metric, nan
    where the run failed, COSTS, ABOUT and `run`, the folder in the study. Damaged runs have no rows, nor has a sampler
    that no run has, since the model has no energy.
    """
    found, damaged = [], {}
    for folder in run_folders(study):
        try:
            result = trusted_result(folder)
            if result:
                read_data(folder)
                config = recorded_config(folder)
                require_possible_metrics(folder, config, result)
                found.append((folder, config, result))
        except (ConfigError, OSError) as error:
            damaged[folder] = str(error)
    ended, first = [], {}
    for folder, config, result in sorted(found, key=lambda run: (run[2]["strategy"], run[2]["seed"])):
        made = first.setdefault(result["strategy"], config)
        if config.change(train_steps=made.train_steps) == made:  # one of equal time may have other steps
            ended.append((folder, config, result))
        else:
            damaged[folder] = f"{folder} was made by another configuration than the first run of {result['strategy']}"
    measured = {name for *_, result in ended for name in result.get("samplers", ())}
    samplers = [name for name in SAMPLERS if name in measured] or list(SAMPLERS)
    return pd.DataFrame([row for run in ended for row in run_rows(study, *run, samplers)]), damaged


def require_possible_metrics(folder: Path, config: ExperimentConfig, result: dict):
    """Raise ConfigError where a metric has a value that it cannot have; result: the content of result.json."""
    for metric in task_metrics(TASKS[config.dataset]):
        for sampler, values in result.get("samplers", {}).items():
            value = values.get(metric.column)
            if value is not None and not metric.possible(value):
                raise ConfigError(f"{folder / 'result.json'} is damaged ({metric.column} of {sampler} is {value})")


def run_rows(study: Path, folder: Path, config: ExperimentConfig, result: dict, samplers: list[str]) -> list[dict]:
    """Return a run's row of `read_runs` for each sampler; config: its own, the mining included."""
    measured = result.get("samplers", {})  # of a run that failed nothing
    costs = {name: result.get(name, math.nan) for name in COSTS}
    if measured:
        costs["train_flops"] = result.get("train_flops") or train_flops(config)
    rest = costs | about(folder) | {"run": str(folder.relative_to(study))}
    return [
        {
            "strategy": result["strategy"],
            "seed": result["seed"],
            "sampler": sampler,
            "status": result["status"],
            "train_steps": config.train_steps,
            **measured.get(sampler, {}),
            **rest,
        }
        for sampler in samplers
    ]


def about(folder: Path) -> dict:
    """Return by what a run was made, the columns ABOUT."""
    try:
        made = read_environment(folder)
    except ConfigError:  # of an earlier version
        return dict.fromkeys(ABOUT, "unknown")
    return {"commit": made["commit"], "command": made["command"], "hardware": made["gpu"] or made["cpu"]}


def long_form(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return what users read: a row per run, sampler and metric, with the settings in which runs differ as columns.

    runs: of `read_runs`, or several of them put together.
    `strategy` is the strategy's name, without its settings; energy_auc_*, which no sampler decides, stands under the
    first.
    """
    variants = study.variants()
    settings = [key for key in study.columns() if key != "train_steps"]  # whose column has what a run was trained for
    named = {label: each.strategy.origin for label, each in variants.items()}
    frame = runs.assign(strategy=runs["strategy"].map(lambda label: named.get(label, label)))
    for key in settings:
        values = {label: each.value(key) for label, each in variants.items()}
        frame[key] = runs["strategy"].map(values)
    metrics = [metric.column for metric in task_metrics(TASKS[study.config.dataset])]
    measured = [name for name in (*metrics, *AUC) if name in frame] or metrics  # where all runs failed
    frame = frame.reindex(columns=dict.fromkeys((*frame, *measured)))
    keys = ["strategy", *settings, "seed", "sampler"]
    rest = ["status", "train_steps", *COSTS, *ABOUT, "run"]
    table = frame.melt([*keys, *rest], measured, "metric", "value")
    table = table[~table["metric"].isin(AUC) | (table["sampler"] == next(iter(SAMPLERS)))]
    return table[[*keys, "metric", "value", *rest]].reset_index(drop=True)


def wide_form(table: pd.DataFrame) -> pd.DataFrame:
    """Undo `long_form`: return what `read_runs` returns, where `strategy` is the label."""
    fixed = {"strategy", "seed", "sampler", "metric", "value", "status", "train_steps", *COSTS, *ABOUT, "run"}
    settings = [name for name in table if name not in fixed]
    keys = ["run", "sampler"]
    values = table.pivot(index=keys, columns="metric", values="value")
    frame = table.drop(columns=["metric", "value"]).drop_duplicates(keys).set_index(keys).join(values).reset_index()
    frame["strategy"] = frame["run"].map(lambda run: Path(run).parent.name)
    return frame.drop(columns=settings)


def read_curve(study: Path, runs: pd.DataFrame, label: str, column: str) -> pd.DataFrame:
    """Return a column of metrics.csv of the runs of a label: a row per step at which all have it, a column per seed.

    runs: of `read_runs`.
    """
    curves = []
    for run in runs[runs["strategy"] == label].drop_duplicates("run").itertuples():
        path = study / run.run / "metrics.csv"
        curve = pd.read_csv(path, index_col="step") if path.exists() else pd.DataFrame()
        if run.status == "finished" and curve.index.max() != run.train_steps:
            say_once(f"left out of the learning curves: {path} does not reach step {run.train_steps}")
        elif column in curve:
            curves.append(curve[column].rename(path.parent.name))
    return pd.concat(curves, axis=1).replace(math.inf, math.nan).dropna() if curves else pd.DataFrame()

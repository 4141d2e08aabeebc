"""The rows of a table that this project did not train: a task's untrained predictors, and what others published."""

import math

import torch

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import EvaluationSet, summary
from diffusion_lib.names import DIFFICULTIES, column
from diffusion_lib.seeds import seeded_generator
from experiments.analysis.metrics import Metric

BATCH = 2048
REGRESSION = "linear regression"  # a predictor of matrix inversion
MEANS = ("mean predictor", "zero")  # predictors that answer with the mean solution
UNTAUGHT = (*MEANS, "zero matrix", REGRESSION)  # what a model has to beat; the others are solvers
REFERENCE, PUBLISHED = "reference", "published, not rerun"  # in the column `sampler`

# What others report of the setting (task, model, rank): their rows, all under IRED's own sampler, the inner loop.
PAPER = {"strategy": "IRED's paper", "val_mse": 0.0095, "ood_mse": 0.2063}  # Du et al. 2024
STUDY = {"n": 10, "examples": 100_000 * 2048}  # a public study of 10 seeds, 100,000 steps of batch 2,048
PUBLISHED_ROWS = {
    ("Inverse", "mlp", 20): (
        PAPER,
        {"strategy": "public, none", "val_mse": 0.009692, **STUDY},
        {"strategy": "public, random", "val_mse": 0.009731, **STUDY},
        {"strategy": "public, adversarial", "val_mse": 0.009777, **STUDY},
    )
}


def reference_rows(sets: tuple[EvaluationSet, EvaluationSet]) -> list[dict]:
    """Return a row per predictor that the task has: `strategy` is its name, the rest the columns of its metrics.

    sets: of the usual and the harder difficulty.
    """
    rows = {}
    for chosen, difficulty in zip(sets, DIFFICULTIES, strict=True):
        for name, found in predictor_metrics(chosen).items():
            columns = {column(difficulty, metric): value for metric, value in found.items()}
            rows.setdefault(name, {"strategy": name, "sampler": REFERENCE}).update(columns)
    return list(rows.values())


def predictor_metrics(chosen: EvaluationSet) -> dict[str, dict[str, float]]:
    """Return the task's metrics of each of its predictors on a set, by the predictor's name."""
    generator, parts = seeded_generator("reference predictions", device=chosen.inp.device), {}
    for rows in chosen.batches(BATCH):
        inp, target = chosen.inp[rows], chosen.target[rows]
        for name, prediction in chosen.task.reference_predictions(inp.double(), generator).items():
            parts.setdefault(name, []).append(chosen.task.score(inp, target, prediction))
    return {
        name: summary(chosen.task, {key: torch.cat([one[key] for one in scores]) for key in scores[0]})
        for name, scores in parts.items()
    }


def mean_error(references: list[dict], metric: Metric) -> float:
    """Return the mean predictor's value of a metric that is an error; nan where there is none."""
    return math.nan if metric.rate else next((r[metric.column] for r in references if r["strategy"] in MEANS), math.nan)


def main_references(references: list[dict], metric: Metric) -> list[dict]:
    """Return the predictors that a model has to beat: a task's first, those UNTAUGHT, and the best one of all."""
    rows = [
        row for row in references if row["sampler"] == REFERENCE and math.isfinite(row.get(metric.column, math.nan))
    ]
    best = (max if metric.rate else min)((row[metric.column] for row in rows), default=None)
    solver = next((row["strategy"] for row in rows if row[metric.column] == best), None)
    return [row for row in rows if row is rows[0] or row["strategy"] in (*UNTAUGHT, solver)]


def published_rows(task, config: ExperimentConfig) -> list[dict]:
    """Return what others report of the same task, model and rank; nothing where nobody does."""
    rows = PUBLISHED_ROWS.get((type(task).__name__, config.model, config.rank), ())
    return [{**row, "sampler": PUBLISHED} for row in rows]

"""Each strategy at its own best settings."""

from functools import cache
from pathlib import Path

from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.system.files import read_csv
from experiments.analysis.metrics import Metric
from experiments.analysis.tables import Results, run_rows
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE, equal_compute
from experiments.pages.words import change_words, mean_words, pairs_ahead, ratio_words, study_verdicts, table

METRIC = Metric("val_mse")
STRATEGIES = (BASELINE, ADVERSARIAL, COMPUTE)


def folders(root: Path) -> list[Path]:
    """Of the reports, by budget; the studies behind a report stand beside it."""
    reports = (path.parent for path in root.glob("tuned/*/search.csv"))
    return sorted(reports, key=lambda folder: (len(folder.name), folder.name))


@cache
def read_study(folder: Path) -> Results:
    studies = [folder.with_name(f"{folder.name}-{strategy}") for strategy in STRATEGIES]
    return Results([row for study in studies for row in run_rows(study)], list(STRATEGIES), (METRIC,))


def ratio_cells(root: Path) -> list[list[str]]:
    """Adversarial over baseline by val_mse, in the columns of the ladder's."""
    cells = []
    for study in map(read_study, folders(root)):
        for matched, baseline in (("FLOPs", COMPUTE), ("steps", BASELINE)):
            (steps,), (others,) = study.train_steps(ADVERSARIAL), study.train_steps(baseline)
            row = [f"{steps:,} against {others:,}, each tuned", matched]
            for sampler in SAMPLERS:
                found = study.comparison(ADVERSARIAL, baseline, METRIC, sampler)
                ahead = pairs_ahead(study, baseline, METRIC, sampler)
                row.append(ratio_words(found.ratio, found.low, found.high, ahead, found.n))
            cells.append(row)
    return cells


def verdict_rows(root: Path) -> list[list[str]]:
    return [row for folder in folders(root) for row in study_verdicts("MLP, each tuned", read_study(folder), METRIC)]


def means_table(root: Path) -> str:
    """A row per budget and strategy: what the search chose, and the geometric means."""
    rows = []
    for folder in folders(root):
        study = read_study(folder)
        searched = read_csv(folder / "search.csv", "learning_rate", "chosen")
        settings = {row["strategy"]: row for row in searched if row["chosen"]}
        for strategy in study.strategies:
            means = [METRIC.mean(study.values(METRIC.column, sampler)[strategy]) for sampler in SAMPLERS]
            chosen = settings[strategy]
            about = (
                f"{study.train_steps(strategy)[0]:,}",
                chosen["learning_rate"],
                chosen["weight"] or "-",
                means[0].n,
            )
            rows.append([strategy, *about, *map(mean_words, means)])
    headers = ("strategy", "steps", "learning rate", "weight", "seeds", "val_mse, plain", "val_mse, inner loop")
    return table(rows, headers)


def answer_words(root: Path) -> list[str]:
    """Adversarial over baseline-compute at equal FLOPs, in the README's words."""
    found = [equal_compute(read_study(folder), METRIC) for folder in folders(root)]
    return [change_words(each.ratio) for samplers in found for each in samplers.values()]

"""The pilot at IRED's learning rate, run by run: what has ended, and the curves of all."""

import math
from pathlib import Path

from diffusion_lib.run_folder import run_folders
from diffusion_lib.system.files import read_csv
from experiments.analysis.tables import run_rows
from experiments.analysis.verdict import ADVERSARIAL, BASELINE
from experiments.pages.words import table

STUDY = "pilot"
STRATEGIES = (BASELINE, ADVERSARIAL)


def runs_table(root: Path) -> str:
    """A row per run that ended and sampler."""
    metrics = ("val_mse", "ood_mse", "recon_error")
    rows = [
        [row["strategy"], row["seed"], f"{row['train_steps']:,}", row["sampler"], *(f"{row[m]:.4g}" for m in metrics)]
        for row in run_rows(root / STUDY)
    ]
    return table(rows, ("strategy", "seed", "pilot's steps", "sampler", *metrics))


def curves_table(root: Path) -> str:
    """A row per number of steps: val_mse on the way under the plain sampler, of the runs that came so far."""
    reached = {}
    for folder in run_folders(root / STUDY):
        for row in read_csv(folder / "metrics.csv", "step", "val_mse"):
            if not math.isnan(row["val_mse"]):
                by_strategy = reached.setdefault(int(row["step"]), {name: [] for name in STRATEGIES})
                by_strategy[folder.parent.name].append(f"{row['val_mse']:.4g}")
    rows = [[f"{step:,}", *map(" / ".join, reached[step].values())] for step in sorted(reached)]
    return table(rows, ("pilot's steps", *(f"{name}, seeds from 0" for name in STRATEGIES)))


def answer_words(root: Path) -> list[str]:
    """val_mse of adversarial against the baseline at equal steps, of each seed that has both, in the README's words."""
    ended = {(row["strategy"], row["seed"], row["sampler"]): row["val_mse"] for row in run_rows(root / STUDY)}
    return [
        f"{error:.5f} against {ended[BASELINE, seed, sampler]:.5f}"
        for (strategy, seed, sampler), error in ended.items()
        if strategy == ADVERSARIAL and (BASELINE, seed, sampler) in ended
    ]

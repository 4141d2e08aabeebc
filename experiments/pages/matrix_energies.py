"""Matrix inversion beside the ladder: an earlier study of the MLP, and the energies made of matrix products."""

from functools import cache
from pathlib import Path

from diffusion_lib.evaluation import SAMPLERS
from diffusion_lib.system.files import read_csv
from experiments.analysis.metrics import Metric
from experiments.analysis.tables import Results, run_rows
from experiments.analysis.verdict import ADVERSARIAL, BASELINE, COMPUTE, equal_compute
from experiments.pages.words import effect_words, mean_words, study_verdicts, table

MATRIX = "matrix-cpu-1k"
OTHERS = ("mlp-cpu-5k", MATRIX)
FREE, TRIAL = "matrix-free-1200", "matrix-free-trial"
STRATEGIES = (BASELINE, "random", ADVERSARIAL, COMPUTE)
VAL, OOD, RECON = Metric("val_mse"), Metric("ood_mse"), Metric("recon_error")


def read_study(path: Path, *columns: str) -> Results:
    """Of a CSV with a row per strategy, seed and sampler, these columns."""
    return Results(read_csv(path, "seed", *columns), list(STRATEGIES), ())


def others_table(root: Path) -> str:
    """Geometric means and ratios to the baseline."""
    rows = []
    for name in OTHERS:
        study = read_study(root / f"{name}.runs.csv", VAL.column, OOD.column)
        for sampler in SAMPLERS:
            val, ood = (study.values(metric.column, sampler) for metric in (VAL, OOD))
            for strategy in study.strategies:
                mean = VAL.mean(val[strategy])
                ratio = effect_words(study, strategy, BASELINE, VAL, sampler)
                harder = f"{OOD.mean(ood[strategy]).mean:.3g}"
                rows.append([name, strategy, sampler, mean.n, mean_words(mean, "{:.3g}"), ratio, harder])
    return table(rows, ("study", "strategy", "sampler", "seeds", "val_mse [95%]", "ratio to baseline", "ood_mse"))


def scale_table(root: Path) -> str:
    """A row per strategy of the matrix energy: its error by sampler before and after the one factor it learned."""
    columns = ("mse", "mse_rescaled")
    study = read_study(root / MATRIX / "scale.csv", *columns)
    rows = [
        [strategy]
        + [
            f"{VAL.mean(study.values(column, sampler)[strategy]).mean:.2g}"
            for sampler in SAMPLERS
            for column in columns
        ]
        for strategy in study.strategies
    ]
    rescaled = "without the factor"
    return table(rows, ("strategy", "val_mse, plain", rescaled, "val_mse, inner loop", rescaled))


@cache
def free_study(root: Path) -> Results:
    return Results(run_rows(root / FREE), list(STRATEGIES), (VAL, OOD, RECON))


def free_table(root: Path) -> str:
    """A row per strategy and sampler of the energy that must learn what inversion is, and adversarial's ratio to it."""
    study, rows = free_study(root), []
    for sampler in SAMPLERS:
        for strategy in study.strategies:
            row = [strategy, f"{study.train_steps(strategy)[0]:,}", sampler]
            for metric in study.metrics:
                mean = metric.mean(study.values(metric.column, sampler)[strategy])
                finite = "" if mean.n == len(study.seeds) else f" ({mean.n} of {len(study.seeds)} finite)"
                row += [f"{mean.mean:.3g}{finite}", effect_words(study, ADVERSARIAL, strategy, metric, sampler)]
            rows.append(row)
    measured = [name for metric in study.metrics for name in (metric.column, "adversarial over it [95%]")]
    return table(rows, ("strategy", "steps", "sampler", *measured))


def curve_table(root: Path) -> str:
    """A row per budget of the trial before it: how far the baseline's error falls with more steps."""
    rows, before = [], None
    for folder in sorted((root / TRIAL).glob("*/"), key=lambda folder: int(folder.name)):
        study = Results(run_rows(folder), [BASELINE], (VAL,))
        means = [VAL.mean(study.values(VAL.column, sampler)[BASELINE]) for sampler in SAMPLERS]
        words = [f"{mean.mean:.2g}" for mean in means]
        times = [f"{old.mean / new.mean:.1f}" for old, new in zip(before, means, strict=True)] if before else ["", ""]
        cells = [cell for pair in zip(words, times, strict=True) for cell in pair]
        rows.append([f"{int(folder.name):,}", means[0].n, *cells])
        before = means
    fall = "divided by"
    return table(rows, ("steps", "seeds", "val_mse, plain", fall, "val_mse, inner loop", fall))


def verdict_rows(root: Path) -> list[list[str]]:
    return study_verdicts("matrix-free", free_study(root), VAL)


def answer_words(root: Path) -> list[str]:
    """Adversarial over baseline-compute with the energy that must learn what inversion is, in the README's words."""
    return [
        f"{each.ratio:.1f} times [{each.low:.1f}, {each.high:.1f}]"
        for each in equal_compute(free_study(root), VAL).values()
    ]

"""The tables of README.md and of docs/results.md, details.md and speed.md, made from results/published.

    python results/tables.py
    python results/tables.py --write

Prints them; --write puts them into the pages, each in the place of the one with the same header. A test holds the
pages to them.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("results.tables")


import math
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffusion_lib.names import DIFFICULTIES, SAMPLERS
from diffusion_lib.system.arguments import Parser, header
from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.system.files import write_atomic
from diffusion_lib.tasks import TASKS
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.references import PAPER
from experiments.analysis.runs import wide_form
from experiments.analysis.statistics import Mean, Paired, geometric_mean, with_holm
from experiments.analysis.tables import Results, markdown
from experiments.analysis.verdict import ACCOUNTS, ADVERSARIAL, BASELINE, COMPUTE, pair_scenario
from experiments.study.flags import parse_command

PUBLISHED = ROOT / "results" / "published"
RANDOM, CORRUPT = "random", "corrupt"
VAL, OOD, RECON = METRICS = tuple(map(Metric, ("val_mse", "ood_mse", "recon_error")))
BUDGETS, PRIMARY = (1_250, 2_500, 5_000, 10_000, 20_000), (5_000, 10_000)  # adversarial's steps; the primary tests'
EQUAL = {"FLOPs": COMPUTE, "steps": BASELINE}  # what adversarial is compared with, by what both have the same of
# As the pages call the ladder's strategies: a baseline is one whatever it is trained for.
LADDER_NAMES = {COMPUTE: BASELINE, "random-1.2": "random, noise_scale 1.2"}
IRED = "innerloop"  # IRED's sampler
SAMPLER_WORDS = {"plain": "plain", IRED: "IRED's"}


class Runs(Results):
    """The runs of a published study. Raises ConfigError, which names the file that lacks what a table is made of."""

    def __init__(self, folder: Path):
        self.path = folder / "runs.csv"
        declared = parse_command("", ["--study", str(folder / "study.toml")]).study
        keys = ("strategy", "seed", "sampler", "metric")
        table = read(self.path, *keys, "status", "train_steps", "train_flops", "run", value=float)
        try:
            frame = wide_form(table)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.path} is damaged ({error})") from None
        super().__init__(frame, declared, task_metrics(TASKS[declared.config.dataset]))
        for metric in (metric for metric in self.metrics if metric.column in frame):
            if not frame[metric.column].map(metric.possible).all():
                raise ConfigError(f"{self.path} is damaged (no {metric.column} has such a value)")

    def only(self, name: str) -> str:
        """Return the label of a strategy that was trained at one setting alone."""
        found = [label for label in self.strategies if label.partition(",")[0] == name]
        if len(found) != 1:
            raise ConfigError(f"{self.path} is damaged (of {name} it has {', '.join(found) or 'nothing'})")
        return found[0]

    def steps(self, label: str) -> int:
        return self.train_steps(label)[0]

    def flops(self, label: str) -> float:
        return float(self.of(label)["train_flops"].iloc[0])

    def by_seed(self, label: str, metric: Metric, sampler: str) -> pd.Series:
        """Return a label's values; nan of a run that diverged, or was not made."""
        if metric.column not in self.frame:
            raise ConfigError(f"{self.path} is damaged (no {metric.column})")
        if not (self.frame["strategy"].eq(label) & self.frame["sampler"].eq(sampler)).any():
            raise ConfigError(f"{self.path} is damaged (no run of {label} under {sampler})")
        return pd.Series(self.values(metric.column, sampler)[label], self.seeds)

    def mean(self, label: str, metric: Metric, sampler: str) -> Mean:
        return metric.mean(self.by_seed(label, metric, sampler).to_numpy())

    def effect(self, one: str, other: str, metric: Metric, sampler: str) -> str:
        """Write the comparison of two labels; nothing of a label with itself."""
        return "" if one == other else metric.words(PublishedPair(self, one, other).compare(metric, sampler))


class PublishedPair(NamedTuple):
    """Two labels of a study, compared as in its `Pair`; `about`: what the pages add to their steps."""

    runs: Runs
    treated: str
    other: str
    about: str = ""

    @property
    def steps_with(self) -> int:
        return self.runs.steps(self.treated)

    @property
    def steps_without(self) -> int:
        return self.runs.steps(self.other)

    @property
    def steps(self) -> str:
        return f"{self.steps_with:,} against {self.steps_without:,}{self.about}"

    @property
    def cost(self) -> float:
        """Return how many times the training FLOPs of the other the first one took."""
        return self.runs.flops(self.treated) / self.runs.flops(self.other)

    def values(self, metric: Metric, sampler: str) -> list[pd.Series]:
        """Return the values of both, by seed."""
        return [self.runs.by_seed(label, metric, sampler) for label in (self.treated, self.other)]

    def compare(self, metric: Metric, sampler: str) -> Paired:
        self.values(metric, sampler)  # which says what is absent, where `comparison` would return None
        return self.runs.comparison(self.treated, self.other, metric, sampler)

    def means(self, metric: Metric, sampler: str) -> list[str]:
        """Write the means of both."""
        return [f"{self.runs.mean(label, metric, sampler).mean:.3g}" for label in (self.treated, self.other)]

    def without(self) -> list[str]:
        """Write the other one's error and reconstruction error, under IRED's sampler."""
        return [self.means(metric, IRED)[1] for metric in (VAL, RECON)]

    def ratio(self, metric: Metric, sampler: str) -> str:
        """Write the ratio with its interval, and in how many seeds the first one's error is smaller."""
        found, (one, other) = self.compare(metric, sampler), self.values(metric, sampler)
        ahead = (one < other.reindex(one.index)).sum()  # not all seeds need have both
        return f"{with_interval(found.effect, found.low, found.high, '{:.3f}')}; {ahead} of {found.n}"

    def verdict(self, sampler: str) -> str | None:
        """Return the verdict by the protocol's rule; None of too few seeds."""
        return pair_scenario(self.runs, self, sampler, self.compare(self.runs.metrics[0], sampler))


def read(path: Path, *columns: str, **numbers) -> pd.DataFrame:
    """Read a CSV; numbers: columns that hold numbers, and their types. Raises ConfigError, which names the file."""
    try:
        table = pd.read_csv(path, dtype=numbers)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    absent = [name for name in (*columns, *numbers) if name not in table]
    if absent:
        raise ConfigError(f"{path} is damaged (no {', '.join(absent)})")
    return table


@cache
def study(root: Path, name: str) -> Runs:
    return Runs(root / name)


def with_interval(middle: float, low: float, high: float, write: str) -> str:
    """Write a number with its interval; one seed alone has none."""
    words = write.format(middle)
    return words if math.isnan(low) else f"{words} [{write.format(low)}, {write.format(high)}]"


def mean_words(mean: Mean, write: str = "{:.5f}") -> str:
    return with_interval(*mean[1:], write)


def error_mean(errors: pd.Series) -> float:
    return VAL.mean(errors.to_numpy()).mean


def pairs_at(root: Path, name: str, equal: str, sampler: str = IRED) -> list[PublishedPair]:
    """Return the pairs of a study that it declares at equal FLOPs, time or steps, and that were run."""
    runs = study(root, name)
    return [PublishedPair(runs, *pair[1:]) for pair in runs.pairs[sampler] if pair.account == equal]


def pair_at(root: Path, name: str, equal: str, sampler: str = IRED, steps: int | None = None) -> PublishedPair:
    """Return the only one of them, or the only one of a budget, the steps of the first of both."""
    found = [pair for pair in pairs_at(root, name, equal, sampler) if steps in (None, pair.steps_with)]
    if len(found) != 1:
        raise ConfigError(f"{root / name} is damaged (at equal {equal} under {sampler} it has {len(found)} pairs)")
    return found[0]


def ladder_pairs(root: Path, equal: str, budgets=BUDGETS) -> list[PublishedPair]:
    """Return the pairs of the budgets that were run with and without mining."""
    return [pair for pair in pairs_at(root, "ladder", equal) if pair.steps_with in budgets]


def tuned_pair(root: Path, equal: str) -> PublishedPair:
    """Return the pair of two strategies' best settings, which its study declares as strategies of their own."""
    runs = study(root, "tuned")
    return PublishedPair(runs, runs.only(ADVERSARIAL), runs.only(EQUAL[equal]))


def free_pair(root: Path, equal: str) -> PublishedPair:
    """Return the pair of both strategies' best settings with `matrix-free`."""
    return pair_at(root, "matrix-free-tuned", equal)


def free_primary(root: Path) -> list[PublishedPair]:
    """Return that pair at equal FLOPs and at equal time."""
    return [free_pair(root, "FLOPs"), free_pair(root, "time")._replace(about=", equal time")]


def holm_family(pairs: list[PublishedPair]) -> dict[tuple[PublishedPair, str], Paired]:
    """Compare pairs under both samplers, as one family."""
    return with_holm({(pair, sampler): pair.compare(VAL, sampler) for pair in pairs for sampler in SAMPLERS})


def verdicts_table(root: Path) -> str:
    """Write adversarial over baseline at equal compute by val_mse, and the verdicts by the protocol's rule."""
    others = [steps for steps in BUDGETS if steps not in PRIMARY]
    families = {
        "MLP, primary": ladder_pairs(root, "FLOPs", PRIMARY),
        "MLP": ladder_pairs(root, "FLOPs", others),
        "MLP, each tuned": [tuned_pair(root, "FLOPs")],
        "matrix-free": [pair_at(root, "matrix-free-1200", "FLOPs")],
        "matrix-free, each tuned": free_primary(root),
    }
    rows = []
    for family, pairs in families.items():
        for (pair, sampler), found in holm_family(pairs).items():
            # the ladder's other budgets are no family of the protocol's
            words = f"{found.p:.2g}, exploratory" if family == "MLP" else f"{found.p:.2g} ({found.p_holm:.2g})"
            ratio, verdict = pair.ratio(VAL, sampler), pair.verdict(sampler)
            rows.append([family, pair.steps, SAMPLER_WORDS[sampler], ratio, words, verdict])
    compared = ("steps, with mining against without", "sampler", "error, with over without [95%]; seeds ahead")
    return markdown(rows, ("energy", *compared, "p (Holm's)", "verdict"))


def ratios_table(root: Path, metric: Metric) -> str:
    """Write adversarial over baseline at equal FLOPs and at equal steps; by val_mse the tuned ones too."""
    pairs = [(pair, equal) for equal in EQUAL for pair in ladder_pairs(root, equal)]
    if metric == VAL:
        pairs += [(tuned_pair(root, equal)._replace(about=", each tuned"), equal) for equal in EQUAL]
    rows = [[pair.steps, equal, *(pair.ratio(metric, sampler) for sampler in SAMPLERS)] for pair, equal in pairs]
    samplers = ("plain sampler; seeds ahead", "IRED's sampler; seeds ahead")
    return markdown(rows, (f"{metric.column}, adversarial against baseline, steps", "equal", *samplers))


def ladder_means_table(root: Path) -> str:
    """Write a row per strategy and budget: geometric means over seeds with their 95% intervals."""
    frame, rows = study(root, "ladder").frame, []
    for (steps, name), runs in frame.groupby(["train_steps", ladder_names(frame)]):
        errors = {sampler: VAL.mean(part[VAL.column].to_numpy()) for sampler, part in runs.groupby("sampler")}
        about = (f"{steps:,}", f"{runs['train_flops'].iloc[0]:.2g}", runs["seed"].nunique())
        rows.append([name, *about, *(mean_words(errors[sampler]) for sampler in SAMPLERS)])
    return markdown(rows, ("strategy", "steps", "FLOPs", "seeds", "val_mse, plain", "val_mse, IRED's sampler"))


def ladder_names(runs: pd.DataFrame) -> pd.Series:
    """Return what the pages call each row's strategy."""
    return runs["strategy"].str.partition(",")[0].replace(LADDER_NAMES)


def rises_table(root: Path) -> str:
    """Write a row per strategy and budget: how far the runs' denoising loss rose again, least and most over seeds."""
    curves = read(root / "ladder" / "curves.csv", "strategy", "seed", train_steps=int, loss_denoise=float)
    rises = curves.groupby([ladder_names(curves), "train_steps", "seed"])["loss_denoise"].agg(loss_rise)
    over_seeds = rises.groupby(level=[0, 1]).agg(["size", "min", "max"])
    rows = [
        [name, f"{steps:,}", int(each["size"]), f"{each['min']:.2f}", f"{each['max']:.2f}"]
        for (name, steps), each in over_seeds.iterrows()
    ]
    return markdown(rows, ("strategy", "steps", "seeds", "least rise", "largest rise"))


def loss_rise(losses: pd.Series) -> float:
    """Return the largest ratio of a row's loss to the least before it, past a fifth of the rows."""
    return (losses / losses.cummin().shift()).iloc[len(losses) // 5 + 1 :].max()


def tuned_means_table(root: Path) -> str:
    """Write a row per strategy: what the search chose, and the geometric means."""
    runs, rows = study(root, "tuned"), []
    for name in (BASELINE, ADVERSARIAL, COMPUTE):
        label = runs.only(name)
        chosen = dict(part.split("=") for part in label.split(",")[1:])
        means = [runs.mean(label, VAL, sampler) for sampler in SAMPLERS]
        settings = (chosen.get("learning_rate"), chosen.get("weight", "-"))
        rows.append([name, f"{runs.steps(label):,}", *settings, means[0].n, *map(mean_words, means)])
    return markdown(
        rows, ("strategy", "steps", "learning rate", "weight", "seeds", "val_mse, plain", "val_mse, IRED's sampler")
    )


def pilot_runs_table(root: Path) -> str:
    """Write a row per run that ended and sampler."""
    rows = [
        [row["strategy"], row["seed"], f"{row['train_steps']:,}", SAMPLER_WORDS[row["sampler"]]]
        + [f"{row[metric.column]:.4g}" for metric in METRICS]
        for _, row in study(root, "pilot").frame.sort_values(["strategy", "seed"], kind="stable").iterrows()
    ]
    return markdown(rows, ("strategy", "seed", "pilot's steps", "sampler", *(metric.column for metric in METRICS)))


def pilot_curves_table(root: Path) -> str:
    """Write a row per number of steps: val_mse on the way under the plain sampler, of the runs that came so far."""
    curves = read(root / "pilot" / "curves.csv", "strategy", "seed", step=int, val_mse=float).dropna(subset="val_mse")
    names = (BASELINE, ADVERSARIAL)
    words = curves.assign(words=curves["val_mse"].map("{:.4g}".format)).sort_values("seed", kind="stable")
    reached = words.groupby(["step", "strategy"])["words"].agg(" / ".join).unstack(fill_value="")
    rows = [[f"{step:,}", *row] for step, row in zip(reached.index, reached.reindex(columns=names).values, strict=True)]
    return markdown(rows, ("pilot's steps", *(f"{name}, seeds from 0" for name in names)))


SIZES, SIZES_STEPS = (6, 4, 8), 2_000  # the primary size first; adversarial's steps
LONGER = 8_000  # its larger budget


def sizes_pair(root: Path, n: int, equal: str, sampler: str, steps: int = SIZES_STEPS) -> PublishedPair:
    """Return both strategies' choices at a size under a sampler."""
    return pair_at(root, f"sizes-{n}", equal, sampler, steps)


def sizes_pairs(root: Path, n: int, sampler: str, steps: int = SIZES_STEPS) -> dict[str, PublishedPair]:
    """Return by account the pairs of a size, a sampler and a budget that were run."""
    found = {equal: pairs_at(root, f"sizes-{n}", equal, sampler) for equal in ACCOUNTS}
    return {equal: pair for equal, pairs in found.items() for pair in pairs if pair.steps_with == steps}


def sizes_primary(root: Path) -> dict[tuple[int, str, str], float]:
    """Return Holm's p of the primary size's primary tests: both budgets, equal FLOPs and time, both samplers."""
    found = {
        (steps, equal, sampler): pair.compare(VAL, sampler)
        for steps in (SIZES_STEPS, LONGER)
        for sampler in SAMPLERS
        for equal, pair in sizes_pairs(root, SIZES[0], sampler, steps).items()
        if equal != "steps"
    }
    return {key: each.p_holm for key, each in with_holm(found).items()}


FLAT, FLAT_SIZE = "sizes-4-flat", 4  # the longest runs
FLAT_BUDGETS = (2_000, 5_000, 10_000, 20_000, 50_000)  # adversarial's steps
SAME_RATE = "FLOPs, at mining's rate"


@cache
def flat_curves(root: Path) -> dict[str, pd.DataFrame]:
    """Return by label the learning curves under IRED's sampler: a row per step, a column per seed."""
    curves = read(root / FLAT / "curves.csv", "strategy", "seed", step=int, val_mse_innerloop=float)
    return {
        label: curve.pivot_table(index="step", columns="seed", values="val_mse_innerloop")
        for label, curve in curves.groupby("strategy")
    }


def nearest(curve: pd.DataFrame, step: float) -> int:
    """Return the step of a curve's nearest point."""
    return curve.index[np.abs(curve.index - step).argmin()]


def flat_pairs(root: Path, steps: int) -> dict[str, tuple[int, Paired]]:
    """Compare both by each account at a budget of adversarial's steps, by the nearest point of the baseline's curve.

    The rate is constant, so a point of a curve is a shorter run. Returns the baseline's steps, and the comparison.
    """
    longer, same = pair_at(root, FLAT, "FLOPs"), pair_at(root, FLAT, "steps")
    timed, curves, found = sizes_pair(root, FLAT_SIZE, "time", IRED), flat_curves(root), {}
    cost = longer.steps_without / longer.steps_with
    for account, pair, times in (
        ("FLOPs", longer, cost),
        ("time", longer, timed.steps_without / timed.steps_with),
        ("steps", same, 1.0),
        (SAME_RATE, same, cost),
    ):
        mined, other = curves[pair.treated], curves[pair.other]
        if steps * times > 1.01 * other.index[-1]:
            continue  # so far that baseline was not trained
        point = nearest(other, steps * times)
        found[account] = point, VAL.compare(mined.loc[steps].to_numpy(), other.loc[point, mined.columns].to_numpy())
    return found


def flat_table(root: Path) -> str:
    """Write a row per budget at the size of the longest runs: the error with mining, and over the baseline's."""
    mined, rows = flat_curves(root)[pair_at(root, FLAT, "FLOPs").treated], []
    accounts = (*ACCOUNTS, SAME_RATE)
    for steps in FLAT_BUDGETS:
        pairs = flat_pairs(root, steps)
        words = {
            account: f"{point:,}: {with_interval(found.effect, found.low, found.high, '{:.2f}')}"
            for account, (point, found) in pairs.items()
        }
        cells = (words.get(account, "") for account in accounts)
        rows.append([f"{steps:,}", f"{error_mean(mined.loc[steps]):.3g}", *cells])
    return markdown(rows, ("steps with mining, 4 × 4", "val_mse", *(f"equal {account}" for account in accounts)))


def sizes_table(root: Path) -> str:
    """Where the MLP inverts: adversarial over baseline by each account, at each size, budget and sampler."""
    rows = []
    for n in sizes_run(root):
        for steps in (SIZES_STEPS, LONGER):
            for sampler in reversed(list(SAMPLERS)):
                pairs = sizes_pairs(root, n, sampler, steps)
                if "FLOPs" not in pairs:
                    continue
                means = [" / ".join(pairs["FLOPs"].means(metric, sampler)) for metric in (VAL, RECON)]
                ratios = (
                    f"{pairs[equal].steps_without:,}: {pairs[equal].ratio(VAL, sampler)}" if equal in pairs else ""
                    for equal in ACCOUNTS
                )
                rows.append([f"{n} × {n}", f"{steps:,}", SAMPLER_WORDS[sampler], *means, *ratios])
    means = ("val_mse with / without, equal FLOPs", "recon_error, the same")
    equal = (f"at equal {account}" for account in ACCOUNTS)
    return markdown(rows, ("matrices", "steps with", "sampler", *means, *equal))


def sizes_run(root: Path) -> list[int]:
    """Return the sizes that were run."""
    return [n for n in SIZES if (root / f"sizes-{n}").exists()]


NAMED = (ADVERSARIAL, BASELINE)  # as a pair has them
KINDS = {  # of negatives and contrasts, a strategy of the study each
    RANDOM: "the sample, noised three times as much",
    "independent": "the same, with noise of its own",
    "near": "the inverse of a near matrix",
    "levels": "none: the sample's own energy, at another level",
    "langevin": "the noisier sample after two Langevin steps",
    ADVERSARIAL: "the noisier sample after two descents, IRED's",
}
VARIANTS = {  # of adversarial
    "mixed": "half of the negatives, the rest random",
    "hinge": "in a hinge loss",
    "late": "in the last fifth of the steps alone",
}


def kinds_table(root: Path, kinds: dict[str, str], header: tuple[str, str]) -> str:
    """Write what each kind of negatives costs and brings at equal steps, over training without."""
    runs, rows = study(root, "arms"), []
    for name, words in kinds.items():
        pair = PublishedPair(runs, name, BASELINE)
        ratios = [pair.ratio(VAL, sampler) for sampler in reversed(list(SAMPLERS))]
        recon = runs.effect(name, BASELINE, RECON, IRED)
        rows.append([f"`{name}`", words, f"{pair.cost:.2f}", *ratios, recon, pair.verdict(IRED)])
    ratios = ("val_mse over none's, IRED's sampler; seeds ahead", "plain", "recon_error, IRED's sampler")
    return markdown(rows, (*header, "FLOPs", *ratios, "at equal steps"))


JUDGED = ("error with mining", "error without", "with over without [95%]", "mining ahead in", "mining")


def judged(pair: PublishedPair, p: float | None = None) -> list[str]:
    """Write the columns JUDGED of a pair under IRED's sampler; p: Holm's, which the verdict does not see."""
    ratio, ahead = pair.ratio(VAL, IRED).split("; ")
    return [*pair.means(VAL, IRED), ratio, ahead, pair.verdict(IRED) + (f" (Holm's p {p:.2g})" if p else "")]


def answer_table(root: Path) -> str:
    """Write what the README says first: the primary size by each account."""
    pairs = sizes_pairs(root, SIZES[0], IRED)
    rows = [[equal, f"{pairs[equal].steps_without:,}", *judged(pairs[equal])] for equal in ACCOUNTS]
    return markdown(rows, ("equal", "steps without", *JUDGED))


def elsewhere_table(root: Path) -> str:
    """Write what other sizes and another energy say at equal FLOPs."""
    ladder = ladder_pairs(root, "FLOPs", PRIMARY)
    adjusted = holm_family(ladder)
    rows = [
        [f"IRED's MLP, {n} × {n}", (pair := sizes_pair(root, n, "FLOPs", IRED)).steps, *judged(pair)]
        for n in sizes_run(root)[1:]
    ]
    rows += [["IRED's MLP, 20 × 20", pair.steps, *judged(pair, adjusted[pair, IRED].p_holm)] for pair in ladder]
    free = free_pair(root, "FLOPs")
    rows.append(["`matrix-free`, 20 × 20, tuned", free.steps, *judged(free)])
    return markdown(rows, ("energy, matrices", "steps, with against without", *JUDGED))


def learned_table(root: Path) -> str:
    """Whether anything is learned: errors without training, and without mining, under IRED's sampler."""
    references = read(root / "references.csv", "rank", "strategy", val_mse=float, recon_error=float)
    by_size = references.set_index(["rank", "strategy"])[[VAL.column, RECON.column]]
    small = sizes_pair(root, SIZES[0], "FLOPs", IRED)
    large = pair_at(root, "ladder", "FLOPs", steps=5_000)
    free = free_pair(root, "FLOPs")
    rows = [
        [name, *(f"{value:.3g}" for n in (SIZES[0], 20) for value in by_size.loc[n, name])]
        for name in ("zero matrix", "mean predictor", "linear regression")
    ]
    rows.append(["IRED's paper, MLP (not rerun)", "-", "-", f"{PAPER['val_mse']:.2g}", "-"])
    steps = f"{small.steps_without:,} or {large.steps_without:,} steps"
    rows.append([f"IRED's MLP without mining, {steps}", *small.without(), *large.without()])
    rows.append([f"`matrix-free` without mining, {free.steps_without:,} steps", "-", "-", *free.without()])
    words = [f"{n} × {n}: {what}" for n in (SIZES[0], 20) for what in ("error", "A·Y off by")]
    return markdown(rows, ("answer", *words))


def energies_table(root: Path) -> str:
    """Write what mining does to energies on 20 x 20 matrices, under IRED's sampler, at equal FLOPs and steps."""
    ladder = [
        ("IRED's MLP", [pair_at(root, "ladder", equal, steps=steps) for equal in EQUAL]) for steps in (1_250, *PRIMARY)
    ]
    others = {
        "IRED's MLP, each tuned": [tuned_pair(root, equal) for equal in EQUAL],
        "`matrix-free`, each tuned": [free_pair(root, equal) for equal in EQUAL],
        "`matrix`": [pair_at(root, "matrix-cpu-1k", equal) for equal in EQUAL],
    }
    rows = []
    for energy, (flops, steps) in (*ladder, *others.items()):
        ratios = [pair.ratio(VAL, IRED) for pair in (flops, steps)]
        rows.append([energy, flops.steps, *flops.without(), *ratios, flops.verdict(IRED)])
    means = ("val_mse without", "recon_error without (zero: 4.47)")
    ratios = ("with over without, equal FLOPs; seeds ahead", "the same, equal steps")
    return markdown(rows, ("energy", "steps with against without", *means, *ratios, "at equal FLOPs"))


# Steps of adversarial and of none in the public curves, which have a point every 1,000, and what is equal: a step
# costs 2.80 times the FLOPs, and 2.47 times the time on the processor of benchmark.csv.
PUBLIC_PAIRS = (
    (10_000, 28_000, "FLOPs"),
    (20_000, 56_000, "FLOPs"),
    (35_000, 98_000, "FLOPs"),
    (20_000, 49_000, "time"),
    (20_000, 20_000, "steps"),
    (100_000, 100_000, "steps"),
)


def public_errors(root: Path) -> pd.Series:
    """Return val_mse of the curves that others made, by strategy, step and seed."""
    curves = read(root / "public-curves" / "curves.csv", "strategy", "seed", step=int, val_mse=float)
    return curves.set_index(["strategy", "step", "seed"])["val_mse"].sort_index()


def public_table(root: Path) -> str:
    """Write adversarial over none, seed by seed, in the published setting, by curves that others made."""
    by_step, rows = public_errors(root), []
    for steps, other_steps, equal in PUBLIC_PAIRS:
        mined, plain = by_step["adversarial", steps], by_step["none", other_steps]
        found = VAL.compare(mined.to_numpy(), plain.reindex(mined.index).to_numpy())
        ratio = with_interval(found.effect, found.low, found.high, "{:.3f}")
        means = (f"{error_mean(errors):.5f}" for errors in (mined, plain))
        rows.append([f"{steps:,}", f"{other_steps:,}", equal, *means, ratio, f"{(mined < plain).sum()} of {found.n}"])
    errors = ("val_mse with", "without", "with over without [95%]", "seeds ahead")
    return markdown(rows, ("steps with mining", "steps without", "equal", *errors))


def scaling_table(root: Path) -> str:
    """Write the public runs' errors beside ours, with and without their loss scale."""
    theirs, rows = public_errors(root), []
    ours = read(root / "public-curves" / "loss-scaling.csv", "strategy", "loss_scale", step=int, innerloop=float)
    ours = ours.set_index(["strategy", "step", "loss_scale"])["innerloop"]
    for strategy, words in (("none", "without"), ("adversarial", "with")):
        for step in (1_000, 2_000):
            mean = geometric_mean(theirs[strategy, step])
            wide = (mean.high / mean.mean) ** math.sqrt(mean.n + 1)  # of one more run, not of the mean
            found = [f"{ours[key]:.3f}" if (key := (strategy, step, used)) in ours else "" for used in ("yes", "no")]
            rows.append(
                [f"{step:,}", words, with_interval(mean.mean, mean.mean / wide, mean.mean * wide, "{:.3f}"), *found]
            )
    public = "ten public runs [95% for one more]"
    return markdown(rows, ("steps", "mining", public, "ours, with their loss scale", "ours, without it"))


def task_studies(root: Path) -> dict[str, tuple[Runs, tuple[Metric, ...]]]:
    """Return by task its runs, and its first metric on the usual and on the harder examples."""
    found = {name: study(root, f"task-{name}") for name in TASKS if (root / f"task-{name}").exists()}
    return {name: (runs, runs.metrics[: len(DIFFICULTIES)]) for name, runs in found.items()}


TASK_STRATEGIES = (BASELINE, ADVERSARIAL, CORRUPT, COMPUTE)
OVER = {name: f"{ADVERSARIAL} over {name} [95%]" for name in (COMPUTE, BASELINE)}


def percents(runs: Runs, metric: Metric, sampler: str) -> list[str]:
    """Return a mean over seeds for each of TASK_STRATEGIES."""
    return [
        f"{100 * runs.mean(name, metric, sampler).mean:.1f}" if name in runs.strategies else "-"
        for name in TASK_STRATEGIES
    ]


def tasks_table(root: Path) -> str:
    """Write a row for each of IRED's other tasks, under IRED's sampler."""
    rows = []
    for name, (runs, metrics) in task_studies(root).items():
        means = map(" / ".join, zip(*(percents(runs, metric, IRED) for metric in metrics), strict=True))
        effects = [runs.effect(ADVERSARIAL, COMPUTE, metric, IRED) for metric in metrics]
        seeds = runs.mean(ADVERSARIAL, metrics[0], IRED).n
        rows.append([name, TASKS[name].metrics[0].replace("_", " "), seeds, *means, *effects])
    return markdown(rows, ("task", "metric, %", "seeds", *TASK_STRATEGIES, OVER[COMPUTE], "the same, harder"))


def task_details_table(root: Path) -> str:
    """Write a row per task, difficulty and sampler."""
    rows = [
        [name, examples, SAMPLER_WORDS[sampler], *percents(runs, metric, sampler)]
        + [runs.effect(ADVERSARIAL, other, metric, sampler) for other in OVER]
        for name, (runs, metrics) in task_studies(root).items()
        for examples, metric in zip(("usual", "harder"), metrics, strict=True)
        for sampler in SAMPLERS
    ]
    return markdown(rows, ("task", "examples", "sampler", *TASK_STRATEGIES, *OVER.values()))


INVERSION = (BASELINE, RANDOM, ADVERSARIAL, COMPUTE)


def matrix_table(root: Path) -> str:
    """Write a row per strategy and sampler of the matrix energy: geometric means and ratios to the baseline."""
    runs, rows = study(root, "matrix-cpu-1k"), []
    for sampler in SAMPLERS:
        for strategy in runs.strategies:
            mean, ratio = runs.mean(strategy, VAL, sampler), runs.effect(strategy, BASELINE, VAL, sampler)
            harder = f"{runs.mean(strategy, OOD, sampler).mean:.3g}"
            rows.append([strategy, SAMPLER_WORDS[sampler], mean.n, mean_words(mean, "{:.3g}"), ratio, harder])
    return markdown(rows, ("strategy", "sampler", "seeds", "val_mse [95%]", "ratio to baseline", "ood_mse"))


def scale_table(root: Path) -> str:
    """Write a row per strategy of the matrix energy: its error by sampler before and after the factor it learned."""
    columns = ("mse", "mse_rescaled")
    table = read(root / "matrix-cpu-1k" / "scale.csv", "strategy", "sampler", **dict.fromkeys(columns, float))
    means = table.groupby(["strategy", "sampler"])[list(columns)].agg(error_mean)
    keys = [(sampler, column) for sampler in SAMPLERS for column in columns]
    words = means.map("{:.2g}".format).unstack()
    rows = [[name, *(words.loc[name, (column, sampler)] for sampler, column in keys)] for name in INVERSION]
    without = "without the factor"
    return markdown(rows, ("strategy", "val_mse, plain", without, "val_mse, IRED's sampler", without))


def free_table(root: Path, name: str, first: str) -> str:
    """Write a row per strategy and sampler of the energy that must learn what inversion is, with ratios to it."""
    runs, rows = study(root, name), []
    seeds, mined = runs.frame["seed"].nunique(), runs.only(ADVERSARIAL)
    for sampler in SAMPLERS:
        for strategy in runs.strategies:
            row = [strategy.replace(",", ", "), f"{runs.steps(strategy):,}", SAMPLER_WORDS[sampler]]
            for metric in METRICS:
                mean = runs.mean(strategy, metric, sampler)
                finite = "" if mean.n == seeds else f" ({mean.n} of {seeds} finite)"
                row += [f"{mean.mean:.3g}{finite}", runs.effect(mined, strategy, metric, sampler)]
            rows.append(row)
    measured = [name for metric in METRICS for name in (metric.column, "adversarial over it [95%]")]
    return markdown(rows, (first, "steps", "sampler", *measured))


def free_means(root: Path) -> pd.DataFrame:
    """Return the geometric means of the trial before it, by the baseline's steps and the sampler."""
    frame = study(root, "matrix-free-trial").frame
    return frame.pivot_table(VAL.column, "train_steps", "sampler", error_mean)


def free_curve_table(root: Path) -> str:
    """Write a row per budget of that trial: how far the baseline's error falls with more steps."""
    runs, means = study(root, "matrix-free-trial"), free_means(root)
    falls = means.shift() / means
    rows = [
        [f"{steps:,}", runs.frame["seed"][runs.frame["train_steps"] == steps].nunique()]
        + [words for s in SAMPLERS for words in (f"{means.loc[steps, s]:.2g}", fall_words(falls.loc[steps, s]))]
        for steps in means.index
    ]
    return markdown(rows, ("steps", "seeds", "val_mse, plain", "divided by", "val_mse, IRED's sampler", "divided by"))


def fall_words(fall: float) -> str:
    return "" if math.isnan(fall) else f"{fall:.1f}"


def speed_table(root: Path, file: str, processor: str) -> str:
    """Write a benchmark: milliseconds of the released way and of this project, and their ratios."""
    times = ("released_ms", "ours_ms", "bf16_ms", "compiled_ms")
    shares = ("share_of_peak", "share_of_bf16_peak", "compiled_share_of_bf16_peak")
    table = read(root / file, "measured", ratio_same_products=float, released_ms=float, ours_ms=float)
    table = table[~table["measured"].str.startswith("scaling")]
    table = table.reindex(columns=[*table, *{*times, *shares} - set(table)]).dropna(axis=1, how="all")
    rows, in_bf16 = [], [(name, share) for name, share in zip(times[2:], shares[1:], strict=True) if name in table]
    for _, row in table.iterrows():
        released, mine = row["released_ms"], row["ours_ms"]
        cells = [row["measured"], milliseconds(released), milliseconds(mine), f"{released / mine:.2f}"]
        cells += [f"{row['ratio_same_products']:.2f}", percent(row["share_of_peak"])]
        for name, share in in_bf16:
            known = not math.isnan(row[name])
            cells += [milliseconds(row[name]), f"{released / row[name]:.2f}"] if known else ["", ""]
            cells.append(percent(row.get(share, math.nan)))
        rows.append(cells)
    columns = ["released way, ms", "float32, ms", "ratio", "ratio, same products", "of its peak"]
    for name, _ in in_bf16:
        columns += ["bf16, ms" if name == "bf16_ms" else "compiled, ms", "ratio", "of its peak"]
    return markdown(rows, (f"{processor}: measured", *columns))


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def precision_table(root: Path) -> str:
    """Write what bfloat16 products change: val_mse over that of the same runs in float32."""
    small = sizes_pair(root, SIZES[0], "steps", IRED)
    exact_pilot, pilot = (pair_at(root, name, "steps") for name in ("pilot", "pilot-bf16"))
    rows = []
    for words, rounded, exact in (
        ("6 × 6, trained in bf16", pair_at(root, "bf16", "steps"), small),
        ("6 × 6, trained and evaluated in bf16", pair_at(root, "bf16-descents", "steps"), small),
        ("published setting, trained in bf16, one seed", pilot, exact_pilot),
    ):
        changes = [(errors_of(rounded, s) / errors_of(exact, s)).dropna() for s in SAMPLERS]
        for column in changes[0]:
            found = [VAL.compare(change[column].to_numpy(), np.ones(len(change))) for change in changes]
            ratios = [with_interval(each.effect, each.low, each.high, "{:.3f}") for each in found]
            rows.append([f"{words}: {column}", *ratios])
    return markdown(rows, ("val_mse over float32's", "plain sampler", "IRED's sampler"))


def errors_of(pair: PublishedPair, sampler: str) -> pd.DataFrame:
    """Return the errors of both, and their ratio, by seed."""
    frame = pd.DataFrame(dict(zip(NAMED, pair.values(VAL, sampler), strict=True)))
    return frame.assign(**{" over ".join(NAMED): frame[ADVERSARIAL] / frame[BASELINE]})


def sharing_table(root: Path) -> str:
    """Write what two runs at once gain over one run with two threads, for each step."""
    table = read(root / "benchmark-at-once.csv", "measured", alone_ms=float, shared_ms=float, ratio_alone=float)
    rows = [
        [row["measured"], milliseconds(row["alone_ms"]), milliseconds(row["shared_ms"]), f"{row['ratio_alone']:.2f}"]
        for _, row in table.iterrows()
    ]
    return markdown(rows, ("measured", "one run with 2 threads, ms", "two runs, ms", "ratio"))


TABLES = {
    "README.md": (answer_table, elsewhere_table, learned_table),
    "docs/results.md": (
        sizes_table,
        flat_table,
        partial(kinds_table, kinds=KINDS, header=("kind", "a wrong answer is")),
        partial(kinds_table, kinds=VARIANTS, header=("kind", "adversarial")),
        public_table,
        scaling_table,
        energies_table,
        tasks_table,
    ),
    "docs/details.md": (
        verdicts_table,
        *(partial(ratios_table, metric=metric) for metric in METRICS),
        ladder_means_table,
        rises_table,
        tuned_means_table,
        pilot_runs_table,
        pilot_curves_table,
        task_details_table,
        matrix_table,
        scale_table,
        partial(free_table, name="matrix-free-1200", first="strategy"),
        partial(free_table, name="matrix-free-tuned", first="best setting"),
        free_curve_table,
    ),
    "docs/speed.md": (
        partial(speed_table, file="benchmark.csv", processor="Zen 5"),
        sharing_table,
        precision_table,
        partial(speed_table, file="benchmark-xeon.csv", processor="Xeon with AMX"),
        partial(speed_table, file="benchmark-zen-4.csv", processor="Zen 4"),
    ),
}


def with_table(text: str, table: str, page: str = "the page") -> str:
    """Put a table into a page's text, in place of the one of the same header. Raises ConfigError unless it has one."""
    lines, new = text.splitlines(), table.splitlines()
    places = [i for i, line in enumerate(lines) if header_words(line) == header_words(new[0])]
    if len(places) != 1:
        raise ConfigError(f"{page} has {len(places)} tables with the header {new[0]}; allowed: 1")
    end = next((i for i in range(places[0], len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join([*lines[: places[0]], *new, *lines[end:]]) + "\n"


def header_words(line: str) -> list[str]:
    return [word.strip() for word in line.split("|")]


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    options = parser.parse_args(arguments)
    header(results=PUBLISHED)
    tables = {page: [make(PUBLISHED) for make in makers] for page, makers in TABLES.items()}
    print("\n\n".join(table for made in tables.values() for table in made))
    if options.write:
        pages = {page: (ROOT / page).read_text("utf-8") for page in tables}
        for page, made in tables.items():
            for table in made:
                pages[page] = with_table(pages[page], table, page)
        for page, text in pages.items():
            write_atomic(ROOT / page, text)

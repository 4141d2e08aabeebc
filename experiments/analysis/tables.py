"""Turn runs into arrays over seeds, and those into the summary and the printed table."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from diffusion_lib.names import SAMPLERS
from diffusion_lib.system.errors import ConfigError, first_line
from diffusion_lib.system.files import write_atomic
from diffusion_lib.tasks import TASKS
from experiments.analysis.metrics import Metric, number, task_metrics
from experiments.analysis.runs import COSTS, wide_form
from experiments.analysis.statistics import Paired, interquartile_mean, with_holm
from experiments.study.flags import parse_command
from experiments.study.study import STEPS, Pair, Study

HEADLINE_SAMPLER = "plain"
BOOTSTRAP_SEED = 161803


class Results:
    """The runs of a study as arrays over its seeds; nan where a run is absent or failed.

    runs: of `read_runs`.
    study: whose strategies are compared.
    metrics: the task's.
    mean_error: the mean predictor's first metric, where that is an error: a run with a larger one is spoiled.
    """

    def __init__(self, runs, study: Study, metrics: tuple[Metric, ...], mean_error: float = math.nan):
        self.frame, self.study, self.metrics, self.mean_error = pd.DataFrame(runs), study, metrics, mean_error
        self._values, self._comparisons = {}, {}  # each is asked for many times, and takes milliseconds
        present = set(self.frame["strategy"])
        labels = [name for name in study.labels() if name in present]
        self.strategies = labels + sorted(present - set(labels))
        self.seeds = sorted(set(self.frame["seed"]))
        self.samplers = [name for name in SAMPLERS if name in set(self.frame["sampler"])]
        self.treated, self.base = study.compare[0], study.base()

    def batch_sizes(self, strategies=None) -> list[int]:
        """Return the examples of a step, by default of all strategies: the study's, unless they have their own."""
        labels, variants = strategies or self.strategies, {}
        if "batch_size" in self.study.columns():
            variants = self.study.variants()
        configs = [variants[label].config if label in variants else self.study.config for label in labels]
        return sorted({config.batch_size for config in configs})

    # Found when asked for: the study counts the FLOPs of its strategies for them, which takes seconds.

    @cached_property
    def bases(self) -> dict[str, str]:
        """By label the label of the base that it is compared with, where both were run."""
        found = {name: base for name, base in self.study.bases().items() if {name, base} <= set(self.strategies)}
        if self.base in self.strategies:  # a strategy that the study does not know, of an earlier version's
            unknown = set(self.strategies).difference(self.study.labels())
            found |= dict.fromkeys(sorted(unknown - {self.base}), self.base)
        return found

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """By sampler the study's pairs of which both were run."""
        pairs = {sampler: self.study.pairs(sampler) for sampler in SAMPLERS}
        return {s: [pair for pair in each if {*pair[1:]} <= set(self.strategies)] for s, each in pairs.items()}

    def values(self, column: str, sampler: str) -> dict[str, np.ndarray]:
        """Return by strategy a column under one sampler (seeds,)."""
        if (column, sampler) not in self._values:
            part = self.frame[self.frame["sampler"] == sampler]
            part = part if column in part else part.assign(**{column: np.nan})
            table = part.pivot(index="strategy", columns="seed", values=column)
            table = table.reindex(index=self.strategies, columns=self.seeds).astype(float)
            self._values[column, sampler] = dict(zip(self.strategies, table.to_numpy(), strict=True))
        return self._values[column, sampler]

    def of(self, strategy: str) -> pd.DataFrame:
        """Return a strategy's runs, once each."""
        return self.frame[(self.frame["strategy"] == strategy) & (self.frame["sampler"] == HEADLINE_SAMPLER)]

    def shortened(self, text: str) -> str:
        """Name strategies in a text by the settings in which they differ: `adversarial (lr 0.002, weight 0.05)`."""
        for label in sorted(self.strategies, key=len, reverse=True):  # one may begin with another
            text = text.replace(label, self.short_names[label])
        return text

    @cached_property
    def short_names(self) -> dict[str, str]:
        settings = {label: label.split(",")[1:] for label in self.strategies}
        shared = set.intersection(*map(set, settings.values()))
        own = {
            label: ", ".join(self._setting_words(label, each) for each in settings[label] if each not in shared)
            for label in settings
        }
        return {label: label.partition(",")[0] + (f" ({words})" if words else "") for label, words in own.items()}

    def _setting_words(self, label: str, setting: str) -> str:
        key, _, value = setting.partition("=")
        if key == "train_steps":  # in a label those of the strategy for whose compute it was trained
            return f"{'/'.join(f'{steps:,}' for steps in self.train_steps(label))} steps"
        return f"{'lr' if key == 'learning_rate' else key} {value}"

    def count(self, strategy: str, status: str | None = None) -> int:
        statuses = self.of(strategy)["status"]
        return len(statuses) if status is None else int((statuses == status).sum())

    def train_seconds(self, strategy: str) -> str:
        """Write the mean seconds that a strategy's runs were trained for; nothing where all failed."""
        seconds = self.of(strategy)["train_seconds"].mean()
        return f"{seconds:.0f}" if math.isfinite(seconds) else ""

    def measured(self, metric: Metric, sampler: str) -> bool:
        """Return whether any run has a finite value: a metric that none has is not defined on these problems."""
        return any(np.isfinite(row).any() for row in self.values(metric.column, sampler).values())

    def diverged(self, strategy: str, metrics, samplers) -> int:
        """Count a strategy's runs that failed, or lack a finite value of a metric under one of the samplers."""
        own = self.frame[self.frame["strategy"] == strategy]
        lacking = set(own[own["status"] == "failed"]["seed"])
        for metric in metrics:
            for sampler in (sampler for sampler in samplers if self.measured(metric, sampler)):
                part = own[own["sampler"] == sampler]
                lacking |= set(part[~np.isfinite(part[metric.column].astype(float))]["seed"])
        return len(lacking)

    def spoiled(self, strategy: str, sampler: str) -> int | str:
        """Count a strategy's runs that have a larger error than the mean predictor; empty where no error decides."""
        if math.isnan(self.mean_error):
            return ""
        return int(np.sum(self.values(self.metrics[0].column, sampler)[strategy] > self.mean_error))

    def train_steps(self, strategy: str | None) -> list[int]:
        """Return the numbers of steps of a strategy's runs: one, unless a run was trained otherwise."""
        return sorted(set(self.frame[self.frame["strategy"] == strategy]["train_steps"]))

    def comparisons(self, metric: Metric, sampler: str) -> dict[str, Paired]:
        """Compare each strategy with its base, as one Holm family; errors that are exactly 0 have no comparison."""
        found = {
            name: pair
            for name in self.strategies
            if name in self.bases and (pair := self.comparison(name, self.bases[name], metric, sampler))
        }
        return with_holm(found)

    def comparison(self, strategy: str, baseline: str, metric: Metric, sampler: str) -> Paired | None:
        """Compare one strategy with another, without a p_holm; None if one is absent or has an error of 0."""
        key = strategy, baseline, metric, sampler
        if key not in self._comparisons:
            values = self.values(metric.column, sampler)
            pair = {name: values[name] for name in (strategy, baseline) if name in values}
            whole = len(pair) == 2 and not any(map(metric.zeros, pair.values()))
            self._comparisons[key] = metric.compare(*pair.values()) if whole else None
        return self._comparisons[key]

    def pair(self, account: str | None = None) -> dict[str, Pair]:
        """Return by sampler the pair that decides: the first, or the first of an account; nothing where none is."""
        found = {
            sampler: next((pair for pair in pairs if account in (None, pair.account)), None)
            for sampler, pairs in self.pairs.items()
        }
        return {sampler: pair for sampler, pair in found.items() if pair}

    def label(self, sampler: str) -> str | None:
        """Return the label of the treatment that decides under a sampler; None where it was not run."""
        pair = self.pair().get(sampler)
        return pair.treated if pair else self.treated if self.treated in self.strategies else None

    def partner(self, strategy: str, sampler: str) -> Pair | None:
        """Return the pair in which the summary compares a strategy: the first of its own, or that with its base."""
        own = next((pair for pair in self.pairs[sampler] if pair.treated == strategy), None)
        if own or strategy not in self.bases:
            return own
        same = self.train_steps(strategy) == self.train_steps(self.bases[strategy])
        return Pair(STEPS if same else "", strategy, self.bases[strategy])


def summarise(results: Results, study: Study, references: list[dict]) -> pd.DataFrame:
    """Return a row per strategy, setting, sampler and metric, and per predictor without training and metric.

    `ratio` (of errors) or `difference` (of rates, in points) is to `other`, trained equally long by `account`.
    """
    variants, defaults = study.variants(), study.config.flat()
    settings, rows = study.columns(), []
    for sampler in results.samplers:
        for metric in defined(results, references):
            partners = {name: results.partner(name, sampler) for name in results.strategies}
            found = {
                name: each
                for name, pair in partners.items()
                if pair and (each := results.comparison(name, pair.other, metric, sampler))
            }
            found = with_holm(found)
            for name, values in results.values(metric.column, sampler).items():
                variant, mean = variants.get(name), metric.mean(values)
                rows.append(
                    {
                        "strategy": variant.strategy.origin if variant else name,
                        **{key: variant.value(key) if variant else None for key in settings},
                        "sampler": sampler,
                        "metric": metric.column,
                        "n": mean.n,
                        "failed": results.count(name, "failed"),
                        "spoiled": results.spoiled(name, sampler),
                        **mean._asdict(),
                        **(compared(metric, found[name], partners[name]) if name in found else {}),
                    }
                )
    for row in references:
        about = {"strategy": row["strategy"], **{key: defaults[key] for key in settings}, "sampler": row["sampler"]}
        rows += [
            {**about, "metric": metric.column, "n": row.get("n"), "mean": row[metric.column]}
            for metric in results.metrics
            if metric.column in row
        ]
    return pd.DataFrame(rows)


def write_table(folder: Path, ending: str, table: pd.DataFrame):
    """Write one of the tables beside a study's folder."""
    write_atomic(folder.with_name(f"{folder.name}.{ending}"), table.to_csv(index=False))


def load_results(path: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the summary and the runs of the study `results/<study>`, from its CSVs, or of a published one.

    Raises ConfigError where there are none.
    """
    path = Path(path)
    tables = [path.with_name(f"{path.name}{ending}") for ending in (".csv", ".runs.csv")]
    if all(table.exists() for table in tables):
        return tuple(pd.read_csv(path, float_precision="round_trip") for path in tables)
    if not (path / "study.toml").exists():
        raise ConfigError(f"there is no {tables[1]}; allowed: results/<study> of a study that has a report")
    study = parse_command("", ["--study", str(path / "study.toml")]).study
    try:
        runs = pd.read_csv(path / "runs.csv", float_precision="round_trip")
        results = Results(wide_form(runs), study, task_metrics(TASKS[study.config.dataset]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path / 'runs.csv'} cannot be read ({first_line(error)})") from None
    return summarise(results, study, []), runs


def compared(metric: Metric, found: Paired, pair: Pair) -> dict:
    """Return the columns of a comparison."""
    effect = {metric.effect: found.effect}
    effect |= {f"{metric.effect}_low": found.low, f"{metric.effect}_high": found.high}
    return {"other": pair.other, "account": pair.account, **effect, "p": found.p, "p_holm": found.p_holm}


def defined(results: Results, references: list[dict]) -> list[Metric]:
    """Return the metrics that any run or reference has: some sets have no problem of some kinds."""
    return [
        metric
        for metric in results.metrics
        if metric is results.metrics[0]
        or any(results.measured(metric, sampler) for sampler in results.samplers)
        or any(math.isfinite(row.get(metric.column, math.nan)) for row in references)
    ]


def format_table(results: Results, references: list[dict]) -> str:
    """Write a row per strategy and sampler, then the references, with all metrics that any row has."""
    first, *others = defined(results, references)
    headers = [
        *("strategy", "sampler", "n", f"{first.column} [95% interval]", f"{first.effect} to {results.base}", "Holm p"),
        *(metric.column for metric in others),
        "train s",
    ]
    cells = run_cells(results, first, others) + [reference_cells(row, first, others) for row in references]
    return markdown(cells, headers)


def markdown(rows, headers) -> str:
    """Write a table as Markdown, its cells as they are; headers: "keys" where the rows are dicts."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def run_cells(results: Results, first: Metric, others: list[Metric]) -> list[list[str]]:
    """Return a row of cells for each strategy under each sampler."""
    rows = []
    for sampler in results.samplers:
        against = results.comparisons(first, sampler)
        values = {metric: results.values(metric.column, sampler) for metric in (first, *others)}
        for name in results.strategies:
            finished, found = results.count(name, "finished"), against.get(name)
            effect = "" if name.partition(",")[0] == results.base else first.words(found)
            rows.append(
                [
                    name,
                    sampler,
                    runs_cell(results, name, sampler),
                    mean_cell(values[first][name], first, finished, interval=True),
                    effect,
                    f"{found.p_holm:.2g}" if found and math.isfinite(found.p_holm) else "",
                    *(mean_cell(values[metric][name], metric, finished) for metric in others),
                    results.train_seconds(name),
                ]
            )
    return rows


def reference_cells(row: dict, first: Metric, others: list[Metric]) -> list[str]:
    means = [number(row.get(metric.column)) for metric in (first, *others)]
    return [row["strategy"], row["sampler"], f"{row.get('n', '')}", means[0], "", "", *means[1:], ""]


def runs_cell(results: Results, name: str, sampler: str) -> str:
    """Write the number of runs: `5`, or `4 (1 failed, 1 spoiled)`."""
    counts = {"failed": results.count(name, "failed"), "spoiled": results.spoiled(name, sampler)}
    apart = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{results.count(name, 'finished')}{f' ({apart})' if apart else ''}"


def mean_cell(values: np.ndarray, metric: Metric, finished: int, interval: bool = False) -> str:
    """Write the mean, its interval, and how many runs are behind it where that is not all finished ones."""
    mean = metric.mean(values)
    if metric.zeros(values):
        return f"0 in {metric.zeros(values)} of {mean.n} runs"
    cell = number(mean.mean)
    if interval and math.isfinite(mean.low):
        cell += f" [{mean.low:.3g}, {mean.high:.3g}]"
    return cell if mean.n == finished else f"{cell} ({mean.n} of {finished} finite)"


def middle_table(results: Results) -> str:
    """Write interquartile means of the first metric with their bootstrap intervals."""
    metric, rows = results.metrics[0], []
    for sampler in results.samplers:
        for name, values in results.values(metric.column, sampler).items():
            middle = interquartile_mean(values, np.random.default_rng(BOOTSTRAP_SEED))
            rows.append([name, sampler, *map(number, middle)])
    headers = ["strategy", "sampler", f"interquartile mean of {metric.column}", "low", "high"]
    return markdown(rows, headers)


def cost_table(results: Results) -> str:
    """Write what each strategy costs in time, compute and memory; time and compute also in units of the base."""
    own = results.frame[results.frame["sampler"] == HEADLINE_SAMPLER]
    means = own.reindex(columns=["strategy", *COSTS]).groupby("strategy").mean().reindex(results.strategies)
    for cost in ("train_seconds", "train_flops"):
        means[f"{cost} / {results.base}"] = means[cost] / means[cost].get(results.base, math.nan)
    rows = [
        [name, results.count(name, "finished"), *map(number, row)]
        for name, row in zip(means.index, means.values, strict=True)
    ]
    return markdown(rows, ["strategy", "runs", *means])

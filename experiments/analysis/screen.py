"""Write the answer of a study on one screen, which a command prints at its end and its report begins with."""

import math
import textwrap

from tabulate import tabulate

from diffusion_lib.config import ExperimentConfig
from experiments.analysis.metrics import Metric, number
from experiments.analysis.references import main_references
from experiments.analysis.tables import Results, mean_cell
from experiments.analysis.verdict import ACCOUNTS, compare_pairs, not_run, pair_scenario, too_few
from experiments.study.study import Pair

WIDTH = 100
ROWS, PAIRS = 10, 7  # strategies, and pairs of a table, at most: with all else they fill 40 lines
SENTENCES = 6  # comparisons that are told; more are a table


def screen(name: str, config: ExperimentConfig, study: Results, references: list[dict], against: list[str]) -> str:
    """Write what was trained, the errors, the verdicts and the gravest objections; against: the report's sentences."""
    about = "\n".join(textwrap.wrap(what_was_trained(name, config, study), WIDTH, break_on_hyphens=False))
    options = {"subsequent_indent": "  ", "max_lines": 2, "placeholder": " …"}
    gravest = [part for line in against[:2] for part in textwrap.wrap(f"- {study.shortened(line)}", WIDTH, **options)]
    objections = ["\n".join(["What speaks against it:", *gravest])] if gravest else []
    return "\n\n".join([about, error_table(study, references), verdict_words(study), *objections])


def what_was_trained(name: str, config: ExperimentConfig, study: Results) -> str:
    """Say what the table does not; it has the strategies, their steps and their seconds of training."""
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    batches = " or ".join(f"{size:,}" for size in study.batch_sizes())
    return (
        f"{name}: energy {config.model}, task {config.dataset} of rank {config.rank}, {seeds}, batches of {batches}, "
        f"judged by {config.evaluation_size:,} fixed problems of each difficulty"
    )


def error_table(study: Results, references: list[dict]) -> str:
    """Write each strategy's steps, its first metric by sampler, the second under the last, and the seconds of training.

    Of many strategies only the best are shown; of the predictors without training the main ones.
    """
    first, last = study.metrics[0], study.samplers[-1]
    columns = [(first, sampler) for sampler in study.samplers]
    columns += [(metric, last) for metric in study.metrics[2::2] if study.measured(metric, last)][:1]
    rows = {study.shortened(label): strategy_cells(study, label, columns) for label in best(study, first, last)}
    missing = len(study.strategies) - len(rows)
    rows |= {r["strategy"]: ["", *predictor_cells(r, columns), ""] for r in main_references(references, first)}
    headers = ["strategy", "steps", *(f"{metric.column}\n{sampler}" for metric, sampler in columns), "train\ns"]

    def table(most: int) -> str:
        cells = [[name if len(name) <= most else f"{name[:9]}…{name[10 - most :]}", *row] for name, row in rows.items()]
        return tabulate(cells, headers, disable_numparse=True)

    longest = max(map(len, rows))
    text = table(longest)
    text = table(max(12, longest - max(0, max(map(len, text.splitlines())) - WIDTH)))
    return f"{text}\n… and {missing} strategies more in the report" if missing else text


def best(study: Results, metric: Metric, sampler: str) -> list[str]:
    """Return the base and the strategies with the best means, at most ROWS, in their own order."""
    means = {name: metric.mean(values).mean for name, values in study.values(metric.column, sampler).items()}
    loss = {name: math.inf if math.isnan(mean) else -mean if metric.rate else mean for name, mean in means.items()}
    first = sorted(loss, key=lambda name: (name != study.base, loss[name]))[:ROWS]
    return [name for name in study.strategies if name in first]


def strategy_cells(study: Results, name: str, columns: list[tuple[Metric, str]]) -> list[str]:
    """Return a strategy's cells: its steps, for each column the mean and the runs behind it, then the seconds."""
    cells = ["/".join(f"{steps:,}" for steps in study.train_steps(name))]
    for metric, sampler in columns:
        cell = mean_cell(study.values(metric.column, sampler)[name], metric, study.count(name))
        spoiled = study.spoiled(name, sampler) if metric is study.metrics[0] else 0
        cells.append(f"{cell}, {spoiled} spoiled" if spoiled else cell)
    return [*cells, study.train_seconds(name)]


def predictor_cells(row: dict, columns: list[tuple[Metric, str]]) -> list[str]:
    """Return a predictor's cells, each metric once, since no sampler made it."""
    shown = [metric.column for metric, _ in columns]
    return [number(row.get(name)) if name not in shown[:place] else "" for place, name in enumerate(shown)]


def verdict_words(study: Results) -> str:
    """Write a sentence an account and pair, or a table of many pairs."""
    found = compare_pairs(study, study.metrics[0])
    if len(found) > SENTENCES:
        return "\n".join([*not_run(study), verdict_table(study, found)])
    lines = list(not_run(study))
    for pair in in_order(found):
        parts = [outcome(study, pair, s, each) for (s, other), each in found.items() if other == pair]
        lines.append(f"Verdict at equal {pair.account}, {pair.treated} against {pair.other}: {'; '.join(parts)}.")
    return "\n".join(textwrap.fill(study.shortened(line), WIDTH, subsequent_indent="  ") for line in lines)


def outcome(study: Results, pair, sampler: str, comparison) -> str:
    metric = study.metrics[0]
    found = pair_scenario(study, pair, sampler, comparison)
    words = f"{found or f'none, {too_few(metric, comparison)},'} under {sampler}"
    if comparison is None or comparison.n < 2:
        return words
    return f"{words} ({metric.column} {metric.words(comparison)}, Holm's p {comparison.p_holm:.2g})"


def in_order(found: dict) -> list[Pair]:
    """Return the pairs of comparisons, account by account."""
    return sorted(dict.fromkeys(pair for _, pair in found), key=lambda pair: ACCOUNTS.index(pair.account))


def verdict_table(study: Results, found: dict) -> str:
    """Write a line a pair, without the intervals, which the verdict reads."""
    metric = study.metrics[0]
    pairs = in_order(found)

    def cell(pair, sampler) -> str:
        comparison = found.get((sampler, pair))
        verdict = pair_scenario(study, pair, sampler, comparison) or "-"
        return f"{metric.words(comparison).partition(' [')[0]} {verdict}"

    rows = [
        [pair.account, pair.treated.removeprefix(f"{study.treated},"), *(cell(pair, s) for s in study.samplers)]
        for pair in pairs[:PAIRS]
    ]
    headers = ["equal", f"{study.treated}, at", *(f"{metric.column}, {s}" for s in study.samplers)]
    lines = [line[:WIDTH] for line in tabulate(rows, headers, disable_numparse=True).splitlines()]
    return "\n".join(lines + [f"… and {len(pairs) - PAIRS} pairs more in the report"] * (len(pairs) > PAIRS))

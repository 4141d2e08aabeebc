"""Summary, printed table and report of studies made by hand: wording, zeros, missing runs, other tasks' metrics."""

import csv
import json
from dataclasses import replace
from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from conftest import study_of

from diffusion_lib.build import describe_data
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import Addition, Inverse, ShortestPath, Sudoku, matrix_references
from experiments.analysis import report
from experiments.analysis.metrics import task_metrics
from experiments.analysis.objections import run_objections
from experiments.analysis.screen import screen
from experiments.analysis.statistics import geometric_mean, ratio
from experiments.analysis.tables import (
    Results,
    defined,
    format_table,
    middle_table,
    run_cells,
    summarise,
)

METRICS = task_metrics(Inverse)
CONFIG = ExperimentConfig(rank=3, batch_size=8, train_steps=5, evaluation_size=16)
BASE = [0.010, 0.012, 0.011, 0.013]


class Accurate(Addition):
    metrics = ("accuracy", "mse")
    higher_is_better = frozenset({"accuracy"})


def study(values: dict, metrics=METRICS, failed=()) -> Results:
    """values: strategy -> every metric of each seed, the same under both samplers."""
    rows = [
        {
            "strategy": strategy,
            "seed": seed,
            "sampler": sampler,
            "status": "failed" if strategy in failed and isnan(value) else "finished",
            "train_steps": 5,
            **{metric.column: value for metric in metrics},
            "train_seconds": 2.0,
            "commit": "0",
            "run": f"runs/{strategy}/seed-{seed}",
        }
        for strategy, row in values.items()
        for seed, value in enumerate(row)
        for sampler in ("plain", "innerloop")
    ]
    return Results(rows, study_of(*values), metrics)


def plain_row(found: Results, metric="val_mse", strategy="adversarial") -> dict:
    """A row of the summary, under the plain sampler."""
    rows = summarise(found, study_of(*found.strategies), []).to_dict("records")
    wanted = (strategy, "plain", metric)
    return next(row for row in rows if (row["strategy"], row["sampler"], row["metric"]) == wanted)


def cells(values, metrics=METRICS, strategy="adversarial", **options) -> list[str]:
    rows = run_cells(study(values, metrics, **options), metrics[0], list(metrics[1:]))
    return next(row for row in rows if row[:2] == [strategy, "plain"])


def test_a_task_names_its_columns_and_their_direction():
    assert [metric.column for metric in METRICS] == ["val_mse", "ood_mse", "recon_error", "ood_recon_error"]
    assert not any(metric.rate for metric in METRICS)
    found = [(metric.column, metric.rate) for metric in task_metrics(Accurate)]
    assert found == [("val_accuracy", True), ("ood_accuracy", True), ("val_mse", False), ("ood_mse", False)]


def test_the_summary_has_the_statistics_of_the_logs():
    treated = [0.009, 0.010, 0.0105, 0.009]
    chosen = study({"baseline": BASE, "adversarial": treated, "random": BASE})
    row = plain_row(chosen)
    mean, found = geometric_mean(treated), ratio(treated, BASE)
    assert (row["n"], row["mean"], row["low"], row["high"]) == mean
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (found.effect, found.low, found.high)
    assert (row["other"], row["account"]) == ("baseline", "steps")
    assert row["p"] == found.p and row["p_holm"] == 2 * found.p  # of two strategies
    assert len(row) <= 20
    middle = next(line.split("|") for line in middle_table(chosen).splitlines() if "adversarial" in line)
    assert float(middle[3]) == pytest.approx((0.009 + 0.010) / 2, rel=1e-3)
    assert min(treated) <= float(middle[4]) < float(middle[3]) < float(middle[5]) <= max(treated)


def test_the_summary_compares_at_equal_flops_first():
    values = {"baseline": BASE, "adversarial": BASE, "baseline-compute": [0.009, 0.010, 0.011, 0.012]}
    row = plain_row(study(values))
    assert (row["other"], row["account"]) == ("baseline-compute", "FLOPs")
    assert row["ratio"] == ratio(BASE, values["baseline-compute"]).effect
    table = summarise(study(values), study_of(*values), [{"strategy": "zero", "sampler": "reference", "val_mse": 0.02}])
    keys = ["strategy", "sampler", "metric"]
    assert table[keys].notna().all(axis=None) and len(table.groupby(keys)) == len(table)
    assert table.iloc[-1]["mean"] == 0.02


@pytest.mark.parametrize(
    ("factor", "words"), [(0.4, "0.400× ["), (5.4, "5.400× ["), (54, "54× ["), (0.004, "0.004× [")]
)
def test_an_effect_is_a_factor_never_a_percentage(factor, words):
    found = cells({"baseline": BASE, "adversarial": factor * np.array(BASE) * [1, 1.01, 1, 0.99]})
    assert found[4].startswith(words) and found[4].endswith("]") and "%" not in " ".join(found)


def test_an_interval_of_two_outliers_stays_positive():
    found = cells({"baseline": BASE, "adversarial": [0.01, 0.01, 0.01, 5.0]})
    assert "-" not in found[3].replace("e-", "") and "-" not in found[4].replace("e-", "")


@pytest.mark.filterwarnings("error")
def test_an_error_of_exactly_0_is_said_and_has_no_ratio():
    found = cells({"baseline": BASE, "adversarial": [0.0, 0.01, 0.0, nan]})
    assert found[3:6] == ["0 in 2 of 3 runs", "-", ""]
    found = cells({"baseline": [0.0, 0.01, 0.01, 0.01], "adversarial": BASE})  # nothing to divide by
    assert found[4:6] == ["-", ""] and found[3].startswith("0.01145 [")


@pytest.mark.filterwarnings("error")
def test_missing_values_are_counted_and_crash_nothing():
    found = cells({"baseline": BASE, "adversarial": [nan] * 4}, failed=("adversarial",))
    assert found[2:6] == ["0 (4 failed)", "-", "-", ""]
    found = cells({"baseline": BASE, "adversarial": [nan, np.inf, 0.01, 0.02]})  # finished, and yet not finite
    assert found[3].endswith("(2 of 4 finite)")
    found = cells({"baseline": [0.01], "adversarial": [0.005]})
    assert found[3:6] == ["0.005", "0.500×", ""]


def test_runs_above_the_mean_predictor_are_counted_as_spoiled():
    chosen = study({"baseline": BASE, "adversarial": [0.02, 0.01, nan, 0.03]}, failed=("adversarial",))
    chosen.mean_error = 0.0141
    row = plain_row(chosen)
    assert (row["failed"], row["spoiled"]) == (1, 2)
    shown = run_cells(chosen, METRICS[0], [])
    assert next(cells for cells in shown if cells[:2] == ["adversarial", "plain"])[2] == "3 (1 failed, 2 spoiled)"
    assert any("spoiled" in line and "adversarial under plain 2 of 4" in line for line in run_objections(chosen))
    rates = study({"baseline": [0.5, 0.6]}, task_metrics(Accurate))
    assert plain_row(rates, "val_accuracy", "baseline")["spoiled"] == ""


def test_rates_are_compared_in_percentage_points():
    metrics = task_metrics(Accurate)
    found = cells({"baseline": [0.5, 0.6, 0.7], "adversarial": [0.6, 0.7, 0.81]}, metrics)
    assert found[3].startswith("0.7033 [") and found[4].startswith("+10.33 points [+8.90, +11.77]")
    header = format_table(study({"baseline": [0.5, 0.6]}, metrics), []).splitlines()[0]
    assert "difference to baseline" in header and "ood_accuracy" in header and "val_mse" in header
    always = cells({"baseline": [0.0, 0.0, 0.0], "adversarial": [1.0, 1.0, 1.0]}, metrics)  # 0 is a rate like another
    assert always[3] == "1 [1, 1]" and always[4] == "+100.00 points [+100.00, +100.00]"


def test_a_strategy_alone_has_no_ratio():
    assert cells({"opt_steps=1": BASE}, strategy="opt_steps=1")[4] == "-"
    assert "ratio" not in plain_row(study({"opt_steps=1": BASE}), strategy="opt_steps=1")


# The whole report, without training


def write_study(folder, values: dict, config: ExperimentConfig, steps=None):
    """The records of a study, as training leaves them."""
    environment = {"command": "python it", "commit": "0", "gpu": None, "cpu": "a cpu", "cpu_cores": 2, "threads": 1}
    record = {"config": config.to_dict(), "environment": {**environment, "python": "3", "torch": "2"}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    for strategy, row in values.items():
        for seed, value in enumerate(row):
            run = folder / "runs" / strategy / f"seed-{seed}"
            run.mkdir(parents=True)
            trained = {**config.to_dict(), "train_steps": (steps or {}).get(strategy, config.train_steps)}
            (run / "config.json").write_text(json.dumps({"config": trained}))
            result = {"strategy": strategy, "seed": seed, "status": "failed", "reason": "it grew"}
            if value is not None:
                metrics = dict.fromkeys(("val_mse", "ood_mse", "recon_error", "ood_recon_error"), value)
                auc = {"energy_auc_random": 1.0, "energy_auc_adversarial": 0.5}
                result |= {"status": "finished", "train_seconds": 1.0, "steps_per_second": 5.0, "parameters": 3}
                result |= {"peak_memory_bytes": 8, "samplers": dict.fromkeys(("plain", "innerloop"), metrics | auc)}
            (run / "result.json").write_text(json.dumps(result))


@pytest.fixture
def reported(tmp_path, monkeypatch, capsys):
    """write(values, …) -> the report's text and what was printed."""
    monkeypatch.setattr(matrix_references, "FIT_SAMPLES", 300)

    def write(values, steps=None, timing=None):
        write_study(tmp_path / "it", values, CONFIG, steps)
        if timing:
            (tmp_path / "it" / "timing.json").write_text(json.dumps(timing))
        report.write_report(tmp_path / "it", CONFIG, study_of("baseline", "adversarial", "baseline-compute"))
        return (tmp_path / "it" / "report.md").read_text(), capsys.readouterr()

    return write


def test_times_that_cannot_be_read_are_named_before_anything_is_written(reported, tmp_path):
    with pytest.raises(ConfigError, match=r"adversarial in .*timing.json is None; allowed: a positive number"):
        reported(
            {"baseline": [0.02], "adversarial": [0.01]},
            timing={"batch_size": 128, "baseline": 0.1, "adversarial": None},
        )
    assert not (tmp_path / "it.runs.csv").exists()


def test_a_report_begins_with_the_verdict_at_equal_compute(reported, tmp_path):
    values = {"baseline": [0.02, 0.022, 0.021], "adversarial": BASE[:3], "baseline-compute": [0.0101, 0.0119, 0.0112]}
    timing = {"baseline": 0.1, "adversarial": 0.25, "batch_size": 128, "threads": 1}
    text, printed = reported(values, {"baseline-compute": 14}, timing)
    parts = [line for line in text.splitlines() if line]
    first = text.partition("```\n")[2].partition("\n```")[0]
    assert printed.out == f"{first}\n\nReport: {tmp_path / 'it' / 'report.md'}\n"  # the screen, word for word
    assert "Verdict at equal FLOPs, adversarial against baseline-compute: no difference beyond 5% under plain" in first
    assert "Verdict at equal FLOPs (mlp, 5 steps × 128, plain): no difference beyond 5%." in parts
    order = ["## what speaks against it", "the four criteria", "## table", "correlation", "## cost"]
    places = [text.lower().index(words) for words in order]
    assert places == sorted(places)
    assert "less than 2× the time: not met, 2.50× a step" in text
    shown = dict(line.split()[:2] for line in first.splitlines() if line.startswith(("adversarial ", "baseline")))
    assert shown == {"baseline": "5", "adversarial": "5", "baseline-compute": "14"}  # their steps
    table = pd.read_csv(tmp_path / "it.csv")
    row = table.query("strategy == 'adversarial' and sampler == 'plain' and metric == 'val_mse'").iloc[0]
    assert row["ratio"] == pytest.approx(ratio(BASE[:3], values["baseline-compute"]).effect)
    assert (row["other"], row["account"]) == ("baseline-compute", "FLOPs")


def test_a_report_counts_spoiled_runs_and_the_flops_of_an_earlier_version(reported, tmp_path):
    text, _ = reported({"baseline": [0.02, 500.0], "adversarial": [0.01, 0.01]})
    assert "spoiled, above the mean predictor's" in text and "baseline under plain 1 of 2" in text
    with open(tmp_path / "it.runs.csv", newline="") as file:
        assert all(float(row["train_flops"]) > 0 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: result["samplers"]["plain"].update(val_mse="x"),
        lambda result: result["samplers"].update(plain=[1]),
        lambda result: result["samplers"]["plain"].update(val_mse=-1.0),
        lambda result: result.pop("samplers"),
    ],
)
def test_a_report_names_a_damaged_run_and_has_the_others(reported, tmp_path, damage):
    reported({"baseline": [0.02, 0.021], "adversarial": [0.01, 0.011]})
    path = tmp_path / "it/runs/baseline/seed-0/result.json"
    result = json.loads(path.read_text())
    damage(result)
    path.write_text(json.dumps(result))
    (tmp_path / "it/runs/adversarial/seed-1/config.json").write_text("[1]")  # of a run without a result: none of it
    (tmp_path / "it/runs/adversarial/seed-1/result.json").unlink()
    damaged = report.write_report(tmp_path / "it", CONFIG, study_of("baseline", "adversarial"))
    assert list(damaged) == [path.parent] and str(path) in damaged[path.parent]
    assert f"- left out: {path}" in (tmp_path / "it" / "report.md").read_text()
    with open(tmp_path / "it.runs.csv", newline="") as file:
        rows = {(row["strategy"], row["seed"]) for row in csv.DictReader(file)}
    assert rows == {("baseline", "1"), ("adversarial", "0")}


def test_a_report_of_runs_of_other_data_is_refused(reported, tmp_path):
    reported({"baseline": [0.02], "adversarial": [0.01]})
    path = tmp_path / "it/runs/baseline/seed-0/config.json"
    made = {"source": "a file", "fingerprint": [number + 1 for number in describe_data(CONFIG)["fingerprint"]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": made}))
    with pytest.raises(ConfigError, match=r"seed-0 was made from other data: there a file .*, now generated"):
        report.write_report(tmp_path / "it", CONFIG, study_of("baseline", "adversarial"))


@pytest.mark.parametrize(
    ("adversarial", "words"),
    [
        ([None, None, None], "unstable"),
        ([0.0, 0.01, 0.01], "a val_mse of exactly 0 has no ratio"),
        ([nan, 0.01, 0.01], "- 1 of 3 runs of adversarial diverged"),  # finished, but with no finite samples
        ([0.01], "the paired seeds, 1, are fewer than 3"),
    ],
)
def test_no_value_of_a_metric_stops_a_report(reported, adversarial, words):
    text, printed = reported({"baseline": BASE, "adversarial": adversarial, "baseline-compute": BASE})
    assert words in text.partition("## The four criteria")[0]
    assert "warning" not in printed.err  # every figure was drawn
    assert "nan" not in printed.out


REFERENCES = [
    {"strategy": name, "sampler": "reference", "val_mse": value, "recon_error": value}
    for name, value in (("zero matrix", 0.02), ("solver 1", 1e-9), ("exact inverse (float32)", 1.059e-14))
]


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_printed_fits_a_screen_and_says_what_it_leaves_out(count):
    vary = {"opt_steps": (1, 2, 5, 10), "scale_factor": (0.5, 1.0, 2.0)}
    names = ("baseline", "adversarial", "baseline-compute")
    declared = replace(study_of(*names), vary=vary if count > 1 else {})
    found = Results(study(dict.fromkeys(declared.variants(), BASE)).frame, declared, METRICS, 0.0115)
    lines = screen("it", CONFIG, found, REFERENCES, ["grave " * 40, "less grave", "small"]).splitlines()
    assert len(lines) <= 38 and max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert {"baseline", "val_mse", "recon_error"} <= set(text.split()) and "2 spoiled" in text
    assert "zero matrix" in text and "exact inverse" in text and "solver 1" not in text
    assert "- less grave" in text and "small" not in text
    if count > 1:
        assert (
            "… and 7 strategies more in the report" in text and "opt_steps=2,scale_factor=1.0  1.000× no diff" in text
        )
        assert "… and 17 pairs more in the report" in text
    else:
        assert "Verdict at equal FLOPs, adversarial against baseline-compute: no difference beyond 5%" in text


def test_the_screen_and_the_figures_name_strategies_by_the_settings_in_which_they_differ():
    """And by the steps that a run was trained, which a label of equal compute does not have."""
    treated, other = "adversarial,learning_rate=0.002,weight=0.05", "baseline-compute,learning_rate=0.001"
    budgets = [f"{label},train_steps={steps}" for label in (treated, other) for steps in (2000, 8000)]
    assert study(dict.fromkeys(budgets[::2], BASE)).shortened(f"{budgets[0]} against {budgets[2]}") == (
        "adversarial (lr 0.002, weight 0.05) against baseline-compute (lr 0.001)"
    )
    found = study(dict.fromkeys(budgets, BASE))
    found.frame.loc[found.frame["strategy"] == budgets[3], "train_steps"] = 20_068
    assert found.shortened(budgets[3]) == "baseline-compute (lr 0.001, 20,068 steps)"


def test_the_report_has_all_metrics():
    metrics = task_metrics(ShortestPath)
    whole = format_table(study({"baseline": [0.5, 0.6], "adversarial": [0.55, 0.7]}, metrics), [])
    assert all(metric.column in whole for metric in metrics)


@pytest.mark.filterwarnings("error")
def test_a_band_that_no_run_has_is_no_column():
    metrics = task_metrics(Sudoku)
    chosen = study({"baseline": [0.5, 0.6], "adversarial": [0.5, nan]}, metrics)
    chosen.frame["val_solved_0_to_24_givens"] = nan
    references = [{"strategy": "guess", "sampler": "reference", "val_solved_0_to_24_givens": nan}]
    table = format_table(chosen, references)
    assert "val_solved_0_to_24_givens" not in table and "0 of 2 finite" not in table
    assert "ood_solved_0_to_24_givens" in table and "1 of 2 finite" in table
    assert len(defined(chosen, references)) == len(metrics) - 1


@pytest.mark.filterwarnings("error")
def test_a_score_may_lie_outside_the_shares():
    metrics = tuple(metric for metric in task_metrics(ShortestPath) if metric.column.endswith("success_over_chance"))
    values = {"baseline": [-0.4, -1.3, -0.2], "adversarial": [0.1, -0.5, 0.3]}
    row = plain_row(study(values, metrics), "val_success_over_chance")
    assert row["mean"] == pytest.approx(np.mean(values["adversarial"]))
    assert row["low"] < -0.5 and row["high"] > 0.3
    assert row["difference"] == pytest.approx(60) and row["p"] < 0.05
    far = cells({"baseline": [-0.4, -9.3, -4.2], "adversarial": [0.1, -0.5, 0.3]}, metrics)
    assert far[4].startswith("+460.00 points [")

"""Error against training compute over studies: what is matched, what is tested, and what is refused."""

import csv
import json
import re

import pytest

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.flops import train_flops
from diffusion_lib.system.errors import ConfigError
from experiments.budget import main

BASE = ExperimentConfig(rank=20, batch_size=128)
MODES = {"baseline": "none", "baseline-compute": "none"}  # of a strategy; another one's is its name
BASELINE_ERRORS = (0.010, 0.012, 0.011)  # of seeds 0 to 2


def write_run(study, strategy, steps, seed, error, noise_scale=3.0, **settings):
    """A run that ended, as the comparison leaves it; its error under the inner loop is half that of plain."""
    mining = {**BASE.mining.to_dict(), "mode": MODES.get(strategy, strategy), "noise_scale": noise_scale}
    config = {**BASE.to_dict(), "train_steps": steps, "mining": mining, **settings}
    record(study, strategy, seed, error, config, train_flops=train_flops(ExperimentConfig.from_dict(config)))


def write_old_run(study, strategy, steps, seed, error):
    """The same of an earlier version: the mining's settings stood beside the others, and FLOPs were not recorded."""
    config = {**BASE.to_dict(), "train_steps": steps}
    mining = {**config.pop("mining"), "mode": MODES.get(strategy, strategy)}
    record(study, strategy, seed, error, {**config, "mining_config": mining})


def record(study, strategy, seed, error, config, **costs):
    folder = study / "runs" / strategy / f"seed-{seed}"
    folder.mkdir(parents=True)
    for path in (study, folder):
        (path / "config.json").write_text(json.dumps({"config": {**config, "strategy": strategy, "seed": seed}}))
    samplers = {"plain": {"val_mse": error}, "innerloop": {"val_mse": error / 2}}
    result = {"status": "finished", "strategy": strategy, "seed": seed, "samplers": samplers, **costs}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def studies(tmp_path):
    """A ladder: adversarial is better at 1,000 steps, and at 5,000 no better than the baseline with its compute."""
    for seed, error in enumerate(BASELINE_ERRORS):
        write_old_run(tmp_path / "one", "baseline", 1000, seed, 2 * error)
        write_old_run(tmp_path / "one", "adversarial", 1000, seed, error * (1 + 0.01 * seed))
        write_run(tmp_path / "two", "baseline", 5000, seed, error)
        write_run(tmp_path / "two", "adversarial", 5000, seed, error * (0.98 + 0.02 * seed))
        write_run(tmp_path / "three", "baseline-compute", 14_000, seed, error * (1 + 0.001 * seed))
        write_run(tmp_path / "three", "random", 5000, seed, error, noise_scale=1.2)
    return tmp_path


def run(results, *studies):
    main([*(str(results / study) for study in studies), "--results", str(results), "--name", "out"])
    tables = {}
    for name in ("runs", "ratios"):
        with open(results / "out" / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    return tables


def row(tables, **wanted):
    (found,) = (r for r in tables["ratios"] if all(r[key] == str(value) for key, value in wanted.items()))
    return found


def test_budgets_are_matched_by_steps_and_by_flops(studies):
    tables = run(studies, "one", "two", "three")
    early = row(tables, strategy="adversarial", matched="steps", sampler="plain", train_steps=1000)
    assert float(early["ratio"]) == pytest.approx(0.5 * (1.01 * 1.02) ** (1 / 3))
    equal = row(tables, strategy="adversarial", matched="FLOPs", sampler="innerloop", train_steps=5000)
    assert (equal["baseline_steps"], equal["n"], equal["ahead"]) == ("14000", "3", "2")
    assert float(equal["ratio"]) == pytest.approx((0.98 * 1.00 * 1.02 / (1.001 * 1.002)) ** (1 / 3))
    assert float(equal["train_flops"]) == pytest.approx(float(equal["baseline_flops"]), rel=0.02)
    assert (early["ahead"], early["p_signflip"]) == ("3", "0.25")  # the least that three pairs can give
    at_1000 = [r for r in tables["ratios"] if r["train_steps"] == "1000" and r["matched"] == "FLOPs"]
    assert not at_1000  # no baseline of 2,800 steps
    assert {r["strategy"] for r in tables["runs"]} == {"baseline", "adversarial", "random, noise_scale 1.2"}
    assert all((studies / "out" / r["run"] / "result.json").exists() for r in tables["runs"])


def test_runs_of_an_earlier_version_cost_what_they_cost_today(studies):
    flops = {
        (r["strategy"], int(r["train_steps"])): float(r["train_flops"]) for r in run(studies, "one", "two")["runs"]
    }
    for strategy in ("baseline", "adversarial"):
        assert flops[strategy, 5000] == pytest.approx(5 * flops[strategy, 1000])


def test_the_primary_tests_are_adjusted_over_their_whole_family(studies):
    """Two of the four are there: those that are not count."""
    tables = run(studies, "one", "two", "three")
    primary = [r for r in tables["ratios"] if r["p_holm"]]
    assert {(r["strategy"], r["matched"], r["train_steps"]) for r in primary} == {("adversarial", "FLOPs", "5000")}
    assert len(primary) == 2
    least = min(float(r["p"]) for r in primary)
    assert min(float(r["p_holm"]) for r in primary) == pytest.approx(min(1, 4 * least))


def test_the_verdict_is_adversarials_at_equal_flops_alone(studies):
    """By the rule of verdict.py; a run that diverged makes it unstable."""
    tables = run(studies, "one", "two", "three")
    ruled = {(r["strategy"], r["matched"], r["train_steps"]): r["verdict"] for r in tables["ratios"] if r["verdict"]}
    assert ruled == {("adversarial", "FLOPs", "5000"): "no difference beyond 5%"}
    assert "| no difference beyond 5% |" in (studies / "out" / "budget.md").read_text()
    write_run(studies / "two", "adversarial", 5000, 3, 0.01)
    path = studies / "two/runs/adversarial/seed-3/result.json"
    path.write_text(json.dumps({"status": "failed", "reason": "diverged", "strategy": "adversarial", "seed": 3}))
    tables = run(studies, "two", "three")
    assert {r["verdict"] for r in tables["ratios"] if r["matched"] == "FLOPs" and r["strategy"] == "adversarial"} == {
        "unstable"
    }


def test_it_says_where_the_advantage_ends(studies, capsys):
    run(studies, "one", "two", "three")
    lines = capsys.readouterr().out
    assert re.search(
        r"At equal steps, plain .* ahead up to 1,000 steps, 0.505× .*, and no longer at 5,000, 1.000×", lines
    )
    assert "At equal FLOPs, innerloop sampler: adversarial is ahead at no budget (steps: 5,000)" in lines
    assert (studies / "out" / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_ahead_up_to_a_budget_only_where_it_is_ahead_at_all_below_it(studies, capsys):
    for seed, error in enumerate(BASELINE_ERRORS):
        write_run(studies / "least", "baseline", 500, seed, error)
        write_run(studies / "least", "adversarial", 500, seed, 1.5 * error * (1 + 0.01 * seed))
    run(studies, "least", "one", "two")
    lines = capsys.readouterr().out
    assert re.search(r"plain sampler: .* is ahead at 1,000, 0.505× .*, but not at 500, 1.515× .*; 5,000, 1.000×", lines)


def test_a_damaged_run_is_named_and_left_out(studies, capsys):
    path = studies / "two/runs/adversarial/seed-2/result.json"
    path.write_text(path.read_text().replace("0.0", "-0.0"))
    assert main([str(studies / "two"), "--results", str(studies), "--name", "out"]) == 2
    assert f"left out: {path} is damaged (val_mse of plain is -" in capsys.readouterr().err
    with open(studies / "out" / "runs.csv", newline="") as file:
        assert not [r for r in csv.DictReader(file) if (r["strategy"], r["seed"]) == ("adversarial", "2")]


def test_runs_of_other_data_are_not_compared(studies):
    for study, numbers in (("one", [1.0, 2.0]), ("two", [1.0, 2.5])):
        for path in (studies / study).glob("runs/*/*/config.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps(record | {"data": {"source": f"{study}'s file", "fingerprint": numbers}}))
    with pytest.raises(ConfigError, match=r"made from other data: there two's file .* now one's file"):
        run(studies, "one", "two")
    assert not (studies / "out").exists()


def test_a_task_is_judged_by_its_own_first_metric(tmp_path, capsys):
    """A rate: more is better, compared in points. A weight that all runs share is not part of a strategy's name."""
    task = {"dataset": "parity-20", "model": "mlp"}
    for seed, rate in enumerate((0.60, 0.70, 0.65)):
        for strategy, steps, points, flops in (
            ("baseline", 1000, 0, 1e9),
            ("adversarial", 1000, 8 + seed, 3e9),
            ("baseline-compute", 3000, 20, 3e9),
        ):
            write_run(tmp_path / "study", strategy, steps, seed, rate, **task)
            folder = tmp_path / "study/runs" / strategy / f"seed-{seed}"
            config = json.loads((folder / "config.json").read_text())
            config["config"]["mining"]["weight"] = 0.05
            (folder / "config.json").write_text(json.dumps(config))
            result = json.loads((folder / "result.json").read_text())
            measured = {"val_balanced_accuracy": rate + points / 100}
            result |= {"samplers": {"plain": measured, "innerloop": measured}, "train_flops": flops}
            (folder / "result.json").write_text(json.dumps(result))
    tables = run(tmp_path, "study")
    found = row(tables, strategy="adversarial", matched="steps", sampler="plain")
    assert (float(found["difference"]), found["ahead"]) == (pytest.approx(9), "3")
    behind = row(tables, strategy="adversarial", matched="FLOPs", sampler="plain")
    assert (float(behind["difference"]), behind["ahead"], behind["verdict"]) == (pytest.approx(-11), "0", "hurts")
    printed = capsys.readouterr().out
    assert "paired by seed; all mining with weight 0.05\n" in printed
    assert "adversarial is ahead up to 1,000 steps, +9.00 points" in printed
    with pytest.raises(ConfigError, match="metric is 'val_mse'; allowed: val_balanced_accuracy"):
        main([str(tmp_path / "study"), "--metric", "val_mse", "--results", str(tmp_path)])


def test_a_run_counts_once_and_a_diverged_one_is_listed(studies, capsys):
    write_run(studies / "four", "baseline", 5000, 0, 0.5)
    write_run(studies / "four", "baseline", 5000, 3, 0.5)
    path = studies / "four/runs/baseline/seed-3/result.json"
    path.write_text(json.dumps({"status": "failed", "reason": "diverged", "strategy": "baseline", "seed": 3}))
    tables = run(studies, "two", "four")
    assert "four/runs/baseline/seed-0 repeats" in capsys.readouterr().err
    chosen = [r for r in tables["runs"] if r["strategy"] == "baseline" and r["sampler"] == "plain"]
    first, *_, last = ((r["seed"], r["val_mse"], r["status"]) for r in chosen)
    assert first == ("0", "0.01", "finished")
    assert last == ("3", "nan", "failed")


def test_studies_of_other_settings_are_refused_before_anything_is_written(studies):
    write_run(studies / "four", "baseline", 5000, 0, 0.5, batch_size=64)
    for arguments, message in (
        (("two", "four"), "differ in batch_size 128 and 64; allowed: train_steps and mining"),
        (("two", "absent"), "there is no study"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(studies, *arguments)
    with pytest.raises(ConfigError, match="two is a study; choose another --name"):
        main([str(studies / "one"), "--results", str(studies), "--name", "two"])
    assert not (studies / "out").exists()

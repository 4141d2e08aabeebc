"""The main command, end to end, as a user runs it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import assert_same_weights
from scipy.stats import gmean

from diffusion_lib.config import parse_seeds
from diffusion_lib.precision import choose_products
from diffusion_lib.system.errors import ConfigError, exit_status
from experiments.analysis.runs import read_curve, read_runs
from experiments.analysis.tables import load_results
from experiments.analysis.verdict import RULE
from experiments.matrix_inversion_mining_comparison import main
from experiments.study.study import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "matrix_inversion_mining_comparison.py"
SMALL = ["--rank=3", "--batch-size=16", "--evaluation-size=64", "--diffusion-steps=3", "--device=cpu"]


def command(results, *arguments):
    return [sys.executable, str(SCRIPT), "--results", str(results), *SMALL, *map(str, arguments)]


def run(results, *arguments):
    return subprocess.run(command(results, *arguments), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study, run once: the folder of its results and what the command printed."""
    results = tmp_path_factory.mktemp("results")
    done = run(results, "--train-steps", 40, "--seeds", "0-2", "--name", "small")
    assert done.returncode == 0, done.stderr
    return results, done


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_is_listed(finished):
    results, _ = finished
    choose_products("auto", torch.device("cpu"))
    chosen = torch.get_float32_matmul_precision()
    _, runs = load_results(results / "small")
    assert len(runs) == len(STRATEGIES) * 3 * (2 * 4 + 2)
    assert len(runs.groupby(["strategy", "seed", "sampler"])) == len(STRATEGIES) * 3 * 2
    values = runs.pivot(index=["strategy", "seed", "sampler"], columns="metric", values="value")
    assert (values["val_mse"] > 0).all() and values["energy_auc_random"].dropna().between(0, 1).all()
    for row in runs.drop_duplicates("run").to_dict("records"):
        record = json.loads((results / "small" / row["run"] / "config.json").read_text())
        assert record["config"]["strategy"] == row["strategy"]
        assert record["config"]["mining"]["mode"] == STRATEGIES[row["strategy"]].settings["mode"]
        assert record["environment"]["torch"].startswith(torch.__version__.split("+")[0])
        assert record["environment"]["float32_products"] == chosen
        assert "matrix_inversion_mining_comparison.py" in record["environment"]["command"] == row["command"]
        assert row["commit"] == record["environment"]["commit"]


def test_summary_follows_from_the_runs(finished):
    results, done = finished
    summary, runs = load_results(results / "small")
    errors = runs.query("metric == 'val_mse' and sampler == 'plain'").groupby("strategy")["value"].agg(gmean)
    rows = summary.query("metric == 'val_mse' and sampler == 'plain'").set_index("strategy")
    assert list(rows.index) == list(STRATEGIES)
    for name, row in rows.iterrows():
        assert row["mean"] == pytest.approx(errors[name]) and row["low"] < row["mean"] < row["high"]
        if name != "baseline":
            assert row["ratio"] == pytest.approx(errors[name] / errors[row["other"]])
    assert rows.loc["adversarial", ["other", "account"]].tolist() == ["baseline-compute", "FLOPs"]
    names = list(dict.fromkeys(summary[summary["sampler"] == "reference"]["strategy"]))
    assert names == [
        "zero matrix",
        "mean predictor",
        "linear regression",
        "Newton-Schulz 8",
        "Newton-Schulz 10",
        "Newton-Schulz 12",
        "exact inverse (float32)",
    ]
    assert all(name in done.stdout for name in [*STRATEGIES, *names[:3]])


def test_strategies_start_from_the_same_weights_and_the_curves_are_drawn(finished):
    results, _ = finished
    assert (results / "small" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    same_steps = [name for name in STRATEGIES if name != "baseline-compute"]  # its rows average over more of them
    first = [read_csv(results / f"small/runs/{name}/seed-0/metrics.csv")[0]["loss_denoise"] for name in same_steps]
    assert len({round(float(value), 2) for value in first}) == 1


def test_the_report_reads_on_its_own(finished):
    results, done = finished
    report = (results / "small/report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", report)
    assert len(links) >= 7
    assert all((results / "small" / link).exists() for link in links)
    verdict = next(line for line in done.stdout.splitlines() if line.startswith("Verdict at equal FLOPs"))
    assert report.index(verdict) < report.index("What speaks against it") < report.index("## Table")
    assert RULE in report
    assert "--train-steps 40" in report
    assert "does not beat" in report


def test_the_printed_table_says_what_was_trained(finished):
    _, done = finished
    about, table = done.stdout.split("\n\n")[:2]
    assert " ".join(about.split()) == (
        "small: energy mlp, task inverse of rank 3, 3 seeds, batches of 16, judged by 64 fixed problems of each "
        "difficulty"
    )
    assert {"strategy", "val_mse", "innerloop", "recon_error"} <= set(table.split())
    assert [line.split()[1] for line in table.splitlines() if line.startswith("baseline")] == ["40", "99"]


@pytest.mark.usefixtures("cheap_report")
def test_the_same_command_again_trains_nothing(finished):
    results, _ = finished
    checkpoints = sorted(results.glob("small/runs/*/*/last.pt"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert main(command(results, "--train-steps", 40, "--seeds", "0-2", "--name", "small")[2:]) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before


def test_another_configuration_is_refused_with_the_keys_named(finished):
    results, _ = finished
    before = (results / "small.runs.csv").read_bytes()
    refused = run(results, "--train-steps", 41, "--seeds", "0-2", "--name", "small", "--scale-factor", 2)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "scale_factor (there 1.0, now 2.0); train_steps (there 40, now 41)" in refused.stderr
    assert (results / "small.runs.csv").read_bytes() == before


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["train", "check"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strategies", "corrupt"), "this task has no hand-made corruption"),
        (
            ("--strategies", "baseline", "random", "--model", "mlp-reverse"),
            "MLPReverse predicts noise and has no energy",
        ),
        (("--model", "gnn"), "out_dim is 400; allowed for GraphEBM: 1"),
        (("--model", "matrix", "--precision", "bf16"), "precision is 'bf16', which MatrixEBM has not"),
        (("--model", "matrix", "--precision", "bf16", "--rank", "3"), "precision is 'bf16', which MatrixEBM has not"),
        (
            ("--strategies", "baseline", "--model=mlp-reverse", "--precision=bf16", "--vary", "compile=off,on"),
            "compile is 'on', which MLPReverse has not",
        ),
    ],
    ids=["corrupt", "no energy", "model", "precision", "precision at a size", "varied"],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(words, message, check, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main([*words, *check, f"--results={tmp_path}", "--device=cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("cheap_report")
def test_a_published_study_that_is_run_again_says_by_what(tmp_path, capsys):
    """Its runs were not published, so they are made anew, by this version on this machine."""
    arguments = [str(x) for x in command(tmp_path, "--train-steps", 4, "--strategies", "baseline", "--name", "it")[2:]]
    recorded = tmp_path / "it" / "config.json"
    assert main(arguments) == 0
    published = json.loads(recorded.read_text())
    published["environment"]["commit"] = "000000000000"
    recorded.write_text(json.dumps(published))
    run = tmp_path / "it/runs/baseline/seed-0/config.json"
    run.write_text(run.read_text().replace(json.loads(run.read_text())["environment"]["commit"], "c0ffee+12345678"))
    assert main(arguments) == 0
    said = "kept: 1 of these runs are of commit c0ffee+12345678, not this one; --fresh trains them anew"
    assert said in capsys.readouterr().err
    assert main([*arguments, "--seeds", "0-1"]) == 0
    said = "runs of several commits, between which the code may differ: .*c0ffee.12345678 1"
    assert re.search(said, (tmp_path / "it" / "report.md").read_text())
    shutil.rmtree(tmp_path / "it" / "runs" / "baseline" / "seed-1")
    assert json.loads(recorded.read_text()) == published
    shutil.rmtree(tmp_path / "it" / "runs")
    with pytest.raises(ConfigError, match="made by another configuration: rank"):
        main([*arguments, "--rank", "4"])
    assert json.loads(recorded.read_text()) == published
    assert main(arguments) == 0
    assert "commit 000000000000" not in (tmp_path / "it" / "report.md").read_text()
    made = json.loads((tmp_path / "it/runs/baseline/seed-0/config.json").read_text())["environment"]
    assert set(load_results(tmp_path / "it")[1]["commit"]) == {made["commit"]}


def test_a_cut_learning_curve_is_left_out_and_named(finished, tmp_path, capsys):
    shutil.copytree(finished[0] / "small", tmp_path / "small")
    path = tmp_path / "small/runs/baseline/seed-0/metrics.csv"
    runs, _ = read_runs(tmp_path / "small")
    whole = read_curve(tmp_path / "small", runs, "baseline", "loss")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    curve = read_curve(tmp_path / "small", runs, "baseline", "loss")
    assert [*curve] == [name for name in whole if name != "seed-0"] and len(curve) == len(whole)
    assert f"left out of the learning curves: {path} does not reach step" in capsys.readouterr().err


@pytest.mark.usefixtures("cheap_report")
def test_report_only_needs_no_flags(finished):
    results, _ = finished
    before = (results / "small.runs.csv").read_bytes()
    (results / "small.runs.csv").unlink()
    assert main(["--report-only", "--name", "small", "--results", str(results)]) == 0
    assert (results / "small.runs.csv").read_bytes() == before


def test_kill_9_and_again_equals_an_uninterrupted_run(tmp_path):
    arguments = ["--train-steps", 400, "--strategies", "adversarial", "--run", 0, "--name", "killed"]
    run_folder = tmp_path / "killed" / "runs" / "adversarial" / "seed-0"
    process = subprocess.Popen(command(tmp_path, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run_folder / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = torch.load(run_folder / "last.pt", weights_only=True)["step"]
    assert 0 < step < 400
    assert not (run_folder / "result.json").exists()
    assert main(command(tmp_path, *arguments)[2:]) == 0
    assert main(command(tmp_path, *arguments[:-1], "whole")[2:]) == 0
    paths = (tmp_path / name / "runs/adversarial/seed-0/last.pt" for name in ("killed", "whole"))
    killed, whole = (torch.load(path, weights_only=True) for path in paths)
    assert killed["step"] == whole["step"] == 400
    assert_same_weights(killed["model"], whole["model"])
    assert_same_weights(killed["ema"], whole["ema"])


@pytest.mark.usefixtures("cheap_report")
def test_runs_at_once_are_the_same_runs(finished, tmp_path):
    results, _ = finished
    names = ("baseline", "adversarial")
    arguments = ["--train-steps", 40, "--strategies", *names, "--seeds", "0-1", "--name", "small", "--at-once", 2]
    assert main(command(tmp_path, *arguments)[2:]) == 0
    for strategy in names:
        for seed in range(2):
            one, other = (
                torch.load(folder / f"small/runs/{strategy}/seed-{seed}/last.pt", weights_only=True)
                for folder in (results, tmp_path)
            )
            assert_same_weights(one["ema"], other["ema"])
            records = [
                json.loads((folder / f"small/runs/{strategy}/seed-{seed}/config.json").read_text())
                for folder in (results, tmp_path)
            ]
            assert len({record["environment"]["float32_products"] for record in records}) == 1
    tables = (load_results(folder / "small")[1] for folder in (results, tmp_path))
    keys = ["strategy", "seed", "sampler", "metric"]
    one, other = (table.set_index(keys)["value"] for table in tables)
    assert one.loc[other.index].equals(other)


def last_steps(study):
    return [torch.load(path, weights_only=True)["step"] for path in study.glob("runs/*/*/last.pt")]


@pytest.fixture
def two_at_once(tmp_path):
    """A command that trains two long runs at the same time, when both have saved something, and their study."""
    arguments = ["--train-steps", 2000, "--strategies", "adversarial", "--seeds", "0-1", "--name", "two"]
    process = subprocess.Popen(
        command(tmp_path, *arguments, "--at-once", 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(last_steps(tmp_path / "two")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process, tmp_path / "two"
    process.kill()
    process.communicate()


def workers(pid):
    """The processes that a command has started to train its runs."""
    started = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [int(child) for child in started if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def all_gone(processes) -> bool:
    deadline = time.monotonic() + 60
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, processes))


def lives(pid) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_signal_to_runs_at_once_saves_all_of_them(two_at_once):
    process, study = two_at_once
    started, before = workers(process.pid), last_steps(study)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert len(started) == 2
    assert all_gone(started)
    assert sum(last_steps(study)) > sum(before)
    assert all(0 < step < 2000 for step in last_steps(study))


def test_the_death_of_one_of_several_is_one_line_and_saves_the_others(two_at_once):
    process, study = two_at_once
    first, second = workers(process.pid)
    before = sum(last_steps(study))
    os.kill(first, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search("error: a process ended before its work, with status -9", errors)
    assert all_gone([second])
    assert sum(last_steps(study)) > before


def test_no_run_goes_on_without_the_command(two_at_once):
    process, _ = two_at_once
    started = workers(process.pid)
    process.kill()
    assert len(started) == 2
    assert all_gone(started)


BAD = [
    (["--strategies", "hard"], "unknown strategy 'hard'; allowed: baseline, random, adversarial"),
    (["--rank", "0"], "rank is 0; allowed: a whole number from 1"),
    (["--opt-steps", "0"], "opt_steps is 0; allowed: a whole number from 1"),
    (["--scale-factor", "-1"], "scale_factor is -1.0; allowed: a positive number"),
    (["--scale-factor", "0"], "scale_factor is 0.0; allowed: a positive number"),
    (["--train-steps", "0"], "train_steps is 0; allowed: a whole number from 1"),
    (["--seeds", "3-1"], "the range 3-1 is empty"),
    (["--seeds", "a"], "seeds are 'a'; allowed: whole numbers such as 0 2 5, or ranges such as 0-9"),
    (["--model", "cnn"], "model is 'cnn'; allowed: mlp"),
    (["--name", "../elsewhere"], "name is '../elsewhere'; allowed: letters"),
    (["--device", "tpu"], "device is 'tpu'; allowed: cpu, cuda"),
    (["--at-once", "0"], "at_once is 0; allowed: a whole number from 1"),
    (["--results", "/proc/nowhere"], "/proc/nowhere"),
    (["--report-only", "--name", "absent"], "absent"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_bad_input_is_one_clear_line_and_status_2(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop, exit_status():
        main([*command(tmp_path, *arguments)[2:]])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1, shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_asked_for_and_absent(tmp_path):
    done = run(tmp_path, "--device", "cuda", "--train-steps", 2)
    assert done.returncode == 2
    assert "no usable CUDA device" in done.stderr


def test_a_corrupt_checkpoint_is_named_and_kept(tmp_path):
    arguments = ["--train-steps", 20, "--strategies", "baseline", "--name", "study", "--run", 0]
    assert main([str(x) for x in command(tmp_path, *arguments)[2:]]) == 0
    folder = tmp_path / "study/runs/baseline/seed-0"
    (folder / "result.json").unlink()
    (folder / "last.pt").write_bytes(b"damaged")
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert f"{folder / 'last.pt'} cannot be read as a checkpoint" in done.stderr
    assert (folder / "last.pt").read_bytes() == b"damaged"


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("5", [5]), ("7,0-1,1", [0, 1, 7])])
def test_seed_lists(text, seeds):
    assert parse_seeds(text) == seeds

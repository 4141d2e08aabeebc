"""What a study leaves: tables whose every column is documented, figures, and a clean checkout."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import gmean

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.names import DIFFICULTIES
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.run_folder import ended_result, write_result
from diffusion_lib.system import environment
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks import TASKS, Inverse, matrix_references
from experiments.analysis import figures, setting_figure
from experiments.analysis.metrics import task_metrics
from experiments.analysis.runs import AUC, long_form, read_runs, wide_form
from experiments.analysis.tables import load_results
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import driver
from experiments.study.flags import parse_command
from experiments.study.run import run_experiment
from experiments.study.workers import Outcome
from results import freeze

ROOT = Path(__file__).resolve().parent.parent
KEYS = ["strategy", "seed", "sampler"]  # of a run under one sampler
METRICS = tuple(metric.column for metric in task_metrics(Inverse))
ALL_METRICS = {name for task in TASKS.values() for name in task.metrics}
SMALL = [
    "--rank=3",
    "--train-steps=6",
    "--batch-size=8",
    "--evaluation-size=32",
    "--diffusion-steps=3",
    "--device=cpu",
    "--at-once=1",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a small ablation, with a strategy beside the baseline."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_references, "FIT_SAMPLES", 500)  # the fit takes the longest
        assert (
            main(
                [
                    "--vary",
                    "opt_steps=1",
                    "--strategies",
                    "baseline",
                    "adversarial",
                    *SMALL,
                    "--seeds=0-1",
                    "--name=a",
                    f"--results={folder}",
                ]
            )
            == 0
        )
        yield folder


PARITY = ["--task=parity", "--rank=4", "--name=p"]


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    """The folder of a small study of a task that is judged by rates."""
    folder = tmp_path_factory.mktemp("parity")
    small = [
        "--train-steps=3",
        "--batch-size=4",
        "--evaluation-size=32",
        "--diffusion-steps=3",
        "--device=cpu",
        "--at-once=1",
    ]
    assert main([*PARITY, *small, "--strategies", "baseline", "adversarial", f"--results={folder}"]) == 0
    return folder


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def undocumented(paths) -> set[str]:
    """The columns that results/README.md does not name, nor the metric and difficulty in it."""
    named = set(re.findall(r"`(\w+)`", (ROOT / "results" / "README.md").read_text()))
    named |= {f"{difficulty}_{name}" for difficulty in DIFFICULTIES for name in named & ALL_METRICS}
    named |= {f"{name}_innerloop" for name in named}
    columns = set()
    for path in paths:
        with open(path, newline="") as file:
            columns.update(next(csv.reader(file)))
    return columns - named


def test_every_column_of_a_study_is_documented(results):
    paths = list(results.glob("**/*.csv"))
    names = {path.name.removeprefix("a.") for path in paths}
    assert names == {
        *("csv", "runs.csv", "metrics.csv"),
    }
    assert not undocumented(paths)


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_of_a_task_is_documented(name):
    text = (ROOT / "results" / "README.md").read_text()
    assert not [metric for metric in TASKS[name].metrics if f"`{metric}`" not in text and f"`val_{metric}`" not in text]


def test_a_study_of_rates_has_its_report(parity):
    study = parity / "p"
    paths = list(parity.glob("**/*.csv"))
    assert not undocumented(paths)
    drawn = {"learning_curves", "intervals", "causes", "example"}
    assert {path.stem for path in study.glob("*.png")} == drawn
    text = (study / "report.md").read_text()
    assert "linear regression" not in text and "condition" not in text and "was not drawn" not in text
    assert set(re.findall(r"\]\((\w+)\.png\)", text)) == drawn


def test_the_solved_problem_needs_no_weights_but_its_diagnosis(parity):
    study, again = parity / "p", [*PARITY, "--report-only", f"--results={parity}"]
    before = (study / "example.png").read_bytes()
    diagnoses = {path: path.read_text() for path in study.glob("runs/*/*/diagnostics.json")}
    for path in diagnoses:
        path.with_name("last.pt").rename(path.with_name("away.pt"))
    (study / "example.png").unlink()
    main(again)
    assert (study / "example.png").read_bytes() == before
    for path, text in diagnoses.items():  # as an earlier version left them
        path.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "example"}))
    (study / "example.png").unlink()
    main(again)
    assert not (study / "example.png").exists() and "example" not in (study / "report.md").read_text()
    for path, text in diagnoses.items():
        path.write_text(text)
    main(again)
    assert (study / "example.png").exists()


def test_every_published_column_is_documented():
    paths = list((ROOT / "results" / "published").glob("**/*.csv"))
    assert {"benchmark.csv", "benchmark-at-once.csv", "ridge.csv", "timing.csv"} <= {path.name for path in paths}
    assert not undocumented(paths)


def test_the_runs_hold_every_value_once_and_the_summary_is_theirs(results):
    summary, runs = load_results(results / "a")
    keys = ["strategy", "opt_steps", "seed", "sampler", "metric"]
    assert runs[keys].notna().all(axis=None) and not runs.duplicated(keys).any()
    assert len(runs) == 2 * 2 * (2 * len(METRICS) + len(AUC))
    assert sum(len(part) for _, part in runs.groupby(["strategy", "sampler", "metric"])) == len(runs)
    for run, part in runs.groupby("run"):
        result = json.loads((results / "a" / run / "result.json").read_text())
        for row in part[part["metric"].isin(METRICS)].to_dict("records"):
            assert row["value"] == result["samplers"][row["sampler"]][row["metric"]]
        assert set(part["train_flops"]) == {result["train_flops"]} and set(part["commit"]) - {""}
    assert set(runs["opt_steps"]) == {1, 2}  # the baseline's is the default
    keys = ["strategy", "opt_steps", "sampler", "metric"]
    assert summary[keys].notna().all(axis=None) and not summary.duplicated(keys).any() and summary.shape[1] <= 20
    chosen = summary.query("strategy == 'adversarial' and sampler == 'plain' and metric == 'val_mse'").iloc[0]
    values = runs.query("strategy == 'adversarial' and sampler == 'plain' and metric == 'val_mse'")["value"]
    assert chosen["mean"] == pytest.approx(gmean(values)) and (chosen["other"], chosen["account"]) == (
        "baseline",
        "steps",
    )
    assert "zero matrix" in set(summary["strategy"])


def test_the_runs_table_can_be_turned_back(results):
    study = parse_command("", ["--vary", "opt_steps=1", *SMALL, "--name=a"]).study
    frame, _ = read_runs(results / "a")
    back = wide_form(long_form(frame, study)).sort_values([*KEYS]).reset_index(drop=True)
    frame = frame.sort_values([*KEYS]).reset_index(drop=True)
    assert back[[*KEYS, *METRICS]].equals(frame[[*KEYS, *METRICS]])
    with pytest.raises(ConfigError, match=r"there is no .*b\.runs\.csv"):
        load_results(results / "b")


@pytest.mark.usefixtures("cheap_report")
def test_several_problems_stand_in_one_table(tmp_path, monkeypatch):
    words = [*SMALL[1:], "--vary", "rank=2,3", "--strategies", "baseline", "--name=r", f"--results={tmp_path}"]
    assert main(words) == 0
    summary, runs = load_results(tmp_path / "r")
    assert set(runs["rank"]) == set(summary["rank"]) == {2, 3}
    text = (tmp_path / "r" / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == ["problems.png", "rank=2/report.md", "rank=3/report.md"]
    assert all((tmp_path / "r" / link).exists() for link in links)
    joint = [tmp_path / "r.csv", tmp_path / "r.runs.csv"]
    assert all(path.exists() for path in joint)
    seen = []
    monkeypatch.setattr(driver, "run_all", lambda *_: seen.append([path.exists() for path in joint]) or Outcome({}, {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "delete_study", lambda *_: None)
        assert main([*words, "--fresh"]) == 0
    assert seen == [[False, False]] * 2  # the old runs' tables do not stand beside new runs
    for rank in (2, 3):
        _, own = load_results(tmp_path / "r" / f"rank={rank}")
        assert runs[runs["rank"] == rank]["value"].tolist() == own["value"].tolist()


def test_every_figure_has_a_pdf_beside_it(results):
    study = results / "a"
    drawn = {path.stem for path in study.glob("*.png")}
    assert drawn == {"settings", "causes", "example"}
    assert {path.stem for path in study.glob("*.pdf")} == drawn


def test_a_figure_that_fails_leaves_the_report(results, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no ink")

    again = ["--report-only", "--name", "a", "--results", str(results), "--seeds", "0"]
    study = results / "a"
    with monkeypatch.context() as patch:
        patch.setattr(setting_figure, "draw_line", broken)
        main(again)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [f"warning: {study / 'settings.png'} is not drawn (RuntimeError: no ink)"]
    text = (study / "report.md").read_text()
    assert "(settings.png)" not in text
    assert all((study / link).exists() for link in re.findall(r"\]\(([^)]+)\)", text))
    main(again)
    assert "(settings.png)" in (study / "report.md").read_text()


def test_a_report_can_be_made_where_no_figure_can(results, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr(figures, "Figure", broken)
    main(["--report-only", "--name", "a", "--results", str(results), "--seeds", "0"])
    assert (results / "a" / "report.md").read_text().count("was not drawn") == 3


def test_no_flipped_bit_is_read_as_another_result(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {}}')
    result = {"status": "failed", "reason": "it grew", "strategy": "baseline", "seed": 0}
    write_result(tmp_path, result)
    path, read = tmp_path / "result.json", 0
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert ended_result(tmp_path) == result
            read += 1
        except ConfigError:
            pass
    assert read < 8
    path.write_text(json.dumps(result))  # as earlier versions did
    assert ended_result(tmp_path) == result


def flip(folder):
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"val_mse": ', '"val_mse": 1', 1))


def copy_from_another_strategy(folder):
    shutil.copy(folder.parent.parent / "baseline" / folder.name / "result.json", folder)


def copy_from_another_seed(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("seed-0"), folder)


def copy_from_another_study(folder):
    record = json.loads((folder / "config.json").read_text())
    record["config"]["learning_rate"] = 0.5
    (folder / "config.json").write_text(json.dumps(record))
    write_result(folder, ended_result(folder.with_name("seed-0")) | {"seed": 1})


def misshape(folder):
    (folder / "config.json").write_text('{"config": {"mining": [1]}}')
    result = ended_result(folder.with_name("seed-0")) | {"seed": 1}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "its digest differs"),
        (copy_from_another_strategy, "its digest differs"),
        (copy_from_another_seed, "is of adversarial,opt_steps=1 seed 0"),
        (copy_from_another_study, r"another configuration: learning_rate \(there 0.0001, now 0.5\)"),
        (misshape, "another shape"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"has no config.json beside it. Delete .*seed-1, and the same",
        ),
    ],
)
@pytest.mark.usefixtures("cheap_report")
def test_what_is_no_result_of_its_run_is_left_out_and_said(results, tmp_path, capsys, damage, message):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    study = tmp_path / "a"
    damage(study / "runs" / "adversarial,opt_steps=1" / "seed-1")
    arguments = ["--report-only", "--name", study.name, f"--results={tmp_path}", "--seeds=0"]
    assert main(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(said) == 1 and re.search(message, said[0])
    assert f"- {said[0]}\n" in (study / "report.md").read_text()
    rows = read_csv(tmp_path / f"{study.name}.runs.csv")
    assert {(row["strategy"], row["seed"]) for row in rows} == {
        ("baseline", "0"),
        ("baseline", "1"),
        ("adversarial", "0"),
    }


def test_a_frozen_study_says_what_its_folder_does(results, tmp_path, monkeypatch):
    monkeypatch.setattr(freeze, "PUBLISHED", tmp_path)
    runs, _ = read_runs(results / "a")
    elsewhere = runs.assign(command="python /x/experiments/a.py --results /x/results --run 1")
    monkeypatch.setattr(freeze, "read_runs", lambda _folder: (elsewhere, {}))
    freeze.main(["--name", "a", "--results", str(results), "--to", "frozen", "--curves"])
    table = pd.read_csv(tmp_path / "frozen" / "runs.csv")
    assert set(table["command"]) == {"python experiments/a.py --results results --run 1"}
    frozen = wide_form(table)
    for metric in METRICS:
        assert frozen.set_index(KEYS)[metric].to_dict() == runs.set_index(KEYS)[metric].to_dict()
    again = parse_command("", ["--study", str(tmp_path / "frozen" / "study.toml"), "--name", "a"]).study
    labels = {"baseline", "adversarial,opt_steps=1"}
    assert labels <= set(again.labels())
    for name, rows in (("curves", "step"), ("levels", "auc_regression")):
        table = pd.read_csv(tmp_path / "frozen" / f"{name}.csv")
        assert set(table["strategy"]) == labels and table[rows].notna().all()
    with pytest.raises(ConfigError, match="allowed: a"):
        freeze.main(["--name", "a", "--results", str(results), "--problem", "b", "--to", "other"])
    with pytest.raises(ConfigError, match=r"there is no .*nothing\.png"):
        freeze.main(["--name", "a", "--results", str(results), "--to", "other", "--figures", "nothing"])
    with pytest.raises(ConfigError, match="name is ''"):
        freeze.main(["--name", "a", "--results", str(results), "--to", ""])
    assert [path.name for path in tmp_path.iterdir()] == ["frozen"]


def test_a_frozen_report_keeps_what_stood_above_the_question(tmp_path):
    sections = "## Costs\n\n![costs](cost.png)\n\n## Causes\n\n![causes](causes.png)\n"
    command = "python /x/experiments/a.py --results /x/results --run 1"
    made = f"# a\n\nWhy?\n\nIn [a.csv](../a.csv) by `{command}`.\n\n{sections}"
    linked = "In [a.csv](runs.csv) by `python experiments/a.py --results results --run 1`."
    assert freeze.frozen_report(made, tmp_path, "Why?", []) == f"# {tmp_path.name}\n\nWhy?\n\n{linked}\n\n"
    (tmp_path / "report.md").write_text("# frozen\n\nBy hand.\n\nWhy?\n\nearlier\n")
    kept = freeze.frozen_report(made, tmp_path, "Why?", ["causes"])
    assert kept.startswith("# frozen\n\nBy hand.\n\nWhy?\n\nIn") and kept.endswith("causes.png)\n")
    assert "cost" not in kept and "earlier" not in kept
    with pytest.raises(ConfigError, match="lacks the study's question"):
        freeze.frozen_report(made, tmp_path, "How?", [])


IGNORED = (
    *("results/demo/report.md", "results/demo.runs.csv", "results/benchmark.png", "results/ds_inverse/last.pt"),
    "results/published/a/last.pt",
)
KEPT = (
    *("results/README.md", "results/tables.py"),
    *(f"results/published/a/{name}" for name in ("study.toml", "runs.csv", "curves.csv", "report.md", "a.png")),
    "results/published/matrix-energy/last.pt",
    "results/published/matrix-energy-mined/last.pt",
)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_git_sees_published_results_alone():
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *IGNORED, *KEPT], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == list(IGNORED)
    tracked = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    here = {f"results/{name}" for name in ("README.md", "tables.py", "phrases.py", "figure.py", "freeze.py")}
    assert all(path in here or path.startswith("results/published/") for path in tracked)


def test_a_run_that_is_evaluated_again_is_diagnosed_again(tmp_path):
    """What lies there may be damaged, or another run's."""
    config = ExperimentConfig(
        rank=3, model="matrix", batch_size=4, train_steps=2, evaluation_size=8, mining=MiningConfig("none")
    )
    whole = run_experiment("baseline", 0, config, tmp_path, "cpu")
    (tmp_path / "result.json").unlink()
    (tmp_path / "diagnostics.json").write_text('{"inner_steps": [{"inner_steps": 20, "val_mse": 1e-9}]}')
    again = run_experiment("baseline", 0, config, tmp_path, "cpu")
    assert again["samplers"] == whole["samplers"] and "innerloop20" in whole["samplers"]


def test_changed_code_is_told_apart_under_one_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    code = tmp_path / "diffusion_lib" / "modes.py"
    code.parent.mkdir()
    code.write_text("a = 1\n")
    (tmp_path / "page.md").write_text("one\n")
    outside = environment.commit()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = environment.commit()
    (tmp_path / "page.md").write_text("two\n")
    page = environment.commit()
    code.write_text("a = 2\n")
    assert re.fullmatch("[0-9a-f]{12}", clean) and outside.startswith("unknown+")
    assert page == f"{clean}+{outside[8:]}" and environment.commit()[:13] == f"{clean}+" != environment.commit() != page

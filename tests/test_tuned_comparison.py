"""Each strategy at its own best settings: what the search takes, and what then meets."""

import csv
import json
import math

import pytest

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.training.flops import equal_compute_steps
from experiments import tuned_comparison
from experiments.analysis.metrics import Metric
from experiments.study import step_times

SMALL = ["--rank=3", "--train-steps=12", "--batch-size=8", "--evaluation-size=64", "--device=cpu", "--at-once=1"]
SEARCH = ["--learning-rates", "1e-4", "1e-2", "--weights", "0.5", "--search-seeds", "7", "--search-size=32"]


def found(monkeypatch, errors: dict, rate=False) -> dict:
    """What the search takes of settings, (strategy of the search, learning rate) -> val_mse by sampler."""
    monkeypatch.setattr(
        tuned_comparison,
        "run_rows",
        lambda place: [
            {"strategy": name, "seed": 7, "sampler": sampler, "val_mse": value}
            for (name, learning_rate), values in errors.items()
            if learning_rate == place
            for sampler, value in zip(("plain", "innerloop"), values, strict=True)
        ],
    )
    options = tuned_comparison.parse_arguments(["--learning-rates", "1", "2", "--weights", "0.5"])
    parts = {place: (None, None, place, None, None) for place in (1.0, 2.0)}
    rows = tuned_comparison.found(parts, options, Metric("val_mse", rate))
    return {name: setting.learning_rate for name, setting in tuned_comparison.chosen_settings(rows).items()}


ERRORS = {
    ("baseline", 1.0): (0.1, 0.4),
    ("baseline", 2.0): (0.2, 0.3),
    ("weight=0.5", 1.0): (0.3, 0.6),
    ("weight=0.5", 2.0): (0.1, math.nan),
    ("baseline-compute", 1.0): (0.1, 0.2),
    ("baseline-compute", 2.0): (0.1, 0.3),
}


def test_the_search_takes_the_best_under_the_inner_loop_and_none_that_diverged(monkeypatch):
    assert found(monkeypatch, ERRORS) == {"baseline": 2.0, "adversarial": 1.0, "baseline-compute": 1.0}
    better_is_more = {"baseline": 1.0, "adversarial": 1.0, "baseline-compute": 2.0}
    assert found(monkeypatch, ERRORS, True) == better_is_more
    diverged = {key: (math.nan, math.nan) if key[0] == "weight=0.5" else value for key, value in ERRORS.items()}
    with pytest.raises(ConfigError, match="no setting of adversarial"):
        found(monkeypatch, diverged)


@pytest.mark.usefixtures("cheap_report")
def test_the_choices_meet_on_seeds_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_times, "WARM_UP", 0.0)
    monkeypatch.setattr(step_times, "LIMIT", 0.0)
    command = [*SMALL, *SEARCH, "--seeds", "0-2", "--name=tuned", f"--results={tmp_path}"]
    assert tuned_comparison.main(command) == 0
    with open(tmp_path / "tuned" / "search.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    chosen, configs = {row["strategy"]: row["learning_rate"] for row in rows if row["chosen"] == "1"}, {}
    assert list(chosen) == list(tuned_comparison.STRATEGIES)
    for name in tuned_comparison.STRATEGIES:
        runs = sorted((tmp_path / f"tuned-{name}" / "runs" / name).iterdir())
        assert [run.name for run in runs] == ["seed-0", "seed-1", "seed-2"]
        recorded = json.loads((runs[0] / "config.json").read_text())["config"]
        assert (recorded["learning_rate"], recorded["evaluation_size"]) == (float(chosen[name]), 64)
        configs[name] = ExperimentConfig.from_dict(recorded)
    # matched by FLOPs, whatever the learning rates
    steps = equal_compute_steps(configs["baseline-compute"], configs["adversarial"])
    assert configs["baseline-compute"].train_steps == steps > configs["baseline"].train_steps == 12
    report = (tmp_path / "tuned" / "report.md").read_text()
    assert report.count("Verdict at equal compute") == 2 and "3 paired seeds" in report
    assert f"- baseline: learning rate {float(chosen['baseline']):g}, an end of the grid" in report

    ended = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/runs/*/*/result.json")}
    assert len(ended) == 6 + 9
    capsys.readouterr()
    assert tuned_comparison.main([*command, "--status"]) == 0
    assert "finished" in capsys.readouterr().out
    assert tuned_comparison.main(command) == 0
    assert ended == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/runs/*/*/result.json")}
    with pytest.raises(ConfigError, match="is a study"):
        tuned_comparison.main([*command[:-2], "--name=tuned-baseline", command[-1]])


REFUSED = (
    (["--learning-rates", "1e-3", "0"], "learning_rate is 0.0"),
    (["--weights", "0.5", "-1"], "weight is -1.0"),
    (["--search-size", "0"], "evaluation_size is 0"),
    (["--evaluation-size", "1000000000"], "evaluation_size is 1000000000"),
    (["--search-seeds", "1-3"], "seeds 1 are in the search too"),
    (["--task", "0"], "--task is not for this comparison"),
    (["--model", "mlp-reverse"], "MLPReverse predicts noise and has no energy"),
    (["--strategies", "random"], "--strategies is not for this comparison"),
)


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_is_refused_before_anything_is_written(words, message, tmp_path):
    command = [*SMALL, *SEARCH, "--seeds", "0-1", f"--results={tmp_path}", *words]
    with pytest.raises(ConfigError, match=message):
        tuned_comparison.main(command)
    assert not list(tmp_path.iterdir())

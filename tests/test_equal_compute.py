"""Equal compute: what a step costs, the baseline that gets adversarial's FLOPs, and what a run says of itself."""

import csv
import json

import pytest
from conftest import leave_figures_empty, make_diffusion
from torch.utils.flop_counter import FlopCounterMode

from dataset import TASKS, Inverse
from diffusion_lib.build import build_diffusion
from diffusion_lib.config import ExperimentConfig
from diffusion_lib.denoising_diffusion_pytorch_1d import Trainer1D
from diffusion_lib.evaluation import EvaluationSet
from diffusion_lib.flops import equal_compute_steps, example_flops, step_flops, train_flops
from diffusion_lib.negatives import MiningConfig
from diffusion_lib.run_folder import ended_runs
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import driver, timing
from experiments.study.landscape import level_rows, wrong_answers
from experiments.study.study import STRATEGIES

SMALL = [
    "--rank=3",
    "--train-steps=10",
    "--batch-size=8",
    "--evaluation-size=64",
    "--diffusion-steps=3",
    "--device=cpu",
    "--at-once=1",
]


@pytest.mark.parametrize("mode", ["none", "random", "adversarial"])
@pytest.mark.parametrize("model", ["mlp", "matrix", "matrix-free", "gnn", "gnn-conv-1d-v2"])
def test_a_step_costs_what_torch_counts_on_a_real_one(model, mode, tmp_path):
    name, kind = next(((name, kind) for name, kind in TASKS.items() if kind.model == model), ("inverse", Inverse))
    task = kind("train", max(3, kind.least_rank))
    config = ExperimentConfig(dataset=name, rank=task.rank, model=model, mining=MiningConfig(mode))
    diffusion = build_diffusion(config, 0, task)
    trainer = Trainer1D(diffusion, task, train_batch_size=6, results_folder=tmp_path, device="cpu")
    batch = trainer.stream.batch(0)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(batch)
    assert step_flops(config, 6) == counter.get_total_flops() > 0


def test_the_protocol_s_ratio_of_adversarial_to_baseline():
    baseline, adversarial = (
        ExperimentConfig(mining=MiningConfig(mode), batch_size=128, train_steps=5000)
        for mode in ("none", "adversarial")
    )
    assert example_flops(adversarial) / example_flops(baseline) == pytest.approx(2.80, abs=0.005)
    assert equal_compute_steps(baseline, adversarial) == pytest.approx(14_000, rel=0.005)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a small study with all strategies, one seed."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "WARM_UP", 0.0)
        patch.setattr(timing, "LIMIT", 0.0)
        leave_figures_empty(patch)
        assert main([*SMALL, "--name=it", f"--results={results}"]) == 0
    return results / "it"


def again(study, *arguments):
    return main([*SMALL, "--name=it", f"--results={study.parent}", *arguments])


def of_run(study, strategy, name):
    return json.loads((study / "runs" / strategy / "seed-0" / name).read_text())


def test_the_baseline_gets_adversarials_compute_and_a_schedule_of_its_own(study):
    results = {strategy: of_run(study, strategy, "result.json") for strategy in STRATEGIES}
    configs = {strategy: of_run(study, strategy, "config.json")["config"] for strategy in STRATEGIES}
    steps = {strategy: config["train_steps"] for strategy, config in configs.items()}
    assert {steps[strategy] for strategy in ("baseline", "random", "adversarial")} == {10}
    assert json.loads((study / "config.json").read_text())["config"]["train_steps"] == 10
    assert steps["baseline-compute"] > 15
    a_step = results["baseline"]["train_flops"] / 10
    spent, granted = (results[strategy]["train_flops"] for strategy in ("baseline-compute", "adversarial"))
    assert abs(spent - granted) <= a_step / 2 + 1
    for strategy, config in configs.items():
        assert results[strategy]["train_flops"] == train_flops(ExperimentConfig.from_dict(config))
    with open(study / "runs/baseline-compute/seed-0/metrics.csv", newline="") as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) == steps["baseline-compute"]


def test_the_status_counts_each_run_s_own_steps(study, capsys):
    assert again(study, "--status") == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if " seed 0" in line}
    steps = of_run(study, "baseline-compute", "config.json")["config"]["train_steps"]
    assert "10/10" in lines["adversarial"]
    assert f"{steps}/{steps}" in lines["baseline-compute"]
    assert again(study, "--status", "--run", lines["baseline-compute"].split()[0]) == 0
    shown = capsys.readouterr().out
    assert f"{steps}/{steps}" in shown and "1 runs:" in shown


@pytest.mark.usefixtures("cheap_report")
def test_the_steps_are_timed_once_at_the_study_s_batch_size(study):
    path = study / "timing.json"
    times = json.loads(path.read_text())
    assert times["baseline"] > 0 < times["adversarial"]
    assert times["batch_size"] == 8
    assert times["device"] == "cpu"
    assert times["cpu"] == json.loads((study / "config.json").read_text())["environment"]["cpu"]
    before = path.stat().st_mtime_ns
    assert again(study) == 0
    assert path.stat().st_mtime_ns == before


def test_steps_are_timed_before_the_runs_or_by_an_array_s_last_job(tmp_path, monkeypatch):
    ended_when_timed = []
    monkeypatch.setattr(driver, "write_step_times", lambda study, *_: ended_when_timed.append(len(ended_runs(study))))
    monkeypatch.setattr(driver, "report", lambda *_: True)
    command = [*SMALL, "--strategies", "baseline", "adversarial", f"--results={tmp_path}"]
    assert main([*command, "--name=whole"]) == 0
    assert ended_when_timed == [0]
    for number in ("0", "1"):
        assert main([*command, "--name=array", "--run", number]) == 0
    assert ended_when_timed == [0, 2]


def test_a_run_says_how_it_was_trained_and_what_long_descents_do(study):
    result = of_run(study, "adversarial", "result.json")
    with open(study / "runs/adversarial/seed-0/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    widths = [int(row["step"]) - int(before["step"]) for row, before in zip(rows[1:], rows, strict=False)]
    clipped = sum(float(r["clipped"]) * w for r, w in zip(rows, [int(rows[0]["step"]), *widths], strict=True)) / 10
    assert result["clipped"] == pytest.approx(clipped)
    for name in ("innerloop20", "innerloop40"):
        assert result["samplers"][name]["evaluation_size"] == 5
        assert result["samplers"][name]["val_mse"] > 0
    assert of_run(study, "adversarial", "config.json")["environment"]["at_once"] == 1


@pytest.mark.usefixtures("cheap_report")
def test_a_report_needs_no_weights(study, capsys):
    for path in study.glob("runs/*/*/last.pt"):
        path.unlink()
    assert again(study, "--report-only") == 0
    assert "neither" not in capsys.readouterr().err
    (study / "runs/random/seed-0/diagnostics.json").unlink()
    assert again(study, "--report-only") == 0
    assert capsys.readouterr().err.count("1 runs have neither diagnostics.json nor last.pt") == 1
    assert (study / "causes.png").exists()  # of the others
    (study / "runs/random/seed-0/diagnostics.json").write_text('{"levels": [')
    assert again(study, "--report-only") == 0
    assert "random/seed-0/diagnostics.json is not valid JSON" in capsys.readouterr().err


def test_wrong_answers_are_the_same_for_every_model_and_wrong():
    chosen = EvaluationSet(Inverse("val", 3), 40, "cpu")
    answers = wrong_answers(chosen)
    rows = [level_rows(make_diffusion(seed=seed), chosen, answers) for seed in (0, 1)]
    for name in ("regression", "other"):
        distances = [[row[f"distance_{name}"] for row in levels] for levels in rows]
        assert distances[0] == pytest.approx(distances[1])
        assert min(distances[0]) > 0.01
    assert (answers["other"][0] == chosen.target[-1].float()).all()
    own = [[row["distance_adversarial"] for row in levels] for levels in rows]
    assert own[0] != pytest.approx(own[1])

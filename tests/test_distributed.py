"""train.py: one run, on one process and on two (over gloo, on the CPU)."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import assert_same_weights, make_diffusion

import train
from diffusion_lib.checkpoint import save_checkpoint
from diffusion_lib.system.errors import CheckpointError, ConfigError
from diffusion_lib.system.lock import RunLock
from diffusion_lib.training import one_run

ROOT = Path(__file__).resolve().parent.parent
# The mixed precision and the accumulation are a user's saved settings for accelerate, which no run may follow.
ACCUMULATION = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "5"}
# On GPUs accelerate finds out by itself; with its --cpu it would start one process, or need MPI.
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
    "--mixed_precision",
    "bf16",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ONE = [sys.executable]
SMALL = ["--rank=3", "--batch_size=16", "--evaluation-size=65", "--diffusion-steps=3", "--device=cpu", "--save-every=8"]
STEPS = 40


def command(folder, *arguments, launcher=ONE):
    return [*launcher, str(ROOT / "train.py"), *SMALL, "--results-folder", str(folder), *map(str, arguments)]


def run(folder, *arguments, launcher=ONE, settings=None):
    return subprocess.run(
        command(folder, *arguments, launcher=launcher),
        capture_output=True,
        text=True,
        timeout=300,  # of a process that waits for another for good
        env=os.environ | (settings or {}),
    )


TRAINING = ["--train-steps", STEPS, "--mining-mode", "adversarial"]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The same run on one process and on two: folders, and what was printed."""
    folders = [tmp_path_factory.mktemp(name) / "run" for name in ("one", "two")]
    done = [run(folders[0], *TRAINING), run(folders[1], *TRAINING, launcher=ACCELERATE, settings=ACCUMULATION)]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    return folders, done


def checkpoint(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def test_two_processes_compute_what_one_does(one_and_two):
    """So each saw its own rows of the same batches, and both parts of the loss are those of the whole batch."""
    folders, done = one_and_two
    one, two = map(checkpoint, folders)
    assert one["step"] == two["step"] == STEPS
    for part in ("model", "ema"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    rows = []
    for folder in folders:
        with open(folder / "metrics.csv", newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for left, right in zip(*rows, strict=True):
        for key in ("loss", "loss_denoise", "loss_contrastive", "val_mse"):
            if left[key]:
                assert float(right[key]) == pytest.approx(float(left[key]), rel=1e-3), (left["step"], key)
    tables = [re.findall(r"(\w+) +(\w+) +([\d.]+) +([\d.]+)$", process.stdout, re.MULTILINE) for process in done]
    assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]
    assert len(tables[0]) == 4
    for left, right in zip(*tables, strict=True):
        assert [float(x) for x in right[2:]] == pytest.approx([float(x) for x in left[2:]], rel=1e-3)


def test_the_main_process_alone_prints(one_and_two):
    _, (_, two) = one_and_two
    assert two.stdout.count(f"step {STEPS}, 65 examples each") == 1
    assert two.stderr.count(f"step {STEPS}/{STEPS}") == 1


@pytest.mark.parametrize("signalled", [[1], [0, 1]], ids=["other", "both"])
def test_a_signal_to_any_process_stops_all_at_one_step(one_and_two, tmp_path, signalled):
    """And the same command continues to the very weights of a run that nobody stopped."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, *TRAINING, launcher=TORCHRUN), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not (folder / "last.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children(recursive=True)}
    workers = [ranks["0"], ranks["1"]]
    for i in signalled:
        workers[i].send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    stops = re.findall(r"stopped: [^;]* at step (\d+); the same command continues", errors)
    assert len(stops) == 2 and len(set(stops)) == 1, errors
    assert checkpoint(folder)["step"] == int(stops[0]) < STEPS
    again = run(folder, *TRAINING, launcher=TORCHRUN)
    assert again.returncode == 0, again.stderr
    whole, stopped = checkpoint(one_and_two[0][1]), checkpoint(folder)
    assert_same_weights(whole["model"], stopped["model"])
    assert_same_weights(whole["ema"], stopped["ema"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "15"], "train_batch_size 15 does not divide among 2 processes"),
        (["--seed", "1"], "was made by another configuration: seed (there 0, now 1)"),
    ],
)
def test_two_processes_end_together_on_bad_input(one_and_two, arguments, message):
    done = run(one_and_two[0][1], *TRAINING, *arguments, launcher=TORCHRUN)
    assert done.returncode != 0
    assert message in done.stderr


def resolved(*arguments):
    return train.resolve(train.parse_arguments(arguments))


HAND_MADE = ("sudoku", "sudoku-rrn", "connectivity", "connectivity-2", "shortest-path-1d")


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ([], "none"),
        (["--supervise-energy-landscape", "True"], "adversarial"),
        (["--supervise-energy-landscape", "n"], "none"),
        *((["--dataset", name, "--supervise-energy-landscape", "True"], "corrupt") for name in HAND_MADE),
        (["--dataset", "shortest-path-10-1d", "--supervise-energy-landscape", "True"], "adversarial"),
        (["--dataset", "sudoku", "--mining-mode", "random", "--supervise-energy-landscape", "True"], "random"),
        (["--mining-mode", "random"], "random"),
        (["--mining-mode", "random", "--supervise-energy-landscape", "yes"], "random"),
        (["--mining-mode", "none", "--supervise-energy-landscape", "0"], "none"),
    ],
)
def test_which_mining_the_flags_mean(arguments, mode):
    assert resolved(*arguments).mining.mode == mode


def test_matching_the_release_takes_its_hand_made_negatives():
    def corruption(*arguments):
        return resolved("--dataset", "sudoku", *arguments).mining.corruption

    assert [corruption(), corruption("--match-release")] == ["repaired", "released"]
    assert corruption("--match-release", "--corruption", "repaired") == "repaired"
    # inverse has none
    assert resolved("--match-release") == resolved("--match-release", "--corruption", "repaired")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mining-mode", "none", "--supervise-energy-landscape", "1"),
        ("--mining-mode", "random", "--supervise-energy-landscape", "0"),
    ],
)
def test_contradicting_flags_are_refused(arguments):
    with pytest.raises(ConfigError, match="give one of them"):
        resolved(*arguments)


def test_defaults_and_spellings_are_the_released_ones():
    config = resolved()
    assert (config.batch_size, config.rank, config.diffusion_steps, config.train_steps) == (2048, 20, 10, 1_300_000)
    assert (config.learning_rate, config.schedule) == (1e-4, "constant")
    options = train.parse_arguments(["--batch_size", "8", "--diffusion_steps", "5", "--dataset", "lowrank"])
    assert (options.batch_size, options.diffusion_steps) == (8, 5)
    config = train.resolve(options)
    assert train.default_folder(config) == Path("results/ds_lowrank/model_mlp_diffsteps_5")


def main(folder, *arguments):
    return train.main([*SMALL, "--results-folder", str(folder), *map(str, arguments)])


@pytest.mark.parametrize("dataset", ["inverse", "addition", "lowrank"])
def test_every_task_trains_continues_and_is_evaluated(tmp_path, capsys, dataset):
    settings = ["--dataset", dataset, "--supervise-energy-landscape", "True", "--log-with", "tensorboard"]
    assert main(tmp_path, *settings, "--train-steps", 5) == 0
    assert main(tmp_path, *settings, "--train-steps", 9) == 0
    trained = capsys.readouterr().out
    assert checkpoint(tmp_path)["step"] == 9
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    before = (tmp_path / "last.pt").read_bytes()
    assert main(tmp_path, *settings, "--evaluate") == 0
    evaluated = capsys.readouterr().out
    assert evaluated.strip() and trained.endswith(evaluated)
    with pytest.raises(ConfigError, match="was trained without --match-release; leave it out"):
        main(tmp_path, *settings, "--evaluate", "--match-release")
    assert ("recon_error" in evaluated) == (dataset == "inverse") and "nan" not in evaluated
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_milestone_starts_a_new_folder_and_does_not_undo_progress(tmp_path, capsys):
    main(tmp_path / "first", "--train-steps", 4)
    milestone = tmp_path / "second" / "model-3.pt"
    milestone.parent.mkdir()
    (tmp_path / "first" / "last.pt").rename(milestone)
    main(tmp_path / "second", "--load-milestone", 3, "--train-steps", 6)
    assert [row["step"] for row in checkpoint(tmp_path / "second")["history"]] == [1, 2, 3, 4, 5, 6]
    save_checkpoint(milestone, {**torch.load(milestone, weights_only=True), "step": 0})
    capsys.readouterr()
    main(tmp_path / "second", "--load-milestone", 3, "--train-steps", 8)
    assert "continues from its last.pt, not from --load-milestone 3" in capsys.readouterr().err
    assert [row["step"] for row in checkpoint(tmp_path / "second")["history"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    main(tmp_path / "third", "--load-milestone", milestone, "--evaluate")
    assert [path.name for path in (tmp_path / "third").iterdir()] == ["evaluation.csv"]


def test_a_refused_milestone_leaves_no_run(tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no")
    for error, milestone in ((ConfigError, 77), (CheckpointError, tmp_path / "no.pt")):
        with pytest.raises(error):
            main(tmp_path / "run", "--load-milestone", milestone, "--train-steps", 4)
        assert not list((tmp_path / "run").glob("*"))
    with pytest.raises(ConfigError, match="there is no file"):
        main(tmp_path / "absent", "--evaluate")
    assert not (tmp_path / "absent").exists()


def test_a_runs_own_errors_stay_and_are_written_before_they_are_printed(tmp_path, monkeypatch, capsys):
    def full(_text):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "show", full)
        with pytest.raises(OSError, match="No space"):
            main(tmp_path, "--train-steps", 2)
    before = (tmp_path / "evaluation.csv").read_text()
    assert main(tmp_path, "--evaluate", "--evaluation-size", 9) == 0
    assert "9 examples each" in capsys.readouterr().out
    assert (tmp_path / "evaluation.csv").read_text() == before


def test_the_recorded_settings_are_those_of_the_run(tmp_path):
    """Of all of ExperimentConfig, those that train.py has no flag for come from the model's recipe."""
    options = train.parse_arguments([*SMALL, "--results-folder", str(tmp_path), "--model", "matrix"])
    config = train.resolve(options)
    trainer = one_run.build_trainer(options, config, tmp_path)
    assert trainer.ema.update_every == config.ema_update_every == 1
    assert trainer.lr_schedule(0) == config.learning_rate_factor(0) < 1


@pytest.mark.parametrize(("model", "bounds"), [("mlp", [2.0, 2.0]), ("matrix", [2.0, 10.0])])
def test_the_errors_are_taken_with_the_clamp_that_is_recorded(tmp_path, monkeypatch, model, bounds):
    seen = []

    def noted(_model, chosen, _steps, share, **_options):
        seen.append(chosen.task.bound)
        return {"mse": float(share.rank)}

    monkeypatch.setattr(one_run, "sampler_metrics", noted)
    options = train.parse_arguments([*SMALL, "--results-folder", str(tmp_path), "--model", model])
    config = train.resolve(options)
    one_run.print_errors(one_run.build_trainer(options, config, tmp_path), config)
    assert seen == sorted([*bounds, *bounds])


def test_a_run_in_use_is_refused(tmp_path):
    with RunLock(tmp_path), pytest.raises(ConfigError, match=rf"is held by process {os.getpid()} on"):
        main(tmp_path, "--train-steps", 2)


def test_the_model_starts_from_the_seed(tmp_path):
    options = train.parse_arguments([*SMALL, "--results-folder", str(tmp_path)])
    weights = [one_run.build_trainer(options, train.resolve(options), tmp_path).diffusion.state_dict() for _ in "ab"]
    assert_same_weights(*weights)
    assert weights[0].keys() == make_diffusion().state_dict().keys()

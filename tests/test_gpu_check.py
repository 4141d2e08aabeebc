import json
import os
import subprocess
import sys

import pytest
import torch

from diffusion_lib.system.environment import ROOT
from diffusion_lib.system.errors import ConfigError
from experiments import check_gpu
from experiments.speed import gpu_correctness, gpu_sharing
from experiments.speed.gpu_correctness import check_fallback, check_graph, check_resume, differences
from experiments.study import driver
from experiments.study.flags import parse_command

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The exit status of the check's trial on the CPU, and its folder."""
    folder = tmp_path_factory.mktemp("check")
    command = [sys.executable, "experiments/check_gpu.py", "--device", "cpu", "--quick", "--results", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done, folder


def test_all_that_a_card_would_run_runs_on_the_cpu(written):
    done, folder = written
    assert done.returncode == 0, done.stderr
    text = (folder / "check-gpu.md").read_text()
    assert text in done.stdout
    for model in check_gpu.QUICK.models:
        for mode in gpu_correctness.modes_of(model):
            assert f"| {model}, {mode}, float32 against float64 " in text
            assert f"| {model}, {mode}, graph against eager steps " in text
            assert f"| {model}, {mode}, resumed " in text
    assert "checks of its numbers: all passed" in text
    assert all(f"| {mode} " in text.split("## A step")[1].split("## Numbers")[0] for mode in ("none", "adversarial"))
    assert "    python experiments/matrix_inversion_mining_comparison.py --preset full --at-once" in text
    assert {path.name for path in folder.iterdir()} == {"check-gpu.md"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    command = [sys.executable, "experiments/check_gpu.py", "--results", str(tmp_path / "new")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "no usable CUDA device" in line
    assert not (tmp_path / "new").exists()


def broken(monkeypatch, name, change):
    """GaussianDiffusion1D's method changed, in the models that are checked but not in the float64 reference."""
    kind = gpu_correctness.GaussianDiffusion1D
    original = getattr(kind, name)

    def method(self, *arguments, **options):
        result = original(self, *arguments, **options)
        return result if self.betas.dtype == torch.float64 else change(result)

    monkeypatch.setattr(kind, name, method)


@pytest.mark.parametrize(
    ("method", "change", "wrong"),
    [
        ("p_losses", lambda result: (result[0] * 1.01, result[1]), {"loss", "gradient"}),
        ("negatives", lambda result: result + 0.01, {"negatives"}),
        ("sample_loop", lambda result: result + 0.01, {"samples"}),
    ],
)
def test_wrong_numbers_are_seen(monkeypatch, method, change, wrong):
    broken(monkeypatch, method, change)
    errors = differences("mlp", "random", "float32", CPU, 3, 8)
    allowed = gpu_correctness.ALLOWED["float32"]
    assert {name for name, error in errors.items() if error > allowed} == wrong


def test_a_graph_with_other_losses_is_seen(monkeypatch):
    assert check_graph("mlp", "none", CPU, 3)["ok"]
    original, calls = gpu_correctness.losses, []

    def losses(trainer):
        calls.append(trainer)
        return [loss * (1 + 1e-4 * (len(calls) == 2)) for loss in original(trainer)]

    monkeypatch.setattr(gpu_correctness, "losses", losses)
    row = check_graph("mlp", "none", CPU, 3)
    assert not row["ok"] and row["found"].startswith("losses 1.0e-04")


def test_a_run_that_resumes_otherwise_is_seen(monkeypatch):
    monkeypatch.setattr(gpu_correctness.Trainer1D, "load", lambda _: None)
    row = check_resume("mlp", "none", CPU, 3)
    assert not row["ok"] and row["allowed"] == "equal"


def test_the_planted_step_waits_for_the_host(monkeypatch):
    seen, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: seen.append(self.requires_grad) or item(self))
    assert check_fallback(CPU, 3)["ok"]
    assert sum(seen) == gpu_correctness.STEPS


def test_a_job_starts_and_ends_mps_where_it_is_asked_to(tmp_path):
    log, program = tmp_path / "log", tmp_path / gpu_sharing.PROGRAM
    program.write_text(f'#!/bin/sh\necho "$1$(cat)" >> {log}\n')
    program.chmod(0o755)
    for asked, calls in (("", []), ("1", ["-d", "quit"])):
        done = subprocess.run(
            ["bash", "-c", "set -euo pipefail; source slurm/common.sh; run_python -c 'exit 3'"],
            cwd=ROOT,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "IRED_PYTHON": "bash", "IRED_MPS": asked},
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 3
        assert (log.read_text().split() if log.exists() else []) == calls


def test_a_failed_check_fails_the_command(tmp_path, monkeypatch, capsys):
    bad = {"check": "mlp, none", "found": "loss 1", "allowed": "1e-4", "ok": False}
    monkeypatch.setattr(check_gpu, "check_everything", lambda *_: [bad])
    monkeypatch.setattr(check_gpu, "measure_steps", lambda *_: [{"mode": "none", "float32_ms": 1.0}])
    monkeypatch.setattr(check_gpu, "measure_at_once", lambda *_: [{"at_once": 1, "mps": False, "round_ms": 6.0}])
    monkeypatch.setattr(check_gpu, "has_mps", lambda: False)
    assert check_gpu.main(["--device", "cpu", "--quick", "--results", str(tmp_path)]) == 2
    assert "failed: mlp, none: loss 1, allowed 1e-4" in capsys.readouterr().err
    text = (tmp_path / "check-gpu.md").read_text()
    assert "1 failed" in text and "no nvidia-cuda-mps-control" in text
    assert "100 minutes, projected" in text  # 10 seeds of 100,000 rounds of 6 ms


def rows(mps, *times):
    return [{"at_once": 2**i, "mps": mps, "round_ms": time} for i, time in enumerate(times)]


def test_the_fewest_runs_that_are_about_fastest_are_recommended():
    alone, shared = check_gpu.best_at_once(rows(False, 10, 8, 7.9)), check_gpu.best_at_once(rows(True, 10, 6, 4))
    assert (alone["at_once"], shared["at_once"]) == (2, 4)
    start, command = check_gpu.settings({False: alone, True: shared})
    assert start == "nvidia-cuda-mps-control -d" and command.endswith("--preset full --at-once 4")
    (command,) = check_gpu.settings({False: alone, True: check_gpu.best_at_once([])})
    assert command.endswith("--at-once 2")


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")


@pytest.mark.usefixtures("card")
def test_the_comparison_takes_what_the_check_found(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "chosen_device", lambda _: torch.device("cuda"))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "pipes"))
    options = parse_command("", ["--results", str(tmp_path)])
    assert driver.shares(options, 30)[0] == 1
    gpu_sharing.record_best(tmp_path, {False: 2, True: 8})
    assert driver.shares(options, 30)[0] == 2
    (tmp_path / "pipes").mkdir()
    (tmp_path / "pipes" / "control").touch()
    assert driver.shares(options, 30)[0] == 8
    assert driver.shares(options, 3)[0] == 3
    assert driver.shares(parse_command("", ["--at-once", "5", "--results", str(tmp_path)]), 30)[0] == 5
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another card")
    assert driver.shares(options, 30)[0] == 1
    for damaged in ("{", "[]", json.dumps({"gpu": "another card"}), json.dumps({"gpu": "another card", "mps": None})):
        (tmp_path / gpu_sharing.RECORD).write_text(damaged)
        assert driver.shares(options, 30)[0] == 1


def test_mps_is_started_and_ended_in_a_folder_of_its_own(tmp_path, monkeypatch):
    log, program = tmp_path / "log", tmp_path / gpu_sharing.PROGRAM
    program.write_text(  # a daemon makes its pipe
        f'#!/bin/sh\n[ "$1" = -d ] && touch "$CUDA_MPS_PIPE_DIRECTORY/control"\necho "$1$(cat)" >> {log}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert gpu_sharing.has_mps() and not gpu_sharing.mps_is_on()
    with gpu_sharing.mps(True):
        assert gpu_sharing.mps_is_on()
    assert log.read_text().split() == ["-d", "quit"]
    (tmp_path / "control").touch()  # somebody else's
    with gpu_sharing.mps(False):
        assert not gpu_sharing.mps_is_on()
    assert gpu_sharing.mps_is_on()


def test_a_login_node_without_a_card_can_check_the_command(tmp_path):
    """slurm/submit asks each script so before it submits."""
    assert check_gpu.main(["--check", "--results", str(tmp_path / "new")]) == 0
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        check_gpu.main(["--check", "--device", "tpu"])

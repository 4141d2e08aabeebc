"""Processes that share a study: no run is trained twice, and a command that leaves runs to others is not done."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import DIVERGED, small_study

from diffusion_lib.run_folder import ended_runs
from diffusion_lib.system.device import ONE_OF_SEVERAL
from diffusion_lib.system.errors import CheckpointError, ConfigError, Interrupted, exit_status
from diffusion_lib.system.lock import RunHeld, RunLock
from diffusion_lib.system.other_process import OtherProcess
from experiments.analysis import report
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import driver, run
from experiments.study.workers import Outcome, delete_study, run_all

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "matrix_inversion_mining_comparison.py"


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def raising(*errors):
    """A run that raises these, one a call, and then finishes."""
    waiting = list(errors)

    def call():
        if waiting:
            raise waiting.pop(0)
        return {"status": "finished"}

    return call


def save_after_all_were_asked(folder, number, count):
    """A run that, asked to stop, leaves once all have been."""
    with RunLock(folder / str(number)):
        (folder / f"started-{number}").touch()
        try:
            time.sleep(300)
        except Interrupted:
            (folder / f"asked-{number}").touch()
            wait_until(lambda: len(list(folder.glob("asked-*"))) == count)
            (folder / f"saved-{number}").touch()
            raise


def test_several_at_once_are_asked_to_stop_at_once(tmp_path):
    """Slurm and containers give them all together some seconds to save."""
    runs = {str(i): partial(save_after_all_were_asked, tmp_path, i, 2) for i in range(2)}

    def stop_soon():
        wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2, 300)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_soon)
    stopper.start()
    with pytest.raises(SystemExit) as stop, exit_status():
        run_all(runs, at_once=2, threads=1)
    stopper.join()
    assert stop.value.code == 75
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_errors_of_one_run_leave_the_others():
    outcome = run_all(
        {
            "damaged": raising(CheckpointError("last.pt is damaged")),
            "other": raising(ConfigError("made by another")),
            "full": raising(OSError(28, "No space left on device")),
            "good": raising(),
            "diverged": lambda: {"status": "failed", "reason": "the loss is not finite"},
        }
    )
    assert outcome == Outcome(
        {
            "damaged": "last.pt is damaged",
            "other": "made by another",
            "full": "[Errno 28] No space left on device",
            "diverged": "the loss is not finite",
        },
        {},
    )


def test_held_runs_are_tried_again_after_the_others_and_then_left():
    freed, kept = raising(RunHeld("held by a")), raising(*[RunHeld("held by b")] * 9)
    assert run_all({"freed": freed, "kept": kept, "good": raising()}) == Outcome({}, {"kept": "held by b"})


def test_a_signal_stops_the_list():
    with pytest.raises(Interrupted):
        run_all({"first": raising(Interrupted("SIGTERM")), "second": raising(AssertionError("was started"))})


def test_the_death_of_a_process_before_its_work_is_said():
    with pytest.raises(ChildProcessError, match="ended before its work, with status -9"), OtherProcess(1) as process:
        process.send(abs, -1)
        process.process.kill()
        process.receive()


def test_a_run_of_another_configuration_than_its_study_is_not_begun(tmp_path):
    """As where another command's --fresh has put its own study there."""
    arguments = small_study(tmp_path, "--strategies", "baseline", "--run", "0")
    real = driver.run_all

    def replaced_meanwhile(runs, *rest):
        recorded = tmp_path / "shared" / "config.json"
        recorded.write_text(recorded.read_text().replace('"batch_size": 16', '"batch_size": 17'))
        return real(runs, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run_all", replaced_meanwhile)
        assert main(arguments) == 2
    assert not list(tmp_path.rglob("last.pt"))


def test_two_processes_share_a_study(tmp_path):
    runs = small_study(tmp_path, "--strategies", "baseline", "random", "--seeds", "0-1")
    command = [sys.executable, str(SCRIPT), *runs]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    # who ends first leaves a run to the other, and must not look done
    assert sorted(process.returncode for process in processes) in ([0, 0], [0, 75]), errors
    trained = [re.findall(r"^(\w+ seed \d): step 30/30", error, re.MULTILINE) for error in errors]
    assert all(trained)
    assert sorted(trained[0] + trained[1]) == ["baseline seed 0", "baseline seed 1", "random seed 0", "random seed 1"]
    assert len((tmp_path / "shared.runs.csv").read_text().splitlines()) == 1 + 4 * (2 * 4 + 2)


def end(state):
    if state == "held":
        raise RunHeld("held by a third")
    return {"status": state, "reason": "diverged"}


def test_processes_at_once_agree_on_what_is_left():
    states = {"a": "finished", "b": "failed", "c": "held"}
    runs = {name: partial(end, state) for name, state in states.items()}
    assert run_all(runs, at_once=2, threads=1) == Outcome({"b": "diverged"}, {"c": "held by a third"})


def test_a_command_that_finds_all_runs_held_says_so_and_is_not_done(tmp_path, holder, capsys):
    holder(tmp_path / "shared" / "runs" / "baseline" / "seed-0")
    assert main(small_study(tmp_path, "--strategies", "baseline")) == 75
    assert "not done: other processes have the runs above" in capsys.readouterr().err


def test_a_command_that_leaves_one_run_to_its_holder_is_not_done(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *_: {})
    holder(tmp_path / "shared" / "runs" / "random" / "seed-0")
    arguments = small_study(tmp_path, "--strategies", "baseline", "random", "--at-once", "1")
    assert main(arguments) == 75
    assert len(ended_runs(tmp_path / "shared")) == 1


def test_the_next_command_removes_what_killed_ones_left_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *_: {})
    study = tmp_path / "shared"
    study.mkdir()
    left = [study / ".report.md.0a1b2c3d.tmp", tmp_path / ".shared.runs.csv.0a1b2c3d.tmp"]
    kept = [study / ".notes", tmp_path / ".other.runs.csv.0a1b2c3d.tmp"]
    for path in left + kept:
        path.write_bytes(b"half")
    (tmp_path / ".shared.deleted").mkdir()
    assert main(small_study(tmp_path, "--strategies", "baseline")) == 0
    assert [path.exists() for path in (*left, tmp_path / ".shared.deleted", *kept)] == [False] * 3 + [True] * 2


def test_fresh_waits_for_no_one(tmp_path, holder):
    study = tmp_path / "study"
    process = holder(study / "runs" / "baseline" / "seed-0")
    (study / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"held by process {process.pid} on"):
        delete_study(study)
    process.kill()
    process.join()
    delete_study(study)
    assert list(tmp_path.iterdir()) == []


def test_a_requeued_job_keeps_what_it_made_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *_: {})
    arguments = small_study(tmp_path, "--fresh", "--strategies", "baseline")
    result = tmp_path / "shared" / "runs" / "baseline" / "seed-0" / "result.json"
    assert main(arguments) == 0
    before = result.stat().st_mtime_ns
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(arguments) == 0
    assert result.stat().st_mtime_ns == before


def test_a_run_that_ends_during_the_report_is_in_the_next_one(tmp_path, monkeypatch):
    """Of two processes that finish together, the one that reports last must have all runs."""
    last, seen = tmp_path / "shared" / "runs" / "baseline" / "seed-1" / "result.json", []

    def write_report(study, *_):
        seen.append(len(ended_runs(study)))
        last.write_text(json.dumps(DIVERGED | {"seed": 1}))
        (last.parent / "config.json").write_text((study / "config.json").read_text())
        return {}

    monkeypatch.setattr(report, "write_report", write_report)

    def run_experiment(strategy, seed, config, folder, *rest, **options):
        if seed == 0:
            return run.run_experiment(strategy, seed, config, folder, *rest, **options)
        folder.mkdir(parents=True, exist_ok=True)
        raise RunHeld("held by another process")

    monkeypatch.setattr(driver, "run_experiment", run_experiment)
    assert main(small_study(tmp_path, "--strategies", "baseline", "--seeds", "0-1")) == 0
    assert seen == [1, 2]


@pytest.mark.parametrize(("task", "message"), [("8", "run is 8; allowed: 0 to 7"), ("-1", "run is -1")])
def test_a_task_beyond_the_runs_is_refused(tmp_path, task, message):
    with pytest.raises(ConfigError, match=message):
        main(small_study(tmp_path, "--seeds", "0-1", "--run", task))


def test_a_task_does_not_delete_what_others_made(tmp_path):
    with pytest.raises(ConfigError, match="--fresh would delete the runs of the other jobs"):
        main(small_study(tmp_path, "--run", "0", "--fresh"))


def test_a_run_is_trained_by_one_process(tmp_path, monkeypatch):
    for name, value in zip(ONE_OF_SEVERAL, ("0", "2", "0", "nowhere", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="once for each GPU"):
        main(small_study(tmp_path))

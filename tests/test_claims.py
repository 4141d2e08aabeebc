"""Processes that share a study: no run is trained twice, and a dead process's run is continued."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.system.errors import CheckpointError, ConfigError, Interrupted, exit_status
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import claims, run
from experiments.study.claims import Claim, RunHeld, read_claim, this_process
from experiments.study.run_list import Outcome, delete_study, ended_runs, run_all
from experiments.study.status import duration, status_table

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "matrix_inversion_mining_comparison.py"
TAKERS, ROUNDS = 12, 40

# The processes of these tests hold no tensors, so forking them is safe, and spares each the import of torch.
fork = multiprocessing.get_context("fork")


def write_claim(folder, number=1, age=0.0, **content):
    """A claim as another process would have left it."""
    path = claims.claim_path(folder, number)
    path.write_text(json.dumps({**this_process(), **content}))
    os.utime(path, (time.time() - age,) * 2)


def dead_process() -> dict:
    """What a process that is gone wrote of itself."""
    process = fork.Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    return {"pid": process.pid, "process_started": "1"}


def take_all(folders, barrier, queue):
    """Try each folder at the same moment as the other takers, and keep what was got."""
    kept = []
    for folder in folders:
        barrier.wait()
        try:
            kept.append(Claim(folder))
        except RunHeld:
            kept.append(None)
    barrier.wait()  # nobody is gone, which would free its claims, before all have tried
    queue.put([claim is not None for claim in kept])


@pytest.mark.parametrize("before", ["nothing", "a dead process", "a dead process, twice", "given back"])
def test_one_of_many_takers_wins(tmp_path, before):
    folders = [tmp_path / str(i) for i in range(ROUNDS)]
    for folder in folders:
        folder.mkdir()
        if before.startswith("a dead"):
            write_claim(folder, 1, **dead_process())
        if before.endswith("twice"):
            write_claim(folder, 2, **dead_process())
        if before == "given back":
            write_claim(folder, 1, released=True)
    barrier, queue = fork.Barrier(TAKERS), fork.Queue()
    takers = [fork.Process(target=take_all, args=(folders, barrier, queue)) for _ in range(TAKERS)]
    for taker in takers:
        taker.start()
    got = [queue.get(timeout=60) for _ in takers]
    for taker in takers:
        taker.join()
    assert [sum(won) for won in zip(*got, strict=True)] == [1] * ROUNDS


def test_a_held_run_names_its_holder_and_is_free_afterwards(tmp_path):
    with Claim(tmp_path), pytest.raises(RunHeld, match=rf"held by process {os.getpid()} on {os.uname().nodename}"):
        Claim(tmp_path)
    assert not read_claim(tmp_path).alive
    with Claim(tmp_path) as again:
        assert again.number == 2


OTHER = {"machine": "elsewhere", "host": "node7", "pid": 1}
JOB = {**OTHER, "job": "17", "cluster": "c1", "job_restarts": "0"}


@pytest.mark.parametrize(
    ("content", "age", "alive"),
    [
        ({}, 10_000, True),  # this process: it lives, however long it was silent
        ({"process_started": "1"}, 0, False),  # its number is used again by another process
        (OTHER, 30, True),
        (OTHER, 599, True),
        (OTHER, 601, False),
        (OTHER | {"released": True}, 0, False),
    ],
    ids=["alive", "number reused", "elsewhere", "elsewhere, quiet", "elsewhere, silent", "given back"],
)
def test_who_counts_as_alive(tmp_path, content, age, alive):
    write_claim(tmp_path, age=age, **content)
    assert read_claim(tmp_path).alive == alive


def test_a_killed_process_holds_nothing_even_before_its_parent_notices(tmp_path):
    process = subprocess.Popen(["sleep", "100"])
    write_claim(tmp_path, pid=process.pid, process_started=claims.process_started(process.pid))
    assert read_claim(tmp_path).alive
    process.kill()
    wait_until(lambda: not read_claim(tmp_path).alive)
    process.wait()
    assert not read_claim(tmp_path).alive


@pytest.mark.parametrize(
    ("squeue", "alive"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),
        ("echo PENDING", False),  # requeued: its process is gone
        ("printf 'PENDING\\nRUNNING\\n'", True),  # an array, one of whose tasks runs
        ("echo", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", True),
    ],
)
def test_a_job_that_slurm_says_is_gone_holds_nothing(tmp_path, monkeypatch, squeue, alive):
    script = tmp_path / "squeue"
    script.write_text(f"#!/bin/sh\n[ \"$*\" = '-h -j 17 -o %T' ] || exit 3\n{squeue}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c1")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    write_claim(tmp_path, **JOB)
    assert read_claim(tmp_path).alive == alive


def test_a_requeued_job_takes_back_what_it_held_on_another_node(tmp_path, monkeypatch):
    for name, value in (("SLURM_CLUSTER_NAME", "c1"), ("SLURM_JOB_ID", "17"), ("SLURM_RESTART_COUNT", "1")):
        monkeypatch.setenv(name, value)
    write_claim(tmp_path, **JOB)
    assert not read_claim(tmp_path).alive
    monkeypatch.delenv("SLURM_RESTART_COUNT")  # a second task of the first start
    assert read_claim(tmp_path).alive


def test_a_half_written_claim_is_a_claim(tmp_path):
    claims.claim_path(tmp_path, 1).touch()
    with pytest.raises(RunHeld, match="on an unknown host"):
        Claim(tmp_path)


def test_heartbeats_tell_the_progress_and_notice_a_successor(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    with pytest.raises(RunHeld, match="taken over"), Claim(tmp_path) as claim:
        claim.note({"step": 10, "train_seconds": 1.0})
        claim.note({"step": 30, "train_seconds": 2.0})
        wait_until(lambda: read_claim(tmp_path).content["step"] == 30)
        assert read_claim(tmp_path).content["steps_per_second"] > 0
        write_claim(tmp_path, 2, **OTHER)
        wait_until(lambda: claim.lost)
        claim.note({"step": 40, "train_seconds": 3.0})


def test_claims_go_once_there_is_a_result_and_tell_why_there_is_none(tmp_path):
    with pytest.raises(CheckpointError), Claim(tmp_path):
        raise CheckpointError("last.pt is damaged")
    assert read_claim(tmp_path).content["error"] == "last.pt is damaged"
    with pytest.raises(Interrupted), Claim(tmp_path) as claim:
        claim.reached(7)
        raise Interrupted("SIGTERM")
    content = read_claim(tmp_path).content
    assert content["released"] and content["step"] == 7 and "error" not in content
    with Claim(tmp_path):
        (tmp_path / "result.json").write_text("{}")
    assert read_claim(tmp_path) is None


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


def test_a_disk_too_full_for_a_claim_leaves_the_run_to_the_next(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims.json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        Claim(tmp_path)
    monkeypatch.undo()
    with Claim(tmp_path):
        pass


def save_after_all_were_asked(folder, number, count):
    """A run that, asked to stop, leaves once all have been."""
    (folder / f"started-{number}").touch()
    try:
        time.sleep(60)
    except Interrupted:
        (folder / f"asked-{number}").touch()
        wait_until(lambda: len(list(folder.glob("asked-*"))) == count)
        (folder / f"saved-{number}").touch()
        raise


def test_several_at_once_are_asked_to_stop_at_once(tmp_path):
    """Slurm and containers give them all together some seconds to save."""
    runs = {str(i): partial(save_after_all_were_asked, tmp_path, i, 2) for i in range(2)}

    def stop_soon():
        wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2, 60)
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
        [
            "damaged: last.pt is damaged",
            "other: made by another",
            "full: [Errno 28] No space left on device",
            "diverged: the loss is not finite",
        ],
        [],
    )


def test_held_runs_are_tried_again_after_the_others_and_then_left():
    freed, kept = raising(RunHeld("held by a")), raising(*[RunHeld("held by b")] * 9)
    assert run_all({"freed": freed, "kept": kept, "good": raising()}) == Outcome([], ["kept: held by b"])


def test_a_signal_stops_the_list():
    with pytest.raises(Interrupted):
        run_all({"first": raising(Interrupted("SIGTERM")), "second": raising(AssertionError("was started"))})


def small(results, *arguments):
    settings = ["--rank", "3", "--batch-size", "16", "--evaluation-size", "64", "--device", "cpu"]
    return [*settings, "--results", str(results), "--name", "shared", "--train-steps", "30", *arguments]


def test_two_processes_share_a_study(tmp_path):
    command = [sys.executable, str(SCRIPT), *small(tmp_path, "--strategies", "baseline", "random", "--seeds", "0-1")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    trained = [re.findall(r"^(\w+ seed \d): step 30/30", error, re.MULTILINE) for error in errors]
    assert all(trained)
    assert sorted(trained[0] + trained[1]) == ["baseline seed 0", "baseline seed 1", "random seed 0", "random seed 1"]
    assert any(f"held by process {process.pid} on" in errors[0] + errors[1] for process in processes)
    assert len((tmp_path / "shared.runs.csv").read_text().splitlines()) == 1 + 2 * 4


def test_a_result_that_came_before_the_claim_is_kept(tmp_path, monkeypatch):
    class LateClaim(Claim):
        def __init__(self, folder):
            (folder / "result.json").write_text('{"status": "finished", "by": "another process"}')
            super().__init__(folder)

    monkeypatch.setattr(run, "Claim", LateClaim)
    config = ExperimentConfig(rank=3, train_steps=2)
    result = run.run_experiment("baseline", 0, config, config.mining_config("none"), tmp_path, "cpu")
    assert result == {"status": "finished", "by": "another process"}
    assert not (tmp_path / "last.pt").exists()


@pytest.fixture
def mixed(tmp_path):
    """A study with a finished, a damaged, a held, an interrupted, a deceased, a failed and a waiting run."""
    folders = [tmp_path / "shared" / "runs" / "baseline" / f"seed-{k}" for k in range(7)]
    assert main(small(tmp_path, "--strategies", "baseline", "--task", "0")) == 0
    for folder in folders[1:6]:
        folder.mkdir(parents=True)
        (folder / "last.pt").write_bytes(b"damaged")
    return tmp_path, folders


def test_status_and_what_other_runs_do_not_stop(mixed, capsys):
    results, folders = mixed
    write_claim(folders[2], **OTHER, job="5", step=10, steps_per_second=4.0)
    write_claim(folders[3], released=True, step=12)
    write_claim(folders[4], **dead_process(), host="here", step=14)
    (folders[5] / "result.json").write_text(json.dumps({"status": "failed", "reason": "the loss is not finite"}))
    write_claim(folders[1], released=True, error="last.pt cannot be read", step=3)
    lines = {line.split()[2]: line for line in status_table(results / "shared", folders).splitlines() if "seed" in line}
    assert re.search(r"finished +30/30", lines["0"])
    assert re.search(r"error +3/30 +last.pt cannot be read", lines["1"])
    assert re.search(r"running +10/30 +4 +5 s +process 1 on node7, job 5, heard \d s ago", lines["2"])
    assert re.search(r"interrupted +12/30$", lines["3"].rstrip())
    assert re.search(r"interrupted +14/30 +process \d+ on here, died", lines["4"])
    assert re.search(r"failed +the loss is not finite", lines["5"])
    assert lines["6"].split()[3:] == ["waiting"]

    capsys.readouterr()
    for folder in folders[3:6]:
        shutil.rmtree(folder)
    assert main(small(results, "--strategies", "baseline", "--seeds", "0-3")) == 2
    shown = capsys.readouterr()
    assert re.search(r"^failed: baseline seed 1: .*last.pt cannot be read as a checkpoint", shown.err, re.MULTILINE)
    assert "left to its holder: baseline seed 2: held by process 1 on node7, job 5" in shown.err
    assert "this report is partial, without the 2 runs that have not ended" in shown.err
    assert (folders[3] / "result.json").exists()
    assert (folders[1] / "last.pt").read_bytes() == b"damaged"
    assert main(small(results, "--status", "--strategies", "baseline", "--seeds", "0-3")) == 0
    assert "4 runs: 2 finished, 1 error, 1 running" in capsys.readouterr().out


def test_fresh_waits_for_no_one(tmp_path):
    folder = tmp_path / "runs" / "baseline" / "seed-0"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    write_claim(folder, **OTHER)
    with pytest.raises(ConfigError, match="held by process 1 on node7"):
        delete_study(tmp_path)
    write_claim(folder, released=True)
    delete_study(tmp_path)
    assert not tmp_path.exists()


def test_a_requeued_job_keeps_what_it_made_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "write_report", lambda *_: None)
    arguments = small(tmp_path, "--fresh", "--strategies", "baseline")
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
        last.write_text("{}")

    monkeypatch.setattr(comparison, "write_report", write_report)

    def run_experiment(arm, seed, config, mining_config, folder, device):
        if seed == 0:
            return run.run_experiment(arm, seed, config, mining_config, folder, device)
        folder.mkdir(parents=True, exist_ok=True)
        raise RunHeld("held by another process")

    monkeypatch.setattr(comparison, "run_experiment", run_experiment)
    assert main(small(tmp_path, "--strategies", "baseline", "--seeds", "0-1")) == 0
    assert seen == [1, 2]


@pytest.mark.parametrize(("task", "message"), [("6", "task is 6; allowed: 0 to 5"), ("-1", "task is -1")])
def test_a_task_beyond_the_runs_is_refused(tmp_path, task, message):
    with pytest.raises(ConfigError, match=message):
        main(small(tmp_path, "--seeds", "0-1", "--task", task))


def test_a_task_does_not_delete_what_others_made(tmp_path):
    with pytest.raises(ConfigError, match="--fresh would delete the runs of the other tasks"):
        main(small(tmp_path, "--task", "0", "--fresh"))


def test_a_run_is_trained_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="once for each GPU"):
        main(small(tmp_path))


def test_durations():
    assert [duration(s) for s in (0.2, 119, 121, 3600, 7500)] == ["1 s", "119 s", "3 min", "1 h 00 min", "2 h 05 min"]

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
from diffusion_lib.system import lock as locks
from diffusion_lib.system.errors import CheckpointError, ConfigError, Interrupted, exit_status
from diffusion_lib.system.lock import RunHeld, RunLock, held_by
from diffusion_lib.training.run_folder import ended_runs
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.matrix_inversion_mining_comparison import main
from experiments.study import run
from experiments.study.run_list import Outcome, delete_study, run_all
from experiments.study.status import duration, status_table

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "matrix_inversion_mining_comparison.py"
TAKERS, ROUNDS = 12, 40

# The processes of these tests hold no tensors, so forking them is safe, and spares each the import of torch.
fork = multiprocessing.get_context("fork")


def take_all(folders, barrier, queue):
    """Try each folder at the same moment as the other takers, and keep what was got."""
    kept = []
    for folder in folders:
        barrier.wait()
        try:
            kept.append(RunLock(folder).__enter__())
        except RunHeld:
            kept.append(None)
    barrier.wait()  # nobody is gone, which would free its locks, before all have tried
    queue.put([lock is not None for lock in kept])


def hold(folder, ready):
    with RunLock(folder):
        ready.set()
        time.sleep(100)


@pytest.fixture
def holder():
    """Starts a process that holds the run of a folder."""
    started = []

    def start(folder):
        ready = fork.Event()
        process = fork.Process(target=hold, args=(folder, ready))
        process.start()
        started.append(process)
        assert ready.wait(20)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_one_of_many_takers_wins(tmp_path):
    folders = [tmp_path / str(i) for i in range(ROUNDS)]
    barrier, queue = fork.Barrier(TAKERS), fork.Queue()
    takers = [fork.Process(target=take_all, args=(folders, barrier, queue)) for _ in range(TAKERS)]
    for taker in takers:
        taker.start()
    got = [queue.get(timeout=60) for _ in takers]
    for taker in takers:
        taker.join()
    assert [sum(won) for won in zip(*got, strict=True)] == [1] * ROUNDS


def test_a_held_run_names_its_holder_and_is_free_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    name = f"process {os.getpid()} on {os.uname().nodename}, job 17"
    with RunLock(tmp_path):
        assert held_by(tmp_path) == name
        with pytest.raises(RunHeld, match=f"held by {name}"), RunLock(tmp_path):
            pass
        assert held_by(tmp_path) == name
    assert held_by(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_a_suspended_holder_keeps_its_run_and_a_killed_one_frees_it(tmp_path, holder):
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(RunHeld, match=f"held by process {process.pid} on"), RunLock(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert held_by(tmp_path) is None
    with RunLock(tmp_path) as lock:
        lock.check()


def test_a_holder_that_lost_its_run_writes_nothing(tmp_path):
    """As where a network file system dropped the lock of a machine that slept."""
    with pytest.raises(RunHeld, match="taken over by process 1 on node7"), RunLock(tmp_path) as lock:
        lock.check()
        (tmp_path / "lock").write_text(json.dumps({"holder": "process 1 on node7", "token": "another"}))
        lock.note({"step": 40})
        lock.check()
    assert not (tmp_path / "progress.json").exists()
    with pytest.raises(RunHeld, match="ended by another"), RunLock(tmp_path) as lock:
        (tmp_path / "result.json").write_text("{}")
        lock.check()
    with pytest.raises(RunHeld, match="taken over by another process"), RunLock(tmp_path / "gone") as lock:
        shutil.rmtree(tmp_path / "gone")
        lock.check()


def test_training_that_lost_its_run_leaves_its_files(tmp_path, monkeypatch):
    config = ExperimentConfig(rank=3, train_steps=20, batch_size=4, evaluation_size=8)

    def lose(_self, _row):
        (tmp_path / "lock").write_text("another's mark")
        (tmp_path / "last.pt").write_bytes(b"another's")

    monkeypatch.setattr(RunLock, "note", lose)
    with pytest.raises(RunHeld, match="taken over"):
        run.run_experiment("baseline", 0, config, config.mining_config("none"), tmp_path, "cpu")
    assert (tmp_path / "last.pt").read_bytes() == b"another's"
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), *(OSError(n, "no") for n in locks.NO_LOCKS)])
def test_a_file_system_without_locks_is_said_with_the_way_out(tmp_path, monkeypatch, error):
    def refuse(_self):
        raise error

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with pytest.raises(ConfigError, match="has no locks; --no-lock trains without"), RunLock(tmp_path):
        pass
    with RunLock(tmp_path, use_lock=False) as lock:
        lock.check()


def test_another_error_of_the_lock_is_shown_as_it_is(tmp_path, monkeypatch):
    def refuse(_self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with pytest.raises(PermissionError), RunLock(tmp_path):
        pass


def test_a_disk_too_full_for_the_mark_leaves_the_run_to_the_next(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"), RunLock(tmp_path):
        pass
    monkeypatch.undo()
    with RunLock(tmp_path):
        pass


def test_the_next_holder_removes_what_a_killed_writer_left(tmp_path):
    (tmp_path / ".last.pt.0a1b2c3d.tmp").write_bytes(b"half")
    (tmp_path / ".notes").write_text("a user's")
    with RunLock(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "lock"]


def test_progress_and_errors_are_told(tmp_path):
    with pytest.raises(CheckpointError), RunLock(tmp_path) as lock:
        lock.note({"step": 10})
        lock.note({"step": 30})
        raise CheckpointError("last.pt is damaged")
    told = json.loads((tmp_path / "progress.json").read_text())
    assert told["step"] == 30 and told["steps_per_second"] > 0 and told["error"] == "last.pt is damaged"
    with pytest.raises(Interrupted), RunLock(tmp_path) as lock:
        lock.reached(7)
        raise Interrupted("SIGTERM")
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 7, "steps_per_second": None}


def test_progress_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks, "write_json", full)
    with RunLock(tmp_path) as lock:
        lock.note({"step": 10})


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
    assert len((tmp_path / "shared.runs.csv").read_text().splitlines()) == 1 + 2 * 4


def test_a_result_that_came_before_the_lock_is_kept(tmp_path, monkeypatch):
    ended = {"status": "failed", "reason": "by another process", "strategy": "baseline", "seed": 0}

    class LateLock(RunLock):
        def __enter__(self):
            entered = super().__enter__()
            (tmp_path / "result.json").write_text(json.dumps(ended))
            return entered

    monkeypatch.setattr(run, "RunLock", LateLock)
    config = ExperimentConfig(rank=3, train_steps=2)
    result = run.run_experiment("baseline", 0, config, config.mining_config("none"), tmp_path, "cpu")
    assert result == ended
    assert not (tmp_path / "last.pt").exists()


def end(state):
    if state == "held":
        raise RunHeld("held by a third")
    return {"status": state, "reason": "diverged"}


def test_processes_at_once_agree_on_what_is_left():
    states = {"a": "finished", "b": "failed", "c": "held"}
    runs = {name: partial(end, state) for name, state in states.items()}
    assert run_all(runs, at_once=2, threads=1) == Outcome({"b": "diverged"}, {"c": "held by a third"})


DIVERGED = {"status": "failed", "reason": "the loss is not finite", "strategy": "baseline", "seed": 5}


@pytest.fixture
def mixed(tmp_path):
    """A study with a finished, a damaged, a held, two interrupted, a failed, a waiting and a misshapen run."""
    folders = [tmp_path / "shared" / "runs" / "baseline" / f"seed-{k}" for k in range(8)]
    assert main(small(tmp_path, "--strategies", "baseline", "--task", "0")) == 0
    for folder in folders[1:6]:
        folder.mkdir(parents=True)
        (folder / "last.pt").write_bytes(b"damaged")
    folders[7].mkdir()
    (folders[7] / "result.json").write_text('{"status": "finished"}')
    return tmp_path, folders


def tell(folder, **content):
    (folder / "progress.json").write_text(json.dumps(content))


def test_status_and_what_other_runs_do_not_stop(mixed, holder, capsys):
    results, folders = mixed
    pid = holder(folders[2]).pid
    tell(folders[2], step=10, steps_per_second=4.0)
    tell(folders[3], step=12)
    (folders[4] / "progress.json").write_text("[1]")
    (folders[5] / "result.json").write_text(json.dumps(DIVERGED))
    tell(folders[1], error="last.pt cannot be read", step=3)
    lines = {line.split()[2]: line for line in status_table(results / "shared", folders).splitlines() if "seed" in line}
    assert re.search(r"finished +30/30", lines["0"])
    assert re.search(r"error +3/30 +last.pt cannot be read", lines["1"])
    assert re.search(rf"running +10/30 +4 +5 s +process {pid} on .*, heard \d s ago", lines["2"])
    assert re.search(r"interrupted +12/30$", lines["3"].rstrip())
    assert re.search(r"interrupted +0/30$", lines["4"].rstrip())
    assert re.search(r"failed +the loss is not finite", lines["5"])
    assert lines["6"].split()[3:] == ["waiting"]
    assert re.search(r"error .*result.json is no result of a run: see its strategy, seed, samplers", lines["7"])

    capsys.readouterr()
    for folder in folders[3:6]:
        shutil.rmtree(folder)
    assert main(small(results, "--strategies", "baseline", "--seeds", "0-3,7")) == 2
    shown = capsys.readouterr()
    assert re.search(r"^failed: baseline seed 1: .*last.pt cannot be read as a checkpoint", shown.err, re.MULTILINE)
    assert re.search(r"^failed: baseline seed 7: .*is no result of a run", shown.err, re.MULTILINE)
    assert f"left to its holder: baseline seed 2: held by process {pid} on" in shown.err
    assert "this report is partial, without the 3 runs that have not ended" in shown.err
    assert (folders[3] / "result.json").exists()
    assert (folders[1] / "last.pt").read_bytes() == b"damaged"
    assert main(small(results, "--status", "--strategies", "baseline", "--seeds", "0-3,7")) == 0
    assert "5 runs: 2 finished, 2 error, 1 running" in capsys.readouterr().out


def test_a_command_that_finds_all_runs_held_says_so_and_is_not_done(tmp_path, holder, capsys):
    holder(tmp_path / "shared" / "runs" / "baseline" / "seed-0")
    assert main(small(tmp_path, "--strategies", "baseline")) == 75
    assert "nothing was trained, since other processes have these runs" in capsys.readouterr().err


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
        last.write_text(json.dumps(DIVERGED | {"seed": 1}))
        (last.parent / "config.json").write_text('{"config": {}}')

    monkeypatch.setattr(comparison, "write_report", write_report)

    def run_experiment(strategy, seed, config, mining_config, folder, *rest, **options):
        if seed == 0:
            return run.run_experiment(strategy, seed, config, mining_config, folder, *rest, **options)
        folder.mkdir(parents=True, exist_ok=True)
        raise RunHeld("held by another process")

    monkeypatch.setattr(comparison, "run_experiment", run_experiment)
    assert main(small(tmp_path, "--strategies", "baseline", "--seeds", "0-1")) == 0
    assert seen == [1, 2]


@pytest.mark.parametrize(("task", "message"), [("8", "task is 8; allowed: 0 to 7"), ("-1", "task is -1")])
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

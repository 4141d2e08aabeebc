"""The lock of a run: one process holds it, a dead one frees it, and who lost it writes nothing."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from diffusion_lib.config import configure
from diffusion_lib.system import lock as locks
from diffusion_lib.system.errors import CheckpointError, ConfigError, Interrupted
from diffusion_lib.system.lock import RunHeld, RunLock, held_by
from experiments.study import run
from experiments.study.status import run_status

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


def test_an_error_of_the_file_system_is_no_answer(tmp_path, monkeypatch):
    """Neither that nobody has the run, nor that another process took it over."""

    def stale(path, *_, **__):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with pytest.raises(OSError, match="Stale file handle"), RunLock(tmp_path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(locks.fcntl, "flock", stale)
            with pytest.raises(OSError, match="Stale file handle"):
                held_by(tmp_path)
            assert run_status(tmp_path, 10)[0] == "unknown"
        monkeypatch.setattr(Path, "read_text", stale)
        lock.check()


def test_training_that_lost_its_run_leaves_its_files(tmp_path, monkeypatch):
    config = configure({"rank": 3, "train_steps": 20, "batch_size": 4, "evaluation_size": 8, "mode": "none"})

    def lose(_self, _row):
        (tmp_path / "lock").write_text("another's mark")
        (tmp_path / "last.pt").write_bytes(b"another's")

    monkeypatch.setattr(RunLock, "note", lose)
    with pytest.raises(RunHeld, match="taken over"):
        run.run_experiment("baseline", 0, config, tmp_path, "cpu")
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


def test_a_result_that_came_before_the_lock_is_kept(tmp_path, monkeypatch):
    ended = {"status": "failed", "reason": "by another process", "strategy": "baseline", "seed": 0}

    class LateLock(RunLock):
        def __enter__(self):
            entered = super().__enter__()
            (tmp_path / "result.json").write_text(json.dumps(ended))
            return entered

    monkeypatch.setattr(run, "RunLock", LateLock)
    config = configure({"rank": 3, "train_steps": 2, "mode": "none"})
    result = run.run_experiment("baseline", 0, config, tmp_path, "cpu")
    assert result == ended
    assert not (tmp_path / "last.pt").exists()

"""Signals at any moment of a command: everything saved, exit status 75, once."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import make_trainer

import train
from diffusion_lib.system.errors import Interrupted, exit_status
from diffusion_lib.system.signals import SIGNALS, stop_requests
from experiments import matrix_inversion_mining_comparison as comparison

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_outside_the_training_loop_is_status_75(number, capsys):
    with pytest.raises(SystemExit) as stop, exit_status():
        signal.raise_signal(number)
    assert stop.value.code == 75
    assert capsys.readouterr().err == f"stopped: {number.name}; the same command continues from what is saved\n"


def test_a_second_signal_changes_nothing():
    """As Slurm sends it: to the program, and to the job's script, which forwards it."""
    ran = []
    with pytest.raises(SystemExit) as stop, exit_status():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ran.append("what was to be cleaned up")
    signal.raise_signal(signal.SIGTERM)  # while the interpreter ends
    assert stop.value.code == 75
    assert ran


def test_no_handler_of_failures_takes_a_signal_for_one():
    with pytest.raises(Interrupted):
        try:
            raise Interrupted("SIGTERM")
        except Exception:
            pytest.fail("taken for a failure")


def test_what_acted_before_acts_again_afterwards():
    def handler(*_):
        pass

    for number in SIGNALS:
        signal.signal(number, handler)
    with exit_status(), stop_requests():
        pass
    with pytest.raises(SystemExit), exit_status():
        raise OSError("full")
    assert all(signal.getsignal(number) is handler for number in SIGNALS)


def test_a_request_too_late_for_the_loop_is_not_lost():
    with pytest.raises(SystemExit) as stop, exit_status(), stop_requests() as request:
        signal.raise_signal(signal.SIGUSR1)
        assert request.name == "SIGUSR1"
    assert stop.value.code == 75


def test_a_request_is_not_lost_where_the_run_fails_meanwhile(tmp_path):
    """Else the study would go on with its next run."""

    def fail(_row):
        signal.raise_signal(signal.SIGUSR1)
        raise OSError("the disk is full")

    with pytest.raises(SystemExit) as stop, exit_status():
        make_trainer(tmp_path, on_log=fail).train()
    assert stop.value.code == 75


def test_a_signal_in_the_last_step_stops_after_saving(tmp_path):
    trainer = make_trainer(tmp_path, on_log=lambda row: row["step"] == 12 and signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(Interrupted, match="SIGUSR1 at step 12"):
        trainer.train()
    again = make_trainer(tmp_path)
    again.load("last")
    assert again.step == 12
    assert [row["step"] for row in again.train()] == [3, 4, 6, 8, 9, 12]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_program_that_forgets_nothing_ends_with_75(name):
    program = (
        "import os, signal; from diffusion_lib.system.errors import exit_status\n"
        f"with exit_status(): os.kill(os.getpid(), signal.{name})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (75, f"stopped: {name}; the same command continues from what is saved\n")


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "a script's &"])
def test_what_was_ignored_stays_ignored(ignored):
    signal.signal(ignored, signal.SIG_IGN)
    with exit_status(), stop_requests() as request:
        signal.raise_signal(ignored)
        assert request.name is None


@pytest.mark.parametrize("listens", ["with stop_requests(): ", ""], ids=["training", "elsewhere"])
def test_the_second_ctrl_c_ends_at_once(listens):
    again = "try: os.kill(os.getpid(), 2)\n    finally: os.kill(os.getpid(), 2); time.sleep(60)"
    program = (
        "import os, time; from diffusion_lib.system.errors import exit_status\n"
        "from diffusion_lib.system.signals import stop_requests\n"
        f"with exit_status():\n  {listens or 'if True: '}\n    {again}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_training_in_a_thread_catches_no_signals(tmp_path):
    errors = []

    def work():
        try:
            with exit_status():
                make_trainer(tmp_path, train_num_steps=2).train()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


SCRIPTS = (ROOT / "train.py", *(ROOT / "experiments").glob("*.py"))
COMMANDS = [path for path in SCRIPTS if "startup.run(" in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_listens_to_ctrl_c_before_it_imports_torch(path):
    """The slow import stands for a module that each command imports after its start."""
    program = (
        "import os, runpy, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'numpy', 'scipy', 'tabulate'): os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Slow())\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stopped: SIGINT before anything was begun\n")


class FullDisk:
    """A stream whose disk is full."""

    def isatty(self):
        return False

    def write(self, _text):
        raise OSError("No space left on device")


@pytest.mark.parametrize("stderr", [FullDisk(), None], ids=["full", "absent"])
@pytest.mark.parametrize("command", [train.main, comparison.main], ids=["train", "comparison"])
def test_a_line_that_cannot_be_written_harms_nobody(tmp_path, monkeypatch, command, stderr):
    small = ["--rank", "2", "--train-steps", "3", "--batch-size", "2", "--evaluation-size", "4", "--device", "cpu"]
    if command is train.main:
        own = ["--results-folder"]
    else:
        own = ["--strategies", "baseline", "--seeds", "0", "--name", "k", "--results"]
    monkeypatch.setattr(sys, "stderr", stderr)
    assert command([*small, *own, str(tmp_path)]) == 0
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("last.pt"))) == 1

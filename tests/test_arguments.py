"""Command lines: what every command says of itself, and of a word that it cannot take."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train
from diffusion_lib.system.arguments import Parser, directory, whole
from experiments import benchmark, matrix_generalisation, solve
from experiments import matrix_inversion_mining_comparison as comparison
from experiments.study import timing
from experiments.study.flags import parse_command

PATH = Path(comparison.__file__).parent
COMMANDS = (train, comparison, benchmark, matrix_generalisation, solve)
NEEDED = {
    matrix_generalisation: ["--study", "a"],
    solve: ["a", "b"],
}


def parse(command, words):
    return parse_command(command.__doc__, words) if command is comparison else command.parse_arguments(words)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_takes_whole_flags_and_says_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command, ["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert command.__doc__.strip().splitlines()[0] in said and "default" in said
    long = "--overwrite" if command is solve else "--batch-size" if command is benchmark else "--evaluation-size"
    with pytest.raises(SystemExit) as stop:
        parse(command, [*NEEDED.get(command, []), long[:-1], "8"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: ")


WRONG = (
    ("--number=--", "argument --number: its value is '--'"),
    ("--number=1e3", "'1e3' is no whole number from 1 to 9"),
    ("--number=\uff11", "is no whole number from 1 to 9"),  # a digit, but not an ASCII one
    ("--number=" + "1" * 5000, "is no whole number from 1 to 9"),
    ("--folder=", "it is empty; allowed: a folder"),
)


@pytest.mark.parametrize(("word", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_word_is_one_line(word, message, capsys):
    parser = Parser("A command.")
    parser.add_argument("--number", type=whole(1, 9))
    parser.add_argument("--folder", type=directory)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([word])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said and said.count("\n") == 1


def test_check_prints_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP", 0.0)
    monkeypatch.setattr(timing, "LIMIT", 0.0)
    arguments = ["--results", str(tmp_path / "new" / "results"), "--check", "--train-steps", "100", "--seeds", "0-1"]
    # wherever there is no such device: it is the job that needs it
    assert comparison.main(["--vary", "rank=10,20,30", *arguments, "--device", "cuda"]) == 0
    assert capsys.readouterr().out.count("8 runs") == 3
    assert comparison.main([*arguments, "--rank", "3", "--batch-size", "8", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^baseline-compute +2 +2\d\d +\d", shown, re.MULTILINE)
    assert re.search(r"^estimated minutes: [\d.e-]+, ", shown, re.MULTILINE) and "GB or more" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["--preset", "demo", "--pilot"], ["--check", "--status"], ["--model", "sudoku", "--rank", "8"]]
)
def test_what_contradicts_is_refused(words, tmp_path):
    done = subprocess.run(
        [sys.executable, comparison.__file__, *words, "--results", str(tmp_path / "new")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "not allowed with" in done.stderr or "cannot take dataset 'inverse'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "words", "status"),
    [
        ("matrix_inversion_mining_comparison", ["--help"], 0),
        ("matrix_inversion_mining_comparison", ["--rank", "0"], 2),
        ("matrix_inversion_mining_comparison", ["--model", "nn"], 2),
        ("matrix_inversion_mining_comparison", ["--results", ".", "--preset", "demo", "--status"], 0),
        ("solve", ["--help"], 0),
        ("../train", ["--help"], 0),
        ("../train", ["--rank", "0"], 2),
    ],
)
def test_what_needs_no_model_imports_no_torch(script, words, status, tmp_path):
    """Its import takes seconds. The study of the status is one that was just begun."""
    study = tmp_path / "demo-mlp"
    (study / "runs").mkdir(parents=True)
    (study / "config.json").write_text('{"config": {"train_steps": 650}}')
    (study / "study.toml").write_text("[strategies]\nbaseline = { mode = 'none' }\n")
    program = (
        f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {[script, *words]!r}\n"
        f"runpy.run_path({str(PATH / script)!r} + '.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr

"""Command lines: what every command says of itself, and of a word that it cannot take."""

import pytest

import train
from diffusion_lib.system.arguments import Parser, directory, whole
from experiments import ablations, benchmark, matrix_generalisation, paired_studies, solve, tuned_comparison
from experiments import matrix_inversion_mining_comparison as comparison

COMMANDS = (train, comparison, ablations, benchmark, matrix_generalisation, paired_studies, solve, tuned_comparison)
NEEDED = {
    ablations: ["opt_steps"],
    matrix_generalisation: ["--study", "a"],
    paired_studies: ["a", "b"],
    solve: ["a", "b"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_takes_whole_flags_and_says_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command.parse_arguments(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert command.__doc__.strip().splitlines()[0] in said and "default" in said
    long = "--overwrite" if command is solve else "--metric" if command is paired_studies else "--evaluation-size"
    long = "--batch-size" if command is benchmark else long
    with pytest.raises(SystemExit) as stop:
        command.parse_arguments([*NEEDED.get(command, []), long[:-1], "8"])
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


def test_check_trains_and_writes_nothing(tmp_path, capsys):
    arguments = ["--results", str(tmp_path), "--device", "cuda", "--check"]
    assert comparison.main(arguments) == 0  # wherever there is no such device: it is the job that needs it
    assert ablations.main(["rank", *arguments]) == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""

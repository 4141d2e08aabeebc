"""The pages' tables and words are those of the published runs."""

from pathlib import Path

import pytest

from diffusion_lib.system.errors import ConfigError
from experiments import published
from experiments.pages import ladder, matrix_energies

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", published.TABLES)
def test_a_page_holds_the_tables_of_the_published_runs(page):
    text = (ROOT / page).read_text()
    for make in published.TABLES[page]:
        missing = [line for line in make(published.PUBLISHED).splitlines() if line not in text]
        assert not missing, f"{page} lacks these lines; python experiments/published.py --write puts them there"


def test_the_answer_in_words_is_that_of_the_published_runs():
    text = " ".join((ROOT / "README.md").read_text().split())
    assert not [phrase for phrase in published.answer_words(published.PUBLISHED) if phrase not in text]


def test_a_table_follows_its_runs(tmp_path):
    """Another number in a run's file is another line."""
    copied = tmp_path / "mlp-cpu-5k.runs.csv"
    for study in matrix_energies.OTHERS:
        text = (published.PUBLISHED / f"{study}.runs.csv").read_text()
        (tmp_path / f"{study}.runs.csv").write_text(text)
    assert matrix_energies.others_table(tmp_path) == matrix_energies.others_table(published.PUBLISHED)
    lines = copied.read_text().splitlines()
    column = lines[0].split(",").index("val_mse")
    row = lines[1].split(",")
    row[column] = "0.5"
    copied.write_text("\n".join([lines[0], ",".join(row), *lines[2:]]) + "\n")
    assert matrix_energies.others_table(tmp_path) != matrix_energies.others_table(published.PUBLISHED)


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n", b"step,loss_denoise\n1\n", b"step,loss_denoise\n1,x\n", b"\xff\xfe"]
)
def test_a_damaged_table_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"metrics\.csv is damaged"):
        ladder.loss_rise(tmp_path)


def test_a_table_takes_the_place_of_the_one_with_its_header():
    page = "Text.\n\n| a   | b |\n|-----|---|\n| old | 1 |\n| old | 2 |\n\n| c |\n|---|\n| 3 |\n"
    new = "| a | b |\n|---|---|\n| 9 | 9 |"
    assert published.with_table(page, new) == "Text.\n\n| a | b |\n|---|---|\n| 9 | 9 |\n\n| c |\n|---|\n| 3 |\n"
    for text in ("no table\n", page + page):
        with pytest.raises(ConfigError, match="tables with the header"):
            published.with_table(text, new)

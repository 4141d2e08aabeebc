"""The pages' tables are those of the published runs."""

from functools import partial
from pathlib import Path

import pytest

from experiments import published

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("page", "make"),
    [
        ("README.md", published.answer_table),
        ("README.md", published.tasks_table),
        ("docs/results.md", published.ladder_table),
        ("docs/results.md", published.rises_table),
        ("docs/results.md", published.tuned_table),
        *(("docs/results.md", partial(published.secondary_table, metric)) for metric in published.LADDER_METRICS[1:]),
        ("docs/results.md", published.tasks_details),
        ("docs/results.md", published.other_studies_table),
        ("docs/results.md", published.scale_table),
    ],
)
def test_a_page_holds_the_table_of_the_published_runs(page, make):
    missing = [line for line in make().splitlines() if line not in (ROOT / page).read_text()]
    assert not missing, f"{page} lacks these lines; python experiments/published.py prints them"


def test_the_answer_in_words_is_that_of_the_published_runs():
    text = " ".join((ROOT / "README.md").read_text().split())
    words = published.ladder_words() + published.tuned_words() + published.task_words()
    assert not [phrase for phrase in words if phrase not in text]


def test_a_table_follows_its_runs(tmp_path):
    """Another number in a run's file is another line."""
    copied = tmp_path / "mlp-cpu-5k.runs.csv"
    for study in published.OTHER_STUDIES:
        text = (published.PUBLISHED / f"{study}.runs.csv").read_text()
        (tmp_path / f"{study}.runs.csv").write_text(text)
    assert published.other_studies_table(tmp_path) == published.other_studies_table()
    lines = copied.read_text().splitlines()
    column = lines[0].split(",").index("val_mse")
    row = lines[1].split(",")
    row[column] = "0.5"
    copied.write_text("\n".join([lines[0], ",".join(row), *lines[2:]]) + "\n")
    assert published.other_studies_table(tmp_path) != published.other_studies_table()

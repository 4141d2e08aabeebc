"""The pages' tables are those of the frozen studies, and what is frozen stays small and can be read."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from diffusion_lib.system.errors import ConfigError, exit_status
from experiments.analysis.runs import long_form, wide_form
from experiments.study.flags import parse_command
from results import figure, phrases, tables

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(path.parent for path in tables.PUBLISHED.glob("*/study.toml"))
MAKERS = [(page, make) for page, makers in tables.TABLES.items() for make in makers]
MOST_FILES, MOST_BYTES, MOST_FIGURES = 250, 6_000_000, 3


def name_of(make) -> str:
    return (
        make.__name__
        if hasattr(make, "__name__")
        else "-".join(map(str, (make.func.__name__, *make.keywords.values())))
    )


@pytest.mark.parametrize(("page", "make"), MAKERS, ids=[name_of(make) for _, make in MAKERS])
def test_a_page_holds_the_table_of_the_frozen_runs(page, make):
    text = (ROOT / page).read_text()
    made = tables.with_table(text, make(tables.PUBLISHED), page)
    differing = [line for line in made.splitlines() if line not in text.splitlines()]
    assert not differing, f"{page} lacks these lines; python results/tables.py --write puts them there"
    assert made == text


@pytest.mark.parametrize("page", phrases.PHRASES)
def test_a_pages_sentences_hold_the_numbers_of_the_frozen_runs(page):
    text = " ".join((ROOT / page).read_text().split())
    assert [phrase for phrase in phrases.PHRASES[page](tables.PUBLISHED) if phrase not in text] == []


def test_another_number_in_a_runs_csv_is_another_table(tmp_path):
    shutil.copytree(tables.PUBLISHED / "matrix-cpu-1k", tmp_path / "matrix-cpu-1k")
    same = tables.matrix_table(tmp_path)
    assert same == tables.matrix_table(tables.PUBLISHED)
    path = tmp_path / "matrix-cpu-1k" / "runs.csv"
    frame = pd.read_csv(path)
    chosen = (frame["metric"] == "val_mse") & (frame["strategy"] == "baseline") & (frame["sampler"] == "plain")
    frame.loc[frame.index[chosen][0], "value"] = 0.5
    frame.to_csv(path, index=False)
    tables.study.cache_clear()
    before, after = (
        list(map(tables.header_words, text.splitlines())) for text in (same, tables.matrix_table(tmp_path))
    )
    changed = [row[1:3] for row, old in zip(after, before, strict=True) if row != old and "--" not in row[1]]
    assert changed == [[name, "plain"] for name in tables.INVERSION]  # its row, the ratios to it


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_frozen_study_is_declared_by_a_file_that_can_be_read(folder):
    study = parse_command("", ["--study", str(folder / "study.toml"), "--name", folder.name]).study
    known = {**study.variants(), **(study.search_study().variants() if study.search else {})}
    runs = pd.read_csv(folder / "runs.csv")
    assert set(wide_form(runs)["strategy"]) <= set(known)
    assert set(runs["strategy"]) <= {each.origin for each in study.strategies.values()}
    assert set(runs["seed"]) <= set(study.seeds)


@pytest.mark.parametrize("name", ["ladder", "ablation-opt_steps-matrix"])
def test_a_long_table_and_the_wide_one_say_the_same(name):
    """Where what varies is the budget too, which `train_steps` already is."""
    folder = tables.PUBLISHED / name
    table = pd.read_csv(folder / "runs.csv")
    study = parse_command("", ["--study", str(folder / "study.toml"), "--name", name]).study
    again, keys = long_form(wide_form(table), study), ["run", "sampler", "metric"]
    pd.testing.assert_frame_equal(*(each.sort_values(keys, ignore_index=True) for each in (again, table)))


def test_the_readmes_figure_is_drawn_from_the_frozen_runs(tmp_path, monkeypatch):
    for name in ("sizes-6", "matrix-free-tuned"):
        shutil.copytree(tables.PUBLISHED / name, tmp_path / name)
    shutil.copy(tables.PUBLISHED / "references.csv", tmp_path)
    monkeypatch.setattr(figure, "PUBLISHED", tmp_path)
    figure.main([])
    drawn, published = (imread(folder / "answer.png") for folder in (tmp_path, tables.PUBLISHED))
    assert drawn.shape == published.shape and np.abs(drawn - published).mean() < 1e-3


def test_what_is_frozen_is_small():
    files = [path for path in tables.PUBLISHED.rglob("*") if path.is_file()]
    assert len(files) <= MOST_FILES
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    for folder in STUDIES:
        assert {"study.toml", "runs.csv", "report.md"} <= {path.name for path in folder.iterdir()}
        assert len(list(folder.glob("*.png"))) <= MOST_FIGURES
        assert not [path for path in folder.iterdir() if path.suffix not in (".toml", ".csv", ".md", ".png", ".xz")]


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n", b"strategy,seed,train_steps\nbaseline,0,5\n", b"\xff\xfe", b"strategy,value\nx,y\n"]
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, content):
    shutil.copytree(tables.PUBLISHED / "ladder", tmp_path / "ladder")
    for name, make in (("runs.csv", tables.ladder_means_table), ("curves.csv", tables.rises_table)):
        (tmp_path / "ladder" / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name) as error:
            make(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(value=-frame["value"]), "no val_mse has such a value"),
        (lambda frame: pd.concat([frame, frame.assign(value=1.0)]), "duplicate entries"),
        (lambda frame: frame[frame["metric"] != "val_mse"], "no val_mse"),
        (lambda frame: frame[~frame["strategy"].str.startswith("adv")], "of adversarial it has nothing"),
    ],
)
def test_runs_that_cannot_be_are_refused(tmp_path, change, message):
    folder = tmp_path / "matrix-free-1200"
    shutil.copytree(tables.PUBLISHED / folder.name, folder)
    change(pd.read_csv(folder / "runs.csv")).to_csv(folder / "runs.csv", index=False)
    with pytest.raises(ConfigError, match=message):
        tables.free_table(tmp_path, folder.name, "strategy")


def test_a_missing_study_ends_the_command_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path)
    with pytest.raises(SystemExit) as ended, exit_status():
        tables.main([])
    assert ended.value.code == 2
    assert "sizes-6/study.toml cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_a_table_takes_the_place_of_the_one_with_its_header():
    page = "Text.\n\n| a   | b |\n|-----|---|\n| old | 1 |\n| old | 2 |\n\n| c |\n|---|\n| 3 |\n"
    new = "| a | b |\n|---|---|\n| 9 | 9 |"
    assert tables.with_table(page, new) == "Text.\n\n| a | b |\n|---|---|\n| 9 | 9 |\n\n| c |\n|---|\n| 3 |\n"
    for text in ("no table\n", page + page):
        with pytest.raises(ConfigError, match="tables with the header"):
            tables.with_table(text, new)

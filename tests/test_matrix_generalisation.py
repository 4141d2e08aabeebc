"""How far a study's trained weights carry: the files of experiments/matrix_generalisation.py."""

import csv

import pytest

from diffusion_lib.config import ExperimentConfig
from diffusion_lib.evaluation import EvaluationSet
from diffusion_lib.names import SAMPLERS
from diffusion_lib.tasks import Inverse
from experiments import matrix_generalisation
from experiments import matrix_inversion_mining_comparison as comparison
from tests.conftest import small_study


@pytest.fixture
def study(tmp_path, monkeypatch, request):
    request.getfixturevalue("cheap_report")
    monkeypatch.setattr("experiments.speed.timing.WARM_UP", 0.0)
    comparison.main(small_study(tmp_path, "--model", "matrix", "--seeds", "0", "--strategies", "baseline", "random"))
    matrix_generalisation.main(
        ["--study", "shared", "--results", str(tmp_path), "--evaluation-size", "40", "--repeats", "1"]
    )
    return tmp_path / "shared"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_and_sampler_is_judged_at_every_size_and_ridge(study):
    each = {(strategy, sampler) for strategy in ("baseline", "random") for sampler in SAMPLERS}
    sizes, ridges, scales = (rows(study / f"{name}.csv") for name in ("sizes", "ridge", "scale"))
    assert {int(row["n"]) for row in sizes} == set(matrix_generalisation.SIZES)
    assert {float(row["ridge"]) for row in ridges} == set(matrix_generalisation.RIDGES)
    for table in (sizes, ridges, scales):
        assert {(row["strategy"], row["sampler"]) for row in table if row["sampler"] != "reference"} == each
    trained = [row for row in ridges if float(row["ridge"]) == 0.5 and row["sampler"] != "reference"]
    assert [float(row["mse"]) for row in scales] == pytest.approx([float(row["mse"]) for row in trained])
    assert len(rows(study / "timing.csv")) == len(SAMPLERS) + 2


@pytest.mark.usefixtures("cheap_report")
def test_what_was_measured_is_written_whatever_becomes_of_the_printed_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.speed.timing.WARM_UP", 0.0)
    comparison.main(small_study(tmp_path, "--model", "mlp", "--seeds", "0", "--strategies", "baseline"))
    arguments = ["--study", "shared", "--results", str(tmp_path), "--evaluation-size", "4", "--repeats", "1"]
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(OSError, match="standard output"):
            matrix_generalisation.main(arguments)
    assert {path.name for path in (tmp_path / "shared").glob("*.csv")} == {"ridge.csv", "scale.csv", "timing.csv"}


def test_an_answer_that_is_right_but_for_a_factor_has_no_error_without_it(monkeypatch):
    chosen = EvaluationSet(Inverse("val", 3), 40, "cpu")
    monkeypatch.setattr(matrix_generalisation, "solutions", lambda *_: 0.8 * chosen.target)
    config = ExperimentConfig(rank=3)
    for row in matrix_generalisation.scale_rows({("baseline", 0): None}, config, 40):
        assert row["scale"] == pytest.approx(1.25)
        assert row["mse"] == pytest.approx(0.04 * chosen.target.square().mean().item())
        assert row["mse_rescaled"] == pytest.approx(0, abs=1e-30)

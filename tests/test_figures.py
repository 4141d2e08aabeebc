"""Figures: two formats, colours by name, scales by the data; no global state, and no figure takes the report down."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from conftest import study_of
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from diffusion_lib.evaluation import EvaluationSet
from diffusion_lib.tasks import Addition, Inverse, Parity
from experiments.analysis import figures, landscape_figures, setting_figure
from experiments.analysis.figures import COLORS, drawing, guarded, interval_plot, spans_decades, strategy_colors
from experiments.analysis.landscape_figures import causes_figure, effort_panels, example_figure
from experiments.analysis.metrics import Metric, task_metrics
from experiments.analysis.setting_figure import budget_figure
from experiments.analysis.tables import Results

METRICS = (Metric("val_mse"), Metric("ood_mse"))


@pytest.fixture
def study():
    rows = [
        {
            "strategy": name,
            "seed": seed,
            "sampler": sampler,
            "status": "finished",
            "train_steps": 5,
            "run": f"runs/{name}/seed-{seed}",
            "val_mse": 10.0 ** (i - seed),
            "ood_mse": 1 + 0.1 * seed,
        }
        for i, name in enumerate(("baseline", "random"))
        for seed in range(3)
        for sampler in ("plain", "innerloop")
    ]
    return Results(rows, study_of("baseline", "random"), METRICS)


def test_no_setting_of_the_user_breaks_a_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.bbox: tight\n")
    code = (
        "from diffusion_lib.system import startup; startup.begin()\n"
        "from pathlib import Path; from experiments.analysis.figures import drawing; import matplotlib, sys\n"
        "before = matplotlib.rcParams.copy()\n"
        f"with drawing(Path({str(tmp_path / 'a.png')!r}), (3, 2)) as axes: axes[0, 0].set(title='x_1', yscale='log')\n"
        "assert matplotlib.rcParams == before and 'matplotlib.pyplot' not in sys.modules"
    )
    user = {**os.environ, "MPLBACKEND": "nowhere", "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=user, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


def test_png_and_pdf_and_the_same_again(tmp_path, study):
    before = dict(matplotlib.rcParams.copy())
    path, pdf = tmp_path / "a.png", tmp_path / "a.pdf"
    interval_plot(study, [], path=path)
    first = path.read_bytes(), pdf.read_bytes()
    interval_plot(study, [], path=path)
    assert (path.read_bytes(), pdf.read_bytes()) == first
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")
    assert dict(matplotlib.rcParams.copy()) == before


def test_a_pdf_has_truetype_fonts(tmp_path, study):
    interval_plot(study, [], path=tmp_path / "a.png")
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()


def test_a_strategy_has_one_colour_everywhere():
    alone, among = strategy_colors(["adversarial"]), strategy_colors(["weight=0.5", "random", "adversarial", "x"])
    assert alone["adversarial"] == among["adversarial"] == COLORS["adversarial"]
    assert len(set(among.values())) == 4
    assert not set(COLORS.values()) & set(figures.OTHER_COLORS)
    assert len(set(strategy_colors([f"strategy-{i}" for i in range(40)]).values())) == 40


def test_many_strategies_are_told_apart():
    colors = map(to_rgb, ("white", *strategy_colors([*COLORS, *(f"strategy-{i}" for i in range(12))]).values()))
    assert min(math.dist(one, other) for one, other in combinations(colors, 2)) > 0.2


def test_the_points_of_a_strategy_have_its_colour(monkeypatch, tmp_path, study):
    seen = []
    monkeypatch.setattr(figures, "points_and_interval", lambda *given: seen.append(given[3]))
    interval_plot(Results(study.frame, study_of("random", "baseline"), METRICS), [], path=tmp_path / "a.png")
    assert seen == [COLORS["random"], COLORS["baseline"]] * 2


@pytest.mark.parametrize(
    ("values", "log"),
    [([1, 11], True), ([1, 9], False), ([0, 100], False), ([-1, 100], False), ([np.nan, 1, 99], True), ([], False)],
)
def test_an_axis_is_logarithmic_where_values_span_decades(values, log):
    assert spans_decades(values) is log


def drawn_axes(monkeypatch, tmp_path, study, references=()):
    """The axes of the interval plot, as they are when their ticks are named."""
    axes = []
    monkeypatch.setattr(figures, "name_ticks", lambda axis, _: axes.append(axis))
    interval_plot(study, list(references), path=tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
    return axes


def test_runs_that_are_not_finite_are_counted_in_the_figure(tmp_path, monkeypatch, study):
    frame = study.frame
    one = frame["strategy"].eq("random") & frame["seed"].eq(0) & frame["sampler"].eq("plain")
    frame.loc[one, "val_mse"] = np.nan
    frame.loc[0, "val_mse"] = 0.0
    plain, innerloop = drawn_axes(monkeypatch, tmp_path, study)
    assert [text.get_text() for text in plain.texts] == ["1 exactly 0", "1 not finite"]
    assert not any(text.get_text() for text in innerloop.texts)


def test_errors_have_a_log_axis_and_rates_a_linear_one(tmp_path, monkeypatch, study):
    axes = drawn_axes(monkeypatch, tmp_path, study)
    assert [axis.get_title() for axis in axes] == ["val_mse, plain sampler", "val_mse, innerloop sampler"]
    assert {axis.get_yscale() for axis in axes} == {"log"}
    rows = study.frame.assign(val_accuracy=0.5 + 0.1 * study.frame["seed"])
    rates = Results(rows, study_of("baseline", "random"), (Metric("val_accuracy", rate=True),))
    axes = drawn_axes(monkeypatch, tmp_path, rates)
    assert {axis.get_yscale() for axis in axes} == {"linear"}
    assert {axis.get_ylim() for axis in axes} == {(-0.03, 1.03)}


@pytest.mark.filterwarnings("error")
def test_a_score_below_0_is_drawn_as_it_is(tmp_path, monkeypatch, study):
    rows = study.frame.assign(val_gain=-0.5 - study.frame["seed"])
    scores = Results(rows, study_of("baseline", "random"), (Metric("val_gain", rate=True, share=False),))
    low, high = drawn_axes(monkeypatch, tmp_path, scores)[0].get_ylim()
    assert low < -2.5 and high > -0.5


def test_a_sampler_that_no_run_has_is_no_panel(tmp_path, monkeypatch, study):
    rows = study.frame[study.frame["sampler"] == "plain"]
    axes = drawn_axes(monkeypatch, tmp_path, Results(rows, study_of(*study.strategies), METRICS))
    assert [axis.get_title() for axis in axes] == ["val_mse, plain sampler"]


def test_a_panel_stands_for_each_wrong_answer_that_was_measured(tmp_path, monkeypatch, study):
    drawn = []
    monkeypatch.setattr(landscape_figures, "draw", lambda *given: drawn.append(given[-1]))
    levels = [{"t": t, "auc_random": 1, "auc_adversarial": 1, "auc_other": 1, "auc_mine": 0.5} for t in range(3)]
    rest = {part: [] for part in ("inner_steps", "diffusion_steps", "conditioning")}
    causes_figure(tmp_path, {("baseline", 0): {"levels": levels, **rest}}, study, Inverse, path=tmp_path / "a.png")
    assert drawn == ["auc_other", "auc_mine", "auc_adversarial"]
    assert (tmp_path / "a.png").exists()


def test_many_strategies_leave_the_causes_of_the_verdict(study):
    assert landscape_figures.with_lines(study) == ["baseline", "random"]
    rates = [0.001 * i for i in range(1, 7)]
    labels = [f"{name},learning_rate={rate}" for rate in rates for name in ("baseline", "adversarial")]
    frame = [
        {"strategy": label, "seed": 0, "sampler": sampler, "status": "finished", "train_steps": 5, "val_mse": 1.0}
        for label in labels
        for sampler in ("plain", "innerloop")
    ]
    swept = replace(study_of("baseline", "adversarial"), vary={"learning_rate": rates})
    assert landscape_figures.with_lines(Results(frame, swept, METRICS)) == [
        "adversarial,learning_rate=0.001",
        "baseline,learning_rate=0.001",
    ]


@pytest.mark.parametrize(("metrics", "average"), [(METRICS, 0.02), ((Metric("val_mse", rate=True),), 0.421 / 3)])
def test_effort_shows_geometric_means_of_errors_and_means_of_rates(tmp_path, monkeypatch, study, metrics, average):
    seen = []
    monkeypatch.setattr(landscape_figures, "legend_below", lambda axes, _: seen.extend(axes.flat))
    rest = {part: [] for part in ("levels", "inner_steps", "conditioning")}
    diagnoses = {
        ("baseline", seed): {**rest, "diffusion_steps": [{"diffusion_steps": n, "val_mse": value} for n in (1, 2)]}
        for seed, value in enumerate((0.001, 0.02, 0.4))
    }
    study = Results(study.frame, study_of("baseline", "random"), metrics)
    causes_figure(tmp_path, diagnoses, study, Inverse, path=tmp_path / "a.png")
    (line,) = seen[0].lines
    assert line.get_ydata() == pytest.approx([average] * 2)


def test_effort_has_the_parts_that_were_measured(study):
    places = {"inner_steps": "inner_steps", "diffusion_steps": "diffusion_steps", "conditioning": "condition_from"}
    diagnosis = {part: [{x: 1, "mse": 1.0}, {x: 5, "mse": 1.0}] for part, x in places.items()}
    found = effort_panels({("baseline", 0): diagnosis}, study, Inverse)
    assert [panel[0] for panel in found] == ["inner_steps", "diffusion_steps", "conditioning"]
    assert found[-1][-1] == "condition number of A, from"
    plain = {**diagnosis, "conditioning": [], "inner_steps": [{"inner_steps": 0}]}  # no energy, no difficulty
    assert [panel[0] for panel in effort_panels({("baseline", 0): plain}, study, Addition)] == ["diffusion_steps"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_zero_or_a_missing_run_leaves_the_figure(tmp_path, monkeypatch, study, capsys, value):
    study.frame.loc[0, "val_mse"] = value
    axes = drawn_axes(monkeypatch, tmp_path, study)
    assert axes[0].get_yscale() == "log"
    assert "warning" not in capsys.readouterr().err


def test_a_wide_interval_leaves_the_runs_readable(tmp_path, monkeypatch, study):
    values = study.values("val_mse", "plain")["baseline"]
    low, high = drawn_axes(monkeypatch, tmp_path, study)[0].get_ylim()
    assert values.min() / 10 <= low < values.min() and high <= 10 * 10 * values.max()
    two = Results(
        study.frame[study.frame["seed"] < 2], study_of(*study.strategies), METRICS
    )  # intervals over 20 decades
    low, high = drawn_axes(monkeypatch, tmp_path, two)[0].get_ylim()
    assert low == pytest.approx(0.1 / 10) and high == pytest.approx(10 * 10)


def named_lines(axis) -> set[str]:
    return {text.get_text() for text in axis.texts}


def test_references_are_named_where_they_lie_near_the_runs(tmp_path, monkeypatch, study):
    references = [
        {"strategy": name, "sampler": sampler, "val_mse": value}
        for name, sampler, value in (
            ("near", "reference", 1.5),
            ("far", "reference", 1e-9),
            ("others'", "published, not rerun", 1.1),
        )
    ]
    axes = drawn_axes(monkeypatch, tmp_path, study, references)
    assert all(named_lines(axis) & {"near", "far", "others'"} == {"near"} for axis in axes)


def test_error_against_flops_joins_what_differs_only_in_length_and_counts_spoiled_runs(tmp_path, monkeypatch):
    errors = {"baseline": [0.3, 0.4, 0.1], "adversarial": [0.12, 0.11, 0.5], "baseline-compute": [0.1, 0.11, 0.12]}
    rows = [
        {"strategy": name, "seed": seed, "sampler": sampler, "status": "finished", "val_mse": error}
        | {"train_flops": 1e9 if name == "baseline" else 3e9}
        for name, row in errors.items()
        for seed, error in enumerate(row)
        for sampler in ("plain", "innerloop")
    ]
    declared = study_of(*errors)
    references = [
        {"strategy": name, "sampler": "reference", "val_mse": value}
        for name, value in (("zero matrix", 0.25), ("mean predictor", 0.2), ("solver 1", 0.19), ("solver 2", 1e-30))
    ]
    seen = []
    monkeypatch.setattr(setting_figure, "legend_below", lambda axes: seen.append(axes[0, 0]))
    results = Results(rows, declared, (Metric("val_mse"),), mean_error=0.2)
    budget_figure(results, declared, references, path=tmp_path / "a.png")
    (axis,) = seen
    medians = {line.get_label(): line.get_xydata().tolist() for line in axis.lines if "median" in line.get_label()}
    assert medians == {
        "baseline, median": [[1e9, 0.3], [3e9, 0.11]],
        "adversarial, median": [[3e9, 0.12]],
    }
    assert named_lines(axis) == {"↑2", "↑1", "zero matrix", "mean predictor"}
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log") and axis.get_ylim()[1] < 0.4


def test_the_runs_of_a_seed_are_joined(tmp_path, monkeypatch, study):
    joined = []
    monkeypatch.setattr(figures, "join_pairs", lambda _, values: joined.append(values.shape))
    interval_plot(study, [], path=tmp_path / "a.png")
    assert joined == [(2, 3)] * 2


def test_a_figure_that_fails_is_one_line_and_leaves_no_old_one(tmp_path, capsys):
    @guarded
    def broken(path):
        with drawing(path, (3, 2)) as axes:
            axes[0, 0].plot([1], [1, 2])

    path = tmp_path / "a.png"
    for file in (path, path.with_suffix(".pdf")):
        file.write_text("old")
    broken(path=path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} is not drawn (ValueError: x and y must have same first dimension")
    assert not list(tmp_path.iterdir())


def test_a_model_without_energy_has_the_figures_of_the_rest(tmp_path, capsys):
    task = Parity("val", 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,clipped\n5,0.5\n")
    run = {"strategy": "baseline", "seed": 0, "sampler": "plain", "status": "finished", "train_steps": 5, "run": "run"}
    study = Results([run], study_of("baseline"), task_metrics(Parity))
    steps = [{"diffusion_steps": count, "val_balanced_accuracy": 0.5} for count in (1, 2)]
    nothing = {"levels": [], "conditioning": []}
    found = {**nothing, "inner_steps": [{"inner_steps": 0}], "diffusion_steps": steps, "example": {"prediction": [0.5]}}
    diagnoses = {("baseline", 0): found}
    causes_figure(tmp_path, diagnoses, study, task, path=tmp_path / "causes.png")
    example_figure(diagnoses, list(diagnoses), EvaluationSet(task, 2, "cpu"), path=tmp_path / "example.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"causes.png", "example.png"}
    assert not capsys.readouterr().err


def test_a_matrix_is_shown_with_its_inverse_the_answer_and_their_product(tmp_path, monkeypatch):
    chosen, shown = EvaluationSet(Inverse("val", 3), 2, "cpu"), []
    monkeypatch.setattr(Axes, "imshow", lambda _, matrix, **__: shown.append(matrix))
    exact = {"example": {"prediction": chosen.target[0].flatten().tolist()}}
    diagnoses = {(name, 0): exact for name in ("baseline", "adversarial")}
    example_figure(diagnoses, list(diagnoses), chosen, path=tmp_path / "example.png")
    assert len(shown) == 8
    problem, inverse, answer, product = shown[:4]
    assert np.allclose(inverse, np.linalg.inv(problem)) and np.allclose(inverse, answer)
    assert np.allclose(product, np.eye(3), atol=1e-4)

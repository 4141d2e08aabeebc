"""What holds of every task: one batch of one seed, shapes, harder sets, corruptions, pictures, bad input."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

from dataset import TASKS, ShortestPath1D
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.system.errors import ConfigError
from diffusion_lib.tasks.paths import PathTask
from diffusion_lib.tasks.sudoku import Sudoku

SMALL = {"sudoku": 2, "sudoku-rrn": 2, "shortest-path": 9, "shortest-path-1d": 9, "parity": 6, "inverse": 4}
CONTINUOUS = ("inverse", "addition", "lowrank")
DISCRETE = [name for name in TASKS if name not in CONTINUOUS]


@pytest.fixture(autouse=True)
def small_pools(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no published files
    for task, count in ((PathTask, 200), (Sudoku, 30)):
        monkeypatch.setattr(task, "pool_size", dict.fromkeys(("train", "val", "test"), count))


def small(name, split="val", ood=False):
    return TASKS[name](split, SMALL.get(name), ood)


def drawn(task, count=40, seed=31):
    return task.sample(count, seeded_generator("test", seed))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("ood", [False, True])
def test_a_batch_is_a_function_of_its_generator(name, ood):
    task = small(name, ood=ood)
    inp, target = drawn(task)
    again = drawn(small(name, ood=ood))
    assert torch.equal(inp, again[0])
    assert torch.equal(target, again[1])
    assert not torch.equal(inp, drawn(task, seed=32)[0])
    assert (inp.shape, target.shape) == ((40, *task.inp_shape), (40, *task.out_shape))
    assert inp.dtype == target.dtype == torch.float32
    assert task.sample(2, seeded_generator("test", 31), dtype=torch.float64)[1].dtype == torch.float64
    assert target.abs().max() <= 1.0001 * task.bound
    assert torch.equal(task[7][0], task[7][0])
    assert task[7][0].shape == task.inp_shape


@pytest.mark.parametrize("name", DISCRETE)
def test_the_truth_is_perfect_and_references_are_not(name):
    task = small(name)
    inp, target = drawn(task, 200)
    guesses = task.reference_predictions(inp, seeded_generator("test", 33))
    for each, prediction in {"truth": target, **guesses}.items():
        example = inp, target.double(), prediction
        scores = task.score(*example) | task.execute(*example)
        assert all(values.shape == (200,) and values.dtype == torch.float64 for values in scores.values())
        metrics = task.summary({key: values.mean().item() for key, values in scores.items()})
        assert tuple(metrics) == task.metrics
        assert set(task.metrics) >= task.higher_is_better
        if each == "truth":
            assert metrics[task.metrics[0]] == 1
        else:
            assert prediction.shape == target.shape
            assert metrics[task.metrics[0]] < 1 or each in ("propagation", "within 4", "within 6")


@pytest.mark.parametrize("name", DISCRETE)
def test_every_corruption_is_wrong_and_of_the_same_form(name):
    task = small(name, "train")
    inp, target = drawn(task, 300)
    spoiled = task.rules.corruption(target, seeded_generator("test", 34), mask=task.mask(inp))
    assert torch.equal(spoiled, task.rules.corruption(target, seeded_generator("test", 34), mask=task.mask(inp)))
    changed = (spoiled != target).flatten(1).any(1).double().mean()
    if name.startswith("connectivity"):  # random signs: some are as they were
        assert 0.7 < changed < 1
        assert torch.equal(spoiled, spoiled.mT)
        assert (spoiled.diagonal(dim1=1, dim2=2) == 1).all()
        assert ((spoiled > target).any(), (spoiled < target).any()) == (True, True)
    else:
        assert changed > 0.8
        assert changed == 1 or name in ("parents", "uncle")
    if "shortest" in name or name.startswith("sort"):
        steps = (spoiled != target).flatten(2).any(2)
        assert (steps.sum(1) == 1).all()
        assert steps.any(0).all()  # any step, not the first alone
        assert torch.equal((spoiled > 0).flatten(2).sum(2), (target > 0).flatten(2).sum(2))


def test_the_released_path_corruption_touches_the_first_step_only():
    task = small("shortest-path-1d")
    _, target = drawn(task, 300)
    spoiled = task.rules.corruption(target, seeded_generator("test", 35), released=True)
    assert torch.equal(spoiled[:, 1:], target[:, 1:])
    same = (spoiled == target).flatten(1).all(1).double().mean().item()
    assert same == pytest.approx(1 / 9, abs=0.06)


def test_rules_repaired_and_released():
    one, ten, fifteen = (TASKS[f"shortest-path-{name}"] for name in ("1d", "10-1d", "15-1d"))
    assert (one.rules.level_bound, one.released_rules.level_bound) == (None, 0.1)
    for task in (ten, fifteen):
        assert task.rules == one.rules
        assert (task.released_rules.entry_weights, task.released_rules.corruption) == (None, None)
    assert torch.equal(one.rules.entry_weights(torch.tensor([1.0, -1.0])), torch.tensor([10.0, 0.5]))
    weights = {name: TASKS[name].rules.contrast_weight for name in DISCRETE}
    assert {name for name, weight in weights.items() if weight == 0.05} == {
        "connectivity",
        "connectivity-2",
        "sudoku",
        "sudoku-rrn",
    }
    assert {name for name in DISCRETE if TASKS[name].rules.inner_steps == 20} == {"sudoku", "sudoku-rrn"}
    assert {TASKS[name].rules.bound for name in DISCRETE} == {1.0}


def test_sizes_of_models_and_harder_sets():
    sizes = {name: (TASKS[name].model, small(name).inp_dim, small(name).out_dim) for name in DISCRETE}
    assert sizes["uncle"] == ("gnn", 4, 1)
    assert sizes["connectivity-2"] == ("gnn", 1, 1)
    assert sizes["shortest-path-10-1d"] == ("gnn-conv-1d-v2", 4, 1)
    assert sizes["shortest-path"] == ("gnn-conv", 2, 3)
    assert sizes["sort"] == ("gnn-conv", 6, 7)
    assert sizes["sort-2"] == ("gnn-conv-1d", 1, 3)
    assert sizes["sudoku"] == ("sudoku", 64, 64)
    assert sizes["parity-20"] == ("mlp", 20, 1)
    harder = {name: TASKS[name]("val", ood=True).inp_shape[0] for name in DISCRETE if "sudoku" not in name}
    assert harder["connectivity"] == harder["parents"] == 18
    assert (harder["shortest-path-1d"], harder["shortest-path-10-1d"], harder["shortest-path-15-1d"]) == (25, 15, 20)
    assert (harder["sort"], harder["sort-2"], harder["parity"]) == (15, 15, 40)
    extra = TASKS["connectivity-2"]("val").extra_sets()
    assert [(name, task.size, task.degree) for name, task in extra.items()] == [
        ("connectivity-13", 13, 0.2),
        ("connectivity-15", 15, 0.2),
        ("connectivity-18", 18, 0.2),
        ("connectivity-20", 20, 0.1),
    ]


def test_harder_parities_have_few_ones():
    inp, target = drawn(TASKS["parity"]("val", 20, ood=True), 1000)
    assert (inp > 0).double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (target > 0).double().mean().item() == pytest.approx(0.5, abs=0.06)


def test_arrays_to_sort_are_not_sorted_already():
    inp, _ = drawn(TASKS["sort-2"]("val", 3), 1200)
    kinds, counts = inp[..., 0].unique(dim=0, return_counts=True)
    assert len(kinds) == 5  # of six permutations
    assert counts.min() > 180


@pytest.mark.parametrize("name", ["sudoku", "connectivity-2", "shortest-path-1d", "shortest-path", "sort", "inverse"])
def test_pictures_show_what_is_wrong(name):
    task = small(name)
    inp, target = (part[0] for part in drawn(task, 1))
    pictures = []
    for prediction in (target, -target):
        figure, axes = plt.subplots()
        task.draw(axes, inp, target, prediction)
        figure.canvas.draw()
        pictures.append(bytes(figure.canvas.buffer_rgba()))
        colours = [text.get_color() for text in axes.texts]
        if name == "sudoku":
            assert ("red" in colours) == (prediction is not target)
            assert colours.count("black") == task.mask(inp[None]).sum() / task.side
        if name == "connectivity-2":
            assert len(axes.collections[0].get_offsets()) == (0 if prediction is target else target.numel())
        plt.close(figure)
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("connectivity", ("val", 1), "rank is 1; allowed: a whole number from 2"),
        ("shortest-path-1d", ("val", 5), "rank is 5; allowed: a whole number from 8"),
        ("sort", ("val", 17), "rank is 17; allowed: 2 to 16, since a plan has 16 swaps"),
        ("sudoku", ("val", 9), "rank is 9; allowed: 2 or 3, the size of a box"),
        ("sudoku", ("val", 1), "rank is 1"),
        ("parents", ("dev",), "split is 'dev'; allowed: train, val, test"),
        ("parity", ("val", 0), "rank is 0"),
    ],
)
def test_bad_values_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TASKS[name](*arguments)


def test_a_pool_is_drawn_once(monkeypatch):
    task = ShortestPath1D("val", 9)
    drawn(task)
    monkeypatch.setattr("diffusion_lib.tasks.paths.nearest_neighbours", None)
    drawn(task, seed=36)

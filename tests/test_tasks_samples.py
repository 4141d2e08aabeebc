"""Encodings equal those of the release's own data sets (tests/samples), and so do shares, within sampling error."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import TASKS
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks.graph_algorithms import connected, distances, nearest_neighbours
from diffusion_lib.tasks.paths import DEGREE, LONGEST, start_node
from diffusion_lib.tasks.sorting import sorting_plans

SAMPLES = Path(__file__).parent / "samples"
STATISTICS = json.loads((SAMPLES / "statistics.json").read_text())


def load(name: str):
    with np.load(SAMPLES / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]).float() for key in file}
    return arrays["inp"], arrays["target"], arrays.get("mask")


def drawn(task, count=2000):
    return task.sample(count, seeded_generator("test", 5))


def assert_same_mean(ours, theirs: float, count: int):
    """Two means of independent examples, ours one by one, theirs of `count`, within four standard errors."""
    error = ours.double().std() * (1 / len(ours) + 1 / count) ** 0.5
    assert abs(ours.double().mean() - theirs) <= 4 * error + 1e-9


@pytest.mark.parametrize("name", sorted(path.stem for path in SAMPLES.glob("connectivity*.npz")))
def test_connectivity(name):
    inp, target, _ = load(name)
    adjacency = inp[..., 0] > 0
    assert torch.equal(connected(adjacency) * 2.0 - 1, target)
    first, _, extra = name.partition("_")
    task = TASKS[first]("val")
    task = task.extra_sets()[extra] if extra else task
    own_inp, own_target = drawn(task)
    assert (own_inp.shape[1:], own_target.shape[1:]) == (inp.shape[1:], target.shape[1:])
    expected = STATISTICS[name.replace("_", "/")]
    own = own_inp[..., 0] > 0
    assert torch.equal(own, own.mT)
    assert not own.diagonal(dim1=1, dim2=2).any()
    assert_same_mean((own_target > 0).double().mean((1, 2)), expected["share_of_target_positive"], 300)
    assert_same_mean(own.double().sum(2).mean(1), expected["edges_per_node"], 300)
    assert_same_mean((own_target > 0).flatten(1).all(1), expected["share_fully_connected"], 300)


@pytest.mark.parametrize("name", ["parents", "uncle"])
def test_family(name):
    inp, target, _ = load(f"family_{name}")
    task = TASKS[name]("val")
    father, mother, son, _ = (inp > 0).unbind(-1)
    assert torch.equal(task.relation(father | mother, son) * 2.0 - 1, target)
    own_inp, own_target = drawn(task, 4000)
    assert (own_inp.shape[1:], own_target.shape[1:]) == (inp.shape[1:], target.shape[1:])
    expected = STATISTICS[f"family_{name}"]
    relations = expected["share_positive_per_relation father mother son daughter"]
    for own, share in zip((own_inp > 0).unbind(-1), relations, strict=True):
        assert_same_mean(own.double().mean((1, 2)), share, 2000)
    positive = own_target > 0
    assert_same_mean(positive.double().mean((1, 2)), expected["share_of_target_positive"], 2000)
    assert_same_mean(~positive.flatten(1).any(1), expected["examples_without_any_positive"], 2000)
    has_father = (own_inp[..., 0] > 0).any(2)
    assert_same_mean(has_father.double().sum(1), expected["people_with_parents_mean"], 2000)
    if name == "uncle":
        own_father = (positive & (own_inp[..., 0] > 0)).any(2)[has_father]
        assert_same_mean(own_father, expected["own_father_counts_as_uncle_share_of_fathers"], 2000 * 5)


PATHS = {
    "shortest-path-1d": ("shortest-path-1d", False),
    "shortest-path-25-1d": ("shortest-path-1d", True),
    "shortest-path-10-1d": ("shortest-path-10-1d", False),
    "shortest-path-15-1d": ("shortest-path-15-1d", False),
    "shortest-path_2d": ("shortest-path", False),
}


@pytest.mark.parametrize("name", PATHS)
def test_path_encoding(name):
    inp, target, _ = load(name)
    task = TASKS[PATHS[name][0]]("val", ood=PATHS[name][1])
    nodes = task.nodes(target)[:, :LONGEST]
    if name == "shortest-path_2d":  # (0, 0) says nothing of the goal
        state = target[..., 1].sum(3).argmax(2)
        nodes = state[:, 1 : LONGEST + 1]
    encoded = task.encode(inp[..., 0] > 0, start_node(inp), nodes, torch.float32)
    assert torch.equal(encoded[0], inp)
    assert torch.equal(encoded[1], target)
    perfect = {key: values.mean().item() for key, values in task.score(inp, target.double(), target).items()}
    assert perfect["plan_success"] == perfect["first_step_shortens"] == 1
    assert (inp.shape[1:], target.shape[1:]) == (task.inp_shape, task.out_shape)


@pytest.mark.parametrize("nodes", [10, 15, 20, 25])
def test_graphs_of_paths(nodes):
    apart = distances(nearest_neighbours(1000, nodes, DEGREE, seeded_generator("test", 6), "cpu"))
    expected = STATISTICS[f"directed dnc n={nodes} p=0.5: share of graphs that have a pair at distance k"]
    for length in range(3, 8):
        has_pair = (apart == length).flatten(1).any(1)
        assert_same_mean(has_pair, expected[str(length)] / expected["graphs"], expected["graphs"])


@pytest.mark.parametrize(
    ("name", "file", "ood"),
    [
        ("sort", "sort", False),
        ("sort", "sort-15", True),
        ("sort-2", "sort-2_n10", False),
        ("sort-2", "sort-2_n15", True),
    ],
)
def test_sort(name, file, ood):
    inp, target, _ = load(file)
    task = TASKS[name]("val", ood=ood)
    array = task.order(inp) if name == "sort" else ((inp[..., 0] + 1) / 2 * task.size).round().long()
    encoded = task.encode(*sorting_plans(array), torch.float32)
    assert torch.equal(encoded[0], inp) or torch.allclose(encoded[0], inp, atol=1e-7)
    assert torch.equal(encoded[1], target) or torch.allclose(encoded[1], target, atol=1e-7)
    assert (inp.shape[1:], target.shape[1:]) == (task.inp_shape, task.out_shape)


def test_sort_steps():
    _, target = drawn(TASKS["sort-2"]("val"))
    first, second = TASKS["sort-2"]("val").swaps(target)
    steps = (first != second).sum(1)
    assert_same_mean(steps, np.average(range(2, 10), weights=list(STATISTICS["sort steps"].values())), 2000)
    assert_same_mean((steps == 9), STATISTICS["sort steps"]["9"] / 2000, 2000)


def test_parity():
    inp, target, _ = load("parity-20_made-up")
    assert torch.equal((inp > 0).sum(1, keepdim=True) % 2 * 2.0 - 1, target)
    own_inp, own_target = drawn(TASKS["parity-20"]("val"))
    assert torch.equal((own_inp > 0).sum(1, keepdim=True) % 2 * 2.0 - 1, own_target)
    assert own_inp.abs().unique().tolist() == [1]


@pytest.mark.parametrize("file", ["sudoku_made-up_train", "sudoku_made-up_val", "sudoku-rrn_made-up"])
def test_sudoku_mask(file):
    inp, target, mask = load(file)
    task = TASKS["sudoku"]("val")
    assert torch.equal(task.mask(inp), mask)
    assert torch.equal(torch.where(mask > 0, target, -1), inp)
    assert (inp.shape[1:], target.shape[1:]) == (task.inp_shape, task.out_shape)

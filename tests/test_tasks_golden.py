"""Metrics and released corruptions against the released code's own numbers (tests/golden/tasks/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import TASKS
from diffusion_lib.tasks.base import rules_of
from diffusion_lib.tasks.graph_algorithms import distances
from diffusion_lib.tasks.metrics import board_is_valid, board_scores, classification_rates, confusion, sort_scores

GOLDEN = Path(__file__).parent / "golden" / "tasks"


def load(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The arrays of a golden file below a prefix."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {
            key.removeprefix(prefix): torch.from_numpy(file[key])
            for key in file
            if key.startswith(prefix) and file[key].dtype.kind != "U"
        }


METRICS = load("metrics")
RESULTS = sorted({key.split("/")[0] for key in METRICS if "/result/" in key})


def means(scores):
    return {name: values.double().mean().item() for name, values in scores.items()}


def of_signs(arrays):
    ours = means(confusion(arrays["label"], arrays["pred"]))
    rates = classification_rates(ours)
    return {
        "accuracy/accuracy": rates["accuracy"],
        "accuracy/balance_accuracy": rates["balanced_accuracy"],
        "accuracy/gt_0_pred_0": ours["true_negative"],
        "accuracy/gt_0_pred_1": ours["false_positive"],
        "accuracy/gt_1_pred_0": ours["false_negative"],
        "accuracy/gt_1_pred_1": ours["true_positive"],
    }


def of_boards(arrays):
    ours = means(board_scores(arrays["label"], arrays["pred"], arrays["mask"]))
    return {"accuracy": ours["right"] / ours["blank"]} | {n: ours[n] for n in ("consistency", "board_accuracy")}


def of_task(name):
    def scored(arrays):
        label, pred = arrays["label"], arrays["pred"]
        task = TASKS[name]("val", pred.shape[2])
        inp = arrays["inp"] if "inp" in arrays else label[:, 0, ..., : task.inp_dim]
        ours = means(task.score(inp, label.double(), pred))
        return ours | {f"{of}_correct": ours.get(f"{of}_accuracy") for of in ("element", "array")}

    return scored


def of_paths(arrays):
    ours = of_task("shortest-path-1d")(arrays)
    return ours | {"first_action_accuracy_2": ours["first_step_shortens"]}


SCORED = {"bce": of_signs, "sudoku": of_boards, "sort": of_task("sort"), "sort2": of_task("sort-2")}


@pytest.mark.parametrize("name", RESULTS)
def test_metrics_are_the_released_ones(name):
    arrays = load("metrics", f"{name}/")
    ours = SCORED.get(name, of_paths)(arrays)
    for key in (key for key in arrays if key.startswith("result/")):
        assert ours[key.removeprefix("result/")] == pytest.approx(arrays[key].item(), abs=1e-6), key


def test_boards_are_scored_one_by_one_as_released():
    arrays = load("metrics", "sudoku/")
    ours = board_scores(arrays["label"], arrays["pred"], arrays["mask"])
    rows = torch.stack([ours["right"] / ours["blank"], ours["consistency"], ours["board_accuracy"]], 1)
    for i, row in enumerate(rows):
        assert row.tolist() == pytest.approx(arrays[f"row{i}"].tolist(), abs=1e-6)
    assert torch.equal(board_is_valid(arrays["digits"]).double(), ours["consistency"])


@pytest.mark.parametrize("name", [name for name in RESULTS if f"{name}/distances" in METRICS])
def test_distances_are_the_released_ones(name):
    arrays = load("metrics", f"{name}/")
    apart = distances(arrays["inp"][..., 0] > 0)
    assert torch.equal(apart.double(), arrays["distances"].double())
    start = arrays["inp"][..., 1].sum(2).argmax(1)
    first, goal = arrays["pred"][:, 0, :, 0].argmax(1), arrays["label"][:, -1, :, 0].argmax(1)
    rows = torch.arange(len(start))
    assert torch.equal(apart[rows, first, goal] < apart[rows, start, goal], arrays["shortens_first_step"])


def test_a_latin_square_is_no_board():
    shifted = (torch.arange(9) + torch.arange(9)[:, None]) % 9  # rows and columns are right, boxes are not
    banded = (torch.arange(9) + 3 * torch.arange(9)[:, None] + torch.arange(9)[:, None] // 3) % 9
    assert board_is_valid(torch.stack([shifted, banded])).tolist() == [False, True]


def test_swaps_are_applied_in_order():
    order = torch.tensor([[2, 0, 1]])
    swaps = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])  # 0 2 1, then 0 1 2
    assert means(sort_scores(order, *swaps)) == {"element_accuracy": 1, "array_accuracy": 1}
    back = [part.flip(1) for part in swaps]
    assert means(sort_scores(order, *back))["array_accuracy"] == 0


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("connectivity", "graph_connectivity"),
        ("connectivity-2", "graph_connectivity"),
        ("shortest-path-1d", "shortest_path_1d"),
        ("sudoku", "sudoku_conv"),
        ("sudoku-rrn", "sudoku_conv"),
    ],
)
def test_released_corruptions(name, file):
    arrays = load(file)
    draws = [
        arrays[f"loss/released/{key}"] for key in ("draw_randint", "draw_rand") if f"loss/released/{key}" in arrays
    ]
    rules = rules_of(TASKS[name]("train"), match_release=True)
    ours = rules.corruption.apply(arrays["y"], *draws, released=True)
    assert torch.equal(ours.double(), arrays["loss/released/candidate"].double())
    own = rules.corruption.draw(arrays["y"])
    for mine, released in zip(own, draws, strict=False):
        assert (mine.shape, mine.dtype) == (released.shape, released.dtype)

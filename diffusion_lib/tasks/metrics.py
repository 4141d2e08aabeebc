"""The metrics of the discrete tasks: each function takes a batch and returns a value for each example.

A ratio over a whole set (a rate of a class, the share of right blank cells) is returned as its counts. Their means over
the set are divided in the end, as the release divides the counts of a batch.
"""

import math

import torch
from einops import rearrange, repeat

from diffusion_lib.tasks.graph_algorithms import distances


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN where there is nothing to divide by."""
    return part / whole if whole else math.nan


# Signs: a prediction of at least 0 is positive.


def off_diagonal(values: torch.Tensor) -> torch.Tensor:
    """Return the entries (B, N^2 - N) of matrices (B, N, N) that are not on the diagonal."""
    return values[:, ~torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)]


def confusion(target, prediction, suffix: str = "") -> dict[str, torch.Tensor]:
    """Return an example's shares of entries that are true and false positives and negatives, (B,) float64 each.

    target, prediction: (B, ...), positive from 0 up.
    suffix: the end of each name.
    """
    label, guess = (target >= 0).flatten(1), (prediction >= 0).flatten(1)
    cells = {
        "true_positive": label & guess,
        "false_negative": label & ~guess,
        "false_positive": ~label & guess,
        "true_negative": ~label & ~guess,
    }
    return {name + suffix: cell.double().mean(1) for name, cell in cells.items()}


def classification_rates(means: dict[str, float], suffix: str = "") -> dict[str, float]:
    """Return `balanced_accuracy`, the mean of the rates of both classes (NaN if one is missing), and `accuracy`.

    means: over a set of examples, of what `confusion` returns.
    suffix: the end of each name.
    """
    right, missed, alarms, rejected = (
        means[name + suffix] for name in ("true_positive", "false_negative", "false_positive", "true_negative")
    )
    balanced = (ratio(right, right + missed) + ratio(rejected, rejected + alarms)) / 2
    accuracy = min(1.0, right + rejected)  # the sum's rounding may pass 1
    return {f"balanced_accuracy{suffix}": balanced, f"accuracy{suffix}": accuracy}


# Sudoku


def board_scores(target, prediction, mask) -> dict[str, torch.Tensor]:
    """Return the scores of predicted boards, (B,) float64 each; all arguments are (B, s^3).

    blank: number of blank cells.
    right: how many of them have the right digit.
    solved: the whole board equals the solution.
    consistency: each row, column and box has each digit once.
    board_accuracy: the release's, the share of cells whose row, column and box have the right sums.
    """
    size = round(target.shape[1] ** (1 / 3))
    target, prediction, mask = (
        rearrange(part, "b (row column digit) -> b row column digit", row=size, column=size)
        for part in (target, prediction, mask)
    )
    board, solution, given = prediction.argmax(-1), target.argmax(-1), mask[..., 0] > 0
    hit = board == solution
    return {
        "blank": (~given).double().flatten(1).sum(1),
        "right": (hit & ~given).double().flatten(1).sum(1),
        "solved": hit.flatten(1).all(1).double(),
        "consistency": board_is_valid(board).double(),
        "board_accuracy": _share_with_right_sums(board),
    }


def units(board: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows, columns and boxes of boards (B, s, s), each (B, s, s): unit, then place in it."""
    box = math.isqrt(board.shape[-1])
    boxes = rearrange(board, "b (down row) (across column) -> b (down across) (row column)", row=box, column=box)
    return board, board.mT, boxes


def board_is_valid(board) -> torch.Tensor:
    """Return whether each row, column and box of boards (B, s, s) has each of 0 .. s - 1 once, (B,) bool."""
    every = torch.arange(board.shape[-1], device=board.device)
    return torch.stack([(unit.sort(-1).values == every).flatten(1).all(1) for unit in units(board)]).all(0)


def _share_with_right_sums(board):
    size = board.shape[-1]
    box = math.isqrt(size)
    rows, columns, boxes = (unit.sum(-1) == size * (size - 1) // 2 for unit in units(board))
    boxes = repeat(boxes, "b (down across) -> b (down row) (across column)", down=box, row=box, column=box)
    return (rows[:, :, None] & columns[:, None] & boxes).double().flatten(1).mean(1)


# Paths


def path_scores(adjacency, start, goal, label, plan) -> dict[str, torch.Tensor]:
    """Return the scores of plans, (B,) float64 each.

    adjacency: (B, N, N) bool.
    start, goal: nodes (B,).
    label, plan: nodes (B, steps).

    argmax_accuracy: share of steps equal to the label's.
    first_action_accuracy: the first one is.
    first_action_feasibility: it follows an edge.
    first_step_shortens: that, and it is nearer to the goal than the start (the published metric).
    plan_success: the plan follows edges until it is at the goal.
    chance: share of the start's successors that are nearer, which is what a random successor scores.
    """
    rows = torch.arange(len(plan), device=plan.device)
    to_goal = distances(adjacency)[rows, :, goal]  # (B, N)
    nearer = adjacency[rows, start] & (to_goal < to_goal[rows, start, None])
    scores = {
        "argmax_accuracy": (plan == label).double().mean(1),
        "first_action_accuracy": plan[:, 0] == label[:, 0],
        "first_action_feasibility": adjacency[rows, start, plan[:, 0]],
        "first_step_shortens": nearer[rows, plan[:, 0]],
        "plan_success": reaches_goal(adjacency, start, goal, plan),
        "chance": nearer.sum(1).double() / adjacency[rows, start].sum(1).clamp(min=1),
    }
    return {name: values.double() for name, values in scores.items()}


def reaches_goal(adjacency, start, goal, plan) -> torch.Tensor:
    """Return whether the plan follows edges from the start to the goal, (B,) bool; steps after that are not judged."""
    rows = torch.arange(len(plan), device=plan.device)
    place, lost, there = start, torch.zeros_like(start, dtype=torch.bool), start == goal
    for step in plan.T:
        lost = lost | (~there & ~adjacency[rows, place, step])
        there = there | (~lost & (step == goal))
        place = step
    return there


# Sorting


def sort_scores(order, first, second) -> dict[str, torch.Tensor]:
    """Return the scores of the array that the swaps make, (B,) float64 each.

    order: (B, N).
    first, second: places to swap, (B, steps).

    element_accuracy: share of the elements that are in their place in the end.
    array_accuracy: all are.
    """
    array, rows = order.clone(), torch.arange(len(order), device=order.device)
    for one, other in zip(first.T, second.T, strict=True):
        array[rows, one], array[rows, other] = array[rows, other], array[rows, one]
    right = array == array.sort(1).values
    return {"element_accuracy": right.double().mean(1), "array_accuracy": right.all(1).double()}

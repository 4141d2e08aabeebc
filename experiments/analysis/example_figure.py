"""A picture for people: one problem of the fixed set, as a run of each of the two compared strategies solves it."""

from pathlib import Path

import torch

from diffusion_lib.evaluation import EvaluationSet
from diffusion_lib.tasks import Inverse
from experiments.analysis.figures import drawing, guarded


def solved(diagnoses: dict, names: list[str]) -> list[tuple[str, int]]:
    """(strategy, seed) of each named strategy's first run whose diagnosis has an example; an earlier one's may not."""
    first = {key[0]: key for key in sorted(diagnoses, reverse=True) if diagnoses[key].get("example")}
    return [first[name] for name in names if name in first]


@guarded
def example_figure(diagnoses: dict, shown: list[tuple[str, int]], chosen: EvaluationSet, path: Path):
    """The first problem of `chosen`, the set that was diagnosed: a row a run, as the task draws its answer.

    Of matrix inversion: the matrix, its inverse, the answer, and the matrix times the answer, which should be one.
    """
    matrices = isinstance(chosen.task, Inverse)
    columns, target = 4 if matrices else 1, chosen.target[0].double().cpu()
    with drawing(path, (2.2 * columns, 2.3 * len(shown)), len(shown), columns) as axes:
        for row, key in zip(axes, shown, strict=True):
            answer = torch.tensor(diagnoses[key]["example"]["prediction"], dtype=torch.double).view(target.shape)
            if matrices:
                draw_matrices(row, chosen.exact_inp[0].double().cpu(), target, answer)
            else:
                chosen.task.draw(row[0], chosen.inp[0], target, answer)
            row[0].set_ylabel(f"{key[0]}, seed {key[1]}")


def draw_matrices(axes, problem, inverse, answer):
    """In one row, every kind on a scale of its own; the answer on that of the inverse."""
    side = round(problem.numel() ** 0.5)
    problem, inverse, answer = (each.view(side, side) for each in (problem, inverse, answer))
    parts = {"A": problem, "inverse of A": inverse, "answer Y": answer, "A Y, ideally the identity": problem @ answer}
    limits = {"A": problem.abs().max(), "A Y, ideally the identity": 1}
    for axis, (title, matrix) in zip(axes, parts.items(), strict=True):
        limit = float(limits.get(title, inverse.abs().max()))
        axis.imshow(matrix.numpy(), vmin=-limit, vmax=limit, cmap="coolwarm")
        axis.set(xticks=[], yticks=[], title=title)

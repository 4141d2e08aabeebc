"""A picture for people: one problem of the fixed set, as a run of each strategy solves it."""

from pathlib import Path

import torch

from diffusion_lib.evaluation import EvaluationSet
from experiments.analysis.figures import choose_scale, drawing, guarded, legend_below, plotted, strategy_colors
from experiments.analysis.landscape_figures import first_seeds

WIDTH = 2.9  # inches of a picture


@guarded
def example_figure(diagnoses, strategies: list[str], chosen: EvaluationSet, path: Path):
    """The first problem of `chosen`, the set that was diagnosed: a column for the first seed of each strategy.

    Above, what it predicts, as the task draws it. Below, at each level of the sampler, the energy of its sample and of
    the true solution; of models with an energy alone.
    """
    shown = first_seeds(diagnoses, strategies, "example")
    energetic = any("energy" in diagnoses[key]["example"] for key in shown)
    size, ratios = (WIDTH * len(shown), 5.2 if energetic else 3.2), {"height_ratios": (3, 2) if energetic else (1,)}
    with drawing(path, size, 1 + energetic, len(shown), gridspec_kw=ratios) as axes:
        for place, key in enumerate(shown):
            example = diagnoses[key]["example"]
            draw_solved(axes[0, place], chosen, example["prediction"], f"{key[0]}, seed {key[1]}")
            if energetic:
                draw_energies(axes[1, place], example, strategy_colors(strategies)[key[0]])
        if energetic:
            axes[1, 0].set_ylabel("energy")
        legend_below(axes)


def draw_solved(axis, chosen: EvaluationSet, prediction: list[float], name: str):
    """The task's picture of the first problem, its title under the run's name."""
    target = chosen.target[0]
    chosen.task.draw(axis, chosen.inp[0], target, torch.tensor(prediction).view(target.shape))
    axis.set_title(f"{name}\n{axis.get_title()}")


def draw_energies(axis, example: dict, color: str):
    """Energies in the order of sampling, from the noisiest level on."""
    axis.plot(example["levels"], example["energy"], "o-", ms=3, color=color, label="the sample's")
    axis.plot(example["levels"], example["energy_solution"], "--", color="black", lw=1, label="the true solution's")
    axis.invert_xaxis()
    axis.set(xlabel="noise level t")
    choose_scale(axis, "y", plotted(axis))

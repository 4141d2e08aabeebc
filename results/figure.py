"""The README's figure, drawn from the studies in results/published: error against training compute of two energies.

python results/figure.py
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever one is installed
    from diffusion_lib.system import startup

    startup.run("results.figure")

from diffusion_lib.system.arguments import Parser
from experiments.analysis.figures import drawing, label_log, legend_below, name_line, strategy_colors
from experiments.analysis.setting_figure import draw_budgets
from experiments.analysis.verdict import ACCOUNTS
from results.tables import IRED, LONGER, PUBLISHED, SIZES_STEPS, VAL, PublishedPair, free_pair, read, sizes_pairs

LINES = {"baseline": "without mining", "adversarial": "with mining"}
PREDICTORS = {
    "zero matrix": "answering zero",
    "mean predictor": "the mean inverse",
    "linear regression": "linear regression",
    "Newton-Schulz 8": "Newton-Schulz, 8 iterations",
}


def panel(axis, energy: str, n: int, pairs: list[PublishedPair], heights: tuple[float, float], predictors):
    """Draw an energy at one size: runs of pairs against their training FLOPs, and the answers without a network."""
    labels = {"baseline": [pair.other for pair in pairs], "adversarial": [pair.treated for pair in pairs]}
    runs = pairs[0].runs
    references = read(PUBLISHED / "references.csv", "rank", "strategy", val_mse=float)
    limits, edge = references[references["rank"] == n].set_index("strategy")["val_mse"], []
    for (name, color), own in zip(strategy_colors(list(labels)).items(), labels.values(), strict=True):
        frame = runs.frame[runs.frame["strategy"].isin(own) & (runs.frame["sampler"] == IRED)]
        x, y = frame["train_flops"].to_numpy(float), frame[VAL.column].to_numpy(float)
        draw_budgets(axis, x, y, color, LINES[name], limits["mean predictor"], edge)
    for name in predictors:
        words = PREDICTORS[name]
        if limits[name] > heights[0]:
            name_line(axis, limits[name], words)
        else:
            below = f"\N{DOWNWARDS ARROW} {words}: {limits[name]:.0e}"
            axis.text(1, 0.01, below, ha="right", va="bottom", fontsize=7, transform=axis.transAxes)
    axis.set(xscale="log", yscale="log", xlabel="training FLOPs", ylim=heights)
    axis.set_title(f"{energy}, {n} × {n} matrices", pad=14)  # above the arrows
    for side, ends in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, heights)):
        label_log(side, *ends)


def main(arguments=None):
    """Draw results/published/answer.png. Raises ConfigError where a study is missing or damaged."""
    Parser(__doc__).parse_args(arguments)
    small = [pair for steps in (SIZES_STEPS, LONGER) for pair in sizes_pairs(PUBLISHED, 6, IRED, steps).values()]
    free = [free_pair(PUBLISHED, equal) for equal in ACCOUNTS]
    with drawing(PUBLISHED / "answer.png", (9.6, 4.2), columns=2, pdf=False) as axes:
        panel(axes[0, 0], "IRED's MLP", 6, small, (5e-4, 0.2), PREDICTORS)
        panel(axes[0, 1], "matrix-free", 20, free, (2e-7, 0.05), ["linear regression"])
        axes[0, 0].set_ylabel("error of an entry of the inverse")
        legend_below(axes)

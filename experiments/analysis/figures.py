"""Draw the figures of a study, each as PNG and PDF, and share their style, colours, scales and ticks.

Nothing here is global: no pyplot, and outside a `drawing` matplotlib's settings are as they were.
"""

import io
import math
from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import chain, repeat
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from scipy.stats import gmean

from diffusion_lib.system.errors import say
from diffusion_lib.system.files import write_atomic
from experiments.analysis.metrics import Metric
from experiments.analysis.references import REFERENCE
from experiments.analysis.runs import read_curve
from experiments.analysis.tables import Results

# matplotlib's own defaults, whatever the user's matplotlibrc says, and over them ours.
STYLE = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"} | {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 130,
    "pdf.fonttype": 42,  # TrueType: conferences reject matplotlib's usual Type 3
}

# Of Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = {"baseline": "#0072B2", "random": "#E69F00", "adversarial": "#009E73", "baseline-compute": "#56B4E9"}
OTHER_COLORS = ("#CC79A7", "#D55E00", "#332288", "#999933", "#882255", "#44AA99")
PAIR_COLOR = "0.75"
PANEL = (3.3, 2.9)  # inches of a panel, its width and height
NEAR = 1.6  # times the greatest run, or under the least one: errors of references further off would flatten the runs


def finite(values) -> np.ndarray:
    """Return the finite ones of some numbers."""
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


def strategy_colors(strategies: Sequence[str]) -> dict[str, str]:
    """Return name -> colour: the known strategies' own, the others' by their order. Pass all strategies of a study."""
    further = chain(OTHER_COLORS, further_colors())
    return {name: COLORS.get(name) or next(further) for name in strategies}


def further_colors() -> Iterator[str]:
    """Yield colours, each the one of a grid least like those before it and white paper; grey after the last."""
    grid = [hls_to_rgb(hue / 24, lightness, 0.7) for lightness in (0.2, 0.4, 0.6) for hue in range(24)]
    taken = [to_rgb(color) for color in ("white", *COLORS.values(), *OTHER_COLORS)]
    while grid:
        taken.append(max(grid, key=lambda color: min(math.dist(color, other) for other in taken)))
        grid.remove(taken[-1])
        yield to_hex(taken[-1])
    yield from repeat(PAIR_COLOR)


def guarded(draw):
    """Let a failing `draw(…, path=path)` cost its figure alone: a line on stderr, and no old file in its place."""

    @wraps(draw)
    def attempt(*arguments, path: Path):
        try:
            draw(*arguments, path=path)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            say(f"warning: {path} is not drawn ({type(error).__name__}: {reason})")
            for file in (path, path.with_suffix(".pdf")):
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    return attempt


@contextmanager
def drawing(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, pdf: bool = True, **options):
    """Yield the axes (rows, columns) of a figure; write it at the end to `path`, a PNG, and beside it as PDF."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False, **options)
        for file, form in ((path, "png"), (path.with_suffix(".pdf"), "pdf"))[: 1 + pdf]:
            buffer = io.BytesIO()
            # without its date the same figure is the same file
            figure.savefig(buffer, format=form, metadata={"CreationDate": None} if form == "pdf" else None)
            figure.set_layout_engine("none")  # laid out once for both
            write_atomic(file, with_palette(buffer) if form == "png" else buffer.getvalue())


def with_palette(image: Path | io.BytesIO) -> bytes:
    """Return a PNG of it in 256 colours, which takes a third of the bytes."""
    buffer = io.BytesIO()
    Image.open(image).convert("RGB").quantize(dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@contextmanager
def panels(path: Path, count: int):
    """Yield the axes (1, count) of a `drawing` of `count` panels, at most four of them side by side."""
    columns = min(4, count)
    rows = -(-count // columns)
    with drawing(path, (PANEL[0] * columns, PANEL[1] * rows), rows, columns) as axes:
        for axis in axes.flat[count:]:
            axis.remove()
        yield axes.reshape(1, -1)[:, :count]


def spans_decades(values) -> bool:
    """Return whether all (finite) values are positive and the greatest is over ten times the least."""
    values = finite(values)
    return bool(values.size and values.min() > 0 and values.max() / values.min() > 10)


def choose_scale(axis, which: str, values):
    """Make the axis 'x' or 'y' logarithmic where the values span decades, else linear, with few ticks."""
    side = getattr(axis, f"{which}axis")
    if not spans_decades(values):
        side.set_major_locator(MaxNLocator(5))
        return
    axis.set(**{f"{which}scale": "log"})
    label_log(side, np.nanmin(values), np.nanmax(values))


def label_log(side, low: float, high: float):
    """Label the ticks of a log axis (axis.xaxis or axis.yaxis) that shows low to high."""
    few = high < 100 * low  # powers of ten, for an axis to read
    side.set_major_locator(MaxNLocator(5) if high < 4 * low else LogLocator(subs=(1, 2, 5) if few else (1,)))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_formatter(NullFormatter())


def legend_below(axes, named=str):
    """Draw one legend for all axes, under them, where it hides nothing; each label once, as `named` writes it."""
    entries = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(named(label), handle)
    if entries:
        figure = axes.flat[0].figure
        fitting = int(14 * figure.get_figwidth() / (8 + max(map(len, entries))))  # 14 letters take an inch
        columns = max(1, min(fitting, len(entries)))
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)


def plotted(axis) -> np.ndarray:
    """Return the heights of all lines of an axis."""
    return np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines] or [np.empty(0)])


def name_ticks(axis, names: Sequence[str]):
    """Put the names under ticks 0, 1, …, turned where they would not fit side by side."""
    turned = sum(len(name) + 2 for name in names) > 42
    axis.set_xticks(range(len(names)), names, **({"rotation": 30, "ha": "right"} if turned else {}))
    axis.set_xlim(-0.5, len(names) - 0.5)


def reference_lines(axis, references: list[dict], metric: Metric):
    """Draw a named line for each predictor without training; of errors only those near the ones shown."""
    shown = finite(plotted(axis))
    for row in (row for row in references if row["sampler"] == REFERENCE and shown.size):
        value = row.get(metric.column, np.nan)
        if np.isfinite(value) if metric.rate else shown.min() / NEAR <= value <= NEAR * shown.max():
            name_line(axis, value, row["strategy"])


def name_line(axis, value: float, name: str):
    """Draw a dashed line across the axis, its name on it."""
    axis.axhline(value, color="black", ls="--", lw=0.8)
    place = axis.get_yaxis_transform()
    axis.text(1, value, name, ha="right", va="bottom", fontsize=7, transform=place, clip_on=True)


LOSS = Metric("loss_denoise")


@guarded
def learning_curves(study_folder: Path, study: Results, references: list[dict], path: Path):
    """Draw loss and first metric of both difficulties against the step: mean over seeds, and the band of all."""
    shown = (LOSS, *study.metrics[:2])
    with panels(path, len(shown)) as axes:
        for strategy, color in strategy_colors(study.strategies).items():
            for axis, metric in zip(axes.flat, shown, strict=True):
                curve = read_curve(study_folder, study.frame, strategy, metric.column)
                if curve.size:
                    steps, values = curve.index, curve.to_numpy().T
                    mean = values.mean(0) if metric.rate else gmean(values)
                    axis.plot(steps, mean, color=color, label=f"{strategy} (n = {len(values)})")
                    axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
        for axis, metric in zip(axes.flat, shown, strict=True):
            reference_lines(axis, references, metric)
            title = "denoising loss, training" if metric == LOSS else f"{metric.column}, plain sampler"
            axis.set(xlabel="training step", title=title, ylabel=metric.column)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            metric_scale(axis, metric, plotted(axis))
        legend_below(axes, study.shortened)


def points_and_interval(axis, place: float, values: np.ndarray, color: str, metric: Metric):
    """Draw every finite value as a point, and beside them the metric's mean with its 95% interval."""
    values = finite(values)
    interval = metric.mean(values)
    axis.plot(np.full(values.size, place - 0.12), values, "o", ms=3.5, alpha=0.7, color=color)
    if np.isfinite(interval.low):
        spread = [[interval.mean - interval.low], [interval.high - interval.mean]]
        kind = "mean" if metric.rate else "geometric mean"
        style = {"fmt": "s", "ms": 5, "capsize": 3, "color": color, "label": f"{kind} and 95% interval"}
        axis.errorbar([place + 0.12], [interval.mean], spread, **style)


def share_scale(axis):
    """Set the heights of shares: 0 to 1, with room for points at both ends."""
    axis.set_ylim(-0.03, 1.03)


def metric_scale(axis, metric: Metric, values):
    """Make the axis logarithmic for errors, linear for rates, from 0 to 1 for those that are shares.

    A log axis is wide enough for the values, and for intervals up to ten times beyond them.
    """
    if metric.rate and metric.share:
        share_scale(axis)
        return
    values = finite(values)
    values = values[values > 0]
    if metric.rate or not values.size:
        axis.yaxis.set_major_locator(MaxNLocator(5))
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, values.min() / 10), min(high, values.max() * 10))
    label_log(axis.yaxis, *axis.get_ylim())


def join_pairs(axis, values: np.ndarray):
    """Join the points of each seed by thin grey lines; values (places, seeds), nan where a run is absent."""
    for i, seed in enumerate(values.T):
        axis.plot(np.arange(len(seed)) - 0.12, seed, color=PAIR_COLOR, lw=0.6, zorder=0, label="" if i else "one seed")


@guarded
def interval_plot(study: Results, references: list[dict], path: Path):
    """Draw every run as a point, those of a seed joined, beside the mean and its 95% interval: a panel a sampler."""
    with drawing(path, (5 * len(study.samplers), 3.3), 1, len(study.samplers), sharey=True) as axes:
        for axis, sampler in zip(axes.flat, study.samplers, strict=True):
            draw_runs(axis, study, sampler, references)
        legend_below(axes)


def draw_runs(axis, study: Results, sampler: str, references: Sequence[dict] = ()):
    """Draw a panel of the first metric of every run."""
    metric, colors = study.metrics[0], strategy_colors(study.strategies)
    values = study.values(metric.column, sampler)
    join_pairs(axis, np.array(list(values.values())))
    reference_lines(axis, references, metric)
    for place, (strategy, row) in enumerate(values.items()):
        points_and_interval(axis, place, row, colors[strategy], metric)
        absent = {"not finite": study.diverged(strategy, [metric], [sampler]), "exactly 0": metric.zeros(row)}
        words = "\n".join(f"{runs} {what}" for what, runs in absent.items() if runs)
        style = {"ha": "center", "va": "top", "color": colors[strategy]}
        axis.text(place, 1, words, **style, transform=axis.get_xaxis_transform())
    metric_scale(axis, metric, np.concatenate(list(values.values())))
    axis.set(title=f"{metric.column}, {sampler} sampler", ylabel=metric.column)
    name_ticks(axis, list(study.short_names.values()))

"""Matplotlib figures, with colours that a web page can replace for its dark mode."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmflowers.evaluation.calibration import Calibration
from mmflowers.evaluation.history import TOP1, History, read_history
from mmflowers.utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1f2328", "#59636e", "#d1d9e0"
SERIES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
# CSS variables of these colours, which a page's style sheet defines for light and dark mode.
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}


def draw_curves(work_dir: Path) -> Path:
    """Draw the training curves of a run as ``curves.png`` in its work dir and return the path."""
    path = work_dir / "curves.png"
    save_png(curves_figure({work_dir.name: read_history(work_dir)}), path)
    return path


def curves_figure(runs: Mapping[str, History]) -> Figure:
    """Plot validation metric with the best epoch, training loss and learning rate of one or several runs.

    The metric is the one that chose the best epoch of the run. If it differs between runs, the legend names each.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5.2, 5.6)
    labels = {history.label for history in runs.values()}
    score, loss, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.2))
    for number, (name, history) in enumerate(runs.items()):
        colour = SERIES[number % len(SERIES)]
        style = dict(color=colour, marker="o", markersize=3, linewidth=1.5)
        label = name if len(labels) == 1 else f"{name}: {history.label}"
        score.plot(history.val_epochs, history.scores, label=label, **style)
        if history.scores:
            score.plot(*history.best, marker="*", markersize=13, color=SERIES[1] if len(runs) == 1 else colour)
        loss.plot(history.epochs, history.losses, **style)
        rate.plot(history.epochs, history.rates, color=colour, drawstyle="steps-mid", linewidth=1.5)
    (only, *others) = runs.items()
    if others:
        rules = {history.rule for history in runs.values()}
        legend = score.legend(loc="upper right" if rules == {"less"} else "lower right", frameon=False)
        for text in legend.get_texts():
            text.set(parse_math=False, color=INK)
    elif only[1].scores:
        at, top = only[1].best
        title = f"{only[0]}: best val {only[1].label} {only[1].format(top)} at epoch {at}"
        score.set_title(title, parse_math=False, wrap=True)
    measured = f"val {labels.pop()}" if len(labels) == 1 else "validation metric"
    measured += " (%)" if {history.metric for history in runs.values()} == {TOP1} else ""
    for axes, label in ((score, measured), (loss, "training loss"), (rate, "learning rate")):
        axes.set_ylabel(label)
        _plain(axes)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def reliability_figure(calibration: Calibration) -> Figure:
    """Plot the accuracy of each confidence bin (reliability diagram), and below it the number of photos."""
    figure = _figure(5.2, 4.8)
    share, count = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = np.diff(calibration.edges)
    middle = calibration.edges[:-1] + width / 2
    filled = calibration.counts > 0
    share.bar(
        middle[filled],
        calibration.accuracy[filled],
        width[filled] * 0.9,
        color=SERIES[0],
        alpha=0.6,
        label="accuracy",
    )
    share.plot(
        calibration.confidence[filled],
        calibration.accuracy[filled],
        color=SERIES[1],
        marker="o",
        markersize=4,
        linestyle="none",
        label="mean confidence",
    )
    share.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
    for text in figure.legend(loc="outside upper center", ncols=2, frameon=False).get_texts():
        text.set_color(INK)
    share.set(ylim=(0, 1.03), ylabel="accuracy")
    count.bar(middle, calibration.counts, width * 0.9, color=MUTED)
    count.set(xlim=(0, 1), xlabel="confidence", ylabel="photos")
    for axes in (share, count):
        _plain(axes)
    figure.align_ylabels()
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Plot a confusion matrix, int of shape (classes, classes): rows are true classes, columns predicted ones."""
    from matplotlib.colors import LinearSegmentedColormap

    side = max(5.0, 1.6 + 0.42 * len(classes))
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("blues", ["#ffffff", SERIES[0]]), vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
        colour = "#ffffff" if shares[row, column] > 0.5 else INK
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    for axis, turn in ((axes.xaxis, 90), (axes.yaxis, 0)):
        axis.set_ticks(range(len(classes)), classes, rotation=turn, parse_math=False)
    _plain(axes, grid=False)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with light colours, atomically.

    Raises:
        InputError: The disk is full, read-only or broken.
    """
    png = io.BytesIO()
    with _quiet():
        figure.savefig(png, format="png", dpi=150, facecolor="white")
    write_bytes(path, png.getvalue(), sync=False)  # no fsync, which would delay a training that draws its curves


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element for a page that defines ``VARIABLES``; ids begin with ``name``."""
    import matplotlib
    from markupsafe import escape

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _quiet(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    _, start, svg = buffer.getvalue().partition("<svg ")
    attributes, _, body = svg.partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', attributes)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # A page has several figures, so their ids must be unique.
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"font: [^;\"]*?(\d[\d.]*px)[^;\"]*", r"font-size: \1", body)  # use the font of the page
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'{start}{view_box} role="img" aria-label="{escape(description)}">{body}'


def _figure(width_inches: float, height_inches: float) -> Figure:
    # Without pyplot: it needs no display, and a notebook's figures aren't affected.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes, grid: bool = True) -> None:
    """Remove spines and ticks, set the text colours and draw the grid."""
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[:].set_visible(False)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=LINE, linewidth=0.8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings about characters of class names that matplotlib's font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield

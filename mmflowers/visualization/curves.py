"""The course of a training as one picture."""

from __future__ import annotations

from pathlib import Path

from mmflowers.evaluation.history import read_history


def draw_curves(work_dir: Path) -> Path:
    """Draw ``curves.png`` into ``work_dir`` from its logs and return the picture's path."""
    # The figure is built without pyplot: no display, no global state, no interference with a notebook's figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    history = read_history(work_dir)
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))

    if history.accuracies:
        at, top = history.best
        accuracy.plot(history.val_epochs, history.accuracies, marker="o", markersize=3, color="tab:green")
        accuracy.plot([at], [top], marker="*", markersize=14, color="tab:orange", linestyle="none")
        accuracy.set_title(f"{work_dir.name}: best val top-1 {top:.2f} % at epoch {at}")
    loss.plot(history.epochs, history.losses, marker="o", markersize=3, color="tab:blue")
    rate.plot(history.epochs, history.rates, drawstyle="steps-mid", color="tab:gray")
    for axes, label in ((accuracy, "val top-1 (%)"), (loss, "training loss"), (rate, "learning rate")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))

    path = work_dir / "curves.png"
    partial = work_dir / ".curves.partial.png"
    figure.savefig(partial, dpi=120)
    partial.replace(path)
    return path

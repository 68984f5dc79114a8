"""The course of a training as one picture."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from mmflowers.errors import InputError


@dataclass
class History:
    """What a run logged, an entry an epoch; lists of equal length belong together.

    Attributes:
        epochs: Epochs with training numbers, from 1.
        losses: Mean training loss of each.
        rates: Learning rate at the end of each.
        val_epochs: Epochs with a validation.
        accuracies: Validation top-1 in percent of each.
    """

    epochs: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    val_epochs: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def read_history(work_dir: Path) -> History:
    """Read the ``scalars.json`` of all (resumed) starts of a run; a later start's epoch replaces an earlier one's."""
    training: dict[int, tuple[float, float]] = {}
    validation: dict[int, float] = {}
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not logs:
        raise InputError(f"{work_dir} has no vis_data/scalars.json", "is it the work dir of a training?")
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if "loss" in entry:
                # The last line of an epoch wins: its mean covers the whole epoch.
                training[entry["epoch"]] = (entry.get("loss_epoch", entry["loss"]), entry.get("lr", float("nan")))
            elif "accuracy/top1" in entry:
                validation[entry["step"]] = entry["accuracy/top1"]
    history = History()
    for epoch, (loss, rate) in sorted(training.items()):
        history.epochs.append(epoch)
        history.losses.append(loss)
        history.rates.append(rate)
    history.val_epochs = sorted(validation)
    history.accuracies = [validation[epoch] for epoch in history.val_epochs]
    return history


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
        best = max(range(len(history.accuracies)), key=history.accuracies.__getitem__)
        at, top = history.val_epochs[best], history.accuracies[best]
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

"""Loss, learning rate and validation score per epoch, from MMEngine's logs and the config in the work dir."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from mmflowers.evaluation.metadata import read_run_metadata
from mmflowers.utils.errors import InputError

TOP1 = "accuracy/top1"  # MMPretrain's name for the top-1 accuracy in percent


@dataclass
class History:
    """The logged values of a run, one entry per epoch.

    Attributes:
        epochs: Numbers of the trained epochs, from 1.
        losses: Mean training loss of each of ``epochs``.
        rates: Learning rate at the end of each of ``epochs``.
        val_epochs: Numbers of the epochs with a validation.
        scores: ``metric`` of each of ``val_epochs``, as logged: MMPretrain's metrics are in percent, a loss isn't.
        metric: The validation metric that chooses the best epoch.
        rule: "greater" or "less": which of two scores is better.
    """

    epochs: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    val_epochs: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    metric: str = TOP1
    rule: str = "greater"

    @property
    def best(self) -> tuple[int, float]:
        """Epoch and score of the best validation, the first of equal ones; there must be at least one."""
        choose = min if self.rule == "less" else max
        best = choose(range(len(self.scores)), key=self.scores.__getitem__)
        return self.val_epochs[best], self.scores[best]

    @property
    def label(self) -> str:
        """Display name of ``metric``: "top-1" for top-1 accuracy, else its own name."""
        return metric_label(self.metric)

    def format(self, score: float) -> str:
        """Format a score, with its unit if that is known."""
        return f"{format_score(score)} %" if self.metric == TOP1 else format_score(score)


def metric_label(metric: str) -> str:
    """Return the display name of a metric."""
    return "top-1" if metric == TOP1 else metric


def format_score(score: float) -> str:
    """Format a score as ``95.98``, or as ``0.0312`` if its absolute value is less than 1."""
    return f"{score:.2f}" if abs(score) >= 1 or score == 0 else f"{score:.4f}"


def read_history(work_dir: Path, metric: str | None = None, rule: str = "greater") -> History:
    """Read the ``scalars.json`` of all starts of a run; an epoch of a later start replaces that of an earlier one.

    Args:
        work_dir: Of the run.
        metric: The metric to read; default the one that chose the run's best epoch, with its rule.
        rule: "greater" or "less": which of two scores of ``metric`` is better.

    Raises:
        InputError: ``work_dir`` has no such file.
    """
    if metric is None:
        metric, rule = read_run_metadata(work_dir).chosen_by
    history = History(metric=metric, rule=rule)
    training: dict[int, tuple[float, float]] = {}
    validation: dict[int, float] = {}
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not logs:
        raise InputError(f"{work_dir} has no vis_data/scalars.json", "is it the work dir of a training?")
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the incomplete last line of a killed run
                continue
            if "loss" in entry and "epoch" in entry:  # iteration-based runs have no epoch
                # The last line of an epoch is used, since its mean covers the whole epoch.
                training[entry["epoch"]] = (entry.get("loss_epoch", entry["loss"]), entry.get("lr", float("nan")))
            elif isinstance(score := entry.get(metric), (int, float)) and not math.isnan(score):
                validation[entry["step"]] = score
    for epoch, (loss, rate) in sorted(training.items()):
        history.epochs.append(epoch)
        history.losses.append(loss)
        history.rates.append(rate)
    history.val_epochs = sorted(validation)
    history.scores = [validation[epoch] for epoch in history.val_epochs]
    return history

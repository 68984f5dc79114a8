"""The numbers of a training, epoch by epoch, from MMEngine's logs and the config that the run left."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from mmflowers.errors import InputError
from mmflowers.evaluation.facts import read_facts

TOP1 = "accuracy/top1"  # MMPretrain's name for the share of right predictions, in percent


@dataclass
class History:
    """What a run logged, an entry an epoch; lists of equal length belong together.

    Attributes:
        epochs: Epochs with training numbers, from 1.
        losses: Mean training loss of each.
        rates: Learning rate at the end of each.
        val_epochs: Epochs with a validation.
        scores: ``metric`` of each, as it was logged: MMPretrain's metrics are in percent, a loss isn't.
        metric: The validation metric that the best epoch is chosen by.
        rule: "greater" or "less": which of two scores is the better one.
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
        """Epoch and score of the best validation, of equal ones the first; there must be one."""
        choose = min if self.rule == "less" else max
        best = choose(range(len(self.scores)), key=self.scores.__getitem__)
        return self.val_epochs[best], self.scores[best]

    @property
    def label(self) -> str:
        """What ``metric`` is called: "top-1" for the share of right predictions, else its own name."""
        return metric_label(self.metric)

    def told(self, score: float) -> str:
        """A score as text, with its unit where that is known."""
        return f"{format_score(score)} %" if self.metric == TOP1 else format_score(score)


def metric_label(metric: str) -> str:
    """The name of a metric for people."""
    return "top-1" if metric == TOP1 else metric


def format_score(score: float) -> str:
    """``95.98``, and ``0.0312`` of scores as small as a loss can be."""
    return f"{score:.2f}" if abs(score) >= 1 or score == 0 else f"{score:.4f}"


def read_history(work_dir: Path, metric: str | None = None) -> History:
    """Read the ``scalars.json`` of all (resumed) starts of a run; a later start's epoch replaces an earlier one's.

    Args:
        work_dir: Of the run.
        metric: Read this one, of which greater is better; default the one that the run has chosen its best epoch by.
    """
    name, rule = (metric, "greater") if metric else read_facts(work_dir).chosen_by
    history = History(metric=name, rule=rule)
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
            if "loss" in entry and "epoch" in entry:  # runs by iteration have none
                # The last line of an epoch wins: its mean covers the whole epoch.
                training[entry["epoch"]] = (entry.get("loss_epoch", entry["loss"]), entry.get("lr", float("nan")))
            elif isinstance(score := entry.get(name), (int, float)) and not math.isnan(score):
                validation[entry["step"]] = score
    for epoch, (loss, rate) in sorted(training.items()):
        history.epochs.append(epoch)
        history.losses.append(loss)
        history.rates.append(rate)
    history.val_epochs = sorted(validation)
    history.scores = [validation[epoch] for epoch in history.val_epochs]
    return history

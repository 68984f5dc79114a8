"""The numbers of a training, epoch by epoch, from MMEngine's logs."""

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

    @property
    def best(self) -> tuple[int, float]:
        """Epoch and accuracy of the best validation, of equal ones the first; there must be one."""
        best = max(range(len(self.accuracies)), key=self.accuracies.__getitem__)
        return self.val_epochs[best], self.accuracies[best]


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
            if "loss" in entry and "epoch" in entry:  # runs by iteration have none
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

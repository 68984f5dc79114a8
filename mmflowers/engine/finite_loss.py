"""Stops a training whose loss is NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import write_text

NAMED = 3  # files of a batch that the error names
BATCH_LIST = "stopped_at_batch.txt"  # in the work dir: all of them


class FiniteLoss:
    """Check the losses of a training, several at a time: each look waits for the GPU.

    Args:
        interval: Iterations between two looks.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._sum: Tensor | None = None  # since the last look: one that isn't finite makes the sum so

    def check(self, runner: Runner, outputs: dict[str, Any], data_batch: dict, *, done: int, last: bool) -> None:
        """Add an iteration's loss, and look at the sum if it is time to.

        Args:
            runner: The runner, for the error.
            outputs: Of the training step; without ``loss`` nothing is checked.
            data_batch: The batch, for the error.
            done: Iterations done in this epoch, including this one.
            last: Whether it is the epoch's last one, which is always looked at.

        Raises:
            InputError: The loss isn't finite, with the place, the learning rate and the photos.
        """
        if (loss := outputs.get("loss")) is None:
            return
        loss = torch.as_tensor(loss).detach()
        self._sum = loss if self._sum is None else self._sum + loss
        if not last and done % self.interval:
            return
        loss, self._sum = self._sum, None
        if bool(torch.isfinite(loss).all()):
            return
        files = [str(sample.get("img_path", "?")) for sample in data_batch.get("data_samples", [])]
        listed = Path(runner.work_dir) / BATCH_LIST
        write_text(listed, "".join(f"{file}\n" for file in files))
        (rate, *_) = runner.optim_wrapper.get_lr()["lr"]
        among = f" or one of the {self.interval - 1} before it" if self.interval > 1 else ""
        raise InputError(
            f"the loss became {float(loss)} in epoch {runner.epoch + 1}, iteration {runner.iter + 1}{among}, "
            f"at a learning rate of {rate:.3g}, with {', '.join(files[:NAMED])} and others (all in {listed})",
            "try a lower learning rate; the saved checkpoints are from before that",
        )

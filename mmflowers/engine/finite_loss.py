"""Stops a training whose loss is NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import write_text

if TYPE_CHECKING:
    from mmflowers.engine.loops import ExactTrainLoop

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

    def check(self, loop: ExactTrainLoop, outputs: dict[str, Any], data_batch: dict) -> None:
        """Add an iteration's loss, and look at the sum if it is due or the epoch's last iteration.

        Raises:
            InputError: The loss isn't finite, with the iteration, the learning rate and the photos.
        """
        if (loss := outputs.get("loss")) is None:
            return
        loss = torch.as_tensor(loss).detach()
        self._sum = loss if self._sum is None else self._sum + loss
        done = loop.epoch_iter + 1
        if done % self.interval and done < len(loop.dataloader):
            return
        loss, self._sum = self._sum, None
        if bool(torch.isfinite(loss).all()):
            return
        files = [str(sample.get("img_path", "?")) for sample in data_batch.get("data_samples", [])]
        listed = Path(loop.runner.work_dir) / BATCH_LIST
        write_text(listed, "".join(f"{file}\n" for file in files))
        (rate, *_) = loop.runner.optim_wrapper.get_lr()["lr"]
        among = f" or one of the {self.interval - 1} before it" if self.interval > 1 else ""
        raise InputError(
            f"the loss became {float(loss)} in epoch {loop.epoch + 1}, iteration {loop.iter + 1}{among}, "
            f"at a learning rate of {rate:.3g}, with {', '.join(files[:NAMED])} and others (all in {listed})",
            "try a lower learning rate; the saved checkpoints are from before that",
        )

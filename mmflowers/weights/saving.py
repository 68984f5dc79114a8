"""Checkpoints on the disk: whole or not there, and written while the training goes on."""

from __future__ import annotations

import copy
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from mmflowers.utils.files import replacing, sync_folder

AHEAD = 2  # checkpoints that may wait in memory: an epoch's last.pth and best.pth


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint beside its final name, flush it to the disk, then rename it.

    Raises:
        OSError: The disk is full or fails. What was there under this name stays.
    """
    content = io.BytesIO()  # torch.save's own errors don't say what the disk said
    torch.save(checkpoint, content)
    with replacing(path) as file:
        file.write(content.getbuffer())
    sync_folder(path.parent)


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, in order, as a context that ends when all are on the disk.

    What the disk refuses is raised by the next call, or at the end of the context if nothing else is being raised.
    """

    def __enter__(self) -> CheckpointWriter:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: deque[Future] = deque()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        wait(self._pending)
        self._thread.shutdown()
        if kind is None:
            self.finish()

    def submit(self, checkpoint: dict, path: Path) -> None:
        """Take a copy of the checkpoint and return; waits only where ``AHEAD`` others are still being written.

        Raises:
            OSError: See ``write_checkpoint``; of an earlier one.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) >= AHEAD):
            self._pending.popleft().result()
        # On a CPU the tensors are the model's own, which the next step changes.
        self._pending.append(self._thread.submit(write_checkpoint, copy.deepcopy(checkpoint), path))

    def finish(self) -> None:
        """Wait until all are on the disk.

        Raises:
            OSError: See ``write_checkpoint``.
        """
        while self._pending:
            self._pending.popleft().result()

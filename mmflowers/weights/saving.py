"""Atomic checkpoint writes, in the background of the training."""

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
    """Write a checkpoint atomically: under a temporary name, flushed to the disk, then renamed.

    Raises:
        OSError: The disk is full or fails. An existing file of this name stays.
    """
    content = io.BytesIO()  # torch.save would hide the error of the disk
    torch.save(checkpoint, content)
    with replacing(path) as file:
        file.write(content.getbuffer())
    sync_folder(path.parent)


class CheckpointWriter:
    """Writes checkpoints in a background thread, in order. Its ``with`` block ends when all are on the disk.

    Errors are raised by the next call, or at the end of the block if it doesn't end with another exception.
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
        """Copy the checkpoint and return; wait only if ``AHEAD`` others are still being written.

        Raises:
            OSError: See ``write_checkpoint``; for an earlier checkpoint.
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

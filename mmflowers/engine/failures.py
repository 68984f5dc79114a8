"""Failures of disks and loader workers during a training or a test, as one-line errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmflowers.datasets.seeded import MORE_SHARED_MEMORY
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import DISK_ERRORS


@contextmanager
def explained_disk(work_dir: str) -> Iterator[None]:
    """Turn an error of the disk into one line.

    Raises:
        InputError: The disk is full, over quota, read-only or broken.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise InputError(
            f"can't write {error.filename or work_dir}: {error.strerror}",
            f"the checkpoints in {work_dir} are complete; free disk space or check the disk, then --resume",
        ) from error


@contextmanager
def explained_workers(runner: Runner) -> Iterator[None]:
    """Turn the death of a loader's worker into one line, with the photo that it was reading.

    Raises:
        InputError: A worker was killed, or had too little shared memory.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        for text in (str(error), str(error.__cause__)):  # torch names the signal in either of the two
            if "shared memory" in text:
                raise InputError(f"a loader worker died: {text.splitlines()[0]}", MORE_SHARED_MEMORY) from error
        loops = (runner._train_loop, runner._val_loop, runner._test_loop)  # of which some may not be built
        loaders = [getattr(loop, "dataloader", None) for loop in loops]
        datasets: list[Any] = [loader.dataset for loader in loaders if isinstance(loader, DataLoader)]
        photos = [photo for dataset in datasets for photo in dataset.died_reading(error)]
        raise InputError(
            f"a loader worker died{' while it read ' + ', '.join(photos) if photos else ''}: "
            f"{str(error).splitlines()[0]}",
            "remove the photo if it is the same one each time; otherwise memory was short: use fewer num_workers",
        ) from error

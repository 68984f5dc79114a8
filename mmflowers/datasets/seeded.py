"""Samples whose augmentation depends only on seed, epoch and photo; the photo that crashed a worker is reported."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset, Sampler, get_worker_info

from mmflowers.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from mmflowers.utils.errors import InputError

MAX_WORKERS = 256  # per loader whose current photo is recorded
PHOTOS, STEPS, EPOCHS = 0, 1, 2  # independent streams of random numbers
SEEDING_VERSION = 2  # of the method of seeding; version 1 used the key itself as NumPy's entropy
MORE_SHARED_MEMORY = "docker run --shm-size=2g gives more shared memory; or reduce num_workers (0 needs none)"
DAMAGED = "remove it with tools/prepare_flowers.py if it is damaged; else check the config's pipeline"
SETTLING = 1.0  # seconds in which the other workers finish their current photo


class Draw(NamedTuple):
    """A sample to load, with all values that its randomness depends on.

    Attributes:
        epoch: From 0.
        rank: The process that loads it.
        repeat: How often the process loaded this photo before in this epoch.
        index: Of the photo in the dataset.
    """

    epoch: int
    rank: int
    repeat: int
    index: int  # type: ignore[assignment]  # hides the tuple method of this name, which isn't used


def seed_sequence(*key: int) -> np.random.SeedSequence:
    """Return the seeds of a stream of random numbers that is independent of the streams of all other keys.

    NumPy reads a key as 32-bit words padded with zeros, so (7, 1, 0) and (7, 1, 0, 0), or (2**32,) and (0, 1), would be
    the same stream. The sha256 of the key's text differs for all keys.

    Args:
        key: The values that the randomness depends on: seed, stream, epoch, photo …
    """
    text = repr(tuple(map(int, key)))
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators (of all devices) from a key, see ``seed_sequence``.

    Python and NumPy get 128 bits each, torch 64, of which its CPU generator uses 32.
    """
    words = seed_sequence(*key).generate_state(5, np.uint64)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4].view(np.uint32))
    torch.manual_seed(int(words[4]))


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler[Any]):
    """Yield a ``Draw`` for every index of another sampler, from position ``start`` of the epoch on.

    Args:
        dataset: The sampled dataset.
        sampler: The other sampler or its config; its ``set_epoch`` is called if it has one.
        seed: Of the other sampler.

    Attributes:
        start: Number of samples of this process that are skipped, for a training resumed within an epoch. The length
            remains that of the whole epoch.
    """

    def __init__(self, dataset: Dataset[Any], sampler: Sampler[Any] | dict[str, Any], seed: int | None = None) -> None:
        if isinstance(sampler, dict):
            sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.sampler: Any = sampler  # torch's type for samplers has no length
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[Draw]:
        times: Counter[int] = Counter()  # repeated photos get different pixels
        for position, index in enumerate(self.sampler):
            if position >= self.start:
                yield Draw(self.epoch, get_rank(), times[index], index)
            times[index] += 1

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, that shuffling and augmentation depend on."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


@DATASETS.register_module()
class SeededDataset(Dataset[Any]):
    """Wrap a dataset so that its random transforms get the same numbers for a photo in an epoch in any process.

    MMEngine seeds loader workers by their number when they start. Their random numbers then depend on the number of
    workers and on all samples before: a resumed run gets other pixels, and workers restarted each epoch repeat theirs.

    Args:
        dataset: Any map-style dataset or its config. Its samples are requested by ``Draw`` (``SeededSampler``).
        seed: Of the run.
    """

    def __init__(self, dataset: Dataset[Any] | dict[str, Any], seed: int) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        # For each worker its process id and the index of its current photo, -1 if there is none.
        self._reading = torch.full((MAX_WORKERS, 2), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:  # metainfo, get_data_info … of the wrapped dataset
        if name == "dataset" or name.startswith("__"):  # requested during unpickling, before there is a dataset
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        """The pipeline of the wrapped dataset, which hooks may replace (MMPretrain's ``SwitchRecipeHook``)."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index = draw.index
        worker = get_worker_info()
        slot = None if worker is None or worker.id >= MAX_WORKERS else self._reading[worker.id]
        if slot is not None:
            slot[0], slot[1] = os.getpid(), index
        seed_generators(self.seed, PHOTOS, *draw)
        try:
            sample: dict[str, Any] = self.dataset[index]
            return sample
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{self.image(index)} can't be loaded: {type(error).__name__}: {error}",
                DAMAGED,
            ) from error
        finally:
            if slot is not None:
                slot[1] = -1

    def __getitems__(self, draws: list[Draw]) -> list[dict[str, Any]] | dict[str, Any]:
        """Return the samples of a batch, as one dict if the wrapped dataset provides batches (``FlowersDataset``)."""
        if getattr(self.dataset, "gives_batches", False):
            batch: dict[str, Any] = self.dataset.batch([(d.epoch, d.repeat, d.index) for d in draws], self.seed)
            return batch
        return [self[draw] for draw in draws]

    def image(self, index: int) -> str:
        """Return the path of a photo, relative to the dataset folder if it is inside."""
        get_data_info = getattr(self.dataset, "get_data_info", None)
        path = str(get_data_info(index).get("img_path", f"sample {index}")) if get_data_info else f"sample {index}"
        root = str(getattr(self.dataset, "data_root", "") or "")
        return Path(path).relative_to(root).as_posix() if root and Path(root) in Path(path).parents else path

    def died_reading(self, error: RuntimeError) -> list[str]:
        """Return the photos that the crashed loader workers in torch's ``error`` were reading."""
        named = " ".join(re.findall(r"\(pid(?:\(s\))? ([\d, ]+)\)", str(error)))
        pids = {int(pid) for pid in re.findall(r"\d+", named)}
        if not pids:
            return []
        time.sleep(SETTLING)
        return [self.image(int(index)) for pid, index in self._reading.tolist() if pid in pids and index >= 0]


@FUNCTIONS.register_module()
def collate_samples(
    samples: list[dict[str, Any]] | dict[str, Any], collate: str | Callable[..., Any] = "pseudo_collate", **options: Any
) -> Any:
    """Collate samples with a function or the name of a registered one; whole batches are returned unchanged.

    A loader worker moves the batch to shared memory here. Torch would do it in a thread whose errors are lost: the
    training would wait for the batch forever.

    Raises:
        InputError: There isn't enough shared memory, or too many files are open.
    """
    if not isinstance(samples, dict):
        samples = (FUNCTIONS.get(collate) if isinstance(collate, str) else collate)(samples, **options)
    if get_worker_info() is not None:
        try:
            _share(samples)
        except RuntimeError as error:
            what = f"a loader worker can't share its batch: {str(error).splitlines()[0]}"
            raise InputError(what, MORE_SHARED_MEMORY) from error
    return samples


def _share(batch: Any) -> None:
    if isinstance(batch, torch.Tensor):
        if batch.device.type == "cpu":
            batch.share_memory_()
    elif isinstance(batch, BaseDataElement):
        _share(batch.all_values())
    elif isinstance(batch, (dict, list, tuple)):
        for value in batch.values() if isinstance(batch, dict) else batch:
            _share(value)


@FUNCTIONS.register_module()
def leave_signals_to_the_trainer(worker_id: int) -> None:
    """Make a loader worker ignore signals that are sent to the whole process group (Ctrl-C, torchrun, Slurm).

    The trainer may need the worker to finish its iteration. A SIGTERM from the trainer itself ends the worker, and
    torch ends it if the trainer has died.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows, where SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by threads started later
        threading.Thread(target=_end_with_the_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_the_trainer(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)

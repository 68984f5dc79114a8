"""Samples whose augmentation follows from seed, epoch and photo alone, and that say which photo a loader died of."""

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

MAX_WORKERS = 256  # of one loader that can be told apart
PHOTOS, STEPS, EPOCHS = 0, 1, 2  # streams of random numbers that must not coincide
SEEDING_VERSION = 2  # of how numbers are drawn from a key; 1 took the key itself for NumPy's entropy
MORE_SHARED_MEMORY = "docker run --shm-size=2g gives more shared memory; or fewer num_workers (0 needs none)"
SETTLING = 1.0  # seconds in which the workers that are alive finish what they are at


class Draw(NamedTuple):
    """A sample to load: what its randomness is a function of.

    Attributes:
        epoch: From 0.
        rank: The process that takes it.
        repeat: How often it had taken this photo before in this epoch.
        index: The photo's number in the dataset.
    """

    epoch: int
    rank: int
    repeat: int
    index: int  # type: ignore[assignment]  # hides the tuple method of that name, which nothing calls


def seed_sequence(*key: int) -> np.random.SeedSequence:
    """Return the seeds of a stream of random numbers, independent of the streams of all other keys.

    NumPy alone wouldn't do: it reads a key as 32-bit words and pads them with zeros, so (7, 1, 0) and (7, 1, 0, 0),
    or (2**32,) and (0, 1), are one stream. The sha256 of the key's text differs for keys of any length and size.

    Args:
        key: What the randomness is a function of: seed, stream, epoch, photo …
    """
    text = repr(tuple(map(int, key)))
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators (those of all devices) from a key, as ``seed_sequence`` takes it.

    Python and NumPy get 128 bits each, torch 64, of which its CPU generator uses 32.
    """
    words = seed_sequence(*key).generate_state(5, np.uint64)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4].view(np.uint32))
    torch.manual_seed(int(words[4]))


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Yields a ``Draw`` for every index of another sampler, from position ``start`` of the epoch on.

    Args:
        dataset: What is sampled.
        sampler: The other one or its config; its ``set_epoch`` is called where it has one.
        seed: For the other one.

    Attributes:
        start: So many samples of this process are passed over: where a training that was stopped within an epoch goes
            on. The length stays that of the whole epoch.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler | dict, seed: int | None = None) -> None:
        if isinstance(sampler, dict):
            sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.sampler: Any = sampler  # torch gives samplers and datasets no length
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[Draw]:
        times: Counter[int] = Counter()  # samplers that never end, or repeat photos, want other pixels every time
        for position, index in enumerate(self.sampler):
            if position >= self.start:
                yield Draw(self.epoch, get_rank(), times[index], index)
            times[index] += 1

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle and augment as in this epoch, counted from 0."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Another dataset, whose random transforms draw the same numbers for a photo in an epoch wherever they run.

    MMEngine seeds loader workers by their number, when they start: what they draw later depends on how many there are
    and on all they have done before, so a resumed run would see other pixels, and workers restarted each epoch see
    the same ones again.

    Args:
        dataset: Any map-style dataset or its config; samples are asked for by ``Draw``, as ``SeededSampler`` does.
        seed: Of the run.
    """

    def __init__(self, dataset: Dataset | dict, seed: int) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        # For each worker its process and the index it is reading, -1 between two.
        self._reading = torch.full((MAX_WORKERS, 2), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:  # metainfo, get_data_info … of the dataset inside
        if name == "dataset" or name.startswith("__"):  # asked for while unpickling, when there is none yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        """That of the dataset inside, which hooks exchange (MMPretrain's ``SwitchRecipeHook``)."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline

    def __getitem__(self, draw: Draw) -> dict:
        index = draw.index
        worker = get_worker_info()
        slot = None if worker is None or worker.id >= MAX_WORKERS else self._reading[worker.id]
        if slot is not None:
            slot[0], slot[1] = os.getpid(), index
        seed_generators(self.seed, PHOTOS, *draw)
        try:
            return self.dataset[index]
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{self.image(index)} can't be loaded: {type(error).__name__}: {error}",
                "tools/prepare_flowers.py leaves damaged photos out; else the pipeline of the config is wrong",
            ) from error
        finally:
            if slot is not None:
                slot[1] = -1

    def __getitems__(self, draws: list[Draw]) -> list[dict] | dict:
        """The samples of a batch; as one dict where the dataset inside gives whole batches (``FlowersDataset``)."""
        if getattr(self.dataset, "gives_batches", False):
            return self.dataset.batch([(draw.epoch, draw.repeat, draw.index) for draw in draws], self.seed)
        return [self[draw] for draw in draws]

    def image(self, index: int) -> str:
        """Path of a photo, relative to the dataset folder where it lies in one."""
        get_data_info = getattr(self.dataset, "get_data_info", None)
        path = str(get_data_info(index).get("img_path", f"sample {index}")) if get_data_info else f"sample {index}"
        root = str(getattr(self.dataset, "data_root", "") or "")
        return Path(path).relative_to(root).as_posix() if root and Path(root) in Path(path).parents else path

    def died_reading(self, error: RuntimeError) -> list[str]:
        """Photos that the loader workers named in torch's ``error`` were reading when they died."""
        named = " ".join(re.findall(r"\(pid(?:\(s\))? ([\d, ]+)\)", str(error)))
        pids = {int(pid) for pid in re.findall(r"\d+", named)}
        if not pids:
            return []
        time.sleep(SETTLING)
        return [self.image(int(index)) for pid, index in self._reading.tolist() if pid in pids and index >= 0]


@FUNCTIONS.register_module()
def collate_samples(samples: list[dict] | dict, collate: str | Callable = "pseudo_collate", **options: Any) -> Any:
    """Collate, by a function or a registered one's name, what doesn't come as a whole batch.

    A loader worker moves the batch to shared memory here. Torch would do it in a thread whose error reaches nobody: the
    batch would be lost, and the training wait for it forever.

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
    """Let signals that reach the whole group of processes (Ctrl-C, torchrun, Slurm) pass a loader worker by.

    The trainer may still need it to end its iteration. A SIGTERM from the trainer itself ends it; and a trainer that
    is gone, however that came, is noticed by torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows: there torch's way stays, which ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads started from here on inherit it
        threading.Thread(target=_end_with_the_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_the_trainer(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)

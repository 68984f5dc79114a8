"""Find the photos that a data loader yields in one epoch, through dataset wrappers and samplers."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.identity import match_prepared
from mmflowers.datasets.seeded import Draw, SeededSampler
from mmflowers.utils.errors import InputError, count, some

ENDLESS = 3  # lengths of the dataset after which a sampler is considered endless


class Served(NamedTuple):
    """The photos that a data loader yields in one epoch.

    Attributes:
        samples: ``(path, label)`` of each item of its dataset, in order and with repetitions.
        counts: How often the loader yields each item, int64 of shape (items,).
        is_fixed: Whether the next epoch has the same items in the same order, and so leaves out the same ones.
    """

    samples: list[tuple[str, int]]
    counts: np.ndarray
    is_fixed: bool


class Coverage(NamedTuple):
    """The photos of a split that a result covers.

    Attributes:
        counted: Number of photos of the split that were counted.
        listed: Number of photos of the split: those that were prepared (``files.csv``), else those of its list.
        repeated: Photos that were counted more than once.
        foreign: Counted photos that don't belong to the split.
        relabelled: Photos that were counted with another label than in the list.
    """

    counted: int
    listed: int
    repeated: list[str]
    foreign: list[str]
    relabelled: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether exactly the photos of the split were counted, once each, with their labels."""
        return self.counted == self.listed and not (self.repeated or self.foreign or self.relabelled)

    def require_sound(self, split: str) -> None:
        """Raise an error if photos were counted twice or with wrong labels.

        Before a run the checks find errors of loaders. This finds those of transforms, collate functions and loops.

        Raises:
            InputError: The message names some of the photos.
        """
        wrong = {"more than once": self.repeated, f"with another label than in {split}.txt": self.relabelled}
        for how, photos in wrong.items():
            if photos:
                what = f"{count(len(photos))} of {split} counted {how} ({some(photos)})"
                raise InputError(what, "check the dataloader, its transforms and its collate_fn")

    def __str__(self) -> str:
        text = f"{self.counted} of {count(self.listed)}"
        return f"{text} and {len(self.foreign)} others" if self.foreign else text


def coverage(counted: Iterable[tuple[str | Path, int | None]], root: Path, split: str) -> Coverage:
    """Compare the counted photos with a split of a dataset folder.

    Args:
        counted: Path and label of each photo, with repetitions; None for a label that isn't one class.
        root: The dataset folder.
        split: Name of its list.

    Raises:
        InputError: The list can't be read.
    """
    folder = read_dataset_folder(root, (split,), files_may_be_gone=True)
    listed = dict(folder.samples[split])
    times: Counter[str] = Counter()
    relabelled = set()
    for path, label in counted:
        name = Path(os.path.relpath(path, root)).as_posix()
        times[name] += 1
        if label is not None and listed.get(name, label) != label:
            relabelled.add(name)
    match = match_prepared(root, split, sorted(times), otherwise=listed)
    return Coverage(
        counted=len(times) - len(match.added),
        listed=len(match.prepared),
        repeated=sorted(name for name, number in times.items() if number > 1),
        foreign=match.added,
        relabelled=sorted(relabelled),
    )


def samples_of(dataset: Any) -> list[tuple[str, int]]:
    """Return ``(path, label)`` of each item of an MMPretrain dataset, through wrappers such as ``RepeatDataset``.

    A label that isn't one integer (multi-label) is replaced by a hash.
    """
    inner = getattr(dataset, "_dataset", dataset)  # with num_batch_per_epoch, len() may exceed the dataset
    infos = (dataset.get_data_info(index) for index in range(min(len(dataset), len(inner))))
    return [(str(info.get("img_path", "")), _label(info.get("gt_label", -1))) for info in infos]


def served(loader: DataLoader[Any]) -> Served:
    """Return the photos that a data loader yields in one epoch, without loading them.

    ``drop_last``, ``num_batch_per_epoch``, samplers and dataset wrappers are included.

    Raises:
        InputError: The loader requests an index beyond the end of its dataset, as with a ``num_batch_per_epoch`` that
            is too large, which would end the run.
    """
    samples = samples_of(loader.dataset)
    first = _epoch(loader, ENDLESS * len(samples))
    counts = Counter(first)
    if counts and max(counts) >= len(samples):
        what = f"requests sample {max(counts) + 1} of a dataset of {len(samples)}"
        raise InputError(what, "remove num_batch_per_epoch, or reduce it")
    is_fixed = True
    if isinstance(loader.sampler, SeededSampler):
        now = loader.sampler.epoch
        loader.sampler.set_epoch(now + 1)
        is_fixed = _epoch(loader, ENDLESS * len(samples)) == first
        loader.sampler.set_epoch(now)
    return Served(samples, np.array([counts[index] for index in range(len(samples))], dtype=np.int64), is_fixed)


def _epoch(loader: DataLoader[Any], most: int) -> list[int]:
    """Return the indices of an epoch, up to the first batch that exceeds ``most``."""
    taken: list[int] = []
    for batch in loader.batch_sampler if loader.batch_sampler is not None else ([index] for index in loader.sampler):
        taken += (item.index if isinstance(item, Draw) else int(item) for item in batch)
        if len(taken) > most:
            break
    return taken


def without_decoding(loader: dict[str, Any]) -> dict[str, Any]:
    """Return a dataloader config that yields the same items without transforms and worker processes."""
    plain = copy.deepcopy(dict(loader))
    for key in ("persistent_workers", "prefetch_factor", "pin_memory", "multiprocessing_context", "timeout"):
        plain.pop(key, None)
    plain["num_workers"] = 0
    _drop_pipelines(plain.get("dataset"))
    return plain


def _drop_pipelines(config: Any) -> None:
    if isinstance(config, dict):
        if "pipeline" in config:
            config["pipeline"] = []
        if str(config.get("type")).rpartition(".")[2] == "FlowersDataset":
            config["serialize_data"] = False  # serialising calls the garbage collector, which is slow
        for value in config.values():
            _drop_pipelines(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _drop_pipelines(value)


def _label(value: Any) -> int:
    if isinstance(value, (Sequence, np.ndarray)):
        return hash(tuple(np.asarray(value).ravel().tolist()))
    return int(value)

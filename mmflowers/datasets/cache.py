"""Photos decoded once: a split as one uint8 array that all processes share, on the disk, in memory or on the GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmflowers.commands import processors
from mmflowers.errors import InputError, Problem

FORMAT = 1  # of what is stored: another number makes the caches of before stale
DEVICE_SHARE = 0.4  # of a GPU's free memory that photos may take: the training needs the rest


def cache_folder() -> Path:
    """``$MMFLOWERS_CACHE``, else ``decoded`` in the folder that the system has for caches of mmflowers."""
    import pooch

    return Path(os.environ.get("MMFLOWERS_CACHE") or Path(pooch.os_cache("mmflowers")) / "decoded")


def cached_array(
    identity: str, state: object, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """An array of uint8 from the cache, made first where it isn't there or has become stale.

    It appears under its name when it is whole. One with the same identity and another state is stale, and removed.
    Where the disk has no room, or can't be written, the array is in memory alone.

    Args:
        identity: What the array is of; at any time the cache holds one array of it.
        state: JSON-like: all that its content depends on.
        shape: Of the array.
        rows: Called to make the array's rows in order.

    Raises:
        InputError: As ``rows`` does.
    """
    # Here, as tools/train_torch.py needs this module's cache_folder and works without OpenMMLab's packages.
    from mmengine.dist import barrier, is_main_process

    folder = cache_folder()
    prefix = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    digest = hashlib.sha256(json.dumps([FORMAT, state, shape]).encode("utf-8", "backslashreplace")).hexdigest()[:32]
    path = folder / f"{prefix}-{digest}.npy"
    loads_ahead = get_worker_info() is not None  # a loader's worker, which is no process of the distributed training
    if not path.is_file() and (loads_ahead or is_main_process()):
        with contextlib.suppress(OSError):
            _write(path, prefix, shape, rows)
    if not loads_ahead:
        barrier()
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if array.shape == shape and array.dtype == np.uint8:
            return array
    except (OSError, ValueError):
        pass
    array = np.empty(shape, np.uint8)  # what a disk can't hold, or another machine's disk has
    for number, row in enumerate(rows()):
        array[number] = row
    return array


def _write(path: Path, prefix: str, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f"{prefix}-*.npy"):
        stale.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{prefix}-", suffix=".partial", dir=path.parent)
    os.close(handle)
    try:
        with Path(name).open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows():  # written, not mapped: a full disk is an OSError then, not a SIGBUS
                file.write(np.ascontiguousarray(row))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def in_threads(make: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield ``make(0)`` … ``make(count - 1)`` in order, made ahead in as many threads as there are processors.

    Raises:
        InputError: With the problems of all that failed.
    """
    problems: list[Problem] = []
    threads = processors()
    ahead = 8 * threads
    with ThreadPoolExecutor(threads) as pool:
        under_way = []
        for number in range(count + ahead):
            if number < count:
                under_way.append(pool.submit(make, number))
            if number >= ahead or number >= count:
                if not under_way:
                    break
                try:
                    row = under_way.pop(0).result()
                except InputError as error:
                    problems.extend(error.problems)
                    continue
                if not problems:
                    yield row
    if problems:
        raise InputError(problems=problems)


def to_device(array: np.ndarray, device: torch.device) -> Tensor | None:
    """The array on a GPU that has room for it; else None."""
    if device.type != "cuda" or array.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.asarray(array)).to(device)

"""Cache of decoded photos: a split as one uint8 array that all processes share, on disk, in memory or on the GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mmflowers.utils.errors import InputError, Problem, raise_all
from mmflowers.utils.files import cache_root, locked, replacing
from mmflowers.utils.resources import processors

FORMAT = 1  # of the stored arrays: another number makes all existing ones stale
LIMIT = 20  # GB that the cache may take
ARRAYS = "[0-9a-f]*-*.npy"  # the folder holds other caches too
DEVICE_SHARE = 0.4  # of a GPU's free memory that photos may take: the training needs the rest

_opened: set[Path] = set()  # arrays that this process uses


def cache_folder() -> Path:
    """Return ``$MMFLOWERS_CACHE``, or else ``decoded`` in the operating system's cache folder for mmflowers."""
    return Path(os.environ.get("MMFLOWERS_CACHE") or cache_root() / "decoded")


def cached_array(
    identity: str, photos: object, recipe: object, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """Return a uint8 array from the cache, and compute it first if it isn't there.

    Arrays of the same identity whose photos have changed are removed, and the least recently used ones beyond
    ``limit``. If the disk has no room, or can't be written, the array is in memory only.

    Args:
        identity: Which list of photos the array is of.
        photos: JSON-like: the photos' state; another state makes older arrays of this identity stale.
        recipe: JSON-like: what is computed from the photos; the cache holds arrays of several recipes.
        shape: Of the array.
        rows: Called to compute the array's rows in order.

    Raises:
        InputError: As ``rows`` and ``limit`` do.
    """
    array = _cached(identity, photos, recipe, shape, int(np.prod(shape)), rows)
    if array is None:  # what a disk can't hold, or another machine's disk has
        array = np.empty(shape, np.uint8)
        for number, row in enumerate(rows()):
            array[number] = row
    return array


def cached_bytes(
    identity: str, photos: object, recipe: object, size: int, rows: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray | None:
    """Return all rows, of any lengths, concatenated in an array from the cache: uint8 of shape (bytes,).

    Args:
        identity, photos, recipe, rows: See ``cached_array``.
        size: The approximate number of bytes.

    Returns:
        The array; None if it is larger than ``limit`` or the disk can't hold it.

    Raises:
        InputError: As ``rows`` and ``limit`` do.
    """
    return None if size > limit() else _cached(identity, photos, recipe, None, size, rows)


def limit() -> float:
    """Return how many bytes the arrays in the cache may take: ``$MMFLOWERS_CACHE_GB``, default 20 GB.

    Raises:
        InputError: It isn't a number.
    """
    value = os.environ.get("MMFLOWERS_CACHE_GB") or LIMIT
    try:
        return float(value) * 1e9
    except ValueError:
        raise InputError(f"MMFLOWERS_CACHE_GB is {value!r}", "set it to a number of gigabytes, such as 20") from None


def _cached(
    identity: str,
    photos: object,
    recipe: object,
    shape: tuple[int, ...] | None,
    size: int,
    rows: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray | None:
    # Here, as tools/train_torch.py needs this module's cache_folder and works without OpenMMLab's packages.
    from mmengine.dist import barrier, is_main_process

    folder = cache_folder()
    prefix, content, kind = _digest(identity), _digest(photos), _digest([FORMAT, recipe, shape])
    path = folder / f"{prefix}-{content}-{kind}.npy"
    loads_ahead = get_worker_info() is not None  # a loader's worker, which is no process of the distributed training
    if loads_ahead or is_main_process():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
            # Of several processes that want the array one makes it, and the others wait for it.
            with contextlib.nullcontext() if path.is_file() else locked(_lock_of(folder, path.name), timeout=-1):
                if not path.is_file():
                    stale = set(folder.glob(f"{prefix}-*")) - set(folder.glob(f"{prefix}-{content}-*"))
                    _make_room(folder, size, stale)
                    _write(path, shape, rows)
            os.utime(path)  # when it was used last
    if not loads_ahead:
        barrier()
    try:
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if array.dtype != np.uint8 or array.shape != (shape or array.shape):
        return None
    _opened.add(path)
    return array


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _lock_of(folder: Path, name: str) -> Path:
    """Return the lock file of the arrays of one identity, by the name of one of them."""
    return folder / f".{name.partition('-')[0]}.lock"


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished arrays of killed processes; those of running processes are locked."""
    for partial in folder.glob(f".*.{ARRAYS}.partial"):
        name = partial.name.split(".")[2]  # .<random>.<name of the array>.partial
        with contextlib.suppress(OSError), locked(_lock_of(folder, name)):
            partial.unlink(missing_ok=True)


def _make_room(folder: Path, size: int, stale: set[Path]) -> None:
    """Remove ``stale`` arrays, and the least recently used ones until ``size`` bytes fit into the limit.

    Of the valid ones those that this process has opened stay. What is removed stays readable on POSIX for those who
    have opened it; on Windows it can't be removed until then.
    """
    most, arrays = limit(), []
    for path in folder.glob(ARRAYS):
        with contextlib.suppress(OSError):  # another process has just removed it
            arrays.append((path not in stale, path.stat().st_mtime, path.stat().st_size, path))
    total = sum(array[2] for array in arrays) + size
    for is_valid, _, its_size, path in sorted(arrays):
        if is_valid and (total <= most or path in _opened):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            total -= its_size


def _write(path: Path, shape: tuple[int, ...] | None, rows: Callable[[], Iterable[np.ndarray]]) -> None:
    with replacing(path, sync=False) as file:
        _write_header(file, shape or (0,))
        # Written, not mapped: a full disk is an OSError then, not a SIGBUS.
        written = sum(file.write(np.ascontiguousarray(row).data) for row in rows())
        if shape is None:  # NumPy leaves room in a header for the number that becomes known at the end
            file.seek(0)
            _write_header(file, (written,))


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def in_threads(make: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield ``make(0)`` … ``make(count - 1)`` in order, computed ahead in as many threads as there are processors.

    Raises:
        InputError: With the problems of all that failed.
    """
    problems: list[Problem] = []
    numbers = iter(range(count))
    with ThreadPoolExecutor(processors()) as pool:
        pending = deque(pool.submit(make, number) for number in islice(numbers, 8 * processors()))
        while pending:
            try:
                row = pending.popleft().result()
            except InputError as error:
                problems.extend(error.problems)
            else:
                if not problems:
                    yield row
            pending.extend(pool.submit(make, number) for number in islice(numbers, 1))
    raise_all(problems)


def has_room(device: torch.device, size: int) -> bool:
    """Return whether ``device`` is a GPU that can keep ``size`` bytes and still train."""
    return device.type == "cuda" and size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def to_device(array: np.ndarray, device: torch.device) -> Tensor | None:
    """Copy an array to a GPU that has room for it; return None for another device."""
    return torch.from_numpy(np.asarray(array)).to(device) if has_room(device, array.nbytes) else None

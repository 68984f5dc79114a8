"""Main memory: how much this process may still take, and keeping what it frees."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for what it allocates next. Returns whether the C library can.

    glibc gives every block of more than 32 MB back to the kernel when it is freed, and the next one comes page by page,
    zeroed. A network's activations are such blocks, many in every step: up to a third of the time of a training on a
    CPU went there. What PyTorch's tuning guide does by another allocator (jemalloc, TCMalloc) before the process
    starts, three settings do in it. The process stays as large as it was at its largest.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)])


def available_memory(root: Path = Path("/")) -> int | None:
    """The bytes that this process may still take, by Linux and by every control group (container) around it.

    Args:
        root: Of the file system with ``proc`` and ``sys``.

    Returns:
        The least of what the system and the groups have left, 0 or more; None where the system doesn't say (not Linux).
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    return max(0, min([*free, *_left_in_groups(root)], default=0)) if free else None


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left of the limit of each control group with one, of version 1 or 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":  # version 2
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        # A container may see its own group as the root of the mount, whatever path the host knows it by.
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            left = _left(mount / group, *files)
            if left is not None:
                yield left


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most, used = ((group / name).read_text().strip() for name in (limit, usage))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or the root of all, which has no limit
        return None
    # Pages of files that were read are given back when memory gets short.
    return None if most == "max" else int(most) - int(used) + int(stat.get(reclaimable, 0))

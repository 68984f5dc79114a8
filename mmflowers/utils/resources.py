"""Find the CPU cores and the main memory that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def processors() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still allocate, by Linux and every control group (container) around it.

    Args:
        root: Of the file system with ``proc`` and ``sys``.

    Returns:
        The least of what the system and the groups have left, 0 or more; None if it isn't known (not Linux).
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    return max(0, min([*free, *_left_in_groups(root)], default=0)) if free else None


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what is left of the limit of each control group with one, of version 1 or 2."""
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

"""Keep freed memory in the process, for its next allocations."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, and return whether the C library supports that.

    glibc returns every freed block of more than 32 MB to the kernel, and the next one is zeroed page by page. A
    network's activations are such blocks: this took up to a third of the time of a training on a CPU. PyTorch's tuning
    guide replaces the allocator (jemalloc, TCMalloc) before the process starts; three settings have the same effect.
    The process's memory doesn't shrink.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)])

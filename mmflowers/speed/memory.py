"""Keep the memory that a process frees."""

from __future__ import annotations

import ctypes
import platform

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

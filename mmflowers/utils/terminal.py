"""Show progress on the terminal. Has no slow imports."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


class Stopped(BaseException):
    """A signal asked the command to stop. Not an Exception, so that ``except Exception`` lets it through."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection for the imports in the ``with`` block.

    Importing PyTorch and OpenMMLab's packages creates half a million objects, none of them garbage. Collecting takes a
    quarter of the import time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def progress(items: Iterable[T], *, total: int, what: str, every_seconds: float = 10.0) -> Iterator[T]:
    """Yield ``items`` and show the progress on stderr: a bar on a terminal, else a line every ``every_seconds``."""
    if on_terminal():
        yield from open_bar(items, total=total, desc=what)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Return whether this is the first, or the only, of the processes of a distributed run, by their launcher."""
    return not int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))


def on_terminal() -> bool:
    """Return whether stderr is a terminal that can show a progress bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


_bars: weakref.WeakSet[tqdm] = weakref.WeakSet()


def open_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Open a progress bar with tqdm's arguments; it is erased when it is closed."""
    from tqdm import tqdm

    bar = tqdm(*args, **{"unit": "", "dynamic_ncols": True, "leave": False, **kwargs})
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Close the bars that an error or a signal left open, so that the next output starts on a new line."""
    for bar in list(_bars):
        bar.close()

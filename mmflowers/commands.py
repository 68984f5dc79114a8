"""Shared command-line behaviour: error format, exit codes, signals, progress bars. Has no slow imports."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from mmflowers.errors import InputError, Problem

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_BUG, EXIT_BAD_INPUT = 1, 2

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the description's line breaks and prints errors in one line, as ``run`` does."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:  # type: ignore[override]
        """Parse the arguments; if the shell asks for completions, print these and exit."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(*args, **kwargs)

    def add_launcher(self) -> None:
        """Add ``--launcher`` (torchrun, Slurm or MPI) and ``--local_rank``, as in MMEngine's tools."""
        self.add_argument(
            "--launcher",
            choices=("none", "pytorch", "slurm", "mpi"),
            default="none",
            help="launcher of a distributed run; pytorch means torchrun (default: none)",
        )
        self.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)

    def add_cfg_options(self) -> None:
        """Add ``--cfg-options``, which may be repeated."""
        self.add_argument(
            "--cfg-options",
            action="extend",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="override config values, with dotted keys",
        )

    def error(self, message: str) -> NoReturn:
        _say(Problem(message, f"{self.prog} --help"))
        sys.exit(EXIT_BAD_INPUT)


class Stopped(BaseException):
    """A signal asked the command to stop. Not an Exception, so that ``except Exception`` lets it through."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command's ``main`` and exit the process with the project's exit codes and error format.

    Exit codes: 0 success, 1 a bug (with its traceback), 2 bad input (``error: what · hint: what to do``, one line per
    problem), 130 after SIGINT, 143 after SIGTERM.
    """

    asked: list[int] = []

    def stop(signum: int, frame: object) -> NoReturn:
        asked.append(signum)
        if hasattr(signal, "SIGCHLD"):  # a signal to the process group also ends DataLoader workers; torch's
            signal.signal(signal.SIGCHLD, lambda *_: None)  # handler would replace Stopped by a RuntimeError
        raise KeyboardInterrupt if signum == signal.SIGINT else Stopped(signum)

    def not_lost(unraisable) -> None:
        # Python discards exceptions in callbacks (around a fork, in a finaliser): send a signal from there again.
        asked = {Stopped: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(unraisable.exc_type)
        if asked is None:
            sys.__unraisablehook__(unraisable)
        else:
            threading.Timer(0.1, signal.raise_signal, (asked,)).start()

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if the shell set it to be ignored
        signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = not_lost
    code = 0
    try:
        try:
            main()
            _leave_process_group()
        finally:
            close_bars()
    except InputError as error:
        for problem in error.problems:
            _say(problem)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        print("stopped", file=sys.stderr)
    except Stopped as stopped:
        code = 128 + stopped.signum
        print("stopped", file=sys.stderr)
    except BrokenPipeError:  # the reader, such as `… | head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        if (
            asked
        ):  # a library's bare `except:` turned the signal into another error, as MMEngine's config formatter does
            code = 128 + asked[0]
            print("stopped", file=sys.stderr)
        else:
            traceback.print_exc()
            code = EXIT_BUG
    # Python collects garbage several times at exit, in all objects of the libraries. This would take 1 to 2 seconds.
    gc.freeze()
    sys.exit(code)


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


def on_terminal() -> bool:
    """Return whether stderr is a terminal that can show a progress bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


_bars: weakref.WeakSet[tqdm] = weakref.WeakSet()


def open_bar(*args, **kwargs) -> tqdm:
    """Open a progress bar with tqdm's arguments; it is erased when it is closed."""
    from tqdm import tqdm

    bar = tqdm(*args, unit="", dynamic_ncols=True, leave=False, **kwargs)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Close the bars that an error or a signal left open, so that the next output starts on a new line."""
    for bar in list(_bars):
        bar.close()


def processors() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def existing_folder(text: str) -> Path:
    """Parse the path of an existing folder, as an argparse ``type``."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def existing_file(text: str) -> Path:
    """Parse the path of an existing file, as an argparse ``type``."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def natural(text: str) -> int:
    """Parse an integer from 0, as an argparse ``type``."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def positive(text: str) -> int:
    """Parse an integer from 1, as an argparse ``type``."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _leave_process_group() -> None:
    """Wait for the other processes of a distributed run, then close the connections to them.

    A process that exits with open connections can abort (SIGABRT from Gloo's threads). torchrun then stops the main
    process, which may still be writing the predictions.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # another process ended with an error, which it prints itself
        distributed.barrier()
    distributed.destroy_process_group()


def _say(problem: Problem) -> None:
    print(f"error: {problem}", file=sys.stderr)

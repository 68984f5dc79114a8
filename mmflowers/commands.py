"""The manners all commands share: errors, exit codes, signals, progress. Imports nothing heavy."""

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
    """An argument parser that keeps the description's line breaks and complains in the house's one-line form."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:  # type: ignore[override]
        """Parse; or where the shell asks what could come next, answer that and leave."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(*args, **kwargs)

    def add_launcher(self) -> None:
        """Take what torchrun, Slurm and MPI are told apart by, as MMEngine's tools do."""
        self.add_argument(
            "--launcher",
            choices=("none", "pytorch", "slurm", "mpi"),
            default="none",
            help="what starts several processes; torchrun is pytorch's (default: none)",
        )
        self.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)

    def add_cfg_options(self) -> None:
        """Take changes to a config, in one ``--cfg-options`` or in several."""
        self.add_argument(
            "--cfg-options",
            action="extend",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="override the config, dotted keys",
        )

    def error(self, message: str) -> NoReturn:
        _say(Problem(message, f"{self.prog} --help"))
        sys.exit(EXIT_BAD_INPUT)


class Stopped(BaseException):
    """A signal asked the command to stop. Not an Exception, so that ``except Exception`` lets it through."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command's ``main`` and leave the process as every command of this project does.

    Exit codes: 0 done, 1 a bug (with its traceback), 2 bad input (``error: what · hint: what to do``, one line for
    each problem), 130 and 143 after SIGINT and SIGTERM.
    """

    asked: list[int] = []

    def stop(signum: int, frame: object) -> NoReturn:
        asked.append(signum)
        if hasattr(signal, "SIGCHLD"):  # a signal to the whole group ends torch's loader workers too, and its handler
            signal.signal(signal.SIGCHLD, lambda *_: None)  # would raise a RuntimeError for them over Stopped
        raise KeyboardInterrupt if signum == signal.SIGINT else Stopped(signum)

    def not_lost(unraisable) -> None:
        # A signal that arrives in a callback (around a fork, in a finaliser) raises where Python drops exceptions.
        asked = {Stopped: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(unraisable.exc_type)
        if asked is None:
            sys.__unraisablehook__(unraisable)
        else:
            threading.Timer(0.1, signal.raise_signal, (asked,)).start()

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell has it ignored
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
    except BrokenPipeError:  # `… | head` went away: nobody is left to read what we would say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        if asked:  # a library's bare `except:` has made another error of it (MMEngine's, around its config formatter)
            code = 128 + asked[0]
            print("stopped", file=sys.stderr)
        else:
            traceback.print_exc()
            code = EXIT_BUG
    # On its way out Python looks for garbage, several times, in all that the libraries define: a second or two of work.
    gc.freeze()
    sys.exit(code)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import the libraries in it: meanwhile no garbage is looked for.

    PyTorch and OpenMMLab's packages make half a million objects, none of them garbage; Python's looking through them
    again and again as they grow in number takes a quarter of their import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def progress(items: Iterable[T], *, total: int, what: str, every_seconds: float = 10.0) -> Iterator[T]:
    """Yield ``items`` and show on stderr how far it is: a bar on a terminal, a plain line now and then in a log."""
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
    """Whether stderr is a terminal that a bar can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


_bars: weakref.WeakSet[tqdm] = weakref.WeakSet()


def open_bar(*args, **kwargs) -> tqdm:
    """Open a bar on the terminal, with tqdm's arguments; it is wiped off when it is closed."""
    from tqdm import tqdm

    bar = tqdm(*args, unit="", dynamic_ncols=True, leave=False, **kwargs)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Close the bars that an error or a signal has left open: what is printed next begins on a clean line."""
    for bar in list(_bars):
        bar.close()


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def existing_folder(text: str) -> Path:
    """An argparse type: a folder that must be there."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def existing_file(text: str) -> Path:
    """An argparse type: a file that must be there."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def natural(text: str) -> int:
    """An argparse type: a number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def positive(text: str) -> int:
    """An argparse type: a number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _leave_process_group() -> None:
    """Wait for the other processes of a distributed run, then close the connections to them.

    A process that ends with them open can abort on its way out (SIGABRT from Gloo's threads), and torchrun then stops
    the main process, which still writes the predictions.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # another process has ended, with an error that it prints itself
        distributed.barrier()
    distributed.destroy_process_group()


def _say(problem: Problem) -> None:
    print(f"error: {problem}", file=sys.stderr)

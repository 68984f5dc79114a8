"""Run a command: exit codes, error format, signals."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from mmflowers.utils.errors import InputError, Problem, not_installed
from mmflowers.utils.terminal import Stopped, close_bars

EXIT_BUG, EXIT_BAD_INPUT = 1, 2


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
    except Exception as error:
        if asked:  # a library's bare `except:` made another error of it, as MMEngine's config formatter does
            code = 128 + asked[0]
            print("stopped", file=sys.stderr)
        elif missing := not_installed(error):
            _say(missing)
            code = EXIT_BAD_INPUT
        else:
            traceback.print_exc()
            code = EXIT_BUG
    # Python collects garbage several times at exit, in all objects of the libraries. This would take 1 to 2 seconds.
    gc.freeze()
    sys.exit(code)


def typed() -> str:
    """Return the command line as it was typed, for the record of a run."""
    program, *arguments = sys.argv
    return " ".join(filter(None, ["python" if program.endswith(".py") else "", program, shlex.join(arguments)]))


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

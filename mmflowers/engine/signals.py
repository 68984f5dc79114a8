"""SIGTERM and SIGINT during a training: stop at the end of an iteration, the same one in all processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, get_world_size

from mmflowers.utils.terminal import Stopped, on_terminal

ONE_SIGNAL = 0.5  # seconds; `timeout` and the like signal the process and its group, which are two signals to it
EXCHANGE_SECONDS = 0.5  # between two exchanges of several processes


class StopSignal:
    """The first SIGTERM or SIGINT that a training received, which it answers at the end of an iteration.

    A second signal does at once what it would do without this class.

    Attributes:
        number: Of the signal; None until one came. After ``agreed`` and ``agreed_in_time`` the same in all processes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._interval = 1  # iterations between two exchanges, the same in all processes
        self._waited = 0  # iterations since the last exchange
        self._exchanged = time.monotonic()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within the ``with`` block; only the main thread can."""
        before: dict[int, Any] = {}
        asked_at = 0.0

        def note(signum: int, frame: object) -> None:
            nonlocal asked_at
            if self.number is None:
                asked_at = time.monotonic()
                self.number = signum
                if hasattr(signal, "SIGCHLD"):  # loader workers that got the signal too may end without an error
                    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
                erase = b"\r\x1b[K" if on_terminal() else b""  # a progress bar
                message = b"stopping after this iteration; a second signal stops at once\n"
                os.write(2, erase + message)  # print isn't reentrant
            elif time.monotonic() - asked_at > ONE_SIGNAL:
                restore()
                signal.raise_signal(signum)

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            before.clear()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            restore()

    def agreed(self) -> bool:
        """Whether a signal came to any process. All processes must call this; with GPUs it waits for them."""
        if get_world_size() > 1:
            # Iterations that fit into EXCHANGE_SECONDS: of the processes' numbers the smallest, negated for "max".
            seconds = time.monotonic() - self._exchanged
            fit = max(1, int(self._waited * EXCHANGE_SECONDS / max(seconds, 1e-6)))
            shared = torch.tensor([self.number or 0, -fit])
            all_reduce(shared, "max")
            number, interval = shared.tolist()
            self.number, self._interval = number or None, -interval
            self._waited, self._exchanged = 0, time.monotonic()
        return self.number is not None

    def agreed_in_time(self, *, may_stop: bool = True) -> bool:
        """Whether to stop after this iteration; several processes ask each other every ``EXCHANGE_SECONDS``.

        Args:
            may_stop: Whether this is a place to stop at, the same in all processes.
        """
        if get_world_size() == 1:
            return self.number is not None
        self._waited += 1
        return may_stop and self._waited >= self._interval and self.agreed()

    def end(self) -> NoReturn:
        """End the process as the signal asks.

        Raises:
            KeyboardInterrupt: After SIGINT.
            Stopped: After SIGTERM.
        """
        assert self.number is not None  # its callers have asked
        raise KeyboardInterrupt if self.number == signal.SIGINT else Stopped(self.number)

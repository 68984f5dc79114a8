"""What a run shows on stderr: on a terminal a progress bar, elsewhere MMEngine's lines of progress."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import mmcv
import mmengine
import mmpretrain
import torch
from mmengine.hooks import Hook
from mmengine.hooks.runtime_info_hook import _is_scalar
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmflowers.evaluation.history import format_score
from mmflowers.utils.terminal import on_terminal, open_bar

REDRAW_SECONDS = 0.5
FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar}| "
LIBRARIES = tuple(str(Path(package.__file__).parent) for package in (mmengine, mmpretrain, mmcv))
PROGRESS = str(Path("hooks", "logger_hook.py"))  # the module of MMEngine that logs a line every few iterations


def wants_bar(launcher: str) -> bool:
    """Whether a run shows a progress bar: on a terminal, and in one process; several would share the terminal."""
    return on_terminal() and launcher == "none"


def show_on_terminal(logger: MMLogger, *, bar: bool) -> None:
    """Log to stderr (stdout is for results) what a user needs; the log file has every line.

    Of the libraries these are warnings and, without a bar, the lines of progress. MMEngine's system environment, config
    and list of hooks are left out, and the lines for each parameter and feature map.

    Args:
        logger: The runner's.
        bar: Whether there is a progress bar. The lines are then plain and appear above it, Python's warnings too.
    """
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
            handler.addFilter(lambda record: _is_shown(record, bar))
            if bar:
                from tqdm.contrib import DummyTqdmFile

                handler.setStream(DummyTqdmFile(sys.stderr))
                handler.setFormatter(_Plain())
                logging.captureWarnings(True)
                logging.getLogger("py.warnings").handlers = [handler]


def _is_shown(record: logging.LogRecord, bar: bool) -> bool:
    if record.levelno >= logging.WARNING or not record.pathname.startswith(LIBRARIES):
        return not (bar and getattr(record, "in_bar", False))
    return not bar and record.pathname.endswith(PROGRESS) and not str(record.msg).startswith("Exp name")


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return level + super().format(record)


class ProgressHook(Hook):
    """Show a bar for each epoch, validation and test, and print a line for each epoch when it has ended.

    The loss is read when the bar is redrawn, at most twice a second: reading it waits for the device.
    """

    priority = "LOWEST"  # after BestAndLastHook has found whether the epoch is the best

    def __init__(self) -> None:
        self._bar: Any = None  # tqdm's
        self._epoch_line = ""

    def before_train(self, runner: Runner) -> None:
        """Note time and iteration, for the estimate of the time that is left."""
        self._began, self._began_at = time.monotonic(), runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Open the epoch's bar."""
        self._print_epoch()
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            done = getattr(runner.train_loop, "epoch_iter", 0)
            self._open(_epoch(runner, runner.epoch + 1), len(runner.train_dataloader), done)
        else:
            self._open("training", runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Redraw the bar if it is due."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            batch_idx = runner.iter
            if self._bar is None:  # closed for a validation
                self._open("training", runner.max_iters, runner.iter)
        if self._is_due():
            done = runner.iter + 1 - self._began_at
            left = (time.monotonic() - self._began) / done * (runner.max_iters - runner.iter - 1)
            best = runner.message_hub.get_info("best_score", default=None)
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            self._draw(
                batch_idx,
                "" if loss is None else f"loss {torch.as_tensor(loss).item():.3f}",
                f"lr {_rate(runner):.2g}",
                self._speed(runner.train_dataloader, batch_idx),
                f"eta {timedelta(seconds=round(left))}",
                "" if best is None else f"best {format_score(best)}",
            )

    def after_train_epoch(self, runner: Runner) -> None:
        """Close the bar, and prepare the epoch's line."""
        if self._bar is None or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        loss = runner.message_hub.log_scalars.get("train/loss")
        self._epoch_line = "  ".join(
            (
                _epoch(runner, runner.epoch + 1),
                "" if loss is None else f"loss {loss.mean(len(runner.train_dataloader)):.4f}",
                f"lr {_rate(runner):.2g}",
                self._speed(runner.train_dataloader, len(runner.train_dataloader) - 1),
            )
        )
        self._close()

    def after_train(self, runner: Runner) -> None:
        """Print the last epoch's line if no validation did."""
        self._close()
        self._print_epoch()

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the validation's bar."""
        self._open(f"{_epoch(runner, runner.epoch)} val", len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Redraw the bar if it is due."""
        self._draw_evaluation(runner.val_dataloader, batch_idx)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the epoch's line with the metrics of the validation."""
        self._close()
        parts = [self._epoch_line or _epoch(runner, runner.epoch)]
        parts += [
            f"val {name.removeprefix('accuracy/')} {format_score(float(value))}"
            for name, value in (metrics or {}).items()
            if _is_scalar(value)  # not a list of each class's
        ]
        if runner.message_hub.get_info("best_epoch", default=None) == runner.epoch:
            parts.append("best so far")
        self._epoch_line = "  ".join(parts)
        self._print_epoch()

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the test's bar."""
        self._open("test", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Redraw the bar if it is due."""
        self._draw_evaluation(runner.test_dataloader, batch_idx)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar."""
        self._close()

    def _open(self, what: str, total: int, done: int = 0) -> None:
        self._close()
        self._bar = open_bar(desc=what, total=total, initial=done, bar_format=FORMAT)
        self._opened, self._opened_at, self._drawn = time.monotonic(), done, float("-inf")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _is_due(self) -> bool:
        return time.monotonic() - self._drawn >= REDRAW_SECONDS

    def _draw(self, batch_idx: int, *parts: str) -> None:
        self._bar.n = batch_idx + 1
        self._bar.bar_format = FORMAT + "  ".join(filter(None, parts))
        self._bar.refresh()
        self._drawn = time.monotonic()

    def _draw_evaluation(self, loader: DataLoader, batch_idx: int) -> None:
        if self._is_due():
            self._draw(batch_idx, self._speed(loader, batch_idx))

    def _speed(self, loader: DataLoader, batch_idx: int) -> str:
        """Return the photos per second since the bar was opened, including the start of the loader's workers."""
        dataset: Any = loader.dataset  # torch's type has no length
        photos = (batch_idx + 1 - self._opened_at) * len(dataset) / len(loader)
        return f"{photos / (time.monotonic() - self._opened):,.0f} images/s"

    def _print_epoch(self) -> None:
        if self._epoch_line:
            print(self._epoch_line, file=sys.stderr, flush=True)
        self._epoch_line = ""


def _epoch(runner: Runner, number: int) -> str:
    return f"epoch {number}/{runner.max_epochs}"


def _rate(runner: Runner) -> float:
    return next(iter(runner.optim_wrapper.get_lr().values()))[0]

"""How far a training or a test is: on a terminal a live bar in place of MMEngine's lines, which its log keeps."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.hooks.runtime_info_hook import _is_scalar
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmflowers.evaluation.history import format_score
from mmflowers.utils.terminal import on_terminal, open_bar

REDRAW_SECONDS = 0.5
FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar}| "
OWN = str(Path(__file__).parents[1])


def wants_bar(launcher: str) -> bool:
    """Whether a run shows a bar: on a terminal, and alone there; torchrun's processes share it."""
    return on_terminal() and launcher == "none"


def make_room(handler: logging.StreamHandler) -> None:
    """Leave the terminal to the bar: warnings, Python's too, and what this package tells appear above it, plainly."""
    from tqdm.contrib import DummyTqdmFile

    handler.setStream(DummyTqdmFile(sys.stderr))
    handler.setFormatter(_Plain())
    handler.addFilter(_is_for_the_terminal)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]


def _is_for_the_terminal(record: logging.LogRecord) -> bool:
    own = record.pathname.startswith(OWN) and not getattr(record, "in_bar", False)
    return own or record.levelno >= logging.WARNING


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return level + super().format(record)


class ProgressHook(Hook):
    """A bar for each epoch, validation and test; above it stays a line for each epoch that is done.

    The loss is read when the bar is redrawn, twice a second at most: reading it waits for the device.
    """

    priority = "LOWEST"  # after the best checkpoint is settled

    def __init__(self) -> None:
        self._bar: Any = None  # tqdm's
        self._epoch_line = ""

    def before_train(self, runner: Runner) -> None:
        """Note where and when the run begins, from which the time that is left is told."""
        self._began, self._began_at = time.monotonic(), runner.iter
        photos = len(runner.train_dataloader.dataset)
        print(f"training on {photos:,} photos, log in {runner.logger.log_file}", file=sys.stderr, flush=True)

    def before_train_epoch(self, runner: Runner) -> None:
        """Open the epoch's bar."""
        self._say_epoch()
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            done = getattr(runner.train_loop, "epoch_iter", 0)
            self._open(_epoch(runner, runner.epoch + 1), len(runner.train_dataloader), done)
        else:
            self._open("training", runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Redraw the bar if it is time to."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            batch_idx = runner.iter
            if self._bar is None:  # a validation lay between
                self._open("training", runner.max_iters, runner.iter)
        if self._is_time():
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
        """Close the bar, and keep the epoch's numbers for its line."""
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
        """Say the last epoch's line, where no validation has."""
        self._close()
        self._say_epoch()

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the validation's bar."""
        self._open(f"{_epoch(runner, runner.epoch)} val", len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Redraw the bar if it is time to."""
        self._draw_evaluation(runner.val_dataloader, batch_idx)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Say the epoch's line with what the validation brought."""
        self._close()
        told = [self._epoch_line or _epoch(runner, runner.epoch)]
        told += [
            f"val {name.removeprefix('accuracy/')} {format_score(float(value))}"
            for name, value in (metrics or {}).items()
            if _is_scalar(value)  # not a list of each class's
        ]
        if runner.message_hub.get_info("best_epoch", default=None) == runner.epoch:
            told.append("best so far")
        self._epoch_line = "  ".join(told)
        self._say_epoch()

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the test's bar."""
        self._open("test", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Redraw the bar if it is time to."""
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

    def _is_time(self) -> bool:
        return time.monotonic() - self._drawn >= REDRAW_SECONDS

    def _draw(self, batch_idx: int, *told: str) -> None:
        self._bar.n = batch_idx + 1
        self._bar.bar_format = FORMAT + "  ".join(filter(None, told))
        self._bar.refresh()
        self._drawn = time.monotonic()

    def _draw_evaluation(self, loader: DataLoader, batch_idx: int) -> None:
        if self._is_time():
            self._draw(batch_idx, self._speed(loader, batch_idx))

    def _speed(self, loader: DataLoader, batch_idx: int) -> str:
        """Photos in a second since the bar was opened, the start of the loader's workers included."""
        dataset: Any = loader.dataset  # torch's type has no length
        photos = (batch_idx + 1 - self._opened_at) * len(dataset) / len(loader)
        return f"{photos / (time.monotonic() - self._opened):,.0f} images/s"

    def _say_epoch(self) -> None:
        if self._epoch_line:
            print(self._epoch_line, file=sys.stderr, flush=True)
        self._epoch_line = ""


def _epoch(runner: Runner, number: int) -> str:
    return f"epoch {number}/{runner.max_epochs}"


def _rate(runner: Runner) -> float:
    return next(iter(runner.optim_wrapper.get_lr().values()))[0]

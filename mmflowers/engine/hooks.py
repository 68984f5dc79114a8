"""Hooks: the checkpoints that a run keeps, and its curves."""

from __future__ import annotations

import math
import operator
import shutil
import time
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.runtime_info_hook import _is_scalar
from mmengine.runner import Runner

from mmflowers.engine.checkpoints import BEST, LAST
from mmflowers.evaluation.history import TOP1 as ACCURACY
from mmflowers.evaluation.history import format_score
from mmflowers.evaluation.metrics import rule_of
from mmflowers.registry import HOOKS
from mmflowers.utils.errors import InputError

ROUNDING = 0.01  # percent
TOP1 = "val top-1"  # the name of a score that is the top-1 accuracy on all of val
RESERVE = 16 << 20  # bytes for logs and curves


@HOOKS.register_module()
class BestAndLastHook(Hook):
    """Keep two checkpoints under fixed names: ``last.pth`` with the whole state, ``best.pth`` with the weights alone.

    ``last.pth`` is saved before every validation, between epochs, and at the end of the run (under an
    ``IterBasedTrainLoop``, which has no epochs, not between them). Of equal scores the first counts, as in the report.

    Args:
        save_best: The metric to compare.
        interval: Epochs between two writes of ``last.pth`` if no validation is between them.
        rule: "greater" or "less": which of two scores is the better one; None decides by the metric's name.

    Raises:
        InputError: The metric's name doesn't decide it.
    """

    priority = "VERY_LOW"

    def __init__(self, save_best: str = ACCURACY, interval: int = 1, rule: str | None = None) -> None:
        self.save_best = save_best
        self.interval = interval
        self.is_better = operator.lt if rule_of(save_best, rule) == "less" else operator.gt

    def before_train(self, runner: Runner) -> None:
        """Note the iteration of the saved state, delete what a killed write left, and check that the disk has room."""
        last = Path(runner.work_dir, LAST)
        resumed = runner._resume and runner._load_from and Path(runner._load_from).resolve() == last.resolve()
        self._saved = runner.iter if resumed else 0
        if is_main_process():
            for partial in Path(runner.work_dir).glob(".*.pth.partial"):
                partial.unlink()
            require_room(runner)

    def before_val(self, runner: Runner) -> None:
        """Save ``last.pth``; not in ``before_val_epoch``, where EMAHook exchanges the weights."""
        if runner.iter > self._saved:
            self._save_last(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Save ``last.pth`` if no validation did."""
        if runner.iter > self._saved and runner.epoch % self.interval == 0:
            self._save_last(runner)

    def after_train(self, runner: Runner) -> None:
        """Save the final state, with the results of the last validation."""
        runner.save_last()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save the weights if they are the best so far."""
        if not metrics:
            return
        if self.save_best not in metrics:
            raise InputError(
                f"no metric {self.save_best} to find the best checkpoint by; there are {', '.join(metrics)}",
                "set default_hooks.checkpoint.save_best to one of them",
            )
        if not _is_scalar(metrics[self.save_best]):
            raise InputError(
                f"the metric {self.save_best} is {metrics[self.save_best]!r}, not one number to find the best "
                "checkpoint by",
                "set default_hooks.checkpoint.save_best to a metric that is one; average=None gives one for each class",
            )
        score = float(metrics[self.save_best])
        best = runner.message_hub.get_info("best_score", default=None)
        if math.isnan(score) or (best is not None and not self.is_better(score, best)):
            return
        runner.message_hub.update_info("best_score", score)
        runner.message_hub.update_info("best_epoch", runner.epoch)
        runner.message_hub.update_info("best_of", self._name_and_part(runner, score))
        meta = {"epoch": runner.epoch, "iter": runner.iter, "best": {self.save_best: score}}
        runner.save_checkpoint(runner.work_dir, BEST, save_optimizer=False, save_param_scheduler=False, meta=meta)
        line = f"best so far: {self.save_best} {format_score(score)} at epoch {runner.epoch}, saved as {BEST}"
        runner.logger.info(line, extra={"in_bar": True})  # where there is a bar, its line of the epoch says so

    def _name_and_part(self, runner: Runner, score: float) -> list[str]:
        """Return the name of the score and the part of val it is of; top-1 only if the independent count agrees."""
        validated = getattr(runner, "validated", None)
        part = "" if validated is None or validated.coverage.is_whole else f" on {validated.coverage} of val"
        if self.save_best != ACCURACY or validated is None or validated.top1 is None:
            return [self.save_best, part]
        if abs(validated.top1 - score) >= ROUNDING:
            return [f"{self.save_best} (whose top-1 is {validated.top1:.2f} %)", part]
        return ["accuracy" if part else TOP1, part]

    def _save_last(self, runner: Runner) -> None:
        runner.save_last()
        self._saved = runner.iter


def require_room(runner: Runner) -> None:
    """Refuse to start a training whose checkpoints don't fit on the disk.

    Raises:
        InputError: With the space that is free and the space that is needed.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in runner.model.state_dict().values())
    defaults = runner.optim_wrapper.optimizer.defaults
    states = 2 if "betas" in defaults else 1 if defaults.get("momentum") else 0
    # While a checkpoint is written, the one that it replaces still exists.
    needed = 2 * (1 + states) * weights + 2 * weights
    folder = Path(runner.work_dir)
    needed -= sum(path.stat().st_size for name in (LAST, BEST) if (path := folder / name).is_file())
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        what = (
            f"{folder} has {free / 1e6:,.0f} MB free; the checkpoints and logs need {(needed + RESERVE) / 1e6:,.0f} MB"
        )
        raise InputError(what, "free disk space, or name a folder on another disk with --work-dir")


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draw loss, learning rate and validation metric of the run as ``curves.png`` in the work dir.

    Args:
        at_most_every: Least seconds between two drawings during the training; at its end they are always drawn.
    """

    priority = "LOWEST"  # after LoggerHook wrote the numbers

    def __init__(self, at_most_every: float = 30.0) -> None:
        self.at_most_every = at_most_every
        self._drawn = time.monotonic()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw if the last drawing is old enough."""
        if time.monotonic() - self._drawn >= self.at_most_every:
            self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        """Draw the whole run."""
        self._draw(runner)

    def _draw(self, runner: Runner) -> None:
        if is_main_process():
            from mmflowers.visualization.figures import draw_curves

            try:
                draw_curves(Path(runner.work_dir))
            except Exception as error:  # no LocalVisBackend, a full disk …: a figure must not end a training
                runner.logger.warning(f"curves.png can't be drawn: {error}")
            self._drawn = time.monotonic()

"""Checks of every validation: which photos it counted, and whether it gives the metrics that hooks need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from mmflowers.datasets.served import Coverage, coverage
from mmflowers.engine.configuration import data_root
from mmflowers.evaluation.metrics import CountPhotos
from mmflowers.utils.errors import InputError


class Validation(NamedTuple):
    """What a validation counted.

    Attributes:
        coverage: How much of val it covers.
        top1: Share of correct predictions in percent, counted independently of the config's metrics; None for
            multi-label data.
    """

    coverage: Coverage
    top1: float | None


class ValidationHook(Hook):
    """Check each validation before other hooks use its metrics; ``FlowersRunner`` registers it.

    It sets ``runner.validated``, on the main process; None if val isn't a dataset folder.
    """

    priority = "HIGHEST"

    def __init__(self) -> None:
        self._counter = CountPhotos()

    def before_val_epoch(self, runner: Runner) -> None:
        """Count the photos with a metric of our own."""
        evaluator = getattr(runner.val_loop, "evaluator", None)
        if isinstance(evaluator, Evaluator) and self._counter not in evaluator.metrics:
            evaluator.metrics.append(self._counter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare what was counted with val, and the metrics with those that hooks and schedulers monitor.

        Raises:
            InputError: A photo was counted twice, or with another label than the list gives; a monitored metric is
                missing.
        """
        if is_main_process():
            runner.validated = self._compare(runner)
        if metrics and isinstance(runner._train_loop, BaseLoop):
            _require_monitored(runner, metrics)

    def _compare(self, runner: Runner) -> Validation | None:
        try:
            found = coverage(self._counter.counted, Path(data_root(runner.cfg)), "val")
        except InputError:  # val isn't a dataset folder
            return None
        found.require_sound("val")
        return Validation(found, self._counter.top1)


def _require_monitored(runner: Runner, metrics: Mapping[str, Any]) -> None:
    """Refuse monitors of metrics that no evaluator gives; the checks before training can't know a user's metrics.

    MMEngine would end in a KeyError, or never stop early.
    """
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):  # of several optimizers
        schedulers = [scheduler for several in schedulers.values() for scheduler in several]
    for each in (*runner.hooks, *schedulers):
        monitors = isinstance(each, (EarlyStoppingHook, ReduceOnPlateauParamScheduler))
        if monitors and each.monitor not in metrics:
            what = f"{type(each).__name__} monitors {each.monitor}, which no evaluator gives"
            raise InputError(what, f"monitor one of {', '.join(metrics)}")

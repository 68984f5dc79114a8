"""Checks that the validation computes the metrics that hooks and schedules monitor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmflowers.checks.findings import Finding, check, error, warning
from mmflowers.checks.keys import as_list, build, built, find_class, get

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

KNOWN = ("mmpretrain.", "mmflowers.")  # modules whose metrics have no side effects, so that they can be run


@check()
def monitored_metrics(case: Case) -> Iterator[Finding]:
    """Find metrics that EarlyStoppingHook, ReduceOnPlateau or ``save_best`` monitor and no evaluator computes."""
    if case.testing:
        return
    validated = case.config.get("val_dataloader") is not None
    given = _given(case) if validated else None
    for where, metric in _monitored(case.config):
        if not validated and not where.endswith("save_best"):
            yield warning(
                where, f"monitors {metric}, but there is no validation, so it has no effect", "set val_dataloader"
            )
        elif given is not None and metric not in given:
            what = f"no evaluator computes {metric}; val_evaluator computes {', '.join(sorted(given))}"
            yield error(where, what, f"{where.rpartition('.')[2]}='{min(given)}'")


@check()
def early_stopping_can_compare(case: Case) -> Iterator[Finding]:
    """Find an EarlyStoppingHook that can't infer whether larger is better."""
    from mmengine.hooks import EarlyStoppingHook

    for where, hook, kind in _parts(case.config, "HOOKS"):
        if issubclass(kind, EarlyStoppingHook) and "monitor" in hook:
            try:
                kind(**{key: value for key, value in hook.items() if key in ("monitor", "rule")})
            except ValueError as problem:
                yield error(f"{where}.rule", str(problem), "set rule='greater' or rule='less'")


def _monitored(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of every monitored metric, including defaults of constructors."""
    from mmengine.hooks import EarlyStoppingHook
    from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler

    for where, hook, kind in _parts(config, "HOOKS"):
        chosen = hook.get("save_best", _default(kind, "save_best"))
        yield from ((f"{where}.save_best", name) for name in as_list(chosen) if name != "auto")
        if issubclass(kind, EarlyStoppingHook) and isinstance(hook.get("monitor"), str):
            yield f"{where}.monitor", hook["monitor"]
    for where, scheduler, kind in _parts(config, "PARAM_SCHEDULERS"):
        if issubclass(kind, ReduceOnPlateauParamScheduler):
            yield f"{where}.monitor", scheduler.get("monitor", _default(ReduceOnPlateauParamScheduler, "monitor"))


def _parts(config: Any, registry: str) -> Iterator[tuple[str, dict, type]]:
    """Yield key, dict and class of each hook or scheduler of a config."""
    for part in built(config):
        kind = find_class(config, part.config, registry) if part.registry == registry else None
        if kind is not None:
            yield part.where, part.config, kind


def _default(kind: Any, argument: str) -> Any:
    parameter = inspect.signature(kind.__init__).parameters.get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _given(case: Case) -> set[str] | None:
    """Return the names of the metrics that the evaluator computes, by evaluating one made-up prediction per class.

    None if they can't be determined: a user's own metric isn't run, and one of MMPretrain's may need other predictions.
    """
    import torch
    from mmengine.evaluator import Evaluator
    from mmpretrain.structures import DataSample

    classes = get(case.config, "model.head.num_classes")
    configs = as_list(case.config.get("val_evaluator"))
    kinds = [find_class(case.config, metric, "METRICS") for metric in configs]
    if type(classes) is not int or not all(kind and kind.__module__.startswith(KNOWN) for kind in kinds):
        return None
    scores = torch.eye(classes)
    samples = [
        DataSample().set_gt_label(label).set_pred_label(label).set_pred_score(scores[label]) for label in range(classes)
    ]
    try:
        evaluator = Evaluator([build(case.config, metric, "METRICS") for metric in configs])
        evaluator.process(samples)
        return set(evaluator.evaluate(len(samples)))
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError):
        return None  # invalid arguments, which other checks report, or a metric of other predictions

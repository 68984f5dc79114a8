"""Checks that the validation computes the metrics that hooks and schedules monitor."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmflowers.checks.findings import Finding, check, error, warning
from mmflowers.checks.keys import as_list, get, scope

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

    for where, hook, kind in _hooks(case.config):
        if issubclass(kind, EarlyStoppingHook) and "monitor" in hook:
            try:
                kind(**{key: value for key, value in hook.items() if key in ("monitor", "rule")})
            except ValueError as problem:
                yield error(f"{where}.rule", str(problem), "set rule='greater' or rule='less'")


def _monitored(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of every monitored metric, including defaults of constructors."""
    from mmengine.hooks import EarlyStoppingHook
    from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler

    for where, hook, kind in _hooks(config):
        chosen = hook.get("save_best", _default(kind, "save_best"))
        yield from ((f"{where}.save_best", name) for name in as_list(chosen) if name != "auto")
        if issubclass(kind, EarlyStoppingHook) and isinstance(hook.get("monitor"), str):
            yield f"{where}.monitor", hook["monitor"]
    schedulers = config.get("param_scheduler")
    for index, scheduler in enumerate(as_list(schedulers)):
        policy = _class(scheduler, "PARAM_SCHEDULERS", config)
        if policy is not None and issubclass(policy, ReduceOnPlateauParamScheduler):
            where = f"param_scheduler.{index}.monitor" if isinstance(schedulers, list) else "param_scheduler.monitor"
            yield where, scheduler.get("monitor", _default(ReduceOnPlateauParamScheduler, "monitor"))


def _hooks(config: Any) -> Iterator[tuple[str, dict, type]]:
    """Yield key, dict and class of each hook of a config."""
    defaults = config.get("default_hooks")
    hooks = [(f"default_hooks.{name}", hook) for name, hook in (defaults.items() if isinstance(defaults, dict) else ())]
    hooks += [(f"custom_hooks.{index}", hook) for index, hook in enumerate(as_list(config.get("custom_hooks")))]
    for where, hook in hooks:
        kind = _class(hook, "HOOKS", config)
        if kind is not None:
            yield where, hook, kind


def _class(built: Any, registry: str, config: Any) -> type | None:
    from mmengine.registry import DefaultScope

    import mmflowers.registry

    kind = built.get("type") if isinstance(built, dict) else None
    if isinstance(kind, str) and kind:
        with DefaultScope.overwrite_default_scope(scope(config)):
            kind = getattr(mmflowers.registry, registry).get(kind)
    return kind if inspect.isclass(kind) else None


def _default(kind: Any, argument: str) -> Any:
    parameter = inspect.signature(kind.__init__).parameters.get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _given(case: Case) -> set[str] | None:
    """Return the names of the metrics that the evaluator computes, by evaluating one made-up prediction per class.

    None if they can't be determined: a user's own metric isn't run, and one of MMPretrain's may need other predictions.
    """
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DefaultScope
    from mmpretrain.structures import DataSample

    from mmflowers.registry import METRICS

    classes = get(case.config, "model.head.num_classes")
    configs = as_list(case.config.get("val_evaluator"))
    kinds = [_class(metric, "METRICS", case.config) for metric in configs]
    if type(classes) is not int or not all(kind and kind.__module__.startswith(KNOWN) for kind in kinds):
        return None
    scores = torch.eye(classes)
    samples = [
        DataSample().set_gt_label(label).set_pred_label(label).set_pred_score(scores[label]) for label in range(classes)
    ]
    try:
        with DefaultScope.overwrite_default_scope(scope(case.config)):
            evaluator = Evaluator([METRICS.build(copy.deepcopy(metric)) for metric in configs])
        evaluator.process(samples)
        return set(evaluator.evaluate(len(samples)))
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError):
        return None  # invalid arguments, which other checks report, or a metric of other predictions

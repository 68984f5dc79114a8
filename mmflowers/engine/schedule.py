"""The ends of a config's learning-rate schedules, and whether they depend on the length of the training."""

from __future__ import annotations

import math
from typing import Any

# Without an `end`, MMEngine uses the training's length. The rates of these schedulers don't depend on their end.
_WITHOUT_END = ("StepLR", "MultiStep", "Exponential", "CosineRestart")


def schedulers(config: Any) -> list[dict]:
    """Return the schedulers of a config, which may have one, several or none."""
    named = config.get("param_scheduler") or []
    return [item for item in ([named] if isinstance(named, dict) else named) if isinstance(item, dict)]


def schedule_end(config: Any, batches: int | None = None, *, by_epoch: bool = True) -> float:
    """Return the epoch at which the last scheduler ends, after which the learning rate stays constant.

    Args:
        config: With ``param_scheduler``.
        batches: Iterations of an epoch, for schedulers that count iterations; without it they have no end.
        by_epoch: Whether to return an epoch or an iteration.

    Returns:
        Infinity if no scheduler ends, or if the learning rate ends as that of the optimizer, as after a warm-up.
    """
    ends, changes = [0.0], False
    for item in schedulers(config):
        begin, end = item.get("begin", 0), item.get("end", math.inf)
        kind = _kind(item)
        if kind.startswith("CosineAnnealing"):  # after T_max the rate rises again
            end = min(end, begin + (item.get("T_max") or math.inf))
        elif kind.startswith("OneCycle"):
            end = min(end, begin + (item.get("total_steps") or math.inf))
        elif kind.startswith("CosineRestart"):
            end = min(end, begin + sum(item.get("periods", ())))
        if item.get("by_epoch", True) != by_epoch:
            end = math.inf if batches is None else end / batches if by_epoch else end * batches
        ends.append(end)
        changes |= not _restores(item)
    return max(ends) if changes else math.inf


def follows_length(config: Any) -> list[str]:
    """Return the types of the schedulers without an end whose rates in every epoch may depend on ``max_epochs``."""
    return [
        kind
        for item in schedulers(config)
        if "end" not in item
        and not (kind := _kind(item)).startswith(_WITHOUT_END)
        and not (kind.startswith("CosineAnnealing") and item.get("T_max"))
        and not (kind.startswith("OneCycle") and item.get("total_steps"))
        and not (kind.startswith("Constant") and item.get("factor") == 1)
    ]


def _kind(item: dict) -> str:
    return str(item.get("type")).rpartition(".")[2]


def _restores(item: dict) -> bool:
    """Whether the learning rate is the optimizer's after the scheduler's end."""
    kind = _kind(item)
    return kind.startswith("Constant") or (kind.startswith("Linear") and item.get("end_factor", 1.0) == 1)

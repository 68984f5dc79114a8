"""What a config's ``param_scheduler`` says about the length of a training."""

from __future__ import annotations

import math
from typing import Any

# Without an `end`, MMEngine takes the training's length for it. The rates of these don't follow from their end.
_WITHOUT_END = ("StepLR", "MultiStep", "Exponential", "CosineRestart")


def schedulers(config: Any) -> list[dict]:
    """The schedulers of a config, which may name one, several or none."""
    named = config.get("param_scheduler") or []
    return [item for item in ([named] if isinstance(named, dict) else named) if isinstance(item, dict)]


def schedule_end(config: Any, batches: int | None = None, *, by_epoch: bool = True) -> float:
    """The epoch at which the last scheduler ends, where the rate stays at what they made of it.

    Args:
        config: With ``param_scheduler``.
        batches: Iterations of an epoch, for schedulers that count iterations; without it they have no end.
        by_epoch: Otherwise the iteration.

    Returns:
        Infinity where no scheduler ends, or where the rate is that of the optimizer again, as after a warm-up.
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
    """Types of the schedulers that name no end and whose rates may follow from ``max_epochs`` in every epoch."""
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
    """Whether the rate is the optimizer's again after the scheduler's end."""
    kind = _kind(item)
    return kind.startswith("Constant") or (kind.startswith("Linear") and item.get("end_factor", 1.0) == 1)

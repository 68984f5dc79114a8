"""From runs to numbers and a table: medians and spread over rounds, ratios to the best peer. No heavy imports."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """Median, least and greatest of some rounds; infinite where a round didn't get there."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """None values are left out; None if nothing is left."""
    known = [value for value in values if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def seconds_to(target: float, epochs: Sequence[dict]) -> float:
    """Seconds from the start of the process to the first validation of at least ``target`` percent, or infinity."""
    return next((epoch["seconds"] for epoch in epochs if epoch["top1"] >= target), math.inf)


def rate(epochs: Sequence[dict]) -> float | None:
    """Training images/s: the median of the epochs after the first; of a single epoch what it has after its start."""
    found = spread([epoch["images_per_second"] for epoch in epochs[1:] or epochs])
    return found.median if found else None


def seconds_per_epoch(epochs: Sequence[dict]) -> float | None:
    """Median seconds from one epoch's validation to the next one's: training, validation and checkpoint."""
    found = spread([later["seconds"] - earlier["seconds"] for earlier, later in itertools.pairwise(epochs)])
    return found.median if found else None


def summarize(runs: Sequence[dict], target: float) -> list[dict]:
    """A row for each name, in the order of their first runs.

    Args:
        runs: Each with ``name``, ``side`` ("peer" or "ours"), ``round``, ``reason`` (why it failed, or None),
            ``epochs``, ``seconds`` and ``peak_rss_mb``.
        target: Val top-1 in percent.

    Returns:
        Rows with ``n`` rounds that finished, the ``failures`` of the others, and a ``Spread`` of each figure.
        ``speedup`` and ``rate_ratio`` compare with the peer of the best median, round by round; above 1 is faster
        than it.
    """
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name]
        done = {run["round"]: run for run in own if run["reason"] is None}
        row = {
            "name": name,
            "side": own[0]["side"],
            "n": len(done),
            "failures": [run["reason"] for run in own if run["reason"] is not None],
            "times": {key: seconds_to(target, run["epochs"]) for key, run in done.items()},
            "rates": {key: rate(run["epochs"]) for key, run in done.items()},
            "best_top1": spread([max(epoch["top1"] for epoch in run["epochs"]) for run in done.values()]),
            "seconds_per_epoch": spread([seconds_per_epoch(run["epochs"]) for run in done.values()]),
            "seconds": spread([run["seconds"] for run in done.values()]),
            "peak_rss_mb": spread([run["peak_rss_mb"] for run in done.values()]),
        }
        row["seconds_to_target"] = spread(list(row["times"].values()))
        row["images_per_second"] = spread(list(row["rates"].values()))
        rows.append(row)
    peers = [row for row in rows if row["side"] == "peer"]
    timed = [row for row in peers if row["seconds_to_target"] and math.isfinite(row["seconds_to_target"].median)]
    rated = [row for row in peers if row["images_per_second"]]
    quickest = min(timed, key=lambda row: row["seconds_to_target"].median, default=None)
    fastest = max(rated, key=lambda row: row["images_per_second"].median, default=None)
    for row in rows:
        row["speedup"] = _ratios(quickest["times"], row["times"]) if quickest else None
        row["rate_ratio"] = _ratios(row["rates"], fastest["rates"]) if fastest else None
    return rows


def _ratios(over: dict[int, float | None], under: dict[int, float | None]) -> Spread | None:
    """The quotients of the rounds that both sides have; a round in which neither got there says nothing."""
    pairs = [(over[key], under[key]) for key in over.keys() & under.keys()]
    return spread([a / b for a, b in pairs if a and b and not (math.isinf(a) and math.isinf(b))])


def table(rows: Sequence[dict], target: float) -> str:
    """Rows as a Markdown table, medians with the least and the greatest in brackets."""
    head = [
        "",
        "n",
        f"start to {target:g} %, s",
        "× best peer",
        "images/s",
        "× best peer",
        "epoch, s",
        "best val top-1, %",
        "whole run, s",
        "peak RSS, MB",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        failed = f"; {len(row['failures'])} failed: {row['failures'][-1]}" if row["failures"] else ""
        lines.append(
            [
                f"**{row['name']}**" if row["side"] == "ours" else row["name"],
                f"{row['n']}{failed}".replace("|", "¦"),
                _say(row["seconds_to_target"], 0, infinite="never"),
                _say(row["speedup"], 2),
                _say(row["images_per_second"], 1),
                _say(row["rate_ratio"], 2),
                _say(row["seconds_per_epoch"], 1),
                _say(row["best_top1"], 2),
                _say(row["seconds"], 0),
                _say(row["peak_rss_mb"], 0),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _say(values: Spread | None, digits: int, infinite: str = "∞") -> str:
    if values is None:
        return "–"
    middle, least, greatest = (infinite if math.isinf(value) else f"{value:.{digits}f}" for value in values)
    return middle if least == greatest else f"{middle} ({least}–{greatest})"

"""Configs of datasets that lie within those of others."""

from __future__ import annotations

from typing import Any


def innermost(loader: Any) -> dict | None:
    """The dataset of a dataloader's config, wrappers (RepeatDataset …) taken off; None where it has none."""
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    while isinstance(dataset, dict) and isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset if isinstance(dataset, dict) else None

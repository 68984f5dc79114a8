"""Access to nested configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmflowers.utils.errors import InputError


def get(config: Any, path: str) -> Any:
    """Return the value at a dotted path of nested dicts; None if there is none."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) or hasattr(config, "_cfg_dict") else None
    return config


def innermost(loader: Any) -> dict[str, Any] | None:
    """Return the dataset in a dataloader's config, inside wrappers (RepeatDataset …); None if there is none.

    If a wrapper has several datasets (ConcatDataset), this is the first.
    """
    return next(all_innermost(loader), None)


def dataset_of(config: Any, loader: str) -> Any:
    """Return the innermost dataset of a config's dataloader (see ``innermost``).

    Raises:
        InputError: The config has no such dataloader, or the dataloader has no dataset.
    """
    dataset = innermost(config.get(loader))
    if dataset is None:
        raise InputError(f"the config has no {loader}.dataset", "compare it with the configs in configs/")
    return dataset


def all_innermost(loader: Any) -> Iterator[dict[str, Any]]:
    """Yield every dataset in a dataloader's config that reads photos itself."""
    yield from _innermost(loader.get("dataset") if isinstance(loader, dict) else None)


def _innermost(dataset: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(dataset, dict):
        return
    joined = dataset.get("datasets")
    inner = [dataset.get("dataset"), *(joined if isinstance(joined, (list, tuple)) else ())]
    inner = [each for each in inner if isinstance(each, dict)]
    for each in inner:
        yield from _innermost(each)
    if not inner:
        yield dataset

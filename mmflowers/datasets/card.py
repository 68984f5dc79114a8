"""What a dataset folder says about itself: ``dataset.json``, and ``files.csv`` about every file of its source."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import read_csv


@dataclass(frozen=True)
class DataCard:
    """Where the photos come from, and what was left out.

    Attributes:
        metadata: The content of ``dataset.json``; empty if there is none.
        dropped: How many files were left out for each reason, most first.
        copies: ``(path, the path it is a copy of, whether it was left out)`` of each identical copy, by source paths.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    copies: list[tuple[str, str, bool]] = field(default_factory=list)


def prepared_photos(root: Path, split: str) -> dict[str, int | None]:
    """Return the photos of a split that the preparation wrote, by their path in the folder.

    Each with the first 63 bits of its sha256, or None if ``files.csv`` doesn't have it: the row of a converted photo
    has the digest of its source. Empty if the folder has no ``files.csv`` that can be read.
    """
    try:
        return {
            row["target"]: int(row["sha256"][:16], 16) >> 1 if row["verdict"] == "kept" else None
            for row in _read_rows(root / "files.csv")
            if row["target"] and row["split"] == split
        }
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return {}


def read_card(root: Path) -> DataCard:
    """Read both files, if they exist.

    Raises:
        InputError: One of them isn't what the preparation writes.
    """
    card = DataCard()
    path = root / "dataset.json"
    try:
        if path.is_file():
            metadata = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(metadata, dict):
                raise ValueError("not an object")
            card.metadata.update(metadata)
        path = root / "files.csv"
        if path.is_file():
            rows = _read_rows(path)
            dropped = Counter(row["reason"] for row in rows if row["verdict"] == "dropped")
            card.dropped.update(dropped.most_common())
            card.copies.extend(
                (row["path"], row["duplicate_of"], row["verdict"] == "dropped") for row in rows if row["duplicate_of"]
            )
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        hint = "python tools/prepare_flowers.py writes it; a folder without it works too"
        raise InputError(f"{path} can't be read: {error!r}", hint) from error
    return card


def _read_rows(path: Path) -> list[dict[str, str]]:
    header, *rows = read_csv(path)
    return [dict(zip(header, row, strict=True)) for row in rows]

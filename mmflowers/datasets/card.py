"""What a dataset folder says of itself: ``dataset.json``, and of every file of its source ``files.csv``."""

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
        facts: The content of ``dataset.json``; empty where the folder was made by hand.
        dropped: How many files were left out for each reason, most first.
        copies: ``(path, the path it is a copy of, whether it was left out)`` of each identical copy, by source paths.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    copies: list[tuple[str, str, bool]] = field(default_factory=list)


def prepared_photos(root: Path, split: str) -> dict[str, int | None]:
    """The photos of a split as the preparation left them, by their path in the folder.

    Each with the first 63 bits of its sha256, or None where ``files.csv`` doesn't have it: the row of a converted photo
    holds the digest of its source. Empty where the folder has no ``files.csv`` that can be read.
    """
    try:
        header, *lines = read_csv(root / "files.csv")
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        return {
            row["target"]: int(row["sha256"][:16], 16) >> 1 if row["verdict"] == "kept" else None
            for row in rows
            if row["target"] and row["split"] == split
        }
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return {}


def read_card(root: Path) -> DataCard:
    """Read what lies there of both files.

    Raises:
        InputError: One of them isn't what the preparation writes.
    """
    facts, rows = {}, []
    path = root / "dataset.json"
    try:
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(facts, dict):
                raise ValueError("not an object")
        path = root / "files.csv"
        if path.is_file():
            header, *lines = read_csv(path)
            columns = [header.index(name) for name in ("path", "verdict", "reason", "duplicate_of")]
            rows = [tuple(line[column] for column in columns) for line in lines]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        hint = "python tools/prepare_flowers.py writes it; a folder without it will do too"
        raise InputError(f"{path} can't be read: {error!r}", hint) from error
    dropped = Counter(reason for _, verdict, reason, _ in rows if verdict == "dropped")
    copies = [(name, other, verdict == "dropped") for name, verdict, _, other in rows if other]
    return DataCard(facts, dict(dropped.most_common()), copies)

"""Tells photos apart without their split: what a run was trained on, to be recognised in a later run's val."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

TRAINED_ON = "trained_on"  # in a checkpoint's meta


def fingerprints(paths: Iterable[str | Path]) -> list[int]:
    """A 63-bit number for each photo: of its class folder, name and size in bytes, which a new split leaves alone."""
    numbers = []
    for path in map(Path, paths):
        identity = f"{path.parent.name}/{path.name} {path.stat().st_size}"
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
        numbers.append(int.from_bytes(digest[:8], "big") >> 1)
    return numbers


def seen_photos(trained_on: object, paths: Iterable[str | Path]) -> list[str]:
    """The names of those ``paths`` whose fingerprints are in ``trained_on``, which came out of a checkpoint."""
    paths = list(paths)
    seen = set(trained_on) if isinstance(trained_on, list) else set()
    return [Path(path).name for path, number in zip(paths, fingerprints(paths), strict=True) if number in seen]

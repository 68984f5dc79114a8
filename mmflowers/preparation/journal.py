"""The findings about each file, and the journal from which an interrupted run resumes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple


class Inspection(NamedTuple):
    """What an inspection finds out about one file; the fields are those of ``Record``."""

    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    width: int = 0
    height: int = 0
    verdict: str = "dropped"
    reason: str = ""
    extension: str = ""
    written_sha256: str = ""
    phash: int | None = None
    thumbnail: bytes = b""
    features: bytes = b""

    def as_line(self, path: str) -> bytes:
        """Return the finding about a file as a JSON line."""
        return (
            json.dumps([path, *self[:-2], *(base64.b64encode(value).decode() for value in self[-2:])]).encode() + b"\n"
        )

    @classmethod
    def from_line(cls, line: bytes) -> Inspection:
        """Read what ``as_line`` returned.

        Raises:
            ValueError, TypeError: It isn't such a line.
        """
        _, *fields, thumbnail, features = json.loads(line)
        return cls._make([*fields, base64.b64decode(thumbnail), base64.b64decode(features)])


class Journal:
    """The findings of a run that may be interrupted, a JSON line each; the next run uses those that still hold.

    Args:
        path: Of the file.
        settings: What the findings depend on; a journal made under other settings is discarded.

    Attributes:
        inherited: Number of findings that an interrupted run has left.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        header = json.dumps(settings, sort_keys=True).encode() + b"\n"
        self._lines: dict[str, bytes] = {}  # raw lines: parsed in the workers, and a third of the memory
        if path.exists():
            with path.open("rb") as file:
                for line in file if file.readline() == header else ():
                    try:
                        self._lines[json.loads(line)[0]] = line
                    except (ValueError, LookupError, TypeError):
                        continue  # torn by the interruption
        self.inherited = len(self._lines)
        self._file = path.open("ab" if self._lines else "wb")
        self._file.write(b"\n" if self._lines else header)  # ends a torn line

    def take(self, path: str) -> bytes | None:
        """Return the line about a file, once; None if there is none."""
        return self._lines.pop(path, None)

    def add(self, path: str, found: Inspection) -> None:
        """Write the finding about a file."""
        self._file.write(found.as_line(path))

    def close(self) -> None:
        """Close the file; it stays for the next run."""
        self._file.close()

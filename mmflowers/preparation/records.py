"""What the steps of the preparation hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("train", "val", "test")


@dataclass(slots=True)
class SourceFile:
    """A file found in the source, an image or not.

    Attributes:
        path: POSIX path relative to the source's root; the file's identity in ``files.csv``. Bytes that are not
            UTF-8 are kept as Python's surrogate escapes.
        class_name: The class the source gives the file, None where it gives none.
        split: "train", "val" or "test" where the source or given lists say so, else None.
        refusal: Why the file can't be a photo of the set, known without opening it (hidden, a FIFO, outside every
            class folder, not in the given lists …); None where it is to be inspected.
    """

    path: str
    class_name: str | None
    split: str | None = None
    refusal: str | None = None


@dataclass(slots=True)
class Source:
    """A folder of photos on this disk, wherever it came from.

    Attributes:
        root: The folder that every ``SourceFile.path`` is relative to.
        files: Every file below it, sorted by path.
        description: What ``dataset.json`` says of the source: kind, name, sha256 …; never an absolute path.
        has_split: Whether the files carry a split.
    """

    root: Path
    files: list[SourceFile]
    description: dict[str, Any] = field(default_factory=dict)
    has_split: bool = False


@dataclass(slots=True)
class Record(SourceFile):
    """A source file after its inspection, and later with its place in the dataset: one row of ``files.csv``.

    Attributes:
        sha256: Hex digest of the file's bytes; empty where they couldn't be read.
        size: In bytes.
        width: Of the upright image, in pixels; 0 where there is none.
        height: Likewise.
        verdict: "kept" (bytes as they are), "converted" (re-encoded as plain upright RGB) or "dropped".
        reason: Why it isn't simply kept; several reasons are joined by "; ".
        duplicate_of: The path of the record that stands for it, where it is a copy.
        phash: 64-bit perceptual hash, None where there is no image or the image is flat (one colour has no hash).
        thumbnail: 16 × 16 grey values (256 bytes, row by row) that confirm what ``phash`` suggests; empty without one.
        extension: Of the file in the dataset, with its dot; the source's own unless that says another format.
        written_sha256: Hex digest of the file in the dataset: ``sha256`` itself where the bytes are kept.
        group: Identity of its duplicate group, None where it has no copy and no near pair.
        target: Its path in the dataset folder, ``train/daisy/x.jpg``; None where it is dropped.
    """

    sha256: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    verdict: str = "kept"
    reason: str = ""
    duplicate_of: str = ""
    phash: int | None = None
    thumbnail: bytes = b""
    extension: str = ""
    written_sha256: str = ""
    group: int | None = None
    target: str | None = None

    @property
    def photo_class(self) -> str:
        """``class_name`` of a record that isn't dropped: every file without a class is.

        Raises:
            ValueError: if the record has no class.
        """
        if self.class_name is None:
            raise ValueError(f"{self.path} is in no class, so it is no photo of the set")
        return self.class_name

    def drop(self, reason: str, *, duplicate_of: str = "") -> None:
        """Leave the file out of the dataset, and add a reason to those of its inspection."""
        self.verdict = "dropped"
        self.reason = f"{self.reason}; {reason}" if self.reason else reason
        self.duplicate_of = duplicate_of

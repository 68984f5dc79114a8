"""The data that the steps of the preparation pass on: files of the source and records about them."""

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
        class_name: The class in the source, None if it has none.
        split: "train", "val" or "test" if the source or given lists say so, else None.
        refusal: Why the file can't be a photo of the set, known without opening it (hidden, a FIFO, outside every
            class folder, not in the given lists …); None if it is to be inspected.
    """

    path: str
    class_name: str | None
    split: str | None = None
    refusal: str | None = None


@dataclass(slots=True)
class Source:
    """A folder of photos on this disk.

    Attributes:
        root: The folder that every ``SourceFile.path`` is relative to.
        files: Every file below it, sorted by path.
        description: The source in ``dataset.json``: kind, name, sha256 …; never an absolute path.
        has_split: Whether the files carry a split.
        draws_val: Whether that split has no val, which is drawn out of train.
        recognised: What was recognised in the source, a sentence for people.
        notes: Lines for the summary.
    """

    root: Path
    files: list[SourceFile]
    description: dict[str, Any] = field(default_factory=dict)
    has_split: bool = False
    draws_val: bool = False
    recognised: str = field(default="", compare=False)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Record(SourceFile):
    """A source file after its inspection, and later with its place in the dataset: one row of ``files.csv``.

    Attributes:
        sha256: Hex digest of the file's bytes; empty if they couldn't be read.
        size: In bytes.
        width, height: Of the upright image, in pixels; 0 if there is none.
        verdict: "kept" (bytes as they are), "converted" (re-encoded as plain upright RGB) or "dropped".
        reason: Why it was converted or dropped, or kept under another name; several are joined by "; ".
        duplicate_of: For a copy, the path of the record that represents it.
        phash: 64-bit perceptual hash, None if there is no image or the image is flat (one colour has no hash).
        thumbnail: 16 × 16 grey values (256 bytes, row by row) that confirm near hashes; empty without a hash.
        features: Local features (``features.describe``), which find turned, mirrored, cropped and framed copies.
        extension: Of the file in the dataset, with its dot; the source's own unless that names another format.
        written_sha256: Hex digest of the file in the dataset: ``sha256`` itself if the bytes are kept.
        group: Number of its duplicate group, None if it has no copy and no near pair.
        target: Its path in the dataset folder, ``train/daisy/x.jpg``; None if it is dropped.
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
    features: bytes = b""
    extension: str = ""
    written_sha256: str = ""
    group: int | None = None
    target: str | None = None

    @property
    def photo_class(self) -> str:
        """Return ``class_name`` of a record that isn't dropped; every file without a class is.

        Raises:
            ValueError: if the record has no class.
        """
        if self.class_name is None:
            raise ValueError(f"{self.path} has no class")
        return self.class_name

    def drop(self, reason: str, *, duplicate_of: str = "") -> None:
        """Leave the file out of the dataset, and add a reason to those of its inspection."""
        self.verdict = "dropped"
        self.reason = f"{self.reason}; {reason}" if self.reason else reason
        self.duplicate_of = duplicate_of

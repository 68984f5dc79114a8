"""The record of a test: its checkpoint and its photos. It is verified when the predictions are read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, get_type_hints

from mmflowers.evaluation.predictions import Predictions, read_predictions
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import file_sha256, write_text


@dataclass(frozen=True)
class TestRecord:
    """The test that wrote a file of predictions.

    Attributes:
        checkpoint: File name of the tested checkpoint.
        checkpoint_sha256: Of the checkpoint file.
        predictions_sha256: Of the file of predictions.
        split: Name of the split.
        counted: Number of tested photos.
        listed: Number of photos of the split.
        photos_sha256: Of the contents and labels of the photos (``datasets.identity.photos_digest``).
    """

    checkpoint: str
    checkpoint_sha256: str
    predictions_sha256: str
    split: str
    counted: int
    listed: int
    photos_sha256: str


def write_record(predictions: Path, checkpoint: Path, *, split: str, counted: int, listed: int, photos: str) -> None:
    """Write the record of a test next to its predictions, as ``predictions_<split>.json``."""
    record = TestRecord(
        checkpoint.name, file_sha256(checkpoint), file_sha256(predictions), split, counted, listed, photos_sha256=photos
    )
    text = json.dumps({"format": "mmflowers test record", "format_version": 1, **asdict(record)}, indent=1) + "\n"
    write_text(predictions.with_suffix(".json"), text)


def read_record(predictions: Path) -> TestRecord | None:
    """Read the record of the test that wrote a file of predictions; None if there is none.

    Raises:
        InputError: The record can't be read, or the predictions were changed after the test.
    """
    path = predictions.with_suffix(".json")
    again = "test again: python tools/test.py"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = TestRecord(**{name: kind(values[name]) for name, kind in get_type_hints(TestRecord).items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} can't be read: {error!r}", again) from error
    if file_sha256(predictions) != record.predictions_sha256:
        raise InputError(f"{predictions} has changed since the test wrote it", again)
    return record


def default_checkpoint(work_dir: Path) -> Path:
    """Return the checkpoint of a run for tests and predictions, which may not exist.

    This is best.pth, or last.pth if only that exists, as after a training without validation.
    """
    best, last = work_dir / "best.pth", work_dir / "last.pth"
    return last if last.is_file() and not best.is_file() else best


class TestedPredictions(NamedTuple):
    """The predictions of a run, verified with the record of their test.

    Attributes:
        predictions: The predictions.
        notes: Restrictions to report: only part of the split, not of best.pth, unknown checkpoint.
        is_partial: Whether photos of the split are missing.
        photos_sha256: Of the tested photos; "" if unknown.
    """

    predictions: Predictions
    notes: list[str]
    is_partial: bool
    photos_sha256: str


def read_tested(path: Path, work_dir: Path) -> TestedPredictions:
    """Read the predictions of a run and verify them with the record of their test.

    Args:
        path: The file of predictions.
        work_dir: The folder of the tested checkpoint.

    Raises:
        InputError: The predictions can't be read or were changed after the test, or the checkpoint is another one now.
    """
    record = read_record(path)
    predictions = read_predictions(path)
    if record is None:
        return TestedPredictions(predictions, ["of an unknown checkpoint: test the run again"], False, "")
    notes = _notes(record, work_dir)
    return TestedPredictions(predictions, notes, record.counted < record.listed, record.photos_sha256)


def require_same_photos(path: Path, one: str, other: str) -> None:
    """Raise an error if two sets of predictions are of different photos, even with the same names.

    Args:
        path: The file of the other predictions, for the error message.
        one, other: ``photos_sha256`` of both; "" matches any.

    Raises:
        InputError: The two differ.
    """
    if one and other and one != other:
        what = f"{path} is of photos with other contents, even if the names are the same"
        raise InputError(what, "test both runs on the same dataset folder")


def _notes(record: TestRecord, work_dir: Path) -> list[str]:
    checkpoint = work_dir / record.checkpoint
    if not checkpoint.is_file():
        return [f"of {record.checkpoint}, which no longer exists"]
    if file_sha256(checkpoint) != record.checkpoint_sha256:
        what = f"{checkpoint} has changed since the test on {record.split}"
        raise InputError(what, f"test again: python tools/test.py {checkpoint}")
    notes = []
    if record.counted < record.listed:
        notes.append(f"of {record.counted} of the {record.listed} photos of {record.split}: not the top-1 of the split")
    if checkpoint.name != default_checkpoint(work_dir).name:
        notes.append(f"of {record.checkpoint}, not of best.pth")
    return notes

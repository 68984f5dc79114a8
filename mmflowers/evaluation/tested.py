"""What a test was of: which checkpoint, which photos; kept beside its predictions and held against them later."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmflowers.errors import InputError
from mmflowers.evaluation.predictions import Predictions, read_predictions
from mmflowers.files import write_text


@dataclass(frozen=True)
class TestRecord:
    """The test that made a file of predictions.

    Attributes:
        checkpoint: File name of the tested checkpoint.
        checkpoint_sha256: Of its bytes.
        predictions_sha256: Of the bytes of the file of predictions.
        split: Name of the list.
        counted: Photos of the list that were counted.
        listed: Photos that the split has.
    """

    checkpoint: str
    checkpoint_sha256: str
    predictions_sha256: str
    split: str
    counted: int
    listed: int


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_record(predictions: Path, checkpoint: Path, *, split: str, counted: int, listed: int) -> None:
    """Write the record of a test beside its predictions, as ``predictions_<split>.json``."""
    record = TestRecord(
        checkpoint.name, sha256_of(checkpoint), sha256_of(predictions), split, counted=counted, listed=listed
    )
    text = json.dumps({"format": "mmflowers test record", "format_version": 1, **asdict(record)}, indent=1) + "\n"
    write_text(predictions.with_suffix(".json"), text)


def read_record(predictions: Path) -> TestRecord | None:
    """The record of the test that made a file of predictions; None where there is none.

    Raises:
        InputError: It can't be read, or the predictions have changed since the test.
    """
    path = predictions.with_suffix(".json")
    again = "test again: python tools/test.py"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = TestRecord(**{name: kind(values[name]) for name, kind in _KINDS.items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} can't be read: {error!r}", again) from error
    if sha256_of(predictions) != record.predictions_sha256:
        raise InputError(f"{predictions} isn't what the test wrote: it has changed since", again)
    return record


_KINDS = {
    **dict.fromkeys(("checkpoint", "checkpoint_sha256", "predictions_sha256", "split"), str),
    **dict.fromkeys(("counted", "listed"), int),
}


def read_tested(path: Path, work_dir: Path) -> tuple[Predictions, list[str]]:
    """The predictions of a run, held against the record of their test.

    Returns:
        The predictions, and what a reader must know of them: that they are of a part of the split, or not of best.pth.

    Raises:
        InputError: They can't be read, have changed since the test, or the run's checkpoint is another one by now.
    """
    record = read_record(path)
    notes = _check(record, work_dir) if record else ["of a checkpoint that isn't known: test the run again"]
    return read_predictions(path), notes


def _check(record: TestRecord, work_dir: Path) -> list[str]:
    checkpoint = work_dir / record.checkpoint
    if checkpoint.is_file() and sha256_of(checkpoint) != record.checkpoint_sha256:
        what = f"{checkpoint} isn't the checkpoint that the predictions of {record.split} were made with"
        raise InputError(what, f"test again: python tools/test.py {checkpoint}")
    notes = []
    if record.counted < record.listed:
        notes.append(f"of {record.counted} of the {record.listed} photos of {record.split}: not the top-1 of the split")
    if record.checkpoint != "best.pth":
        notes.append(f"of {record.checkpoint}, not of best.pth")
    return notes

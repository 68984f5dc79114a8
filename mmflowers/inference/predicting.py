"""What tools/predict.py does: from arguments to rows, folders and overlays."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.inference.inputs import Passed, camera_frames, find_inputs
from mmflowers.inference.output import Sorter, open_output
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.speed.memory import keep_freed_memory
from mmflowers.utils.errors import InputError

EVERY_SECONDS = 10.0


def predict_all(
    classifier: FlowerClassifier,
    arguments: Sequence[str],
    *,
    camera: int | None = None,
    top_k: int = 3,
    out: Path | None = None,
    sort_into: Path | None = None,
    how: Literal["copy", "move", "link"] = "copy",
    cam: Path | None = None,
    batch_size: int = 32,
    workers: int = 2,
) -> None:
    """Predict everything that the arguments name; rows go to ``out``, or as text to stdout, and a summary to stderr.

    Args:
        classifier: The run's.
        arguments: As ``find_inputs`` takes them.
        camera: Number of a camera to watch in place of the arguments.
        top_k: Classes in a row, at most all that there are.
        out: A .csv, .jsonl or .parquet file.
        sort_into: Folder that gets the photos, a folder for each class.
        how: They get there.
        cam: Folder that gets an overlay for each photo, of where the network looked.
        batch_size: Photos that go through the network together.
        workers: Processes that decode.

    Raises:
        InputError: Nothing was found, or the results can't be written.
    """
    if classifier.device.type == "cpu":
        keep_freed_memory()
    top_k = min(top_k, len(classifier.classes))
    passed = Passed()
    read = unread = 0
    with contextlib.ExitStack() as stack:
        if camera is not None:  # a frame at a time, as it comes
            inputs, batch_size, workers = camera_frames(camera), 1, 0
        else:
            staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmflowers-")))
            leave_out = [folder for folder in (sort_into, cam) if folder is not None]
            inputs = find_inputs(arguments, staging=staging, passed=passed, leave_out=leave_out)
        write = stack.enter_context(open_output(out, top_k)) if out else _print
        sorter = Sorter(sort_into, classifier.classes, how) if sort_into else None
        overlays = None
        if cam is not None:
            from mmflowers.inference.overlays import Overlays

            overlays = Overlays(cam, classifier)
        dataset = PhotoDataset(classifier.pipeline, keep=sort_into is not None)
        batches = read_batches(inputs, dataset, batch_size=batch_size, workers=workers)
        for batch in _told(batches) if out else batches:
            predictions = classifier.judge(batch.inputs, batch.pixels, top_k=top_k)
            write(predictions)
            unread += sum(bool(found.reason) for found in predictions)
            read += len(predictions)
            if overlays:
                overlays.draw(predictions, batch.pixels)
            if sorter:
                for input_, found in zip(batch.inputs, predictions, strict=True):
                    if not found.reason:
                        sorter.place(input_, found.class_name)
        if passed.count:
            print(f"{passed.count:,} files without an image's extension were passed over", file=sys.stderr)
        if not read:  # before the rows get their name: an old file stays
            raise InputError(f"no photo in {', '.join(arguments)}", "are they in there with an image's extension?")
    print(f"{unread:,} of {read:,} could not be read", file=sys.stderr)


def _print(predictions: Iterable[Prediction]) -> None:
    for found in predictions:
        name = found.image if found.image.isprintable() else ascii(found.image)
        said = ", ".join(f"{class_name} {100 * score:.1f} %" for class_name, score in found.top)
        print(f"{name}: {said or f'could not be read, {found.reason}'}", flush=True)


def _told(batches: Iterator) -> Iterator:
    """Say on stderr now and then how far it is; of how many nobody knows."""
    done, last = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += len(batch.inputs)
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            print(f"predicting: {done:,}", file=sys.stderr, flush=True)

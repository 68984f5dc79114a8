"""Predict the photos of tools/predict.py's arguments and write rows, class folders and Grad-CAM overlays."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.inference.inputs import Skipped, camera_frames, find_inputs
from mmflowers.inference.output import ClassFolders, open_output
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.preparation.formats import EXTENSIONS
from mmflowers.speed.memory import keep_freed_memory
from mmflowers.utils.errors import InputError, count

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
    """Predict all photos of the arguments. Rows go to ``out``, or as text to stdout; a summary goes to stderr.

    Args:
        classifier: The classifier.
        arguments: See ``find_inputs``.
        camera: Number of a camera to read frames from, instead of the arguments.
        top_k: Number of classes per row; limited to the number of classes.
        out: A .csv, .jsonl or .parquet file.
        sort_into: Folder that the photos are put into, in one subfolder per class.
        how: Whether photos are copied, moved or linked to ``sort_into``.
        cam: Folder for one Grad-CAM overlay per photo.
        batch_size: Photos per forward pass.
        workers: Number of processes that decode.

    Raises:
        InputError: No photo was found, or the results can't be written.
    """
    if classifier.device.type == "cpu":
        keep_freed_memory()
    top_k = min(top_k, len(classifier.classes))
    skipped = Skipped()
    read = unread = 0
    with contextlib.ExitStack() as stack:
        if camera is not None:  # one frame at a time, without delay
            inputs, batch_size, workers = camera_frames(camera), 1, 0
        else:
            staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmflowers-")))
            leave_out = [folder for folder in (sort_into, cam) if folder is not None]
            inputs = find_inputs(arguments, staging=staging, skipped=skipped, leave_out=leave_out)
        write = stack.enter_context(open_output(out, top_k)) if out else _print
        class_folders = ClassFolders(sort_into, classifier.classes, how) if sort_into else None
        overlays = None
        if cam is not None:
            from mmflowers.inference.grad_cam import OverlayFolder

            overlays = OverlayFolder(cam, classifier)
        dataset = PhotoDataset(classifier.pipeline, keep=sort_into is not None)
        batches = read_batches(inputs, dataset, batch_size=batch_size, workers=workers)
        for batch in _report_progress(batches) if out else batches:
            predictions = classifier.predict_batch(batch, top_k=top_k)
            write(predictions)
            unread += sum(bool(found.reason) for found in predictions)
            read += len(predictions)
            if overlays:
                overlays.write(predictions, batch.pixels)
            if class_folders:
                for input_, found in zip(batch.inputs, predictions, strict=True):
                    if not found.reason:
                        class_folders.add(input_, found.class_name)
        if skipped.count:
            print(f"skipped {count(skipped.count, 'file')} without the extension of an image", file=sys.stderr)
        if not read:  # before the output file gets its name, so that an older one is kept
            hint = f"the files need one of the extensions {' '.join(sorted(EXTENSIONS))}"
            raise InputError(f"no photo in {', '.join(arguments)}", hint)
    print(f"{unread:,} of {read:,} could not be read", file=sys.stderr)


def _print(predictions: Iterable[Prediction]) -> None:
    for found in predictions:
        name = found.image if found.image.isprintable() else ascii(found.image)
        top = ", ".join(f"{class_name} {100 * score:.1f} %" for class_name, score in found.top)
        print(f"{name}: {top or f'could not be read, {found.reason}'}", flush=True)


def _report_progress(batches: Iterator) -> Iterator:
    """Print the number of predicted photos to stderr at intervals; their total isn't known."""
    done, last = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += len(batch.inputs)
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            print(f"predicting: {done:,}", file=sys.stderr, flush=True)

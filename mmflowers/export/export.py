"""Export a run to files for other programs, and compare each file with the run on photos of its val split."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.engine.testing import kept_config
from mmflowers.evaluation.metadata import find_dataset, read_run_metadata
from mmflowers.evaluation.tested import default_checkpoint
from mmflowers.export import formats
from mmflowers.export.card import CARD, has_own_card, model_card
from mmflowers.inference.classifier import FlowerClassifier, require_classes
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.utils.errors import InputError, Problem, count
from mmflowers.utils.files import explained, file_sha256, sync_folder, write_bytes
from mmflowers.utils.terminal import progress
from mmflowers.weights.loading import load_checkpoint_file

FILES = {
    "onnx": "model.onnx",
    "onnx-fp16": "model_fp16.onnx",
    "torchscript": "model.torchscript",
    "slim": "slim.pth",
}
# Largest difference of a probability from the checkpoint's, by another order of float32 sums or by float16 weights.
TOLERANCES = {"onnx": 1e-3, "onnx-fp16": 0.02, "torchscript": 1e-3, "slim": 0.02}
SPLIT = "val"
ENOUGH = 256  # photos of the comparison
BATCH = 32
SINGLE = 20  # photos that are timed one by one
ELSEWHERE = "choose another --out"

_write = partial(write_bytes, elsewhere=ELSEWHERE)

Predict = Callable[[Any], np.ndarray]  # images → probabilities


class FileCheck(NamedTuple):
    """The comparison of an exported file with the checkpoint.

    Attributes:
        name: Name of the file.
        size: In bytes.
        same: Number of photos with the same predicted class.
        difference: Largest difference of a probability.
        single_ms: Median time of a single photo in milliseconds.
        throughput: Photos per second in batches of 32.
    """

    name: str
    size: int
    same: int
    difference: float
    single_ms: float
    throughput: float


class Export(NamedTuple):
    """The result of an export.

    Attributes:
        out: Folder of the files.
        photos: Number of photos of the comparison.
        source: The measurements of the checkpoint itself.
        checks: One per file.
        notes: Further messages for the user.
    """

    out: Path
    photos: int
    source: FileCheck
    checks: list[FileCheck]
    notes: list[str]

    def __str__(self) -> str:
        """Return the table that the command prints."""
        width = max(len(check.name) for check in (self.source, *self.checks))
        threads = count(torch.get_num_threads(), "thread")
        lines = [f"{'file':<{width}}      size  same top-1  max difference  one photo  batches of {BATCH} ({threads})"]
        for check in (self.source, *self.checks):
            same = f"{check.same}/{self.photos}"
            lines.append(
                f"{check.name:<{width}}  {check.size / 1e6:5.1f} MB  {same:>10}  {check.difference:14.1e}  "
                f"{check.single_ms:6.1f} ms  {check.throughput:.1f} photos/s"
            )
        return "\n".join(lines)


def export(
    work_dir: Path,
    out: Path | None = None,
    *,
    chosen: Sequence[str] = tuple(FILES),
    preprocessing: bool = False,
    data: Path | None = None,
    licence: str | None = None,
    workers: int = 2,
) -> Export:
    """Write the best checkpoint of a run in the chosen formats, with a model card.

    Each file is compared with the checkpoint first. If all agree, they get their names together; else nothing is
    written, and older files are unchanged.

    Args:
        work_dir: Of the run, or a checkpoint next to its config.
        out: Folder for the files, default ``export`` in the work dir.
        chosen: Keys of ``FILES``.
        preprocessing: Whether ONNX and TorchScript take uint8 pixels (see ``formats.Network``).
        data: Dataset folder of the photos of the comparison; default the run's.
        licence: Hugging Face's identifier of the network's licence, for the model card.
        workers: Number of processes that decode.

    Raises:
        InputError: The run, its photos or a package is missing, the network can't be exported, a file disagrees with
            the checkpoint, or the disk is full, read-only or broken.
    """
    _require_packages(chosen)
    checkpoint = work_dir if work_dir.is_file() else default_checkpoint(work_dir)
    work_dir = checkpoint.parent
    out = out or work_dir / "export"
    classifier = FlowerClassifier.from_run(checkpoint, device="cpu")
    config_name = kept_config(work_dir).name
    _require_free(out, work_dir, config_name)
    network = formats.Network(classifier.model, preprocessing=preprocessing).eval()
    metadata = formats.network_metadata(classifier, network, checkpoint, file_sha256(checkpoint))
    run = read_run_metadata(work_dir)
    root = find_dataset(work_dir, run.data_root, data)
    names, pixels = _read_photos(root, classifier, workers)

    rgb = pixels.flip(1).permute(0, 2, 3, 1).contiguous()
    images = rgb if preprocessing else torch.cat([network.normalise(chunk) for chunk in rgb.split(BATCH)])
    with _staging(out) as staging:
        _write_all(staging, chosen, network, torch.cat([images[:1]] * 2), metadata, checkpoint, config_name)
        source, expected = _measure(checkpoint, classifier.scores, pixels)
        checks, problems = [], []
        for kind in chosen:
            predict, given = _open(kind, staging / FILES[kind], pixels, images)
            check, found = _measure(staging / FILES[kind], predict, given, expected)
            checks.append(check)
            problems += _compare(kind, check, found, expected, names, classifier.classes, checkpoint)
        if problems:
            raise InputError(problems=problems)
        notes = [] if len(names) >= ENOUGH else [f"checked on {len(names)} photos, all of {SPLIT}: fewer than {ENOUGH}"]
        if has_own_card(out):
            notes.append(f"{out / CARD} wasn't written by an export, so it is unchanged and no model card was written")
        else:
            card = model_card(
                work_dir,
                root,
                run=run,
                checks=checks,
                metadata=metadata,
                expected=dict(zip(names, expected, strict=True)),
                split=SPLIT,
                licence=licence,
            )
            _write(staging / CARD, card.encode())
        with explained(out, elsewhere=ELSEWHERE):
            for path in sorted(staging.iterdir()):
                path.replace(out / path.name)
            sync_folder(out)
    return Export(out, len(names), source, checks, notes)


def _require_packages(chosen: Iterable[str]) -> None:
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing and any(kind.startswith("onnx") for kind in chosen):
        what = f"the ONNX export needs the package {' and '.join(missing)}"
        raise InputError(what, "pip install onnx onnxruntime, or --formats torchscript slim")


def _require_free(out: Path, work_dir: Path, config_name: str) -> None:
    """Raise an error if files would replace those of a run, or slim.pth would be next to several configs."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "give a folder with --out")
    if out.resolve() == work_dir.resolve():
        raise InputError(f"{out} is the work dir of the run", "remove --out, or give another folder")
    others = sorted(path.name for path in out.glob("*.py") if path.name != config_name)
    if others:
        raise InputError(f"{out} contains {', '.join(others)}", "give an empty folder with --out")


def _read_photos(root: Path, classifier: FlowerClassifier, workers: int) -> tuple[list[str], torch.Tensor]:
    """Return names and pixels (after the test pipeline) of up to 256 photos, taken evenly from the list."""
    folder = read_dataset_folder(root, splits=(SPLIT,))
    require_classes(folder, classifier.classes)
    samples = folder.samples[SPLIT]
    number = min(len(samples), ENOUGH)
    names = [samples[index * len(samples) // number][0] for index in range(number)]
    inputs = (Input(name, str(root / name)) for name in names)
    batches = read_batches(inputs, PhotoDataset(classifier.pipeline), batch_size=BATCH, workers=workers)
    read = list(progress(batches, total=-(-number // BATCH), what="reading photos"))
    unread = [
        Problem(f"{photo.name} can't be read: {photo.reason}") for b in read for photo in b.inputs if photo.reason
    ]
    if unread:
        raise InputError(problems=unread)
    pixels = []
    for batch in read:
        assert isinstance(batch.pixels, torch.Tensor)  # ``formats.image_size`` refuses several sizes
        pixels.append(batch.pixels)
    return names, torch.cat(pixels)


def _write_all(
    staging: Path,
    chosen: Sequence[str],
    network: formats.Network,
    images: torch.Tensor,
    metadata: dict[str, Any],
    checkpoint: Path,
    config_name: str,
) -> None:
    if any(kind.startswith("onnx") for kind in chosen):
        data = formats.to_onnx(network, images, metadata)
        if "onnx" in chosen:
            _write(staging / FILES["onnx"], data)
        if "onnx-fp16" in chosen:
            _write(staging / FILES["onnx-fp16"], formats.to_float16(data))
    if "torchscript" in chosen:
        _write(staging / FILES["torchscript"], formats.to_torchscript(network, images, metadata))
    if "slim" in chosen:
        meta = load_checkpoint_file(checkpoint)["meta"]
        _write(staging / FILES["slim"], formats.to_slim(network.model, meta))
        _write(staging / config_name, formats.slim_config(network.model._config, FILES["slim"]).encode())


def _open(kind: str, path: Path, pixels: torch.Tensor, images: torch.Tensor) -> tuple[Predict, Any]:
    """Open a file as its users do; return it as a function to probabilities, and its input."""
    if kind == "slim":
        return FlowerClassifier.from_run(path, device="cpu").scores, pixels
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated in favour of torch.export: see formats
            traced = torch.jit.load(path, map_location="cpu")
        return torch.no_grad()(lambda batch: traced(batch).numpy()), images
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch uses
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {formats.INPUT: batch})[0], images.numpy()


def _measure(
    path: Path, predict: Predict, given: Any, expected: np.ndarray | None = None
) -> tuple[FileCheck, np.ndarray]:
    """Time a file over all photos and compare its probabilities with ``expected``, by default its own."""
    predict(given[:BATCH])  # warm-up: kernels are chosen and graphs optimised
    predict(given[:1])
    parts, seconds = [], 0.0
    starts = range(0, len(given), BATCH)
    for start in progress(starts, total=len(starts), what=f"checking {path.name}"):
        began = time.perf_counter()
        parts.append(predict(given[start : start + BATCH]))
        seconds += time.perf_counter() - began
    single = []
    for index in range(min(len(given), SINGLE)):
        began = time.perf_counter()
        predict(given[index : index + 1])
        single.append(time.perf_counter() - began)
    found = np.concatenate(parts)
    expected = found if expected is None else expected
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(found - expected).max())
    check = FileCheck(path.name, path.stat().st_size, same, difference, 1000 * median(single), len(given) / seconds)
    return check, found


def _compare(
    kind: str,
    check: FileCheck,
    found: np.ndarray,
    expected: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    checkpoint: Path,
) -> list[Problem]:
    """Return the problem of a file that disagrees with the checkpoint."""
    if check.same == len(names) and check.difference <= TOLERANCES[kind]:  # false for NaN too
        return []
    others = np.flatnonzero(found.argmax(1) != expected.argmax(1))
    worst = others[0] if len(others) else np.abs(found - expected).max(1).argmax()  # argmax treats NaN as the largest
    then, now = (f"{classes[row.argmax()]} {100 * row.max():.2f} %" for row in (expected[worst], found[worst]))
    what = (
        f"{check.name} disagrees with {checkpoint.name}: another class for {len(others)} of {len(names)} photos, "
        f"probabilities differ by up to {check.difference:.2g} ({names[worst]}: {then}, exported {now})"
    )
    rest = " ".join(name for name in FILES if name != kind)
    return [Problem(what, f"nothing was written; export without it: --formats {rest}")]


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Create a hidden folder in ``out`` and delete it at the end of the context.

    Raises:
        InputError: It can't be created.
    """
    staging, is_new = out / ".incomplete", not out.exists()
    try:
        with explained(out, elsewhere=ELSEWHERE):
            if staging.exists():  # of an export that was killed
                shutil.rmtree(staging)
            staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # not empty after a successful export
                out.rmdir()

"""What tools/export.py does: from a run to files for other programs, each held against the run on its own photos."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.engine.testing import kept_config
from mmflowers.evaluation.metadata import find_dataset, tested_on
from mmflowers.evaluation.tested import default_checkpoint
from mmflowers.export import formats
from mmflowers.export.card import CARD, keeps_its_own, model_card
from mmflowers.inference.classifier import FlowerClassifier
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import explained, file_sha256, sync_folder, write_bytes
from mmflowers.utils.terminal import progress
from mmflowers.weights.loading import load_checkpoint_file

FILES = {
    "onnx": "model.onnx",
    "onnx-fp16": "model_fp16.onnx",
    "torchscript": "model.torchscript",
    "slim": "slim.pth",
}
# How far a probability may be from the source's: by another order of float32 sums, or by weights of float16.
TOLERANCES = {"onnx": 1e-3, "onnx-fp16": 0.02, "torchscript": 1e-3, "slim": 0.02}
SPLIT = "val"
ENOUGH = 256  # photos to check on
BATCH = 32
ALONE = 20  # photos that are timed one by one
ELSEWHERE = "choose another --out"

Scores = Callable[[Any], np.ndarray]


class Check(NamedTuple):
    """What a file was found to be.

    Attributes:
        name: The file's.
        size: In bytes.
        same: Photos for which it names the source's class.
        difference: Greatest difference of a probability from the source's.
        alone: Milliseconds for a photo alone, median.
        rate: Photos a second in batches of 32.
    """

    name: str
    size: int
    same: int
    difference: float
    alone: float
    rate: float


class Export(NamedTuple):
    """What was exported.

    Attributes:
        out: Folder of the files.
        photos: How many each was checked on.
        source: The checkpoint itself, measured alike.
        checks: Of every file.
        notes: What the user should know besides.
    """

    out: Path
    photos: int
    source: Check
    checks: list[Check]
    notes: list[str]

    def __str__(self) -> str:
        """A table for people."""
        width = max(len(check.name) for check in (self.source, *self.checks))
        threads = f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
        lines = [f"{'file':<{width}}      size  same top-1  max difference  one photo  batches of {BATCH} ({threads})"]
        for check in (self.source, *self.checks):
            same = f"{check.same}/{self.photos}"
            lines.append(
                f"{check.name:<{width}}  {check.size / 1e6:5.1f} MB  {same:>10}  {check.difference:14.1e}  "
                f"{check.alone:6.1f} ms  {check.rate:.1f} photos/s"
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
    """Write the best checkpoint of a run as each of the chosen formats, and a model card beside them.

    All of them appear together, when each was found to say what the checkpoint says; else none does, and what lay
    there before stays.

    Args:
        work_dir: Of the run, or a checkpoint beside its config.
        out: Folder for the files, default ``export`` in the work dir.
        chosen: Keys of ``FILES``.
        preprocessing: ONNX and TorchScript take pixels as they are (see ``formats.Network``).
        data: Dataset folder with the photos to check on; default the run's.
        licence: Of the network, by Hugging Face's identifier, for the card.
        workers: Processes that decode.

    Raises:
        InputError: No such run or photos, a package that is missing, a network that can't be exported, a file that
            says something else than the checkpoint, a disk that can't hold it.
    """
    _require_packages(chosen)
    checkpoint = work_dir if work_dir.is_file() else default_checkpoint(work_dir)
    work_dir = checkpoint.parent
    out = out or work_dir / "export"
    classifier = FlowerClassifier.from_run(checkpoint, device="cpu")
    config_name = kept_config(work_dir).name
    _require_free(out, work_dir, config_name)
    network = formats.Network(classifier.model, preprocessing=preprocessing).eval()
    facts = formats.facts(classifier, network, checkpoint, file_sha256(checkpoint))
    root = find_dataset(work_dir, tested_on(work_dir), data)
    names, pixels = _read_photos(root, classifier, workers)

    rgb = pixels.flip(1).permute(0, 2, 3, 1).contiguous()
    images = rgb if preprocessing else torch.cat([network.normalise(chunk) for chunk in rgb.split(BATCH)])
    with _staging(out) as staging:
        _write_all(staging, chosen, network, torch.cat([images[:1]] * 2), facts, checkpoint, config_name)
        source, expected = _measure(checkpoint, classifier.scores, pixels)
        checks, problems = [], []
        for kind in chosen:
            scores, given = _open(kind, staging / FILES[kind], pixels, images)
            check, found = _measure(staging / FILES[kind], scores, given, expected)
            checks.append(check)
            problems += _compare(kind, check, found, expected, names, classifier.classes, checkpoint)
        if problems:
            raise InputError(problems=problems)
        notes = [] if len(names) >= ENOUGH else [f"checked on {len(names)} photos, all of {SPLIT}: under {ENOUGH}"]
        if keeps_its_own(out):
            notes.append(f"{out / CARD} isn't an export's: it stays, and no model card was written")
        else:
            expected_of = dict(zip(names, expected, strict=True))
            card = model_card(
                work_dir, root, checks=checks, facts=facts, expected=expected_of, split=SPLIT, licence=licence
            )
            _write(staging / CARD, card.encode())
        with explained(out, elsewhere=ELSEWHERE):
            for path in sorted(staging.iterdir()):
                path.replace(out / path.name)
            sync_folder(out)
    return Export(out, len(names), source, checks, notes)


def _require_packages(chosen: Iterable[str]) -> None:
    wanting = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if wanting and any(kind.startswith("onnx") for kind in chosen):
        raise InputError(
            f"to export ONNX takes the package {' and '.join(wanting)}",
            "pip install onnx onnxruntime, or --formats torchscript slim",
        )


def _require_free(out: Path, work_dir: Path, config_name: str) -> None:
    """Refuse a folder in which the files would replace a run's own, or the slim checkpoint find several configs."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "--out names a folder")
    if out.resolve() == work_dir.resolve():
        raise InputError(f"{out} is the run's own folder", "leave --out away, or name another folder")
    others = sorted(path.name for path in out.glob("*.py") if path.name != config_name)
    if others:
        raise InputError(f"{out} holds {', '.join(others)}", "give the export a folder of its own with --out")


def _read_photos(root: Path, classifier: FlowerClassifier, workers: int) -> tuple[list[str], torch.Tensor]:
    """Names and pixels (as the test pipeline makes them) of up to 256 photos, evenly from the whole list."""
    folder = read_dataset_folder(root, splits=(SPLIT,))
    if tuple(folder.classes) != classifier.classes:
        raise InputError(
            f"{root} has the classes {', '.join(folder.classes)}, the run {', '.join(classifier.classes)}",
            "--data names the dataset folder that it was trained on",
        )
    samples = folder.samples[SPLIT]
    count = min(len(samples), ENOUGH)
    names = [samples[index * len(samples) // count][0] for index in range(count)]
    inputs = (Input(name, str(root / name)) for name in names)
    batches = read_batches(inputs, PhotoDataset(classifier.pipeline), batch_size=BATCH, workers=workers)
    read = list(progress(batches, total=-(-count // BATCH), what="reading photos"))
    unread = [
        Problem(f"{photo.name} can't be read: {photo.reason}") for b in read for photo in b.inputs if photo.reason
    ]
    if unread:
        raise InputError(problems=unread)
    pixels = []
    for batch in read:
        assert isinstance(batch.pixels, torch.Tensor)  # ``formats.image_size`` has refused several sizes
        pixels.append(batch.pixels)
    return names, torch.cat(pixels)


def _write_all(
    staging: Path,
    chosen: Sequence[str],
    network: formats.Network,
    images: torch.Tensor,
    facts: dict[str, Any],
    checkpoint: Path,
    config_name: str,
) -> None:
    if any(kind.startswith("onnx") for kind in chosen):
        data = formats.to_onnx(network, images, facts)
        if "onnx" in chosen:
            _write(staging / FILES["onnx"], data)
        if "onnx-fp16" in chosen:
            _write(staging / FILES["onnx-fp16"], formats.in_half(data))
    if "torchscript" in chosen:
        _write(staging / FILES["torchscript"], formats.to_torchscript(network, images, facts))
    if "slim" in chosen:
        meta = load_checkpoint_file(checkpoint)["meta"]
        _write(staging / FILES["slim"], formats.to_slim(network.model, meta))
        _write(staging / config_name, formats.slim_config(network.model._config, FILES["slim"]).encode())


def _open(kind: str, path: Path, pixels: torch.Tensor, images: torch.Tensor) -> tuple[Scores, Any]:
    """A file as a function to probabilities, opened as its users open it, and what it is to be given."""
    if kind == "slim":
        return FlowerClassifier.from_run(path, device="cpu").scores, pixels
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch.export comes after it: see formats
            traced = torch.jit.load(path, map_location="cpu")
        return lambda batch: _without_gradients(traced, batch), images
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the others take
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {formats.INPUT: batch})[0], images.numpy()


def _without_gradients(traced: torch.jit.ScriptModule, batch: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return traced(batch).numpy()


def _measure(path: Path, scores: Scores, given: Any, expected: np.ndarray | None = None) -> tuple[Check, np.ndarray]:
    """Time a file over all photos, and hold its probabilities against those ``expected``; without any, its own."""
    scores(given[:BATCH])  # what is done once: kernels chosen, graphs optimised
    scores(given[:1])
    parts, seconds = [], 0.0
    starts = range(0, len(given), BATCH)
    for start in progress(starts, total=len(starts), what=f"checking {path.name}"):
        began = time.perf_counter()
        parts.append(scores(given[start : start + BATCH]))
        seconds += time.perf_counter() - began
    alone = []
    for index in range(min(len(given), ALONE)):
        began = time.perf_counter()
        scores(given[index : index + 1])
        alone.append(time.perf_counter() - began)
    found = np.concatenate(parts)
    expected = found if expected is None else expected
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(found - expected).max())
    check = Check(path.name, path.stat().st_size, same, difference, 1000 * median(alone), len(given) / seconds)
    return check, found


def _compare(
    kind: str,
    check: Check,
    found: np.ndarray,
    expected: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    checkpoint: Path,
) -> list[Problem]:
    """What of a file isn't as it should be."""
    if check.same == len(names) and check.difference <= TOLERANCES[kind]:  # false for NaN too
        return []
    others = np.flatnonzero(found.argmax(1) != expected.argmax(1))
    worst = others[0] if len(others) else np.abs(found - expected).max(1).argmax()  # argmax takes NaN for greatest
    then, now = (f"{classes[row.argmax()]} {100 * row.max():.2f} %" for row in (expected[worst], found[worst]))
    what = (
        f"{check.name} isn't what {checkpoint.name} is: another class for {len(others)} of {len(names)} photos, "
        f"probabilities up to {check.difference:.2g} apart ({names[worst]}: {then}, exported {now})"
    )
    rest = " ".join(name for name in FILES if name != kind)
    return [Problem(what, f"nothing was written; leave it out, for instance --formats {rest}")]


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder in ``out`` that is gone afterwards.

    Raises:
        InputError: It can't be made.
    """
    staging, is_new = out / ".incomplete", not out.exists()
    try:
        with explained(out, elsewhere=ELSEWHERE):
            if staging.exists():  # a killed export's
                shutil.rmtree(staging)
            staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it holds files now, as it should
                out.rmdir()


def _write(path: Path, data: bytes) -> None:
    write_bytes(path, data, elsewhere=ELSEWHERE)

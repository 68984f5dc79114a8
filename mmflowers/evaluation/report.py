"""The data of a report: everything that is read and computed of one or several tested runs, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmflowers.datasets.card import DataCard, read_card
from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.identity import photos_digest
from mmflowers.evaluation.calibration import Calibration, calibrate
from mmflowers.evaluation.history import History, read_history
from mmflowers.evaluation.metadata import RunMetadata, find_dataset, read_run_metadata
from mmflowers.evaluation.predictions import Predictions, confusion_matrix, per_class_table
from mmflowers.evaluation.statistics import SIGNIFICANT, compare, wilson_interval
from mmflowers.evaluation.tested import TestedPredictions, default_checkpoint, read_tested, require_same_photos
from mmflowers.utils.errors import InputError, Problem


@dataclass(frozen=True)
class Run:
    """The data of one run in the report."""

    name: str
    work_dir: Path
    tested: TestedPredictions
    metadata: RunMetadata
    history: History | None

    @property
    def predictions(self) -> Predictions:
        return self.tested.predictions


class RunRow(NamedTuple):
    """One run in the table of runs; top-1, its 95 % interval and the calibration error are in 0…1.

    The last four are the comparison with the first run (``statistics.compare``), None or "" for the first run itself.
    """

    run: str
    top1: float
    correct: int
    total: int
    low: float
    high: float
    best_epoch: int | None
    ece: float
    only_this: int | None = None
    only_first: int | None = None
    p_value: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class ReportData:
    """What a report shows; everything but ``runs`` and ``rows`` is of the first run.

    Attributes:
        split: The split of the predictions.
        root: The dataset folder.
        card: What was left out of it.
        dataset: Its description, label → text.
        runs: The runs; the others are compared with the first.
        rows: The table of ``runs``.
        per_class: See ``predictions.per_class_table``.
        confusion: Photos of each true class (row) and predicted class (column), int64 of shape (classes, classes).
        calibration: Of the predictions.
        mistakes: Indices of the incorrect predictions, the most confident first.
        correct: Indices of the correct predictions, the least confident first.
    """

    split: str
    root: Path
    card: DataCard
    dataset: dict[str, str]
    runs: list[Run]
    rows: list[RunRow]
    per_class: list[tuple[str, float, float, float, int]]
    confusion: np.ndarray
    calibration: Calibration
    mistakes: list[int]
    correct: list[int]


def read_report_data(
    work_dirs: Sequence[Path], *, data: Path | None = None, split: str = "val", bins: int = 15
) -> ReportData:
    """Read tested runs and compute what their report shows.

    Args:
        work_dirs: Of the runs; the others are compared with the first.
        data: The dataset folder; default the one that the first run was tested on.
        split: The split of the predictions.
        bins: Number of calibration bins.

    Raises:
        InputError: A run wasn't tested, its predictions are of other photos than the first run's, or the dataset folder
            is missing.
    """
    runs = _read_runs(work_dirs, split)
    first = runs[0]
    predictions = first.predictions
    root = find_dataset(first.work_dir, first.metadata.data_root, data)
    _check_against_list(first, root, split)
    known = first.tested.photos_sha256
    if known and photos_digest([root / image for image in predictions.images], predictions.labels.tolist()) != known:
        first.tested.notes.append("of other photos than the dataset folder holds now: some have changed since the test")
    calibrations = [calibrate(run.predictions, bins) for run in runs]
    card = read_card(root)
    confidence, hit = predictions.scores.max(axis=1), predictions.predicted == predictions.labels
    return ReportData(
        split=split,
        root=root,
        card=card,
        dataset=describe_dataset(card, root),
        runs=runs,
        rows=[_row(run, first, calibration.error) for run, calibration in zip(runs, calibrations, strict=True)],
        per_class=per_class_table(predictions),
        confusion=confusion_matrix(predictions),
        calibration=calibrations[0],
        mistakes=sorted(np.flatnonzero(~hit).tolist(), key=lambda index: -confidence[index]),
        correct=sorted(np.flatnonzero(hit).tolist(), key=lambda index: confidence[index]),
    )


def describe_dataset(card: DataCard, root: Path) -> dict[str, str]:
    """Describe a dataset folder, as label → text; what its ``dataset.json`` doesn't record is left out."""
    metadata = card.metadata
    source, options, digests = (metadata.get(key) or {} for key in ("source", "options", "digests"))
    counts, versions = metadata.get("counts") or {}, metadata.get("versions") or {}
    ratios = ", ".join(
        f"{key.removesuffix('_ratio')} {options[key]:g}" for key in ("val_ratio", "test_ratio") if options.get(key)
    )
    split = source.get("split") or f"drawn class by class ({ratios})"
    rows = {
        "dataset folder": root.resolve().name,
        "source": f"{source.get('name', '')} ({source.get('kind', '')})" if source else "",
        "photos": ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in counts.items()),
        "classes": str(len(metadata["classes"])) if metadata.get("classes") else "",
        "split": split if metadata else "",
        "seed of the split": str(options.get("seed", "")) if metadata and not source.get("split") else "",
        "digest": digests.get("dataset", "")[:16],
        "prepared by": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {label: text for label, text in rows.items() if text}


def _read_runs(work_dirs: Sequence[Path], split: str) -> list[Run]:
    problems: list[Problem] = []
    runs: list[Run] = []
    twice = {name for name, count in Counter(folder.resolve().name for folder in work_dirs).items() if count > 1}
    for folder in work_dirs:
        path = folder / f"predictions_{split}.csv"
        if not path.is_file():
            option = "" if split == "val" else f" --split {split}"
            hint = f"run first: python tools/test.py {default_checkpoint(folder)}{option}"
            problems.append(Problem(f"{folder} has no {path.name}", hint))
            continue
        try:
            name = str(folder) if folder.resolve().name in twice else folder.resolve().name
            metadata = read_run_metadata(folder)
            is_logged = any(folder.glob("*/vis_data/scalars.json"))
            history = read_history(folder, *metadata.chosen_by) if is_logged else None
            tested = read_tested(path, folder)
            if runs:
                require_same_photos(path, runs[0].tested.photos_sha256, tested.photos_sha256)
            runs.append(Run(name, folder, tested, metadata, history))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems=problems)
    return runs


def _check_against_list(run: Run, root: Path, split: str) -> None:
    """Raise an error if photos or labels of the predictions differ from the list of the dataset folder."""
    folder = read_dataset_folder(root, (split,), files_may_be_gone=True)
    listed = {name: folder.classes[label] for name, label in folder.samples[split]}
    predictions = run.predictions
    given = [predictions.classes[label] for label in predictions.labels]
    images = set(predictions.images)
    counts = {
        f"not in {split}.txt": len(images - listed.keys()),
        "more than once": len(predictions.images) - len(images),
        "with another label": sum(
            listed.get(name, label) != label for name, label in zip(predictions.images, given, strict=True)
        ),
        "missing": 0 if run.tested.is_partial else len(listed.keys() - images),
    }
    wrong = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    if wrong:
        path = run.work_dir / f"predictions_{split}.csv"
        again = f"python tools/test.py {default_checkpoint(run.work_dir)}"
        raise InputError(
            f"{path} is of other photos than {root / f'{split}.txt'}: {wrong}",
            f"test again: {again}, or give the folder it was tested on with --data",
        )


def _row(run: Run, first: Run, calibration_error: float) -> RunRow:
    predictions = run.predictions
    correct, total = predictions.correct, len(predictions.images)
    best_epoch = run.history.best[0] if run.history and run.history.scores else None
    row = RunRow(
        run.name, correct / total, correct, total, *wilson_interval(correct, total), best_epoch, calibration_error
    )
    if run is first:
        return row
    found = compare(predictions, first.predictions)
    better = "better" if found.only_this > found.only_other else "worse"
    return row._replace(
        only_this=found.only_this,
        only_first=found.only_other,
        p_value=found.p_value,
        verdict=better if found.p_value < SIGNIFICANT else "no difference",
    )

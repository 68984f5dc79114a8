"""Write the model card of an export: Markdown with Hugging Face's metadata, from the files in the work dir."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from mmflowers.datasets.card import read_card
from mmflowers.evaluation.calibration import calibrate
from mmflowers.evaluation.history import metric_label
from mmflowers.evaluation.metadata import RunMetadata
from mmflowers.evaluation.predictions import Predictions, per_class_table
from mmflowers.evaluation.report import describe_dataset
from mmflowers.evaluation.statistics import format_top1_interval
from mmflowers.evaluation.tested import read_tested
from mmflowers.preparation.data_card import HUB_SPLITS
from mmflowers.utils.errors import InputError
from mmflowers.visualization.pages import environment

if TYPE_CHECKING:
    from mmflowers.export.export import FileCheck

CARD = "README.md"  # Hugging Face's name, so that the folder can be uploaded unchanged
MARK = "<!-- tools/export.py"  # begins the comment in the template
AGREE = 0.005  # largest difference of a score of one network, on another device or in another batch
DESCRIBED = {
    "model.onnx": "ONNX, for any number of images",
    "model_fp16.onnx": "the same with weights in float16, computes in float32",
    "model.torchscript": "TorchScript, for `torch.jit.load` without other packages, and for C++",
    "slim.pth": "MMPretrain checkpoint with weights in float16; its config is next to it",
}


def has_own_card(out: Path) -> bool:
    """Return whether a folder has a card that no export wrote, or one whose mark was removed to keep edits."""
    path = out / CARD
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    work_dir: Path,
    root: Path,
    *,
    run: RunMetadata,
    checks: Sequence[FileCheck],
    metadata: Mapping[str, Any],
    expected: Mapping[str, np.ndarray],
    split: str,
    licence: str | None = None,
) -> str:
    """Return the text of the card.

    Args:
        work_dir: Of the run. Its ``predictions_<split>.csv`` gives the results, if it is of this checkpoint.
        root: The dataset folder.
        run: Metadata of the run.
        checks: Of the exported files.
        metadata: See ``formats.network_metadata``.
        expected: Name → probabilities of the checkpoint, for the photos of the comparison.
        split: Of those photos.
        licence: Hugging Face's identifier; None leaves it out.

    Raises:
        InputError: A file in the dataset folder can't be read.
    """
    card = read_card(root)
    name, dataset = work_dir.resolve().name, root.resolve().name
    predictions, unmeasured = _matching_predictions(work_dir / f"predictions_{split}.csv", expected)
    results = _results(predictions) if predictions else None
    data = describe_dataset(card, root)
    if card.metadata:
        data["dataset folder"] += ", described by its DATA_CARD.md"
    return _render(
        yaml=_yaml(name, dataset, split, results, licence, onnx=any("onnx" in check.name for check in checks)),
        name=name,
        network=run.recipe.get("network", "A classifier"),
        checks=checks,
        described=DESCRIBED,
        photos=len(expected),
        split=split,
        dataset=dataset,
        results=results,
        chosen_by=metric_label(run.chosen_by[0]),
        unmeasured=unmeasured,
        # Without the command, which contains paths of this machine.
        training={name: text for name, text in {**run.recipe, **run.machine}.items() if name != "command"},
        warnings=run.warnings,
        data=data,
        licence=licence,
        resized_by=_resized_by(metadata["resizing"]) if any(check.name == "model.onnx" for check in checks) else "",
        **metadata,
    )


def _matching_predictions(path: Path, expected: Mapping[str, np.ndarray]) -> tuple[Predictions | None, str]:
    """Return the predictions if their scores are those of the checkpoint, else None and the reason."""
    if not path.is_file():
        return None, f"there is no {path.name}; tools/test.py writes it"
    try:
        predictions, notes, is_partial, _ = read_tested(path, path.parent)
    except InputError as error:
        return None, error.problems[0].what
    if is_partial:
        return None, f"{path.name} is {notes[0]}"
    rows = dict(zip(predictions.images, predictions.scores, strict=True))
    same = all(
        photo in rows and rows[photo].shape == scores.shape and np.abs(rows[photo] - scores).max() < AGREE
        for photo, scores in expected.items()
    )
    return (predictions, "") if same else (None, f"{path.name} is of another checkpoint or of other photos")


def _results(predictions: Predictions) -> dict[str, Any]:
    per_class = per_class_table(predictions)
    total = len(predictions.images)
    return {
        "accuracy": predictions.correct / total,
        "top1": format_top1_interval(predictions.correct, total),
        "f1": mean(row[3] for row in per_class),
        "ece": calibrate(predictions).error,
        "per_class": per_class,
        "total": total,
    }


def _yaml(
    name: str, dataset: str, split: str, results: Mapping[str, Any] | None, licence: str | None, *, onnx: bool
) -> str:
    """Return the card's YAML header in the format of huggingface.co."""
    import yaml

    identifier = re.sub(r"[^\w.-]+|^\W+|\W+$", "-", dataset, flags=re.ASCII).strip("-.") or "photos"
    metadata: dict[str, Any] = {"license": licence} if licence else {}
    metadata |= {
        "library_name": "mmpretrain",
        "pipeline_tag": "image-classification",
        "tags": ["mmflowers", "mmpretrain", "pytorch", *(["onnx"] if onnx else [])],
        "datasets": [identifier],
        "metrics": ["accuracy", "f1"],
    }
    if results:
        measured = {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"type": identifier, "name": dataset, "split": HUB_SPLITS.get(split, split)},
            "metrics": [
                {"type": "accuracy", "name": "top-1", "value": round(results["accuracy"], 6)},
                {"type": "f1", "name": "macro F1", "value": round(results["f1"], 6)},
            ],
        }
        metadata["model-index"] = [{"name": name, "results": [measured]}]
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)


def _resized_by(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the library that resizes if the steps are those of the example (short edge, centre crop), else \"\"."""
    if [step["type"] for step in steps] != ["ResizeEdge", "CenterCrop"] or steps[0].get("edge") != "short":
        return ""
    return steps[0]["backend"] if steps[0].get("interpolation") == "bilinear" else ""


def _render(**content: Any) -> str:
    templates = environment("mmflowers.export", autoescape=False)
    templates.filters["md"] = lambda text: re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))
    example = templates.get_template("onnx_example.py.txt").render()
    return templates.get_template("model_card.md.j2").render(example=example, **content)

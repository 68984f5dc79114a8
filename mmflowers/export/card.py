"""The model card of an export: Markdown with Hugging Face's metadata, from what the run wrote down about itself."""

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
from mmflowers.evaluation.metadata import read_facts
from mmflowers.evaluation.predictions import Predictions, per_class_table
from mmflowers.evaluation.statistics import format_top1_interval
from mmflowers.evaluation.tested import read_tested
from mmflowers.preparation.prepare import HUB_SPLITS
from mmflowers.utils.errors import InputError
from mmflowers.visualization.pages import environment

if TYPE_CHECKING:
    from mmflowers.export.export import Check

CARD = "README.md"  # where Hugging Face looks for it: the folder can be uploaded as it is
MARK = "<!-- tools/export.py writes this card anew; take this line out, and it leaves the card alone. -->"
AGREE = 0.005  # of two scores of one network, on another device or in another batch
DESCRIBED = {
    "model.onnx": "ONNX, for any number of images",
    "model_fp16.onnx": "the same with weights in float16, computing in float32",
    "model.torchscript": "TorchScript, for `torch.jit.load` without other packages, and for C++",
    "slim.pth": "MMPretrain's checkpoint with weights in float16; its config lies beside it",
}


def keeps_its_own(out: Path) -> bool:
    """Whether a folder holds a card of somebody else, or one that its owner has taken over."""
    path = out / CARD
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    work_dir: Path,
    root: Path,
    *,
    checks: Sequence[Check],
    facts: Mapping[str, Any],
    expected: Mapping[str, np.ndarray],
    split: str,
    licence: str | None = None,
) -> str:
    """The card's text.

    Args:
        work_dir: Of the run; ``predictions_<split>.csv`` in it are the results, where they are of this checkpoint.
        root: The dataset folder.
        checks: Of the files.
        facts: As ``formats.facts`` gives them.
        expected: What the checkpoint says of the photos it was checked on: by name, its probabilities.
        split: Of those photos.
        licence: By Hugging Face's identifier; None leaves it out.

    Raises:
        InputError: What the run or the dataset folder wrote down can't be read.
    """
    run, card = read_facts(work_dir), read_card(root)
    name, dataset = work_dir.resolve().name, root.resolve().name
    predictions, unmeasured = _own_predictions(work_dir / f"predictions_{split}.csv", expected)
    results = _results(predictions) if predictions else None
    return _render(
        metadata=_metadata(name, dataset, split, results, licence, onnx=any("onnx" in check.name for check in checks)),
        mark=MARK,
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
        # The command names folders of a machine, which readers of a card don't know.
        training={name: text for name, text in {**run.recipe, **run.machine}.items() if name != "command"},
        warnings=run.warnings,
        data=_data(dataset, card.facts),
        licence=licence,
        resized_by=_resized_by(facts["resizing"]) if any(check.name == "model.onnx" for check in checks) else "",
        **facts,
    )


def _own_predictions(path: Path, expected: Mapping[str, np.ndarray]) -> tuple[Predictions | None, str]:
    """Predictions of this very checkpoint, as its scores show; or None and why."""
    if not path.is_file():
        return None, f"{path.name} isn't there; tools/test.py writes it"
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


def _metadata(
    name: str, dataset: str, split: str, results: Mapping[str, Any] | None, licence: str | None, *, onnx: bool
) -> str:
    """The card's YAML, as huggingface.co reads it."""
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


def _data(dataset: str, facts: Mapping[str, Any]) -> dict[str, str]:
    source, counts = facts.get("source") or {}, facts.get("counts") or {}
    digest = (facts.get("digests") or {}).get("dataset", "")
    found = {
        "dataset folder": f"{dataset}, described by the DATA_CARD.md in it" if facts else dataset,
        "source": f"{source.get('name', '')} ({source.get('kind', '')})" if source else "",
        "photos": ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in counts.items()),
        "digest": digest,
    }
    return {label: text for label, text in found.items() if text}


def _resized_by(steps: Sequence[Mapping[str, Any]]) -> str:
    """The library that resizes, where the rule is that of the example: short edge, then the middle; else nothing."""
    if [step["type"] for step in steps] != ["ResizeEdge", "CenterCrop"] or steps[0].get("edge") != "short":
        return ""
    return steps[0]["backend"] if steps[0].get("interpolation") == "bilinear" else ""


def _render(**content: Any) -> str:
    templates = environment("mmflowers.export", autoescape=False)
    templates.filters["md"] = lambda text: re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))
    example = templates.get_template("onnx_example.py.txt").render()
    return templates.get_template("model_card.md.j2").render(example=example, **content)

"""Confidence interval of a top-1 accuracy, and a significance test for two models."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mmflowers.evaluation.predictions import Predictions, format_top1
from mmflowers.utils.errors import InputError, count, some

SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """Two models on the same photos: numbers of correct predictions, and the p-value of their difference.

    Attributes:
        both_right: Photos that both models predict correctly.
        only_this: Photos that only the first model predicts correctly.
        only_other: Photos that only the second model predicts correctly.
        both_wrong: Photos that neither model predicts correctly.
        p_value: Of McNemar's exact two-sided test: the probability of such a difference between equally good models.
    """

    both_right: int
    only_this: int
    only_other: int
    both_wrong: int
    p_value: float

    def __str__(self) -> str:
        counts = (
            f"both right {self.both_right}, only this one {self.only_this}, "
            f"only the other one {self.only_other}, both wrong {self.both_wrong}"
        )
        better = "this one is better" if self.only_this > self.only_other else "the other one is better"
        verdict = better if self.p_value < SIGNIFICANT else "no difference"
        return f"{counts}\n{verdict} (p = {self.p_value:.2g})"


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share, in 0…1 (E. B. Wilson, JASA 22, 1927); (0, 1) for no photos."""
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def format_top1_interval(correct: int, total: int) -> str:
    """Format a top-1 accuracy with its interval: ``top-1 95.98 % (549/572), 95 % interval 94.0–97.3 %``."""
    low, high = wilson_interval(correct, total)
    return f"{format_top1(correct, total)}, 95 % interval {100 * low:.1f}–{100 * high:.1f} %"


def format_part(correct: int, counted: int, listed: int, split: str) -> str:
    """Format the accuracy on a part of a split.

    ``95.10 % (272/286) on 286 of the 572 photos of val: not the top-1 of val``.
    """
    share = 100 * correct / max(counted, 1)
    return (
        f"{share:.2f} % ({correct}/{counted}) on {counted} of the {listed} photos of {split}: not the top-1 of {split}"
    )


def compare(this: Predictions, other: Predictions) -> Comparison:
    """Compare two models photo by photo with McNemar's exact test (Q. McNemar, Psychometrika 12, 1947).

    Raises:
        InputError: The predictions differ in their photos or true labels.
    """
    from scipy.stats import binomtest

    ours, theirs = _by_image(this), _by_image(other)
    unmatched = sorted(ours.keys() ^ theirs.keys())
    if unmatched:
        what = f"{count(len(unmatched))} in only one of the two sets of predictions: {some(unmatched)}"
        raise InputError(what, "test both on the same split of the same dataset folder")
    relabelled = sorted(image for image, (label, _) in ours.items() if theirs[image][0] != label)
    if relabelled:
        what = f"{len(relabelled)} photos have other labels in the other predictions: {some(relabelled)}"
        raise InputError(what, "test both on the same dataset folder")
    outcomes = [(right, theirs[image][1]) for image, (_, right) in ours.items()]
    only_this, only_other = outcomes.count((True, False)), outcomes.count((False, True))
    differing = only_this + only_other
    p_value = float(binomtest(only_this, differing).pvalue) if differing else 1.0
    return Comparison(outcomes.count((True, True)), only_this, only_other, outcomes.count((False, False)), p_value)


def predictions_file(place: str | Path, split: str) -> Path:
    """Return the file of predictions, given its path or that of its work dir.

    Raises:
        InputError: There is no such file.
    """
    place = Path(place).expanduser()
    path = place / f"predictions_{split}.csv" if place.is_dir() else place
    if not path.is_file():
        raise InputError(f"no predictions at {path}", "tools/test.py writes predictions_<split>.csv into a work dir")
    return path


def _by_image(predictions: Predictions) -> dict[str, tuple[str, bool]]:
    """Return each photo's class name (the order of classes may differ) and whether its prediction is correct."""
    right = predictions.predicted == predictions.labels
    return {
        image: (predictions.classes[label], bool(hit))
        for image, label, hit in zip(predictions.images, predictions.labels, right, strict=True)
    }

"""How far probabilities can be taken at their word."""

from __future__ import annotations

import numpy as np
import pytest

from mmflowers.evaluation.calibration import calibrate
from mmflowers.evaluation.predictions import Predictions


def predictions(*confidences_and_right: tuple[float, bool]) -> Predictions:
    """Of two classes; all are taken for class 0."""
    confidences = np.array([confidence for confidence, _ in confidences_and_right], dtype=np.float32)
    labels = np.array([0 if right else 1 for _, right in confidences_and_right])
    return Predictions(
        [f"{n}.jpg" for n in range(len(labels))], labels, np.stack([confidences, 1 - confidences], 1), ["a", "b"]
    )


def test_the_error_is_the_one_computed_by_hand() -> None:
    # Five bins. 0.6–0.8: confidences 0.65 and 0.75, mean 0.7, one of two right: gap 0.2, two photos of five.
    # 0.8–1: 0.9, 0.95, 1.0, mean 0.95, two of three right: gap 0.95 - 2/3, three photos of five.
    found = calibrate(predictions((0.65, True), (0.75, False), (0.9, True), (0.95, False), (1.0, True)), bins=5)
    assert found.counts.tolist() == [0, 0, 0, 2, 3]
    assert found.confidence[3:] == pytest.approx([0.7, 0.95])
    assert found.accuracy[3:] == pytest.approx([0.5, 2 / 3])
    assert found.error == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (0.95 - 2 / 3))


def test_a_bin_holds_its_upper_end_and_not_its_lower_one() -> None:
    assert calibrate(predictions((0.5, True), (0.75, True)), bins=4).counts.tolist() == [0, 1, 1, 0]


def test_as_confident_as_right_is_no_error_and_a_rounding_error_above_one_is_counted() -> None:
    assert calibrate(predictions((0.75, True), (0.75, True), (0.75, True), (0.75, False))).error == pytest.approx(0)
    above = calibrate(predictions((1.0000001, True)))
    assert above.counts[-1] == 1
    assert len(above.counts) == 15

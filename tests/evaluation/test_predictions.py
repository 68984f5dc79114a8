"""Predictions survive their file, and their numbers are scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmflowers.evaluation.predictions import (
    Predictions,
    format_per_class,
    format_top1,
    per_class_table,
    read_predictions,
    write_predictions,
)
from mmflowers.utils.errors import InputError

CLASSES = ["daisy", "red, rose", "Tulpe"]


@pytest.fixture
def predictions() -> Predictions:
    scores = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], dtype=np.float32)
    images = ["val/daisy/1.jpg", 'val/red, rose/"2".jpg', "val/red, rose/ü 3.jpg", "val/Tulpe/4.jpg"]
    return Predictions(images, np.array([0, 1, 1, 2]), scores, CLASSES)


def test_a_file_gives_back_what_was_written(predictions: Predictions, tmp_path: Path) -> None:
    write_predictions(predictions, tmp_path / "p.csv")
    again = read_predictions(tmp_path / "p.csv")
    assert (again.images, again.classes) == (predictions.images, predictions.classes)
    np.testing.assert_array_equal(again.labels, predictions.labels)
    np.testing.assert_allclose(again.scores, predictions.scores, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_numbers_by_hand(predictions: Predictions) -> None:
    assert predictions.correct == 2
    assert format_top1(predictions.correct, 4) == "top-1 50.00 % (2/4)"
    # daisy: 2 predicted, 1 right of 1 photo; rose: 2 predicted, 1 right of 2 photos; Tulpe: never predicted.
    assert [row[1:3] for row in per_class_table(predictions)] == [(0.5, 1.0), (0.5, 0.5), (0.0, 0.0)]
    assert [row[4] for row in per_class_table(predictions)] == [1, 2, 1]
    assert "red, rose    50.00%   50.00%" in format_per_class(predictions)


@pytest.mark.parametrize("text", ["", "image,label\n", "image,label,predicted,score_a\nx,b,a,1\n"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=r"p\.csv"):
        read_predictions(tmp_path / "p.csv")

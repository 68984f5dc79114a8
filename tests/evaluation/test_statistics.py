"""Intervals and tests agree with what can be counted, and say plainly what they mean."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest

from mmflowers.evaluation.predictions import Predictions, read_predictions, write_predictions
from mmflowers.evaluation.statistics import compare, format_top1_interval, predictions_file, wilson_interval
from mmflowers.utils.errors import InputError


def predictions(right: list[bool], classes: tuple[str, ...] = ("daisy", "rose"), prefix: str = "val/") -> Predictions:
    """Photos whose labels alternate by class name, each predicted right or wrong."""
    names = [("daisy", "rose")[number % 2] for number in range(len(right))]
    labels = np.array([classes.index(name) for name in names])
    scores = np.zeros((len(right), 2), dtype=np.float32)
    scores[np.arange(len(right)), np.where(right, labels, 1 - labels)] = 1
    return Predictions([f"{prefix}{name}/{at}.jpg" for at, name in enumerate(names)], labels, scores, list(classes))


def test_the_interval_solves_wilson_s_equation() -> None:
    for correct, total in ((549, 572), (0, 10), (10, 10), (1, 3)):
        for end in wilson_interval(correct, total):
            # Where the observed share is exactly 1.96 standard errors of the assumed one away.
            assert (correct / total - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / total, abs=1e-6)
    assert wilson_interval(0, 0) == (0, 1)


def test_top1_is_printed_with_its_interval() -> None:
    assert format_top1_interval(549, 572) == "top-1 95.98 % (549/572), 95 % interval 94.0–97.3 %"


def test_the_p_value_is_the_binomial_tail_counted_by_hand() -> None:
    both, ours, theirs, neither = 30, 9, 2, 4
    this = [True] * (both + ours) + [False] * (theirs + neither)
    other = [True] * both + [False] * ours + [True] * theirs + [False] * neither
    found = compare(predictions(this), predictions(other))
    assert found[:4] == (both, ours, theirs, neither)
    assert found.p_value == pytest.approx(2 * sum(comb(11, k) for k in range(3)) / 2**11)
    assert str(found).splitlines()[1] == "no difference (p = 0.065)"


def test_the_better_one_is_named() -> None:
    good, bad = predictions([True] * 20), predictions([True] * 10 + [False] * 10)
    assert str(compare(good, bad)).endswith("\nthis one is better (p = 0.002)")
    assert str(compare(bad, good)).endswith("\nthe other one is better (p = 0.002)")
    assert str(compare(good, good)).endswith("\nno difference (p = 1)")


def test_order_of_photos_and_classes_does_not_matter() -> None:
    right = [True, False, True, True, False]
    swapped = predictions(right, classes=("rose", "daisy"))
    backwards = Predictions(swapped.images[::-1], swapped.labels[::-1], swapped.scores[::-1], swapped.classes)
    assert compare(predictions(right), backwards)[:4] == (3, 0, 0, 2)


def test_predictions_of_other_photos_or_labels_are_refused_by_name() -> None:
    one = predictions([True] * 5)
    with pytest.raises(InputError, match=r"10 photos .*: test/daisy/0\.jpg, .* and 7 more"):
        compare(one, predictions([True] * 5, prefix="test/"))
    relabelled = Predictions(one.images, 1 - one.labels, one.scores, one.classes)
    with pytest.raises(InputError, match=r"5 photos have other labels .*: val/daisy/0\.jpg"):
        compare(one, relabelled)


def test_a_near_tie_stays_what_it_is_in_the_file(tmp_path: Path) -> None:
    scores = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1))]], dtype=np.float32)
    write_predictions(Predictions(["val/rose/1.jpg"], np.array([1]), scores, ["daisy", "rose"]), tmp_path / "p.csv")
    assert read_predictions(tmp_path / "p.csv").correct == 1


def test_a_work_dir_stands_for_its_predictions_of_the_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictions_val\.csv"):
        predictions_file(tmp_path, "val")
    (tmp_path / "predictions_val.csv").touch()
    assert predictions_file(tmp_path, "val") == predictions_file(tmp_path / "predictions_val.csv", "test")

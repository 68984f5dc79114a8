"""tools/test.py as a process."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_on_terminal, run_tool
from PIL import Image, ImageOps

from mmflowers import FlowerClassifier
from mmflowers.evaluation.metadata import read_run_metadata
from mmflowers.evaluation.predictions import read_predictions


def test_alone_it_tests_the_best_checkpoint_of_the_last_run(trained: Path) -> None:
    result = run_tool("test.py", cwd=trained.parents[1])
    assert result.returncode == 0, result.stderr
    with (trained / "predictions_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert len(rows) == 10
    assert "mmengine" not in result.stdout  # the log is elsewhere
    assert result.stdout.splitlines()[-1].startswith(f"top-1 {10 * right:.2f} % ({right}/10), 95 % interval ")
    for row in rows:
        scores = {name.removeprefix("score_"): float(value) for name, value in row.items() if name.startswith("score_")}
        assert row["predicted"] == max(scores, key=scores.get)
        assert abs(sum(scores.values()) - 1) < 1e-3
        assert row["image"].startswith(f"val/{row['label']}/")
    assert "precision" in result.stdout and "sunflower" in result.stdout


def test_a_copied_run_is_tested_by_its_checkpoint_alone_on_another_split(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    result = run_tool("test.py", "copy/best.pth", "--split", "train", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "/40), 95 % interval " in result.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_augmented_it_keeps_the_plain_predictions_and_shows_a_bar(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / "predictions_val.csv").write_text("of before")
    code, drawn = run_on_terminal("test.py", "copy/best.pth", "--tta", cwd=tmp_path)
    assert code == 0, drawn
    assert "test 1/2 |" in drawn and " images/s" in drawn and "Epoch(test)" not in drawn
    assert drawn.splitlines()[-1].startswith("top-1 ")
    assert (tmp_path / "copy" / "predictions_val.csv").read_text() == "of before"
    augmented = read_predictions(tmp_path / "copy" / "predictions_val_tta.csv")
    photos = [str(data_root(trained) / image) for image in augmented.images]
    mean = FlowerClassifier.from_run(trained, tta=True).predict(photos)
    np.testing.assert_allclose(augmented.scores, [found.scores for found in mean], atol=1e-5)
    plain = FlowerClassifier.from_run(trained)
    mirrored = []
    for photo in photos:
        with Image.open(photo) as image:
            mirrored.append(ImageOps.mirror(image.convert("RGB")))
    both = [plain.predict(images) for images in (photos, mirrored)]
    by_hand = [(one.scores + other.scores) / 2 for one, other in zip(*both, strict=True)]
    np.testing.assert_allclose(augmented.scores, by_hand, atol=0.02)  # a resized mirror image differs by rounding


@pytest.mark.slow
def test_in_half_precision_it_keeps_the_plain_predictions(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    for options in ((), ("--amp",)):
        result = run_tool("test.py", "copy/best.pth", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    plain, half = (read_predictions(tmp_path / "copy" / f"predictions_val{name}.csv") for name in ("", "_amp"))
    np.testing.assert_allclose(half.scores, plain.scores, atol=0.03)
    assert np.abs(half.scores - plain.scores).max() > 1e-6  # another precision; the same one is exact to 1e-7
    photos = [str(data_root(trained) / image) for image in half.images]
    predicted = FlowerClassifier.from_run(trained, amp=True).predict(photos)
    np.testing.assert_allclose(half.scores, [found.scores for found in predicted], atol=0.02)


def data_root(work_dir: Path) -> Path:
    return Path(read_run_metadata(work_dir).config["data_root"])


def test_without_a_run_it_says_what_to_do(tmp_path: Path) -> None:
    result = run_tool("test.py", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no trained run in work_dirs · hint: python tools/train.py")


def test_classes_in_another_order_are_refused(trained: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    names = (dataset / "classes.txt").read_text().split()
    (tmp_path / "data" / "classes.txt").write_text("\n".join(["dandelion", "daisy", *names[2:]]) + "\n")
    swap = {"0": "1", "1": "0"}
    for split in ("train", "val"):  # labels that agree with the names: only the checkpoint can tell
        text = (dataset / f"{split}.txt").read_text()
        swapped = [
            f"{path} {swap.get(label, label)}" for path, label in (line.rsplit(" ", 1) for line in text.splitlines())
        ]
        (tmp_path / "data" / f"{split}.txt").write_text("\n".join(swapped) + "\n")
    result = run_tool("test.py", trained / "best.pth", "--data", "data", "--work-dir", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "was trained on the classes daisy, dandelion" in result.stderr


def test_fewer_classes_than_the_head_are_refused(trained: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train" / "rose", tmp_path / "photos" / "rose")
    shutil.copytree(dataset / "train" / "tulip", tmp_path / "photos" / "tulip")
    assert run_tool("prepare_flowers.py", "--source", "photos", "--out", "data", cwd=tmp_path).returncode == 0
    result = run_tool("test.py", trained / "best.pth", "--data", "data", "--work-dir", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "error: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_against_other_predictions_it_counts_what_each_has_right(trained: Path, tmp_path: Path) -> None:
    first = run_tool("test.py", trained / "best.pth", "--work-dir", "a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "a" / "predictions_val.csv"
    same = run_tool("test.py", trained / "best.pth", "--work-dir", "b", "--against", "a", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    right = int(same.stdout.split("top-1 ")[1].split("(")[1].split("/")[0])
    assert same.stdout.splitlines()[-2:] == [
        "against a/predictions_val.csv: "
        f"both right {right}, only this one 0, only the other one 0, both wrong {10 - right}",
        "no difference (p = 1)",
    ]
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("val/", "val/another_")
    path.write_text("".join(lines))
    path.with_suffix(".json").unlink()  # by which the edit would be refused
    other = run_tool("test.py", trained / "best.pth", "--work-dir", "b", "--against", path, cwd=tmp_path)
    assert other.returncode == 2
    assert "error: 2 photos in only one of the two sets of predictions: val/another_" in other.stderr


def test_predictions_to_compare_with_are_asked_for_before_anything_is_tested(trained: Path, tmp_path: Path) -> None:
    result = run_tool("test.py", trained / "best.pth", "--work-dir", "out", "--against", "nowhere", cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr.startswith("error: no predictions at nowhere · hint: ")

"""The Python API on a run that was really trained."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool
from PIL import Image

from mmflowers import FlowerClassifier
from mmflowers.inference.inputs import Input
from mmflowers.inference.output import ClassFolders
from mmflowers.utils.errors import InputError


@pytest.fixture(scope="module")
def classifier(trained: Path) -> FlowerClassifier:
    return FlowerClassifier.from_run(trained)


@pytest.fixture(scope="module")
def photos(dataset: Path) -> list[Path]:
    return sorted((dataset / "val").glob("*/*.jpg"))


def test_scores_are_those_of_the_test_whatever_the_batch(
    classifier: FlowerClassifier, trained: Path, dataset: Path, photos: list[Path]
) -> None:
    result = run_tool("test.py", trained / "best.pth", "--work-dir", trained.parent / "tested", cwd=trained.parents[1])
    assert result.returncode == 0, result.stderr
    with (trained.parent / "tested" / "predictions_val.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for batch_size, workers in ((32, 0), (3, 2)):
        found = classifier.predict(photos, batch_size=batch_size, workers=workers)
        assert [prediction.image for prediction in found] == [str(photo) for photo in photos]
        for prediction in found:
            row = rows[Path(prediction.image).relative_to(dataset).as_posix()]
            expected = [float(row[f"score_{name}"]) for name in classifier.classes]
            assert prediction.scores == pytest.approx(expected, abs=1e-5)
            assert prediction.class_name == row["predicted"] == classifier.classes[prediction.label]
            assert prediction.top[0] == (prediction.class_name, prediction.score)
            assert [score for _, score in prediction.top] == sorted(prediction.scores.tolist(), reverse=True)[:3]


def test_a_path_an_image_and_an_array_of_the_same_photo_get_the_same_scores(
    classifier: FlowerClassifier, photos: list[Path]
) -> None:
    with Image.open(photos[0]) as image:
        image.load()
    given = [photos[0], str(photos[0]), image, np.asarray(image)]
    expected = classifier.predict(photos[0])[0].scores
    assert len(classifier.predict(np.asarray(image))) == 1
    for prediction in classifier.predict(given, top_k=1):
        assert prediction.scores == pytest.approx(expected, abs=1e-6)
        assert len(prediction.top) == 1
    assert classifier.predict([]) == []


@pytest.mark.slow
def test_photos_that_cannot_be_read_are_all_named(classifier: FlowerClassifier, photos: list[Path]) -> None:
    with pytest.raises(InputError) as caught:
        classifier.predict(["gone.jpg", photos[0], np.zeros((9, 9), np.uint8)])
    assert [str(problem).split(" can't")[0] for problem in caught.value.problems] == ["gone.jpg", "image 2"]


def test_bfloat16_says_nearly_the_same(classifier: FlowerClassifier, trained: Path, photos: list[Path]) -> None:
    loaded = FlowerClassifier.from_run(trained, amp=True)
    quick = loaded.predict(photos)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded._inferencer.model.modules())
    for one, other in zip(quick, classifier.predict(photos), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=0.03)
        assert one.scores.sum() == pytest.approx(1, abs=1e-5)


class Reduce:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_run_that_would_run_code_or_does_not_fit_is_refused(trained: Path, tmp_path: Path) -> None:
    (config,) = trained.glob("*.py")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match=r"has no best\.pth"):
        FlowerClassifier.from_run(run)
    saved = torch.load(trained / "best.pth", weights_only=True)
    torch.save({**saved, "more": Reduce(tmp_path / "ran")}, run / "best.pth")
    with pytest.raises(InputError, match="contains no config"):
        FlowerClassifier.from_run(run)
    shutil.copy(config, run)
    with pytest.raises(InputError, match="would run"):
        FlowerClassifier.from_run(run)
    assert not (tmp_path / "ran").exists()
    torch.save({**saved, "meta": {}}, run / "best.pth")
    with pytest.raises(InputError, match="no class names"):
        FlowerClassifier.from_run(run)
    torch.save({**saved, "meta": {"dataset_meta": {"classes": ("a", "b")}}}, run / "best.pth")
    with pytest.raises(InputError, match="a head of 5 classes"):
        FlowerClassifier.from_run(run)
    torch.save(saved, run / "best.pth")
    path = run / config.name
    path.write_text(path.read_text().replace("LoadImageFromFile'", "LoadImageFromFile', color_type='grayscale'"))
    with pytest.raises(InputError, match="doesn't load a colour photo"):
        FlowerClassifier.from_run(run)


def test_sorting_overwrites_nothing_and_moves_or_links_files_of_the_users_alone(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_text(folder)
    inputs = [Input(str(path), str(path)) for path in sorted(tmp_path.glob("*/x.jpg"))]
    out = tmp_path / "out"
    for how in ("copy", "link", "move"):
        folders = ClassFolders(out / how, ("rose",), how)
        assert [folders.add(input_, "rose").name for input_ in inputs] == ["x.jpg", "x_2.jpg"]
        assert (out / how / "rose" / "x_2.jpg").read_text() == "b"
        assert (out / how / "rose" / "x.jpg").is_symlink() == (how == "link")
        assert (tmp_path / "a" / "x.jpg").exists() == (how != "move")
        assert folders.add(Input("http://host/x.jpg", b"c"), "rose").read_text() == "c"


@pytest.mark.parametrize("name", ["../up", "..", "a\\b", ""])
def test_class_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be names of folders"):
        ClassFolders(tmp_path, ("rose", name))


@pytest.mark.slow
def test_the_example_of_the_readme_runs(trained: Path, photos: list[Path], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "FlowerClassifier" in block)
    shutil.copytree(trained, tmp_path / "work_dirs" / "mine")
    shutil.copy(photos[0], tmp_path / "rose.jpg")
    shutil.copy(photos[-1], tmp_path / "tulip.jpg")
    result = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "OneDL" not in line]  # its edition says that it is one
    assert [line.split()[0] for line in lines] == ["rose.jpg", "tulip.jpg"]
    assert all(re.fullmatch(r"\S+ (daisy|dandelion|rose|sunflower|tulip) \d+\.\d%", line) for line in lines)


def test_importing_the_package_stays_light() -> None:
    code = "import sys, mmflowers; sys.exit(bool({'torch', 'numpy', 'mmengine'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The nearest training photos, and the features that are kept beside a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmflowers import FlowerClassifier
from mmflowers.demo.results import PhotoClassifier, read_confusion
from mmflowers.inference.neighbours import CACHE, read_training_photos
from mmflowers.utils.errors import InputError


class Counted:
    """A classifier that counts the photos whose features it was asked for."""

    def __init__(self, classifier: FlowerClassifier) -> None:
        self.classes, self.pipeline, self.photos = classifier.classes, classifier.pipeline, 0
        self._classifier = classifier

    def features(self, pixels) -> np.ndarray:
        self.photos += len(pixels)
        return self._classifier.features(pixels)


@pytest.fixture(scope="module")
def loaded(trained: Path) -> FlowerClassifier:
    return FlowerClassifier.from_run(trained)


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dataset, tmp_path / "data")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("predictions_*", CACHE))


def test_every_training_photo_is_nearest_to_itself_and_similarities_are_cosines(
    loaded: FlowerClassifier, run: Path, data: Path
) -> None:
    photos = read_training_photos(loaded, run, data)
    paths = sorted((data / "train").glob("*/*.jpg"))
    assert len(photos) == len(paths) == 40
    pixels = [loaded.pipeline(sample(np.asarray(Image.open(path))))["inputs"] for path in paths]
    features = loaded.features(pixels)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for index in (0, 17, 39):
        found = photos.nearest(features[index], 40)
        assert found[0].path == paths[index] and found[0].class_name == paths[index].parent.name
        assert found[0].similarity == pytest.approx(1, abs=1e-3)
        cosines = {paths[other]: unit[index] @ unit[other] for other in range(40)}
        assert [near.similarity for near in found] == sorted((near.similarity for near in found), reverse=True)
        assert {near.path: near.similarity for near in found} == pytest.approx(cosines, abs=1e-3)


def sample(rgb: np.ndarray) -> dict:
    return {"img": np.ascontiguousarray(rgb[..., ::-1]), "img_shape": rgb.shape[:2], "ori_shape": rgb.shape[:2]}


def test_features_are_kept_until_the_run_or_a_photo_changes(loaded: FlowerClassifier, run: Path, data: Path) -> None:
    def computed() -> int:
        counted = Counted(loaded)
        read_training_photos(counted, run, data)
        return counted.photos

    assert (computed(), computed()) == (40, 0)
    changed = sorted((data / "train" / "rose").glob("*.jpg"))
    Image.effect_noise((90, 90), 60).convert("RGB").save(changed[0])
    assert (computed(), computed()) == (1, 0)
    changed[0].unlink()
    assert computed() == 0
    (run / CACHE).write_bytes((run / CACHE).read_bytes()[:500])
    assert (computed(), computed()) == (39, 0)
    (config,) = run.glob("*.py")
    config.write_text(config.read_text(encoding="utf-8") + "\nmore = 1\n", encoding="utf-8")
    assert (computed(), computed()) == (39, 0)
    shutil.copy(run / "last.pth", run / "best.pth")
    assert (computed(), computed()) == (39, 0)
    shutil.move(run, run.with_name("moved"))
    shutil.move(run.with_name("moved"), run)
    assert computed() == 0


def test_photos_that_are_gone_or_damaged_are_passed_over(loaded: FlowerClassifier, run: Path, data: Path) -> None:
    gone, damaged, late = sorted((data / "train" / "rose").glob("*.jpg"))[:3]
    gone.unlink()
    damaged.write_bytes(b"no photo")
    photos = read_training_photos(loaded, run, data)
    late.unlink()
    assert len(photos) == 38
    found = photos.nearest(np.ones(128, np.float32), 40)
    assert len(found) == 37 and not {gone, damaged, late} & {near.path for near in found}


def test_another_dataset_folder_is_refused(loaded: FlowerClassifier, run: Path, data: Path) -> None:
    (data / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(InputError, match="has the classes a, b, c, d, e, the run daisy"):
        read_training_photos(loaded, run, data)


def test_what_is_missing_is_said_without_naming_folders(loaded: FlowerClassifier, run: Path, data: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_confusion(run, loaded.classes)
    predictor = PhotoClassifier(loaded, InputError("no dataset folder at x", "--data names it"), caught.value)
    photo = sorted((data / "val" / "rose").glob("*.jpg"))[0].read_bytes()
    page = predictor.render([predictor.predict("<x>.jpg", photo), predictor.predict("y.jpg", b"")])
    assert page.count("Not available. The terminal that runs tools/demo.py shows the reason.") == 2
    assert "at x" not in page and str(run) in str(caught.value) and str(run) not in page
    assert "&lt;x&gt;.jpg" in page and "<x>" not in page
    assert "<b>y.jpg</b> can’t be read: empty." in page

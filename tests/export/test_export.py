"""Exported files say what the run says: opened as their users open them, without any code of ours."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_tool
from huggingface_hub import ModelCard
from PIL import Image

from mmflowers import FlowerClassifier
from mmflowers.engine import configuration
from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.export import export as module
from mmflowers.export import formats
from mmflowers.export.card import MARK
from mmflowers.export.export import FILES, export
from mmflowers.utils.errors import InputError

PIPELINE = "dict(type='ResizeEdge', scale=56, edge='short', backend='pillow'), dict(type='CenterCrop', crop_size=48)"


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run with the test pipeline of the shipped configs, small; not tested."""
    folder = tmp_path_factory.mktemp("export") / "mine"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("last.pth", "predictions_*"))
    (path,) = folder.glob("*.py")
    config = path.read_text(encoding="utf-8")
    resize = re.compile(r"dict\(edge='short', scale=48, type='ResizeEdge'\),\s*dict\(crop_size=48, type='CenterCrop'\)")
    assert resize.search(config)
    path.write_text(resize.sub(PIPELINE, config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """All formats of the run."""
    return export(run).out


@pytest.fixture(scope="module")
def photos(dataset: Path) -> list[Path]:
    return sorted((dataset / "val").glob("*/*.jpg"))


@pytest.fixture(scope="module")
def expected(run: Path, photos: list[Path]) -> np.ndarray:
    """Probabilities of the photos by the run itself."""
    return np.stack([found.scores for found in FlowerClassifier.from_run(run).predict(photos)])


@pytest.fixture(scope="module")
def rgb(run: Path, photos: list[Path]) -> np.ndarray:
    """The photos by Pillow alone, resized and cropped as the pipeline says: uint8 of shape (n, 48, 48, 3)."""
    pixels = []
    for photo in photos:
        with Image.open(photo) as image:
            width, height = (56 * side // min(image.size) for side in image.size)
            image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - 48) / 2), round((height - 48) / 2)
        pixels.append(np.asarray(image.crop((left, top, left + 48, top + 48))))
    return np.stack(pixels)


def normalised(rgb: np.ndarray, facts: dict) -> np.ndarray:
    return ((rgb - np.float32(facts["mean"])) / np.float32(facts["std"])).transpose(0, 3, 1, 2)


def facts_in(path: Path) -> dict:
    model = onnx.load(path)
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def test_onnx_takes_any_number_of_images_and_knows_what_it_needs(
    exported: Path, rgb: np.ndarray, expected: np.ndarray
) -> None:
    facts = facts_in(exported / "model.onnx")
    assert facts["classes"] == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert facts["input"] == {"name": "images", "dtype": "float32", "layout": "NCHW", "channels": "RGB"}
    assert facts["input_size"] == [48, 48]
    assert [step["type"] for step in facts["resizing"]] == ["ResizeEdge", "CenterCrop"]
    assert facts["resizing"][0]["interpolation"] == "bilinear"  # a default, said all the same
    assert facts["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert facts["versions"]["torch"] == torch.__version__
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    images = normalised(rgb, facts)
    for count in (1, 3, len(images)):
        found = session.run(["scores"], {"images": images[:count]})[0]
        assert found == pytest.approx(expected[:count], abs=1e-4)


def test_half_the_weights_half_the_size_and_nearly_the_same_scores(
    exported: Path, rgb: np.ndarray, expected: np.ndarray
) -> None:
    path = exported / "model_fp16.onnx"
    assert path.stat().st_size < 0.52 * (exported / "model.onnx").stat().st_size
    images = normalised(rgb, facts_in(path))
    found = onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    assert found == pytest.approx(expected, abs=0.02)
    assert found.dtype == np.float32


def test_torchscript_needs_no_code_of_ours(exported: Path, rgb: np.ndarray, expected: np.ndarray) -> None:
    extra = {formats.METADATA: ""}
    traced = torch.jit.load(exported / "model.torchscript", _extra_files=extra)
    facts = json.loads(extra[formats.METADATA])
    with torch.no_grad():
        found = traced(torch.from_numpy(normalised(rgb, facts))).numpy()
    assert found == pytest.approx(expected, abs=1e-4)
    assert facts["classes"][found[0].argmax()] == facts["classes"][expected[0].argmax()]


@pytest.mark.parametrize("to_rgb", [True, False])
def test_with_preprocessing_pixels_go_in_as_they_are_in_rgb(
    run: Path, rgb: np.ndarray, photos: list[Path], tmp_path: Path, to_rgb: bool
) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    (path,) = (tmp_path / "run").glob("*.py")
    path.write_text(path.read_text(encoding="utf-8").replace("to_rgb=True", f"to_rgb={to_rgb}"), encoding="utf-8")
    expected = [found.scores for found in FlowerClassifier.from_run(tmp_path / "run").predict(photos)]
    out = export(tmp_path / "run", chosen=("onnx", "torchscript"), preprocessing=True).out
    found = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"images": rgb})[0]
    assert found == pytest.approx(np.stack(expected), abs=1e-4)
    facts = facts_in(out / "model.onnx")
    assert facts["input"] == {"name": "images", "dtype": "uint8", "layout": "NHWC", "channels": "RGB"}
    means = [123.675, 116.28, 103.53]
    assert facts["mean"] == pytest.approx(means if to_rgb else means[::-1])
    with torch.no_grad():
        found = torch.jit.load(out / "model.torchscript")(torch.from_numpy(rgb)).numpy()
    assert found == pytest.approx(np.stack(expected), abs=1e-4)


@pytest.mark.slow
def test_stock_mmpretrain_reads_the_slim_checkpoint_where_there_is_no_mmflowers(
    exported: Path, run: Path, photos: list[Path], expected: np.ndarray, tmp_path: Path
) -> None:
    (config,) = exported.glob("*.py")
    assert str(tmp_path.parents[1]) not in config.read_text(encoding="utf-8")
    assert (exported / "slim.pth").stat().st_size < 0.52 * (run / "best.pth").stat().st_size
    code = (
        "import sys\n"
        "sys.modules['mmflowers'] = None\n"
        "from mmpretrain import ImageClassificationInferencer\n"
        f"inferencer = ImageClassificationInferencer({str(config)!r}, {str(exported / 'slim.pth')!r}, device='cpu')\n"
        f"(found,) = inferencer({str(photos[0])!r})\n"
        "print('\\nFOUND', found['pred_class'], *found['pred_scores'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("FOUND"))
    _, name, *scores = line.split()
    assert [float(score) for score in scores] == pytest.approx(expected[0], abs=0.02)
    assert name == ["daisy", "dandelion", "rose", "sunflower", "tulip"][expected[0].argmax()]


@pytest.mark.parametrize("preprocessing", [False, True])
def test_the_example_of_the_page_runs_as_it_is_written(
    exported: Path, run: Path, photos: list[Path], tmp_path: Path, preprocessing: bool
) -> None:
    page = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block)
    assert example in (exported / "README.md").read_text(encoding="utf-8")
    if preprocessing:
        export(run, tmp_path, chosen=("onnx",), preprocessing=True)
    else:
        shutil.copy(exported / "model.onnx", tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    with Image.open(photos[0]) as image:
        image.crop((0, 0, image.width, image.height * 3 // 4)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    result = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (found,) = FlowerClassifier.from_run(run).predict([tmp_path / "photo.jpg"])
    name, share = result.stdout.split()
    assert name == found.class_name
    assert float(share.rstrip("%")) == pytest.approx(100 * found.score, abs=0.06)


def test_a_file_that_says_something_else_is_not_left_behind_and_the_older_ones_stay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(network: formats.Network, images: torch.Tensor, facts: dict) -> bytes:
        weights = network.model.head.fc.weight
        kept = weights.detach().clone()
        weights.data = weights.flip(0)
        try:
            return written(network, images, facts)
        finally:
            weights.data = kept

    written = formats.to_onnx
    monkeypatch.setattr(formats, "to_onnx", spoilt)
    with pytest.raises(InputError) as caught:
        export(run, tmp_path / "out", chosen=("onnx", "slim"))
    (problem,) = caught.value.problems
    assert re.match(r"model\.onnx disagrees with best\.pth: another class for \d+ of 10 photos", problem.what)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("of before")
    with pytest.raises(InputError):
        export(run, tmp_path / "out", chosen=("onnx", "slim"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert (tmp_path / "out" / "model.onnx").read_text() == "of before"


def test_scores_that_are_off_or_no_numbers_are_a_mismatch_though_the_classes_agree() -> None:
    expected = np.float32([[0.9, 0.1], [0.2, 0.8]])
    for found in (expected + np.float32([[0.002, 0], [0, 0]]), np.float32([[0.9, 0.1], [np.nan, 0.8]])):
        check = module.FileCheck("model.onnx", 1, 2, float(np.abs(found - expected).max()), 1.0, 1.0)
        problems = module._compare("onnx", check, found, expected, ["a", "b"], ["x", "y"], Path("best.pth"))
        assert len(problems) == 1


def test_what_is_missing_or_in_the_way_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is the work dir of the run"):
        export(run, run)
    (tmp_path / "setup.py").touch()
    with pytest.raises(InputError, match=r"contains setup\.py"):
        export(run, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export(run, tmp_path / "setup.py")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(InputError, match=r"the package onnxruntime · hint: pip install onnx onnxruntime"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_gives_images_of_many_sizes_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    (path,) = (tmp_path / "run").glob("*.py")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(", dict(type='CenterCrop', crop_size=48)", ""), encoding="utf-8")
    with pytest.raises(InputError, match="images of several sizes"):
        export(tmp_path / "run")


def test_the_card_has_the_results_of_this_checkpoint_and_of_no_other(
    run: Path, dataset: Path, photos: list[Path], expected: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    classes = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    names = [photo.relative_to(dataset).as_posix() for photo in photos]
    labels = np.array([classes.index(photo.parent.name) for photo in photos])
    predictions = Predictions(names, labels, expected, classes)
    write_predictions(predictions, tmp_path / "run" / "predictions_val.csv")
    done = export(tmp_path / "run", chosen=("slim",), licence="cc-by-4.0")
    assert done.notes == ["checked on 10 photos, all of val: fewer than 256"]
    card = ModelCard.load(done.out / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-classification"
    assert "onnx" not in card.data.tags
    accuracy, f1 = card.data.eval_results
    assert (accuracy.metric_type, f1.metric_type) == ("accuracy", "f1")
    assert accuracy.metric_value == pytest.approx(predictions.correct / 10)
    assert (accuracy.dataset_name, accuracy.dataset_split) == (dataset.name, "validation")
    assert f"top-1 {10 * predictions.correct:.2f} % ({predictions.correct}/10)" in card.text
    assert "model.onnx" not in card.text

    other = np.eye(5, dtype=np.float32)[labels]  # of a network that is always right, and sure
    write_predictions(Predictions(names, labels, other, classes), tmp_path / "run" / "predictions_val.csv")
    card = ModelCard.load(export(tmp_path / "run", chosen=("slim",)).out / "README.md")
    assert not card.data.eval_results
    assert card.data.license is None
    assert "Not measured: predictions_val.csv is of another checkpoint" in card.text


def test_a_card_that_somebody_took_over_stays(exported: Path, run: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "README.md", tmp_path)
    mine = (tmp_path / "README.md").read_text(encoding="utf-8").replace(MARK, "")
    (tmp_path / "README.md").write_text(mine, encoding="utf-8")
    notes = export(run, tmp_path, chosen=("slim",)).notes
    assert "no model card was written" in notes[-1]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == mine


def test_the_command_exports_the_last_run_and_the_others_read_what_it_wrote(trained: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "work_dirs" / "tiny"
    shutil.copytree(trained, work_dir, ignore=shutil.ignore_patterns("last.pth", "predictions_*", "test"))
    none = run_tool("export.py", "--run", tmp_path, cwd=tmp_path)
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr.splitlines()[-1].startswith(f"error: no trained run in {tmp_path}")
    result = run_tool("export.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("file ")
    assert [line.split()[0] for line in lines[1:-1]] == ["best.pth", *FILES.values()]
    assert all(line.split()[3] == "10/10" for line in lines[1:-1])
    assert lines[-1] == "exported: work_dirs/tiny/export"
    assert "note: checked on 10 photos" in result.stderr
    assert not list(work_dir.glob("**/.incomplete"))
    slim = work_dir / "export" / "slim.pth"
    data = re.search(r"data_root = '(.*)'", next(trained.glob("*.py")).read_text(encoding="utf-8"))[1]
    tested = run_tool("test.py", slim, "--data", data, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert (work_dir / "export" / "predictions_val.csv").is_file()
    predicted = run_tool("predict.py", f"{data}/val/rose", "--run", slim, "--out", "rows.csv", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_the_config_of_a_fast_run_asks_for_nothing_but_stock_parts_to_predict() -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet50_flowers_fast.py")
    slim = formats.slim_config(config, "slim.pth")
    assert "FlowersDataPreprocessor" not in slim and "cache" not in slim
    assert "type='ClsDataPreprocessor'" in slim

"""The report of a run: what it holds, that it needs nothing else, and how it behaves in a browser."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.evaluation.report import read_report_data
from mmflowers.utils.errors import InputError
from mmflowers.visualization.report import write_report

CONFIG = """\
data_root = {root!r}
load_from = 'https://example.org/weights/resnet18_1234.pth'
model = dict(backbone=dict(depth=18, type='ResNet'), head=dict(num_classes=5), type='ImageClassifier')
randomness = dict(seed=7)
test_dataloader = dict(
    dataset=dict(data_root={root!r}, pipeline=[dict(crop_size=224, type='CenterCrop'), dict(type='PackInputs')]))
train_cfg = dict(by_epoch=True, max_epochs=2)
unreadable = open('/etc/passwd').read()
"""
LOG = """\
2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    Python: 3.11.7 (main, May  9 2026) [GCC 12.2.0]
    CUDA available: True
    GPU 0,1: NVIDIA H200
    PyTorch: 2.15.0+cu132
    MMEngine: 0.10.7

Runtime environment:
    seed: 7
------------------------------------------------------------
"""


def make_run(folder: Path, root: Path, *, seed: int = 0, classes: list[str] | None = None, skill: float = 0.6) -> Path:
    """A tested run on the val photos of ``root``, its scores drawn at random around the truth."""
    data = read_dataset_folder(root)
    images, labels = zip(*data.samples["val"], strict=True)
    generator = np.random.default_rng(seed)
    scores = generator.dirichlet(np.ones(len(data.classes)), len(labels)) * (1 - skill)
    scores[np.arange(len(labels)), labels] += skill * (generator.random(len(labels)) < 0.7)
    scores /= scores.sum(axis=1, keepdims=True)
    start = folder / "20260101_000000"
    (start / "vis_data").mkdir(parents=True)
    entries = [
        {"loss": 1.5, "lr": 0.02, "epoch": 1, "step": 9},
        {"accuracy/top1": 60.0, "step": 1},
        {"loss": 0.5, "lr": 0.01, "epoch": 2, "step": 18},
        {"accuracy/top1": 80.0 + seed, "step": 2},
    ]
    (start / "vis_data" / "scalars.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (start / "20260101_000000.log").write_text(LOG)
    (folder / "tiny.py").write_text(CONFIG.format(root=str(root)))
    predictions = Predictions(list(images), np.array(labels), scores.astype(np.float32), classes or data.classes)
    write_predictions(predictions, folder / "predictions_val.csv")
    return folder


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "work_dirs" / "tiny", dataset)


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_tells_what_was_trained_on_what_and_how_good_it_is(run: Path, dataset: Path) -> None:
    warning = {
        "level": "warning",
        "where": "optim_wrapper",
        "what": "lr 0.1 is ImageNet's",
        "hint": "0.005",
        "pitfall": 12,
    }
    (run / "checks.json").write_text(json.dumps([warning]))
    text = text_of(write_report(read_report_data([run])).read_text(encoding="utf-8"))
    right = sum(row["label"] == row["predicted"] for row in rows(run / "predictions_val.csv"))
    assert 0 < right < 10
    assert f"Top-1 {10 * right:.2f} % {right} of 10 correct" in text
    for fact in ("rendered flowers (rendered)", "40 train, 10 val", "resnet18_1234.pth", "seed 7", "ResNet 18"):
        assert fact in text
    for fact in ("224 px", "PyTorch 2.15.0+cu132", "NVIDIA H200", "lr 0.1 is ImageNet's", "No file of the source was"):
        assert fact in text
    assert json.loads((dataset / "dataset.json").read_text())["digests"]["dataset"][:16] in text
    assert str(dataset) not in text  # a page that is mailed says nothing of the disk it was made on


def test_figures_lie_beside_the_page_as_pictures_and_tables(run: Path) -> None:
    folder = write_report(read_report_data([run])).parent
    assert folder == run / "report"
    for name in ("curves", "confusion", "reliability"):
        with Image.open(folder / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # lines and text, not an empty sheet
    assert [row["val_score"] for row in rows(folder / "curves.csv")] == ["60.0", "80.0"]
    predictions = rows(run / "predictions_val.csv")
    for row in rows(folder / "confusion.csv"):
        for name in (name for name in row if name != "true \\ predicted"):
            expected = [p for p in predictions if (p["label"], p["predicted"]) == (row["true \\ predicted"], name)]
            assert int(row[name]) == len(expected)
    assert sum(int(row["photos"]) for row in rows(folder / "reliability.csv")) == 10
    assert not list(folder.glob(".*"))


def test_every_photo_is_in_the_cell_of_its_label_and_prediction_and_mistakes_come_first(run: Path) -> None:
    page = write_report(read_report_data([run])).read_text(encoding="utf-8")
    cells = re.findall(r'<section class="cell" id="cell-(\d)-(\d)">(.*?)</section>', page, re.DOTALL)
    shown = {
        (int(a), int(b)): re.findall(r'<img src="data:image/jpeg[^>]*title="([^"]*)"', cell) for a, b, cell in cells
    }
    classes = [
        name.removeprefix("score_") for name in rows(run / "predictions_val.csv")[0] if name.startswith("score_")
    ]
    expected: dict[tuple[int, int], list[str]] = {}
    for row in rows(run / "predictions_val.csv"):
        expected.setdefault((classes.index(row["label"]), classes.index(row["predicted"])), []).append(row["image"])
    assert {cell: sorted(images) for cell, images in shown.items()} == expected
    linked = {(int(a), int(b)) for a, b in re.findall(r'href="#cell-(\d)-(\d)"', page)}
    assert linked == set(expected)

    gallery = re.search(r'<section id="mistakes">(.*?)</section>', page, re.DOTALL)[1]
    scores = [float(score) for score in re.findall(r'predicted as \w+ with ([\d.]+) %"', gallery)]
    assert len(scores) == sum(row["label"] != row["predicted"] for row in rows(run / "predictions_val.csv"))
    assert scores == sorted(scores, reverse=True)


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    page = write_report(read_report_data([run])).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<link|<script|<iframe|@import", re.sub(r"base64,[^\"]*", "", page))
    assert set(re.findall(r'\b(?:src|href)="(.)[^"]', page)) == {"d", "#"}  # data URIs and places in the page
    assert "default-src 'none'" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_names_are_text_whatever_they_hold(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / 'it\'s "mine" & <b>'
    shutil.copytree(dataset, root)
    evil = "<script>alert(1)</script>"
    names = [evil, "$x_1^", "a\"b'c", "{{ 7 * 7 }}", "バラ"]
    run = make_run(tmp_path / "<i>run</i> & $co", root, classes=names)
    old = (run / "predictions_val.csv").read_text(encoding="utf-8")
    first = old.splitlines()[1].split(",")[0]
    quoted = first.rpartition("/")[0] + '/it\'s "<img src=x onerror=alert(1)>".jpg'
    (run / "predictions_val.csv").write_text(
        old.replace(first, '"' + quoted.replace('"', '""') + '"', 1), encoding="utf-8"
    )
    (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    listed = (root / "val.txt").read_text(encoding="utf-8")
    (root / "val.txt").write_text(listed.replace(first, quoted), encoding="utf-8")
    page = write_report(read_report_data([run])).read_text(encoding="utf-8")
    for forbidden in ("<script", "<img src=x", "<i>run", "onerror=alert(1)>"):
        assert forbidden not in page
    assert text_of(page).count(evil) > 2
    assert all(name in text_of(page) for name in names)
    assert "photo not found" in page  # the quoted one isn't there


def test_a_damaged_photo_is_named_and_costs_nothing_else(run: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    image = rows(run / "predictions_val.csv")[0]["image"]
    (tmp_path / "data" / image).write_bytes(b"no photo")
    page = write_report(read_report_data([run], data=tmp_path / "data")).read_text(encoding="utf-8")
    assert f'title="{image}">photo not found' in page
    assert len(re.findall(r'<div class="photos">.*?</div>\n</section>', page, re.DOTALL)) > 1


def test_runs_are_compared_with_the_first(run: Path, dataset: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "work_dirs" / "other", dataset, seed=1)
    page = write_report(read_report_data([run, other]), tmp_path / "both.html").read_text(encoding="utf-8")
    first, second = rows(tmp_path / "runs.csv")
    assert [first["run"], second["run"]] == ["tiny", "other"]
    ours, theirs = (rows(folder / "predictions_val.csv") for folder in (run, other))
    hits = [[row["label"] == row["predicted"] for row in table] for table in (ours, theirs)]
    assert int(second["only_this"]) == sum(b and not a for a, b in zip(*hits, strict=True))
    assert int(second["only_first"]) == sum(a and not b for a, b in zip(*hits, strict=True))
    assert second["verdict"] == "no difference"
    assert "Runs side by side" in text_of(page)
    assert len(rows(tmp_path / "curves.csv")) == 4

    elsewhere = other / "predictions_val.csv"
    elsewhere.write_text(elsewhere.read_text().replace("val/daisy", "val/other_daisy"))
    with pytest.raises(InputError, match="in only one of the two sets of predictions"):
        write_report(read_report_data([run, other]), tmp_path / "both.html")


def test_a_page_of_thousands_of_photos_stays_small(run: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmflowers.visualization.report.MAX_BYTES", 20_000)
    page = write_report(read_report_data([run])).read_text(encoding="utf-8")
    cells = "".join(re.findall(r'<section class="cell".*?</section>', page, re.DOTALL))
    assert 0 < sum(map(len, re.findall(r'src="([^"]*)"', cells))) <= 20_000
    assert "0 of them here" in text_of(page)


def test_what_keeps_a_report_from_being_made_is_said_all_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError) as caught:
        read_report_data([tmp_path / "a", tmp_path])
    assert [problem.what for problem in caught.value.problems] == [
        f"{tmp_path / 'a'} has no predictions_val.csv",
        f"{tmp_path} has no predictions_val.csv",
    ]
    assert "run first: python tools/test.py" in caught.value.problems[0].hint
    (run / "tiny.py").write_text("data_root = 'gone'\n")
    with pytest.raises(InputError, match="no dataset folder at gone"):
        read_report_data([run])
    (run / "tiny.py").unlink()
    with pytest.raises(InputError, match="no config that names its dataset folder"):
        read_report_data([run])


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_in_a_browser_it_follows_the_scheme_fits_the_width_and_asks_for_nothing(
    run: Path, browser, scheme: str, width: int
) -> None:
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        address = write_report(read_report_data([run])).as_uri()
        requests, said = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(address)

        paper, ink = ((255, 255, 255), (31, 35, 40)) if scheme == "light" else ((13, 17, 23), (230, 237, 243))
        style = "element => [getComputedStyle(element).backgroundColor, getComputedStyle(element).color]"
        assert page.eval_on_selector("body", style) == [f"rgb{paper}", f"rgb{ink}"]
        inks = page.eval_on_selector_all(".chart text", "all => all.map(text => getComputedStyle(text).fill)")
        assert f"rgb{ink}" in inks
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        link = page.locator(".confusion td.miss a").first
        cell = page.locator(link.get_attribute("href"))
        assert not cell.is_visible()
        link.click()
        assert cell.locator("img").first.is_visible()
        assert cell.locator("figure").count() == int(link.inner_text())
        # A click of the mouse, not of a script: what is opened is where the reader looks.
        top = cell.bounding_box()["y"]
        assert 0 <= top < 800
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cell.get_by_role("link", name="back to the matrix").click()
        assert not cell.is_visible()
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert [url for url in requests if not url.startswith("data:")] == [address]
        assert said == []  # a refusal by the page's own policy would be said here

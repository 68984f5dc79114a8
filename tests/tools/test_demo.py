"""tools/demo.py as a process, and its page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.evaluation.tested import write_record

ODD = "daisy {{7*7}} ${7*7} <b>&"  # gradio has templates of its own in what it shows


class Served(NamedTuple):
    address: str
    data: Path
    temporary: Path
    process: subprocess.Popen

    def files(self) -> list[Path]:
        """What uploads have left where temporary files go."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]


def start(run: Path, *options: object, temporary: Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "tools" / "demo.py", "--run", run, "--port", 0, "--workers", 0, *options]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)


def stop(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def served(trained: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a trained run, one of whose classes has an odd name; it takes every val photo for a daisy."""
    here = tmp_path_factory.mktemp("demo")
    data, run, temporary = here / "data", here / "mine {1}", here / "tmp"
    temporary.mkdir()
    shutil.copytree(dataset, data)
    (data / "classes.txt").write_text((data / "classes.txt").read_text().replace("daisy", ODD))
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("predictions_*", "report"))
    saved = torch.load(run / "best.pth", weights_only=True)
    classes = read_dataset_folder(data).classes
    saved["meta"]["dataset_meta"]["classes"] = tuple(classes)
    torch.save(saved, run / "best.pth")
    images, labels = zip(*read_dataset_folder(data).samples["val"], strict=True)
    scores = np.tile(np.array([0.6, 0.1, 0.1, 0.1, 0.1], np.float32), (len(labels), 1))
    write_predictions(Predictions(list(images), np.array(labels), scores, classes), run / "predictions_val.csv")
    of = {"split": "val", "counted": len(labels), "listed": len(labels), "photos": ""}
    write_record(run / "predictions_val.csv", run / "best.pth", **of)
    process = start(run, "--data", data, temporary=temporary)
    try:
        said = process.stdout.readline()
        assert said.startswith("demo: http://127.0.0.1:"), said
        yield Served(said.split()[1], data, temporary, process)
    finally:
        code = stop(process)
    assert code == 128 + signal.SIGTERM
    assert not [*temporary.glob("mmflowers-*"), *temporary.glob("gradio*")]


class Page:
    """The demo in a tab, with what it asked for and complained of."""

    def __init__(self, context, address: str) -> None:
        self.tab = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.tab.goto(address)

    def drop(self, *photos: object) -> None:
        with self.tab.expect_file_chooser() as chooser:
            self.tab.get_by_text("Click to Upload").click()
        chooser.value.set_files(list(map(str, photos)))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), pytest.param("dark", 360, marks=pytest.mark.slow)])
def test_a_photo_is_predicted_in_a_browser(served: Served, browser, scheme: str, width: int) -> None:
    photo = sorted((served.data / "train" / "tulip").glob("*.jpg"))[0]
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}) as context:
        page = Page(context, served.address)
        page.drop(photo)
        assert page.tab.locator("h1").inner_text() == "mine {1}"
        answer = page.tab.locator(".result")
        answer.wait_for()

        names, shares = (answer.locator(f".bars .{part}").all_inner_texts() for part in ("name", "number"))
        assert set(names) == {ODD, "dandelion", "rose", "sunflower", "tulip"}
        assert sum(float(share.rstrip(" %")) for share in shares) == pytest.approx(100, abs=0.3)
        assert answer.locator("h2").inner_text() == names[0]
        assert answer.locator("header .number").inner_text() == shares[0]

        seen = answer.locator(".seen figure")
        assert [figure.is_visible() for figure in seen.all()] == [True, False, False, False, False]
        answer.locator(".bars label").nth(2).click()
        assert [figure.is_visible() for figure in seen.all()] == [False, False, True, False, False]
        assert seen.nth(2).inner_text() == f"Grad-CAM of {names[2]}"
        page.tab.keyboard.press("ArrowDown")
        assert seen.nth(3).is_visible()

        near = answer.locator(".near figure")
        assert near.count() == 6
        assert near.first.inner_text().split() == ["tulip", "1.00"]  # the photo itself
        assert near.first.locator("img").get_attribute("title") == photo.name

        counts = answer.locator(".confusion").inner_text()
        took_all = f"Val photos predicted as {ODD} are photos of {ODD} 2 dandelion 2 rose 2 sunflower 2"
        missed = "No val photo is predicted as"
        assert (took_all if names[0] == ODD else missed) in " ".join(counts.split())

        background = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light")
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
        assert page.tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert [url for url in page.requests if not url.startswith((served.address, "data:", "blob:"))] == []
        assert page.errors == []
    assert served.files() == []


def test_what_cannot_be_read_is_a_sentence_and_costs_the_others_nothing(
    served: Served, browser, tmp_path: Path
) -> None:
    good = sorted((served.data / "val" / "rose").glob("*.jpg"))[0]
    (tmp_path / "half.jpg").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "note.txt").write_text("no photo")
    with browser.new_context() as context:
        page = Page(context, served.address)
        page.drop(tmp_path / "half.jpg", tmp_path / "note.txt", good)
        answers = page.tab.locator(".result")
        answers.first.wait_for()
        half, note, read = answers.all_inner_texts()
        assert half.startswith(
            "half.jpg can’t be read: truncated. "
            "Supported formats: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PPM and TGA."
        )
        assert note.startswith("note.txt can’t be read: not an image. ")
        assert good.name in read
        assert served.files() == []

        page.drop(*[good] * 14)
        page.tab.get_by_text("2 photos were left out").wait_for()
        assert answers.count() == 12


def test_a_file_too_large_is_refused_before_it_is_sent(served: Served, browser, tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(33 << 20)
    with browser.new_context() as context:
        page = Page(context, served.address)
        page.tab.get_by_text("at most 32 MB each").wait_for()
        page.drop(tmp_path / "large.jpg")
        refused = page.tab.get_by_text("exceed the maximum allowed size")
        refused.wait_for()
        assert "large.jpg" in refused.inner_text() and "32" in refused.inner_text()
        assert page.tab.locator(".result").count() == 0


def test_the_camera_takes_a_photo(served: Served, browser) -> None:
    with browser.new_context() as context:
        page = Page(context, served.address)
        page.tab.get_by_role("tab", name="Camera").click()
        page.tab.get_by_text("Click to Access Webcam").click()
        # Before the camera's first picture gradio takes the click for nothing.
        page.tab.wait_for_function("document.querySelector('#camera video')?.videoWidth > 0")
        page.tab.get_by_role("button", name="capture photo").click()
        answer = page.tab.locator(".result")
        answer.wait_for()
        assert answer.locator("header small").inner_text() == "camera"
        assert answer.locator(".bars label").count() == 5


@pytest.mark.parametrize("sent", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_the_server_answers_to_its_own_names_and_pages_only(served: Served, sent: dict[str, str]) -> None:
    for path in ("/", "/gradio_api/queue/join"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(served.address + path, headers=sent))
        assert refused.value.code == 403 and "server" not in refused.value.headers


def test_a_name_to_allow_is_no_address(tmp_path: Path) -> None:
    result = run_tool("demo.py", "--allow-host", "https://flowers.example", cwd=tmp_path)
    assert result.returncode == 2
    assert "'https://flowers.example' must be a name like flowers.example" in result.stderr


def test_the_page_names_no_other_server_and_forbids_them_all(served: Served) -> None:
    with urllib.request.urlopen(served.address) as response:
        text = response.read().decode()
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    assert not re.search(r"<(link|script|img|iframe)[^>]*\s(href|src)=[\"']?(https?:)?//", text)


def test_a_port_that_is_taken_is_said(served: Served, tmp_path: Path) -> None:
    port = served.address.rpartition(":")[2]
    result = run_tool("demo.py", "--run", tmp_path, "--port", port, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: can't listen on 127.0.0.1, port {port}: ") and "--port" in line


def test_without_gradio_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.modules['gradio'] = None; sys.argv = ['demo.py']; \
runpy.run_path({str(ROOT / 'tools' / 'demo.py')!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    hint = "pip install 'mmflowers[demo]'"
    assert result.stderr == f"error: the demo page needs gradio, which isn't installed · hint: {hint}\n"

"""tools/predict.py as a process, on good, damaged and missing photos from everywhere."""

from __future__ import annotations

import csv
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BENCHMARK, ROOT, run_tool
from PIL import Image

from mmflowers.inference.classifier import Prediction
from mmflowers.inference.output import open_output
from mmflowers.utils.downloads import fetch_photo
from mmflowers.utils.errors import InputError


@pytest.fixture(scope="module")
def photo(dataset: Path) -> bytes:
    return next((dataset / "val" / "rose").glob("*.jpg")).read_bytes()


@pytest.fixture
def server(photo: bytes) -> Iterator[str]:
    """Serves a photo, a web page, a photo that breaks off, a stream without an end, and 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body, length = {
                "/rose.jpg": ("image/jpeg", photo, len(photo)),
                "/page.jpg": ("text/html", b"<html>log in", 12),
                "/liar.jpg": ("image/jpeg", b"<html>log in", 12),
                "/short.jpg": ("image/jpeg", photo[:99], len(photo)),
                "/endless.jpg": ("image/jpeg", photo * 50, None),
            }.get(self.path, ("", b"", 0))
            self.send_response(200 if kind else 302 if self.path == "/moved.jpg" else 404)
            if self.path == "/moved.jpg":
                self.send_header("Location", "file:///etc/passwd")
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_rows_are_those_of_the_test_for_every_photo_of_a_folder(trained: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    predicted = run_tool("predict.py", dataset / "val", "--out", out, "--top-k", 9, cwd=trained.parents[1])
    assert (predicted.returncode, predicted.stdout) == (0, ""), predicted.stderr
    assert predicted.stderr.splitlines()[-1] == "0 of 10 could not be read"
    tested = run_tool("test.py", trained / "best.pth", "--work-dir", tmp_path, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    with (tmp_path / "predictions_val.csv").open(newline="") as file:
        expected = {str(dataset / row["image"]): row for row in csv.DictReader(file)}
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == set(expected)
    for row in rows:
        assert row["class"] == expected[row["path"]]["predicted"]
        assert row["reason"] == ""
        for number in ("", "_2", "_3", "_4", "_5"):
            assert float(row[f"score{number}"]) == pytest.approx(
                float(expected[row["path"]][f"score_{row[f'class{number}']}"]), abs=1e-5
            )


def test_photos_from_everywhere_get_a_row_each_and_bad_ones_a_reason(
    trained: Path, photo: bytes, server: str, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "good.jpg").write_bytes(photo)
    (photos / "deep" / "sp ace, \nü.jpg").write_bytes(photo)
    (photos / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    (photos / "text.png").write_text("no photo")
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").touch()
    (photos / "new.JXL").write_bytes(b"\xff\x0a" + bytes(100))
    (photos / "camera.nef").write_bytes(b"II*\0" + bytes(100))
    (photos / "live.mov").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(100))
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x14ftypmp42" + bytes(100))
    (tmp_path / "glob_1.jpg").write_bytes(photo)
    os.mkfifo(tmp_path / "fifo.jpg")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as archive:
        archive.add(photos / "good.jpg", "in/member.jpg")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(photos / "good.jpg", "../out.jpg")
    inputs = ["photos", "glob_*.jpg", "more.tar.gz", "evil.tar", "gone.jpg", "fifo.jpg", "clip.mp4"]
    inputs += [f"{server}/{name}.jpg" for name in ("rose", "page", "gone", "short", "liar", "moved")]
    result = run_tool(
        *("predict.py", *inputs, "--run", trained, "--out", "rows.jsonl", "--amp"),
        *("--sort-into", "by_class", "--batch-size", 4, "--cam", "cam"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "skipped 2 files without the extension of an image" in result.stderr
    assert result.stderr.splitlines()[-1] == "14 of 19 could not be read"
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    reasons = {row["path"].removeprefix(server): row["reason"] for row in rows}
    assert reasons.pop("evil.tar").startswith("evil.tar is refused, it holds paths that lead out of it")
    assert reasons.pop("photos/cut.jpg").startswith(("truncated", "damaged"))
    assert reasons.pop("/short.jpg").startswith("the connection broke after 99 of ")
    assert reasons.pop("/moved.jpg").startswith("answers 302 ")  # and isn't followed
    good = {"photos/good.jpg", "photos/deep/sp ace, \nü.jpg", "glob_1.jpg", "more.tar.gz/in/member.jpg", "/rose.jpg"}
    assert reasons == {
        **dict.fromkeys(good, ""),
        "photos/text.png": "not an image",
        "photos/empty.jpg": "empty",
        "photos/new.JXL": "JPEG XL file: convert it with djxl photo.jxl photo.png",
        "photos/camera.nef": "camera raw (NEF): export it as JPEG",
        "clip.mp4": "a video (MP4), not a photo",
        "gone.jpg": "no such file",
        "fifo.jpg": "unreadable (not a regular file)",
        "/page.jpg": "it sends text/html, not an image",
        "/gone.jpg": "answers 404 Not Found",
        "/liar.jpg": "not an image",
    }
    read = [row for row in rows if not row["reason"]]
    assert len({(row["class"], round(row["score"], 3)) for row in read}) == 1  # all the same photo
    assert all(row["class"] is None and row["top"] == [] for row in rows if row["reason"])
    # In the folder of its class as it came, and with an overlay of what the network saw.
    placed = list((tmp_path / "by_class" / read[0]["class"]).iterdir())
    assert {path.name for path in placed} == {Path(name).name for name in good}
    assert all(path.read_bytes() == photo for path in placed)
    assert sorted(path.stem for path in (tmp_path / "cam").iterdir()) == sorted(Path(name).stem for name in good)
    with Image.open(tmp_path / "cam" / "good.jpg") as overlay:
        assert overlay.size == (48, 48)
    assert not (tmp_path.parent / "out.jpg").exists()


@pytest.mark.slow
def test_a_list_on_stdin_is_printed_as_it_comes_and_moved(trained: Path, photo: bytes, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(photo)
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "-", "--run", str(trained), "--top-k", "1"]
    process = subprocess.Popen(
        [*command, "--batch-size", "1", "--workers", "0", "--sort-into", "out", "--move"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdin.write("b.jpg\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("b.jpg: ")  # the list goes on still
        process.stdin.write("gone.jpg\na.jpg\n")
        process.stdin.close()
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert lines[0] == "gone.jpg: could not be read, no such file"
    assert lines[1].startswith("a.jpg: ") and len(lines) == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == ["a.jpg", "b.jpg"]
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["c.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_keeps_whole_rows_beside_the_old_file(
    trained: Path, photo: bytes, tmp_path: Path, signum: signal.Signals
) -> None:
    (tmp_path / "a.jpg").write_bytes(photo)
    out = tmp_path / "out.csv"
    out.write_text("old")
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "-", "--run", str(trained), "--out", str(out)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--batch-size", "1", "--workers", "1"], cwd=tmp_path, **pipes) as process:
        process.stdin.write("a.jpg\n" * 4)
        process.stdin.flush()
        deadline = time.monotonic() + 120
        growing: list[Path] = []
        while not any(path.read_text().count("\n") > 1 for path in growing) and time.monotonic() < deadline:
            time.sleep(0.1)
            growing = list(tmp_path.glob(".*.partial"))
        assert growing
        process.send_signal(signum)
        assert process.wait(timeout=60) == 128 + signum
        said = [f"the rows so far are in {tmp_path / 'out.partial.csv'}", "stopped"]
        # In order; a loader worker that the signal has reached too may have its say between.
        assert [line for line in process.stderr.read().splitlines() if line in said] == said
        process.stdin.close()
    assert out.read_text() == "old" and not list(tmp_path.glob(".*.partial"))
    header, *rows = (tmp_path / "out.partial.csv").read_text().splitlines()
    assert header.startswith("path,class,score") and rows
    assert all(row.startswith("a.jpg,") and row.count(",") == header.count(",") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "error: give either images or --camera"),
        (("gone.jpg", "no*.png"), "error: there is no gone.jpg · hint: "),
        (("here.jpg", "--out", "x.txt"), "error: --out x.txt has an unknown extension"),
        (("here.jpg", "--out", "no/x.csv"), "error: --out no/x.csv: there is no folder no"),
        (("here.jpg", "--move"), "error: --move needs --sort-into"),
        (("here.jpg", "--top-k", "0"), "error: argument --top-k: 0 is less than 1"),
        (("--camera", "--sort-into", "x"), "error: --camera and --sort-into exclude each other"),
        (("here.jpg", "--run", "nowhere"), "error: no trained run in nowhere: it has no best.pth"),
        (("here.jpg",), "error: no trained run in work_dirs"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_at_once(arguments: tuple[str, ...], what: str, tmp_path: Path) -> None:
    (tmp_path / "here.jpg").touch()
    result = run_tool("predict.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert any(line.startswith(what) for line in result.stderr.splitlines()), result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_camera_or_a_photo_it_says_so(trained: Path, tmp_path: Path) -> None:
    result = run_tool("predict.py", "--camera", 97, "--run", trained, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: there is no camera 97 · hint: ")
    result = run_tool("predict.py", tmp_path, "--run", trained, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: no photo in {tmp_path} · hint: ")


def test_an_address_is_left_when_it_sends_too_much_takes_too_long_or_is_none(server: str) -> None:
    with pytest.raises(InputError, match="more than 50,000 bytes"):
        fetch_photo(f"{server}/endless.jpg", limit=50_000)
    with pytest.raises(InputError, match="takes more than 0 s"):
        fetch_photo(f"{server}/endless.jpg", seconds=0)
    for url in ("http://", "http://[/x.jpg", "http://127.0.0.1:99999/x.jpg", "http://127.0.0.1:1/x.jpg"):
        with pytest.raises(InputError) as caught:
            fetch_photo(url)
        assert "\n" not in str(caught.value)


def test_parquet_is_written_with_pyarrow_and_asked_for_without(trained: Path, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "here.jpg").write_bytes(photo)
    if importlib.util.find_spec("pyarrow") is None:
        result = run_tool("predict.py", "here.jpg", "--out", "x.parquet", "--run", trained, cwd=tmp_path)
        assert result.returncode == 2
        assert "Parquet needs pyarrow, which isn't installed · hint: pip install pyarrow" in result.stderr
        return
    import pyarrow.parquet

    found = Prediction("a.jpg", 1, "rose", 0.75, (("rose", 0.75), ("tulip", 0.25)))
    with open_output(tmp_path / "x.parquet", 2) as write:
        write([found, Prediction("b\udcff.jpg", reason="empty")])
        assert not (tmp_path / "x.parquet").exists()
    good, bad = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert good.pop("class") == "rose"
    assert good == dict(path="a.jpg", score=0.75, class_2="tulip", score_2=0.25, reason="")
    assert bad["class"] is None and bad["score"] is None and bad["reason"] == "empty"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_full_disk_is_said_in_a_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{kind}").symlink_to("/dev/full")
    with (
        pytest.raises(InputError, match=rf"can't write .*x\.{kind}: No space left on device"),
        open_output(tmp_path / f"x.{kind}", 1) as write,
    ):
        write([Prediction("a.jpg", reason="empty")])


def test_a_name_that_is_no_utf8_comes_back_byte_for_byte(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    with open_output(tmp_path / "x.csv", 1) as write:
        write([Prediction(name, reason="empty")])
        (growing,) = tmp_path.iterdir()
        assert growing.read_bytes() == b"path,class,score,reason\ncaf\xe9.jpg,,,empty\n"  # at once
    assert (tmp_path / "x.csv").read_bytes() == b"path,class,score,reason\ncaf\xe9.jpg,,,empty\n"


@pytest.mark.slow
def test_the_benchmark_times_the_commands_on_the_same_photos(trained: Path, dataset: Path, tmp_path: Path) -> None:
    result = run_tool(
        *(BENCHMARK, "predict", "--run", trained, "--source", dataset),
        *("--workers", 0, "--repeats", 1, "--json"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)
    assert (got["photos"], got["repeats"]) == (40, 1)
    rates = got["median_photos_per_second"]
    assert set(rates) == {"test", "predict", "predict --amp"}
    assert got["ratio"]["predict"][0] == pytest.approx(rates["predict"] / rates["test"])

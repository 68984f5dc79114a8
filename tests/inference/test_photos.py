"""Inputs are found, read in order, a few at a time, and what is wrong with one is its own matter."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmflowers.inference.inputs import Input, Skipped, camera_frames, find_inputs, require_inputs
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.utils.errors import InputError


def to_pixels(results: dict) -> dict:
    """A pipeline that only packs."""
    return {"inputs": torch.from_numpy(results["img"].copy()).permute(2, 0, 1)}


def deadly(results: dict) -> dict:
    """A pipeline that kills the process that reads an image 33 pixels wide."""
    if results["img"].shape[1] == 33:
        os._exit(1)
    return to_pixels(results)


def png(width: int = 32, height: int = 32, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def read(inputs, pipeline=to_pixels, batch_size: int = 4, workers: int = 0) -> list:
    return list(read_batches(inputs, PhotoDataset(pipeline), batch_size=batch_size, workers=workers))


def names(batches: list) -> list[str]:
    return [input_.name for batch in batches for input_ in batch.inputs]


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_come_in_order_and_few_are_held_however_many_there_are(workers: int) -> None:
    counts = Counter()

    def many():
        for number in range(3000):
            counts["drawn"] += 1
            counts["most"] = max(counts["most"], counts["drawn"] - counts["returned"])
            yield Input(str(number), data)

    data = png()
    seen = []
    for batch in read_batches(many(), PhotoDataset(to_pixels), batch_size=8, workers=workers):
        counts["returned"] += len(batch.inputs)
        seen += names([batch])
    assert seen == [str(number) for number in range(3000)]
    assert counts["most"] <= 8 * (2 * workers + 2)


@pytest.mark.slow
def test_a_photo_that_kills_its_reader_gets_a_reason_and_the_others_their_pixels() -> None:
    inputs = [Input(str(width), png(width)) for width in (30, 31, 32, 33, 34, 35, 36, 37)]
    batches = read(iter(inputs), pipeline=deadly, batch_size=2, workers=2)
    assert sorted(names(batches)) == [str(width) for width in range(30, 38)]
    reasons = {input_.name: input_.reason for batch in batches for input_ in batch.inputs if input_.reason}
    assert reasons == {"33": "crashes the decoder"}
    assert sum(len(batch.pixels) for batch in batches if batch.pixels is not None) == 7


def test_pixels_are_those_that_opencv_reads_upright_and_in_bgr(dataset: Path, tmp_path: Path) -> None:
    photo = next((dataset / "val").glob("*/*.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(tmp_path / "turned.jpg", exif=exif, quality=80, subsampling=2)
        image.convert("L").save(tmp_path / "grey.jpg")
        image.save(tmp_path / "plain.png")
    for path in (photo, *sorted(tmp_path.iterdir())):
        ((_, pixels),) = read([Input(str(path), str(path))])
        assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), cv2.imread(str(path))), path


def test_arrays_are_rgb_and_others_are_refused_with_what_they_are() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    ((_, pixels),) = read([Input("a", red), Input("b", Image.new("RGBA", (20, 20), (255, 0, 0, 255)))])
    assert pixels[:, :, 0, 0].tolist() == [[0, 0, 255]] * 2
    ((inputs, pixels),) = read([Input("a", red / 255), Input("b", red[..., 0])])
    assert [input_.reason for input_ in inputs] == [
        "not an RGB image of uint8 and shape (H, W, 3): float64 of shape (20, 20, 3)",
        "not an RGB image of uint8 and shape (H, W, 3): uint8 of shape (20, 20)",
    ]
    assert pixels is None


def test_what_is_damaged_gets_its_reason(tmp_path: Path) -> None:
    whole = png(300, 300)
    bomb = bytearray(png())
    bomb[16:24] = (12_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    inputs = [
        Input("cut", whole[: len(whole) // 2]),
        Input("text", b"no photo at all"),
        Input("empty", b""),
        Input("bomb", bytes(bomb)),
        Input("small", png(3, 3)),
        *(Input(name, str(tmp_path / name)) for name in ("gone.jpg", "fifo.jpg", "folder.jpg")),
        Input("known", None, "no such file"),
        Input("whole", whole),
    ]
    reasons = {input_.name: input_.reason for batch in read(inputs, workers=1) for input_ in batch.inputs}
    assert reasons.pop("cut").startswith(("truncated", "damaged"))
    assert reasons == {
        "text": "not an image",
        "empty": "empty",
        "bomb": "absurdly large",
        "small": "absurdly tiny",
        "gone.jpg": "unreadable (No such file or directory)",
        "fifo.jpg": "unreadable (not a regular file)",
        "folder.jpg": "unreadable (not a regular file)",
        "known": "no such file",
        "whole": "",
    }


def test_folders_are_walked_by_name_without_hidden_files_results_and_loops(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "in/c.jpeg", "in/deep/d.tif", "sorted/rose/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    skipped = Skipped()
    found = find_inputs([str(tmp_path)], staging=tmp_path / "x", skipped=skipped, leave_out=[tmp_path / "sorted"])
    relative = [Path(input_.name).relative_to(tmp_path).as_posix() for input_ in found]
    assert relative == ["a.PNG", "b.jpg", "link.jpg", "in/c.jpeg", "in/deep/d.tif"]
    assert skipped.count == 2  # the notes, and the link to a folder

    globbed = find_inputs([f"{tmp_path}/**/*.jp*g"], staging=tmp_path / "x", leave_out=[tmp_path / "sorted"])
    assert {Path(input_.name).name for input_ in globbed} == {"b.jpg", "link.jpg", "c.jpeg"}


def test_arguments_that_name_nothing_are_refused_together_unless_another_names_something(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        require_inputs([str(tmp_path / "a.jpg"), str(tmp_path / "*.png")])
    assert len(caught.value.problems) == 2
    (tmp_path / "a.jpg").write_bytes(png())
    arguments = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "*.png")]
    require_inputs(arguments)
    found = list(find_inputs(arguments, staging=tmp_path / "x"))
    assert [input_.reason for input_ in found] == ["", "no such file", "matches no file"]


def test_a_camera_gives_frames_in_rgb_until_it_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "x.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # red, in BGR
    writer.release()
    frames = list(camera_frames(path))
    assert [frame.name for frame in frames] == [f"camera {path} frame {number}" for number in (1, 2, 3)]
    assert frames[0].source.shape == (48, 64, 3)
    assert frames[0].source[24, 32, 0] > 240 > 20 > frames[0].source[24, 32, 2]

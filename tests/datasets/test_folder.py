"""Reading a dataset folder: what is right comes back as it is, what is wrong is all said together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.utils.errors import InputError

CLASSES = ["daisy", "red rose", "Tulpe ü"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for split in ("train", "val"):
        lines = []
        for label, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                photo = tmp_path / split / name / f"{split} {number}.jpg"
                photo.write_bytes(photo.name.encode())
                lines.append(f"{photo.relative_to(tmp_path).as_posix()} {label}")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def problems(folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_dataset_folder(folder)
    return [str(problem) for problem in caught.value.problems]


def edit(path: Path, *replacements: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def test_a_folder_in_order_is_read_as_it_stands(folder: Path) -> None:
    data = read_dataset_folder(folder)
    assert data.classes == CLASSES
    assert data.samples["val"][2:4] == [("val/red rose/val 0.jpg", 1), ("val/red rose/val 1.jpg", 1)]


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(folder: Path) -> None:
    text = (folder / "train.txt").read_text(encoding="utf-8")
    expected = read_dataset_folder(folder)
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_dataset_folder(folder) == expected


def test_everything_wrong_is_said_at_once(folder: Path) -> None:
    edit(folder / "train.txt", ("train 0.jpg 0", "train 0.jpg 7"), ("train 0.jpg 1", "train 0.jpg rose"))
    edit(
        folder / "val.txt", ("val/daisy/val 0.jpg", "/abs/val 0.jpg"), ("val/daisy/val 1.jpg", "val\\daisy\\val 1.jpg")
    )
    (folder / "val" / "red rose" / "val 0.jpg").unlink()
    text = "\n".join(problems(folder))
    wrong_paths = "2 paths absolute, outside of the folder or with backslashes"
    for expected in ("1 label outside of the 3 classes", "1 malformed line (line 3)", wrong_paths):
        assert expected in text
    assert "1 missing file (val/red rose/val 0.jpg)" in text


def test_labels_and_names_that_no_system_takes_are_malformed_lines(folder: Path) -> None:
    with (folder / "val.txt").open("a") as file:
        file.write(f"val/x.jpg {'9' * 5000}\nval/dai\0sy/x.jpg 0\n")
    (problem,) = problems(folder)
    assert "2 malformed lines (line 7, line 8)" in problem


def test_labels_against_the_class_folder_are_found(folder: Path) -> None:
    (folder / "classes.txt").write_text("red rose\ndaisy\nTulpe ü\n", encoding="utf-8")
    assert "has label 0 (red rose)" in problems(folder)[0]


def test_a_photo_listed_twice_is_found(folder: Path) -> None:
    with (folder / "train.txt").open("a", encoding="utf-8") as file:
        file.write("train/daisy/train 0.jpg 0\n")
    assert "lists train/daisy/train 0.jpg twice" in problems(folder)[0]


def test_the_same_photo_in_both_splits_is_a_leak_but_the_same_name_alone_is_not(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "daisy" / "IMG_1.jpg").write_bytes(b"the same" if split == "train" else b"another")
        with (folder / f"{split}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{split}/daisy/IMG_1.jpg 0\n")
    read_dataset_folder(folder)
    (folder / "val" / "daisy" / "IMG_1.jpg").write_bytes(b"the same")
    assert "1 photo is in two splits (daisy/IMG_1.jpg in train and val)" in problems(folder)[0]


def test_a_list_that_reaches_into_the_other_split_is_a_leak(folder: Path) -> None:
    with (folder / "val.txt").open("a", encoding="utf-8") as file:
        file.write("train/daisy/train 0.jpg 0\n")
    assert "is in two splits" in problems(folder)[0]


@pytest.mark.parametrize("missing", ["classes.txt", "train.txt", "val.txt"])
def test_a_missing_list_is_named_with_the_way_to_make_it(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert problems(folder) == [
        f"{folder} has no {missing} · hint: python tools/prepare_flowers.py writes a dataset folder"
    ]


def test_an_empty_list_a_class_without_photos_and_class_names_twice_are_found(folder: Path) -> None:
    (folder / "val.txt").write_text("\n")
    edit(folder / "classes.txt", ("red rose", "daisy"))
    text = "\n".join(problems(folder))
    assert "lists no photo" in text and "names a class twice: daisy" in text
    (folder / "classes.txt").write_text("\n".join([*CLASSES, "unseen"]), encoding="utf-8")
    assert "has no photo of unseen" in "\n".join(problems(folder))


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=30), max_size=8))
def test_no_list_however_odd_ends_in_anything_but_an_input_error(tmp_path_factory, lines: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "odd"
    folder.mkdir(exist_ok=True)
    for name in ("classes.txt", "train.txt", "val.txt"):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError):
        read_dataset_folder(folder)


def test_one_class_is_nothing_to_classify(folder: Path) -> None:
    (folder / "classes.txt").write_text("daisy\n")
    assert "names only one class, daisy" in problems(folder)[0]


def test_reading_needs_no_torch() -> None:
    code = "import sys, mmflowers.datasets.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

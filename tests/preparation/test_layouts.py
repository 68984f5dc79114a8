import os
import re
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflowers.preparation.layouts import OUTSIDE, read_layout, split_named
from mmflowers.utils.errors import InputError

posix_only = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and byte names as POSIX has them")


def fill(folder: Path, *paths: str) -> Path:
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"not looked at")
    return folder


def classes(folder: Path) -> dict[str, str | None]:
    """Path → class of the files that are to be inspected."""
    return {file.path: file.class_name for file in read_layout(folder).files if file.refusal is None}


def classes_as(folder: Path, kind: str) -> dict[str, str | None]:
    return {file.path: file.class_name for file in read_layout(folder, kind=kind).files if file.refusal is None}


def refusals(folder: Path) -> dict[str, str]:
    return {file.path: file.refusal for file in read_layout(folder).files if file.refusal is not None}


def test_the_immediate_subfolders_are_the_classes_whatever_lies_deeper(tmp_path):
    fill(tmp_path, "rose/b.jpg", "rose/2019/june/a.jpg", "Daisy flower/ü.jpg", "rose/notes.txt")
    assert classes(tmp_path) == {
        "Daisy flower/ü.jpg": "Daisy flower",
        "rose/2019/june/a.jpg": "rose",
        "rose/b.jpg": "rose",
        "rose/notes.txt": "rose",
    }
    assert [file.path for file in read_layout(tmp_path).files] == sorted(classes(tmp_path))


def test_files_in_the_root_are_outside_every_class_folder(tmp_path):
    fill(tmp_path, "LICENSE.txt", "x.jpg", "rose/a.jpg", "daisy/a.jpg")
    assert refusals(tmp_path) == {"LICENSE.txt": OUTSIDE, "x.jpg": OUTSIDE}


def test_hidden_and_system_files_are_refused_in_every_depth(tmp_path):
    hidden = [
        ".DS_Store",
        ".git/config",
        "__MACOSX/rose/._a.jpg",
        "rose/.hidden.jpg",
        "rose/@eaDir/a.jpg",
        "rose/Thumbs.db",
        "rose/deep/desktop.ini",
        "rose/deep/.cache/x/y.jpg",
    ]
    fill(tmp_path, *hidden, "rose/a.jpg", "daisy/a.jpg")
    assert classes(tmp_path) == {"rose/a.jpg": "rose", "daisy/a.jpg": "daisy"}
    assert refusals(tmp_path) == dict.fromkeys(sorted(hidden), "hidden or a system file")
    assert {file.class_name for file in read_layout(tmp_path).files} == {None, "rose", "daisy"}


def test_a_folder_that_wraps_everything_is_descended_into(tmp_path):
    fill(tmp_path, "download/flower_photos/rose/a.jpg", "download/flower_photos/daisy/a.jpg")
    fill(tmp_path, "download/flower_photos/LICENSE.txt", "__MACOSX/x", ".DS_Store", "README")
    layout = read_layout(tmp_path)
    assert layout.root == tmp_path / "download" / "flower_photos"
    assert [file.path for file in layout.files] == ["LICENSE.txt", "daisy/a.jpg", "rose/a.jpg"]


@pytest.mark.parametrize(
    "paths",
    [
        ["rose/a.jpg"],  # one class, no wrapper
        ["rose/a.jpg", "rose/2019/b.jpg"],
        ["photos/rose/a.jpg", "photos/daisy/a.jpg", "x.jpg"],  # a photo beside it would be lost
    ],
)
def test_a_single_folder_that_is_no_mere_wrapper_is_not_descended_into(tmp_path, paths):
    assert read_layout(fill(tmp_path, *paths)).root == tmp_path


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", None), ("Train", "valid", "test"), ("training", "validation", "testing")],
)
def test_split_folders_are_recognised_with_the_classes_below(tmp_path, train, val, test):
    fill(
        tmp_path, f"{train}/rose/a.jpg", f"{train}/daisy/deep/a.jpg", f"{val}/rose/a.jpg", "README.md", "extra/x/y.jpg"
    )
    if test:
        fill(tmp_path, f"{test}/rose/c.jpg")
    layout = read_layout(tmp_path)
    found = {file.path: (file.split, file.class_name) for file in layout.files if file.refusal is None}
    assert found == {
        f"{train}/daisy/deep/a.jpg": ("train", "daisy"),
        f"{train}/rose/a.jpg": ("train", "rose"),
        f"{val}/rose/a.jpg": ("val", "rose"),
        **({f"{test}/rose/c.jpg": ("test", "rose")} if test else {}),
    }
    assert refusals(tmp_path)["README.md"] == OUTSIDE
    assert refusals(tmp_path)["extra/x/y.jpg"].startswith("outside ")
    assert {file.class_name for file in layout.files if file.refusal} == {None}


def test_photos_directly_in_a_split_folder_are_outside_every_class_folder(tmp_path):
    fill(tmp_path, "train/rose/a.jpg", "val/rose/b.jpg", "val/c.jpg")
    assert refusals(tmp_path) == {"val/c.jpg": OUTSIDE}


@pytest.mark.parametrize(
    "paths",
    [
        ["train/a.jpg", "bus/b.jpg", "car/c.jpg"],
        ["train/old/a.jpg", "plane/c.jpg"],
        ["Train/a.jpg", "Train/old/b.jpg", "plane/c.jpg"],
        ["steam train/a.jpg", "validity/b.jpg", "tests of time/c.jpg"],
    ],
)
def test_a_class_that_is_called_train_is_no_split(tmp_path, paths):
    layout = read_layout(fill(tmp_path, *paths))
    assert not layout.split_folders
    assert {file.class_name for file in layout.files} == {path.split("/")[0] for path in paths}


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/a.jpg", "val/b.jpg", "plane/c.jpg"], "train/ and val/"),
        (["bus/a.jpg", "car/b.jpg", "test/c.jpg"], "test/"),
        (["bus/a.jpg", "car/b.jpg", "test/bus/c.jpg", "test/car/d.jpg"], "test/"),
        (["bus/a.jpg", "car/b.jpg", "train/bus/c.jpg"], "train/"),
        (["train/rose/a.jpg", "train/daisy/b.jpg", "extra/c.jpg"], "train/"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_a_question_that_either_option_answers(tmp_path, paths, splits):
    fill(tmp_path, *paths)
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{splits} ha")
    assert "--layout classes makes each of the" in str(caught.value)
    assert f"--layout splits makes {splits} " in str(caught.value)
    layout = read_layout(tmp_path, kind="classes")
    assert {file.path: file.class_name for file in layout.files} == {path: path.split("/")[0] for path in sorted(paths)}
    assert not layout.split_folders
    kept = {file.path: (file.split, file.class_name) for file in read_layout(tmp_path, kind="splits").files}
    if "test/bus/c.jpg" in paths:
        assert kept == {
            "bus/a.jpg": ("train", "bus"),
            "car/b.jpg": ("train", "car"),
            "test/bus/c.jpg": ("test", "bus"),
            "test/car/d.jpg": ("test", "car"),
        }


TRAINED = {"daisy", "rose"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("x_train/x_train", "x_test/x_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TrainImages", "TestImages"),
        ("train/images", "validation/images"),
        ("flowers_train", "flowers_dev"),
        ("traindata", "test1"),
        ("训练集", "测试集"),
    ],
)
def test_folders_of_splits_never_become_classes_whatever_they_are_called(tmp_path, train, test):
    fill(tmp_path, f"{train}/rose/a.jpg", f"{train}/daisy/b.jpg", f"{test}/1.jpg", f"{test}/2.jpg")
    layout = read_layout(tmp_path)  # train/<class> beside a flat test/
    assert {file.class_name for file in layout.files if not file.refusal} == TRAINED
    assert layout.unlabelled == {test: 2}
    assert not layout.split_folders
    assert {file.split for file in layout.files if not file.refusal} == {None}

    fill(tmp_path, f"{test}/rose/c.jpg")
    layout = read_layout(tmp_path)
    assert {file.class_name for file in layout.files if not file.refusal} == TRAINED
    assert set(layout.split_folders) == {train.split("/")[0], test.split("/")[0]}
    assert {file.split for file in layout.files if file.path.startswith(train)} == {"train"}
    other = "val" if "val" in test or "dev" in test else "test"
    assert {file.split for file in layout.files if file.path.startswith(test)} == {other}


NAMES = st.sampled_from(["train", "Test", "val", "x_train", "test_set", "images", "rose", "daisy", "tulip"])


@given(paths=st.lists(st.lists(NAMES, max_size=3).map("/".join), min_size=1, max_size=6, unique=True))
@settings(max_examples=300, deadline=None)
def test_no_folder_of_a_split_becomes_a_class_in_silence(paths):
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), *(f"{path}/x.jpg" if path else "x.jpg" for path in paths))
        try:
            layout = read_layout(Path(folder))
        except InputError as question:
            assert "--layout classes" in str(question)
            assert len(question.problems) == 1
            return
        said = ". ".join(layout.recognised)
        used = {file.class_name for file in layout.files if file.refusal is None and file.class_name}
        for name in split_named(used):
            assert layout.problem or re.search(rf"{name}/.* (is a class|are classes) here, not a split", said)
        assert len(layout.files) == len(paths)


def test_a_third_folder_beside_train_and_test_is_left_out_and_said(tmp_path):
    fill(tmp_path, "seg_train/seg_train/rose/a.jpg", "seg_test/seg_test/rose/b.jpg", "seg_pred/seg_pred/1.jpg")
    layout = read_layout(tmp_path)
    assert classes(tmp_path) == {"seg_test/seg_test/rose/b.jpg": "rose", "seg_train/seg_train/rose/a.jpg": "rose"}
    assert "seg_pred/ is in no split: not used" in layout.recognised


def test_a_class_that_is_only_in_test_is_no_class(tmp_path):
    fill(tmp_path, "train/rose/a.jpg", "train/daisy/b.jpg", "test/rose/c.jpg", "test/unknown/d.jpg")
    layout = read_layout(tmp_path)
    assert refusals(tmp_path) == {"test/unknown/d.jpg": "in a class that only test/ has"}
    assert {file.class_name for file in layout.files} == {"rose", "daisy", None}
    assert layout.split_folders == {"test": "test", "train": "train"}
    assert "unknown/ is in test only, so no class: not used" in layout.recognised
    (tmp_path / "test/rose/c.jpg").unlink()
    layout = read_layout(tmp_path)
    assert not layout.split_folders
    assert {file.split for file in layout.files} == {None}


def test_splits_without_photos_to_train_on_are_a_problem_that_names_the_tables(tmp_path):
    fill(tmp_path, "Training/1.jpg", "Testing/2.jpg", "Testing/rose/3.jpg", "meta.csv", "README.md")
    problem = read_layout(tmp_path).problem
    assert (
        problem.what == "the photos in Training/ are in no class folders, so they have no labels; "
        "meta.csv may hold the labels"
    )
    fill(tmp_path / "no train", "val/rose/1.jpg", "test/rose/2.jpg")
    assert "there is no train/" in read_layout(tmp_path / "no train").problem.what


def test_the_level_that_holds_the_classes_is_found_beside_scripts_and_pages(tmp_path):
    fill(tmp_path, "scripts/run.py", "docs/index.html", "README.md", "labels.csv")
    fill(tmp_path, "dataset/images/rose/a.jpg", "dataset/images/daisy/b.jpg", "dataset/notes.txt")
    layout = read_layout(tmp_path)
    assert layout.root == tmp_path / "dataset" / "images"
    assert classes(tmp_path) == {"rose/a.jpg": "rose", "daisy/b.jpg": "daisy"}
    assert layout.recognised[0].startswith("all photos are in dataset/images/; beside it, without photos: README.md, ")


def test_a_split_inside_of_every_class_is_taken_from_there(tmp_path):
    fill(tmp_path, "rose/train/a.jpg", "rose/test/b.jpg", "daisy/Train/c.jpg", "daisy/valid/d.jpg", "daisy/notes.txt")
    layout = read_layout(tmp_path)
    assert {file.path: (file.class_name, file.split) for file in layout.files if not file.refusal} == {
        "daisy/Train/c.jpg": ("daisy", "train"),
        "daisy/valid/d.jpg": ("daisy", "val"),
        "rose/test/b.jpg": ("rose", "test"),
        "rose/train/a.jpg": ("rose", "train"),
    }
    assert layout.split_folders == {"Train": "train", "valid": "val", "test": "test", "train": "train"}
    fill(tmp_path, "tulip/e.jpg")
    with pytest.raises(InputError, match=r"daisy/ and rose/ have folders of splits inside, but photos in tulip/ are"):
        read_layout(tmp_path)
    assert set(classes_as(tmp_path, "classes").values()) == {"rose", "daisy", "tulip"}


def test_photos_of_nested_classes_belong_to_the_outer_class_and_that_is_said(tmp_path):
    fill(tmp_path, "flower/rose/a.jpg", "flower/daisy/b.jpg", "tree/oak/c.jpg")
    assert set(classes(tmp_path).values()) == {"flower", "tree"}
    said = "photos in deeper folders belong to the class at the top, for example those of flower/daisy/ to flower"
    assert said in read_layout(tmp_path).recognised[0]


@pytest.mark.parametrize("place", ["", "meta/"])
@pytest.mark.parametrize("wrapper", ["", "flowers/"])
def test_lists_in_the_source_are_found_and_are_no_photos(tmp_path, place, wrapper):
    fill(tmp_path, f"{wrapper}rose/a.jpg", f"{wrapper}daisy/a.jpg", f"{place}train.txt", f"{place}val.txt")
    fill(tmp_path, f"{place}classes.txt")
    layout = read_layout(tmp_path)
    assert layout.lists.files == {"train": tmp_path / place / "train.txt", "val": tmp_path / place / "val.txt"}
    assert layout.lists.classes == tmp_path / place / "classes.txt"
    assert {file.class_name for file in layout.files if not file.refusal} == {"rose", "daisy"}
    assert {file.refusal for file in layout.files if file.path.endswith(".txt")} <= {"a list, not a photo"}


def test_a_dataset_folder_of_ours_is_read_with_its_papers_refused_as_such(tmp_path):
    papers = ["dataset.json", "files.csv", "DATA_CARD.md", "README.md", "contact_sheet.jpg"]
    fill(tmp_path, *papers, "train.txt", "val.txt", "classes.txt", "train/rose/a.jpg", "val/rose/b.jpg")
    assert set(classes(tmp_path)) == {"train/rose/a.jpg", "val/rose/b.jpg"}
    assert {refusals(tmp_path)[name] for name in papers} == {"part of a dataset folder, not a photo"}
    assert refusals(tmp_path)["train.txt"] == "a list, not a photo"


def test_archives_among_the_photos_are_refused_as_such(tmp_path):
    fill(tmp_path, "rose/more.ZIP", "rose/a.jpg", "daisy/b.jpg")
    assert refusals(tmp_path) == {"rose/more.ZIP": "an archive within the source, which isn't opened"}


@posix_only
def test_links_are_followed_to_files_of_the_source_only(tmp_path):
    source = fill(tmp_path / "source", "rose/a.jpg", "daisy/deep/b.jpg")
    fill(tmp_path, "outside/c.jpg")
    (source / "rose" / "inside.jpg").symlink_to("../daisy/deep/b.jpg")
    (source / "rose" / "out.jpg").symlink_to("../../outside/c.jpg")
    (source / "rose" / "broken.jpg").symlink_to("nothing.jpg")
    (source / "rose" / "circle.jpg").symlink_to("circle.jpg")
    (source / "rose" / "up").symlink_to("..")
    (source / "tulip").symlink_to(tmp_path / "outside")
    os.mkfifo(source / "daisy" / "fifo")
    (source / "rose" / "to_fifo").symlink_to("../daisy/fifo")
    assert set(classes(source)) == {"rose/a.jpg", "rose/inside.jpg", "daisy/deep/b.jpg"}
    assert refusals(source) == {
        "daisy/fifo": "a FIFO, not a file",
        "rose/broken.jpg": "a broken link",
        "rose/circle.jpg": "a link that goes in a circle",
        "rose/out.jpg": "a link that leads out of the source",
        "rose/to_fifo": "a FIFO, not a file",
        "rose/up": "a link to a folder of the source",
        "tulip": "a link that leads out of the source",
    }


@posix_only
def test_links_out_of_the_source_are_followed_if_wanted_and_never_in_a_circle(tmp_path):
    source = fill(tmp_path / "source", "rose/a.jpg", "daisy/b.jpg")
    outside = fill(tmp_path / "outside", "c.jpg", "deep/d.jpg", ".hidden.jpg")
    (outside / "back").symlink_to(source)
    (outside / "deep" / "up").symlink_to(outside)
    (source / "rose" / "out.jpg").symlink_to(outside / "c.jpg")
    (source / "tulip").symlink_to(outside)
    found = {file.path: file.refusal for file in read_layout(source, follow_links=True).files}
    assert found == {
        "daisy/b.jpg": None,
        "rose/a.jpg": None,
        "rose/out.jpg": None,
        "tulip/.hidden.jpg": "hidden or a system file",
        "tulip/back": "a link to a folder of the source",
        "tulip/c.jpg": None,
        "tulip/deep/d.jpg": None,
        "tulip/deep/up": "a link that goes in a circle",
    }


@posix_only
def test_a_source_that_is_itself_a_link_is_read(tmp_path):
    fill(tmp_path, "real/rose/a.jpg", "real/daisy/a.jpg")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "rose" / "l.jpg").symlink_to("a.jpg")
    assert set(classes(tmp_path / "link")) == {"rose/a.jpg", "rose/l.jpg", "daisy/a.jpg"}


@posix_only
def test_sockets_and_devices_are_refused(tmp_path):
    fill(tmp_path, "rose/a.jpg", "daisy/a.jpg")
    (tmp_path / "rose" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as unix:
        before = Path.cwd()
        os.chdir(tmp_path / "rose")  # such names may have 100 bytes
        try:
            unix.bind("s.jpg")
        finally:
            os.chdir(before)
        assert refusals(tmp_path)["rose/s.jpg"] == "a socket, not a file"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these file systems have Unicode names only")
def test_names_that_are_not_utf8_are_kept(tmp_path):
    fill(tmp_path, "daisy/a.jpg")
    fill(tmp_path, os.fsdecode(b"ros\xe9/caf\xe9\n.jpg"))
    path = next(path for path in classes(tmp_path) if path.startswith("ros"))
    assert os.fsencode(path) == b"ros\xe9/caf\xe9\n.jpg"
    assert (tmp_path / path).exists()


@posix_only
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="nothing is unreadable for root")
def test_a_folder_that_cannot_be_read_is_in_the_table(tmp_path):
    fill(tmp_path, "rose/a.jpg", "daisy/a.jpg", "tulip/a.jpg")
    (tmp_path / "tulip").chmod(0)
    try:
        assert "can't be read" in refusals(tmp_path)["tulip"]
    finally:
        (tmp_path / "tulip").chmod(0o755)


def test_an_empty_folder_has_no_files(tmp_path):
    assert read_layout(tmp_path).files == []

import functools
import hashlib
import http.server
import os
import re
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmflowers.preparation import sources
from mmflowers.preparation.records import Source
from mmflowers.utils import downloads
from mmflowers.utils.errors import InputError

CLASSES = ("daisy", "dandelion", "roses")


def fill(folder: Path, *paths: str) -> Path:
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.encode())
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return fill(tmp_path / "my photos", *(f"{name}/{number}.jpg" for name in CLASSES for number in range(3)))


@pytest.fixture
def open_source(tmp_path):
    return functools.partial(sources.open_source, staging=tmp_path / "staging", cache=tmp_path / "cache")


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a real server on loopback for the files in tmp_path/www."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pack(photos: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(photos, "flower_photos")
    return archive


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def paths(source: Source) -> list[str]:
    return [file.path for file in source.files if file.refusal is None]


def splits(source: Source) -> dict[str, str | None]:
    return {file.path: file.split for file in source.files}


def error(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_a_folder_is_taken_where_it_lies(photos, open_source, tmp_path):
    source = open_source(photos)
    assert source.root == photos
    assert len(paths(source)) == 9
    assert source.description == {"kind": "folder", "name": "my photos", "split": None}
    assert not source.has_split
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("form", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_gives_what_its_folder_gives(photos, open_source, tmp_path, form):
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), form, tmp_path, "my photos"))
    source = open_source(str(archive))
    assert paths(source) == paths(open_source(photos))
    assert tmp_path / "staging" in source.root.parents
    assert source.description == {"kind": "archive", "name": archive.name, "sha256": sha256(archive), "split": None}
    assert all((source.root / path).read_bytes() == path.encode() for path in paths(source))


def test_an_archive_is_held_against_the_sha256_given(photos, open_source, tmp_path):
    archive = pack(photos, tmp_path / "a.tgz")
    assert open_source(archive, sha256=f" {sha256(archive).upper()}\n").files
    assert sha256(archive) in error(open_source, archive, sha256="0" * 64)
    assert "64 hex digits" in error(open_source, archive, sha256="abc")
    assert "is a folder" in error(open_source, photos, sha256="0" * 64)
    assert "without --source" in error(open_source, None, sha256="0" * 64)


def test_an_address_with_its_sha256_is_downloaded_and_found_again_without_it(photos, open_source, server, tmp_path):
    archive = pack(photos, tmp_path / "www" / "mine.tgz")
    digest = sha256(archive)
    source = open_source(f"{server}/mine.tgz?key=secret", sha256=digest)
    assert source.description == {"kind": "url", "name": "mine.tgz", "sha256": digest, "split": None}
    assert len(paths(source)) == 9
    archive.unlink()
    assert open_source(f"{server}/mine.tgz", sha256=digest) == source  # from what is unpacked
    shutil.rmtree(tmp_path / "staging")
    assert open_source(f"{server}/mine.tgz", sha256=digest) == source  # from the cache
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "staging")
    assert "answers 404" in error(open_source, f"{server}/mine.tgz", sha256=digest)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b.zip", "http:///b.zip", "http://a:99999/b.zip", "https://[x/b.zip"]
)
def test_an_address_that_is_not_http_is_refused(open_source, url):
    assert "not a URL that can be downloaded" in error(open_source, url, sha256="0" * 64)


def test_an_address_without_sha256_is_refused(open_source):
    assert "add --sha256" in error(open_source, "https://example.org/a.zip")


def test_the_public_flower_photos_are_the_default_and_fall_back_on_http(
    photos, open_source, server, tmp_path, monkeypatch
):
    fill(photos, "LICENSE.txt")
    archive = pack(photos, tmp_path / "www" / "flower_photos.tgz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refusing = f"https://127.0.0.1:{free.getsockname()[1]}/flower_photos.tgz"
    published = sources.Published((refusing, f"{server}/flower_photos.tgz"), archive.stat().st_size, sha256(archive))
    monkeypatch.setattr(sources, "FLOWER_PHOTOS", published)
    source = open_source(None)
    assert {file.class_name for file in source.files if not file.refusal} == set(CLASSES)
    assert {file.path: file.refusal for file in source.files if file.refusal} == {
        "LICENSE.txt": "outside every class folder"
    }
    assert source.description["kind"] == "flower_photos"
    assert source.description["name"] == "flower_photos.tgz"


def test_without_a_network_one_line_says_the_two_ways_on(open_source, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{free.getsockname()[1]}/flower_photos.tgz"
    monkeypatch.setattr(sources, "FLOWER_PHOTOS", sources.FLOWER_PHOTOS._replace(urls=(refusing, refusing)))
    said = error(open_source, None)
    assert "\n" not in said
    assert "--source FOLDER_OR_ARCHIVE" in said
    assert "--rendered 200" in said
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("name", "said"), [("gone", "doesn't exist"), ("x.jpg", "no archive"), ("/dev/null", "neither")]
)
def test_what_is_no_source_is_said(open_source, tmp_path, name, said):
    if name.startswith("/") and not Path(name).exists():
        pytest.skip("no such device here")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert said in error(open_source, tmp_path / name)


@pytest.mark.parametrize(
    ("files", "said"),
    [([], "it is empty"), (["a.jpg", "b.jpg"], "2 files are outside every class"), (["inner.zip"], "1 file is")],
)
def test_a_source_without_class_folders_is_said(open_source, tmp_path, files, said):
    (tmp_path / "flat").mkdir()
    found = error(open_source, fill(tmp_path / "flat", *files))
    assert said in found
    assert "one folder for each class" in found


def split_in_folders(tmp_path: Path) -> Path:
    return fill(tmp_path / "split", "train/daisy/a.jpg", "train/roses/a.jpg", "val/daisy/b.jpg", "val/roses/b.jpg")


def split_by_lists(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "listed", "daisy/a.jpg", "daisy/b.jpg", "daisy/c.jpg", "roses/a.jpg", "roses/b.jpg")
    (folder / "train.txt").write_text("daisy/a.jpg 0\nroses/a.jpg 1\n")
    (folder / "val.txt").write_text("daisy/b.jpg 0\nroses/b.jpg 1\n")
    return folder


@pytest.mark.parametrize(
    ("make", "recognised"),
    [(split_in_folders, "train/ (2 files), val/ (2 files)"), (split_by_lists, "lists train.txt, val.txt")],
)
def test_a_split_that_the_source_brings_is_asked_about(open_source, tmp_path, make, recognised):
    said = error(open_source, make(tmp_path))
    assert recognised in said
    assert "--split keep" in said
    assert "--split redo" in said


def test_the_split_of_folders_is_kept(open_source, tmp_path):
    source = open_source(split_in_folders(tmp_path), split="keep")
    assert source.has_split
    assert source.description["split"] == "its own folders"
    assert all(file.split == file.path.split("/")[0] for file in source.files)


def test_the_split_of_lists_is_kept_and_what_they_do_not_name_is_refused(open_source, tmp_path):
    source = open_source(split_by_lists(tmp_path), split="keep")
    assert source.has_split
    assert source.description["split"] == "its own lists"
    assert {path: split for path, split in splits(source).items() if split} == {
        "daisy/a.jpg": "train",
        "daisy/b.jpg": "val",
        "roses/a.jpg": "train",
        "roses/b.jpg": "val",
    }
    assert {file.path: file.refusal for file in source.files}["daisy/c.jpg"] == "not in the given lists"


@pytest.mark.parametrize("make", [split_in_folders, split_by_lists])
def test_a_split_that_is_redone_leaves_no_trace_in_the_files(open_source, tmp_path, make):
    source = open_source(make(tmp_path), split="redo")
    assert not source.has_split
    assert source.description["split"] == "redone"
    assert set(splits(source).values()) == {None}
    assert {file.class_name for file in source.files if not file.refusal} == {"daisy", "roses"}
    assert len(paths(source)) in (4, 5)


def test_keeping_a_split_that_is_not_there_is_said_and_redoing_it_is_not(photos, open_source):
    assert "no split is found" in error(open_source, photos, split="keep")
    assert open_source(photos, split="redo").description["split"] is None


def test_two_folders_of_one_split_cannot_be_kept(open_source, tmp_path):
    folder = fill(split_in_folders(tmp_path), "valid/daisy/c.jpg")
    assert "val/ and valid/ both mean val" in error(open_source, folder, split="keep")
    assert open_source(folder, split="redo").files


def test_a_split_without_val_is_asked_about_with_a_hint_that_keeps_test_apart(open_source, tmp_path):
    folder = fill(tmp_path / "t", "train/daisy/a.jpg", "test/daisy/x.jpg")
    said = error(open_source, folder)
    assert "--split keep keeps test as it is and draws val out of train; --split redo pools all photos" in said
    source = open_source(folder, split="keep")
    assert source.draws_val
    assert splits(source) == {"test/daisy/x.jpg": "test", "train/daisy/a.jpg": "train"}


def test_the_hint_about_a_split_with_test_says_that_a_new_one_pools_its_photos(open_source, tmp_path):
    folder = fill(split_in_folders(tmp_path), "test/daisy/c.jpg")
    assert "--split redo pools all photos, those of test too" in error(open_source, folder)
    (folder / "val.txt").write_text("val/daisy/b.jpg\n")
    (folder / "train.txt").write_text("train/daisy/a.jpg\n")
    (folder / "test.txt").write_text("test/daisy/c.jpg\n")
    assert "--split redo pools all photos, those of test too" in error(open_source, folder)


def test_unlabelled_photos_beside_labelled_ones_are_counted_with_the_command_that_takes_them(open_source, tmp_path):
    folder = fill(tmp_path / "s", "train/daisy/a.jpg", "train/rose/b.jpg", "test/1.jpg", "test/2.jpg")
    source = open_source(folder)
    assert paths(source) == ["train/daisy/a.jpg", "train/rose/b.jpg"]
    assert "2 photos directly in test/ have no label and are not used" in source.recognised
    assert f"tools/predict.py {folder}/test" in source.recognised
    assert "no split is found" in error(open_source, folder, split="keep")


def test_photos_without_class_folders_are_refused_with_the_tables_that_lie_there(open_source, tmp_path):
    folder = fill(tmp_path / "s", "train/1.jpg", "test/2.jpg", "labels.csv", "README.txt")
    said = error(open_source, folder)
    assert (
        "the photos in train/ are in no class folders, so they have no labels; labels.csv may hold the labels" in said
    )
    assert "labels.csv may hold the labels" in error(open_source, fill(tmp_path / "flat", "1.jpg", "labels.csv"))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_links_that_lead_out_name_the_option_that_reads_them(open_source, photos, tmp_path):
    source = tmp_path / "linked"
    source.mkdir()
    for name in CLASSES:
        (source / name).symlink_to(photos / name)
    assert "· hint: --follow-links reads what the links point to" in error(open_source, source)
    followed = open_source(source, follow_links=True)
    assert paths(followed) == paths(open_source(photos))
    assert {file.class_name for file in followed.files} == set(CLASSES)
    (source / "tulip").mkdir()
    fill(source, "tulip/a.jpg")
    assert "3 links lead out of the source (daisy, dandelion, roses): --follow-links" in open_source(source).recognised


def test_given_lists_go_before_a_split_that_the_source_brings(open_source, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("train/daisy/a.jpg\nval/daisy/b.jpg\n")
    (lists / "val.txt").write_text("train/roses/a.jpg\nval/roses/b.jpg\n")
    source = open_source(split_in_folders(tmp_path), split_lists=lists)
    assert splits(source) == {
        "train/daisy/a.jpg": "train",
        "train/roses/a.jpg": "val",
        "val/daisy/b.jpg": "train",
        "val/roses/b.jpg": "val",
    }
    assert source.has_split
    assert source.description["split"] == "given lists"
    assert len(source.description["split_sha256"]) == 64


def test_given_lists_work_for_an_archive_and_its_contradictions_are_all_said(photos, open_source, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(photos.rglob("*.jpg")):
            packed.write(path, path.relative_to(photos))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classes.txt").write_text("\n".join(CLASSES))
    train = [f"{name}/{number}.jpg {CLASSES.index(name)}" for name in CLASSES for number in (0, 1)]
    (lists / "train.txt").write_text("\n".join(train))
    (lists / "val.txt").write_text("\n".join(f"{name}/2.jpg {CLASSES.index(name)}" for name in CLASSES))
    source = open_source(archive, split_lists=lists)
    assert list(splits(source).values()) == ["train", "train", "val"] * 3

    (lists / "val.txt").write_text("daisy/2.jpg 1\ndaisy/0.jpg 0\nroses/gone.jpg 2\n")
    assert len(error(open_source, archive, split_lists=lists).splitlines()) == 3


def test_a_folder_without_lists_is_no_answer_to_split_lists(photos, open_source, tmp_path):
    assert "no such folder" in error(open_source, photos, split_lists=tmp_path / "gone")
    assert "no train.txt and val.txt in it" in error(open_source, photos, split_lists=photos)
    assert "contradict" in error(open_source, photos, split_lists=photos, split="redo")


PAGE = Path(__file__).parents[2] / "docs" / "your-own-photos.md"
LAYOUTS = PAGE.read_text("utf-8").partition("## Layouts\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", LAYOUTS, re.MULTILINE)


def test_the_page_has_a_row_for_every_layout():
    assert len(ROWS) == 17


@pytest.mark.parametrize(("files", "said"), ROWS)
def test_the_page_says_what_the_command_says_about_a_layout(open_source, tmp_path, files, said):
    folder = fill(tmp_path / "photos", *re.findall("`([^`]+)`", files))
    try:
        found = open_source(folder).recognised
    except InputError as refused:
        found = str(refused)
    assert said in found

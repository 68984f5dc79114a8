import csv
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from mmflowers.preparation import data_card, writing
from mmflowers.preparation import prepare as prepare_module
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.preparation.summary import Summary
from mmflowers.preparation.writing import Target, digest, require_space
from mmflowers.utils.errors import InputError


def draw(path: Path, seed: int, **options) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((48, 40), Image.Resampling.BICUBIC).save(path, **options)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes: 20 photos each; one pair identical across them, one within, one file that must be converted."""
    root = tmp_path / "my photos"
    for label, name in enumerate(("daisy", "tulip")):
        for index in range(20):
            draw(root / name / f"{index:02d}.jpg", 100 * label + index)
    shutil.copy(root / "daisy" / "00.jpg", root / "tulip" / "same.jpg")
    shutil.copy(root / "tulip" / "01.jpg", root / "tulip" / "twice.jpg")
    Image.open(root / "daisy" / "01.jpg").convert("RGBA").rotate(20).save(root / "daisy" / "alpha.png")
    (root / "daisy" / "broken.jpg").write_bytes((root / "daisy" / "02.jpg").read_bytes()[:300])
    return root


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "flower data"


def make(photos: Path, out: Path, **options) -> Summary:
    return prepare(PrepareOptions(out=out, source=photos, **{"workers": 2, **options}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {name: (data, (folder / name).stat().st_mtime_ns) for name, data in contents(folder).items()}


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "files.csv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_the_folder_holds_what_its_lists_and_its_table_say(photos, out):
    before = state(photos)
    summary = make(photos, out)
    assert state(photos) == before
    assert sorted(path.name for path in out.iterdir()) == sorted(
        {*writing.WRITTEN} - {"test", "test.txt"},
    )
    assert (out / "classes.txt").read_bytes() == b"daisy\ntulip\n"
    table = rows(out)
    assert list(table) == sorted(table)
    assert set(table) == set(contents(photos))
    for name in ("train", "val"):
        lines = (out / f"{name}.txt").read_bytes().decode().splitlines()
        assert lines == sorted(lines)
        files = [line.rpartition(" ")[0] for line in lines]
        assert sorted(files) == sorted(f"{name}/{path}" for path in contents(out / name))
        assert {int(line.rpartition(" ")[2]) for line in lines} == {0, 1}
        assert all(int(line[-1]) == ["daisy", "tulip"].index(line.split("/")[1]) for line in lines)
        assert sum(summary.counts[name].values()) == len(lines)
        assert {row["target"] for row in table.values() if row["split"] == name and row["target"]} == set(files)
    # daisy: 20 photos, 1 in conflict, alpha.png; tulip: 20, 1 twice
    assert summary.counts == {"train": {"daisy": 16, "tulip": 16}, "val": {"daisy": 4, "tulip": 4}}
    for path, row in table.items():
        assert row["sha256"] == hashlib.sha256((photos / path).read_bytes()).hexdigest()
        if row["verdict"] == "kept":
            assert (out / row["target"]).read_bytes() == (photos / path).read_bytes()
    assert (table["daisy/alpha.png"]["verdict"], table["daisy/alpha.png"]["reason"]) == ("converted", "transparent")
    assert Image.open(out / table["daisy/alpha.png"]["target"]).mode == "RGB"
    assert (table["daisy/broken.jpg"]["verdict"], table["daisy/broken.jpg"]["target"]) == ("dropped", "")
    assert table["tulip/twice.jpg"]["duplicate_of"] == "tulip/01.jpg"
    assert {table[path]["verdict"] for path in ("daisy/00.jpg", "tulip/same.jpg")} == {"dropped"}


def test_the_input_digest_is_the_sha256_of_what_sha256sum_prints(photos, out):
    make(photos, out)
    text = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(contents(photos).items()))
    metadata = json.loads((out / "dataset.json").read_text("utf-8"))
    assert metadata["digests"]["input"] == hashlib.sha256(text.encode()).hexdigest()
    assert metadata["counts"] == {"train": {"daisy": 16, "tulip": 16}, "val": {"daisy": 4, "tulip": 4}}
    assert metadata["files"] == {"kept": 39, "converted": 1, "dropped": 4}


def test_the_same_input_gives_the_same_bytes_wherever_and_with_however_many_workers(photos, out, tmp_path):
    make(photos, out)
    again = tmp_path / "elsewhere" / out.name
    moved = tmp_path / "elsewhere" / photos.name
    shutil.copytree(photos, moved)
    make(moved, again, workers=1)
    assert contents(again) == contents(out)
    assert not [data for data in contents(out).values() if str(tmp_path).encode() in data]


def test_a_test_split_gets_its_folder_and_list(photos, out):
    summary = make(photos, out, test_ratio="0.1", val_ratio="0.2")
    assert summary.counts["test"] == {"daisy": 2, "tulip": 2}
    assert len((out / "test.txt").read_text().splitlines()) == len(contents(out / "test")) == 4


@pytest.mark.parametrize("name", ["flower data", "it's: a #1 – «花»", "yes"])
def test_the_card_is_one_that_hugging_face_reads(photos, tmp_path, name):
    make(photos, tmp_path / name, test_ratio="0.1")
    card = DatasetCard.load(tmp_path / name / "DATA_CARD.md")
    assert card.data.pretty_name == name
    assert card.data.task_categories == ["image-classification"]
    assert card.data.size_categories == ["n<1K"]
    assert "license" not in card.data.to_dict()
    (config,) = card.data.configs
    assert [part["split"] for part in config["data_files"]] == ["train", "validation", "test"]
    assert [len(list((tmp_path / name).glob(f"{part['path']}/*.*"))) > 0 for part in config["data_files"]] == [True] * 3
    assert card.text.startswith(f"\n# {name}\n")
    assert "The rights of the photos are those of their source" in card.text


def test_the_card_names_a_licence_where_the_photos_are_those_that_say_theirs(photos, out, tmp_path, monkeypatch):
    archive = shutil.make_archive(str(tmp_path / "flower_photos"), "gztar", photos)
    sha256 = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(data_card, "FLOWER_PHOTOS", data_card.FLOWER_PHOTOS._replace(sha256=sha256))
    make(Path(archive), out)
    card = DatasetCard.load(out / "DATA_CARD.md")
    assert card.data.license == "cc-by-2.0"
    assert "Creative Commons Attribution licence 2.0" in card.text


@pytest.mark.parametrize(
    ("photos", "size"),
    [(7, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (1_234_567, "1M<n<10M")],
)
def test_the_card_counts_as_hugging_face_does(photos, size, out):
    metadata = data_card._metadata(Summary(out, {"train": {"daisy": photos}}), {"kind": "rendered"})
    assert f"size_categories:\n- {size}\n" in metadata
    assert "- synthetic\n" in metadata


def test_keep_puts_identical_files_side_by_side_as_files_of_their_own(photos, out):
    make(photos, out, duplicates="keep")
    table = rows(out)
    one, other = (out / table[f"tulip/{name}.jpg"]["target"] for name in ("01", "twice"))
    assert one.read_bytes() == other.read_bytes()
    assert not one.samefile(other)
    assert table["daisy/00.jpg"]["split"] == table["tulip/same.jpg"]["split"]


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_links_give_the_same_dataset_without_its_weight(photos, out, tmp_path, link):
    make(photos, tmp_path / "copied" / out.name)
    make(photos, out, link=link)
    table = rows(out)
    kept = out / table["daisy/03.jpg"]["target"]
    assert kept.samefile(photos / "daisy" / "03.jpg")
    assert kept.is_symlink() == (link == "symlink")
    converted = out / table["daisy/alpha.png"]["target"]
    assert not converted.is_symlink()
    assert converted.stat().st_nlink == 1
    told = {"dataset.json", "DATA_CARD.md"}
    copied = contents(tmp_path / "copied" / out.name)
    assert {name: data for name, data in contents(out).items() if name not in told} == {
        name: data for name, data in copied.items() if name not in told
    }


def test_hard_links_across_disks_become_copies_and_that_is_said(photos, out, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    summary = make(photos, out, link="hardlink")
    assert any("copied" in note for note in summary.notes)
    kept = out / rows(out)["daisy/03.jpg"]["target"]
    assert kept.read_bytes() == (photos / "daisy" / "03.jpg").read_bytes()
    assert not kept.samefile(photos / "daisy" / "03.jpg")


def test_resize_writes_small_photos_and_leaves_smaller_ones(photos, out):
    draw(photos / "daisy" / "small.png", 999)
    Image.open(photos / "daisy" / "small.png").resize((24, 20)).save(photos / "daisy" / "small.png")
    make(photos, out, resize=20)
    table = rows(out)
    assert min(Image.open(out / table["daisy/03.jpg"]["target"]).size) == 20
    assert table["daisy/03.jpg"]["reason"] == "resized"
    assert table["daisy/small.png"]["verdict"] == "kept"


def test_awkward_names_survive(photos, out):
    names = ["ünï 花.jpg", " two  spaces .jpg", "UPPER.JPG", "upper.jpg"]
    if os.name == "posix":
        names += ["new\nline.jpg", os.fsdecode(b"latin-\xe9.jpg"), "back\\slash.jpg"]
    for seed, name in enumerate(names):
        draw(photos / "tulip" / name, 500 + seed, format="JPEG")
    make(photos, out)
    on_disk = set(contents(out / "train")) | set(contents(out / "val"))
    listed = [
        line.rpartition(" ")[0].partition("/")[2]
        for name in ("train", "val")
        for line in (out / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    assert set(listed) == on_disk
    assert len({name.casefold() for name in listed}) == len(listed) == 40 + len(names)
    assert {"tulip/ünï 花.jpg", "tulip/two  spaces.jpg"} <= on_disk


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_fifos_and_links_in_circles_are_rows_of_the_table_not_hangs(photos, out):
    os.mkfifo(photos / "daisy" / "pipe.jpg")
    (photos / "daisy" / "loop").symlink_to(photos / "daisy", target_is_directory=True)
    (photos / "daisy" / "self.jpg").symlink_to(photos / "daisy" / "self.jpg")
    make(photos, out)
    assert {row["verdict"] for path, row in rows(out).items() if path.split("/")[1] in ("pipe.jpg", "self.jpg")} == {
        "dropped"
    }


def test_a_second_run_finds_it_up_to_date_and_touches_nothing(photos, out):
    make(photos, out)
    before = state(out)
    assert make(photos, out).state == "up to date"
    assert state(out) == before
    assert make(photos, out, force=True).state == "written"
    assert contents(out) == {name: data for name, (data, _) in before.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["photo changed", "photo added", "option", "dataset file lost", "dataset file changed"]
)
def test_whatever_changes_makes_it_anew(photos, out, change):
    make(photos, out)
    options = {}
    if change == "photo changed":
        draw(photos / "daisy" / "05.jpg", 777)
    elif change == "photo added":
        draw(photos / "daisy" / "new.jpg", 777)
    elif change == "option":
        options = {"seed": 1}
    else:
        victim = out / rows(out)["daisy/03.jpg"]["target"]
        victim.unlink() if change == "dataset file lost" else victim.write_bytes(b"no longer a photo")
    assert make(photos, out, **options).state == "written"
    assert make(photos, out, **options).state == "up to date"


def test_a_folder_of_an_older_format_is_written_again_and_said(photos, out):
    make(photos, out)
    metadata = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**metadata, "format_version": 1}))
    again = make(photos, out)
    assert again.state == "written"
    assert [note for note in again.notes if "format 1, this is 3" in note and "split may differ" in note]
    assert json.loads((out / "dataset.json").read_text()) == metadata
    assert make(photos, out).state == "up to date"


def test_the_readme_of_the_folder_is_carried_over_and_counts_as_empty(photos, out):
    out.mkdir()
    (out / "README.md").write_text("kept in git")
    make(photos, out)
    make(photos, out, seed=3)
    assert (out / "README.md").read_text() == "kept in git"
    assert make(photos, out, seed=3).state == "up to date"


def test_a_dry_run_writes_nothing_and_plans_the_same(photos, out, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    planned = make(photos, out, dry_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    written = make(photos, out)
    assert (planned.counts, planned.dropped) == (written.counts, written.dropped)


def test_what_is_not_a_dataset_is_only_replaced_by_force(photos, out):
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=r"diary\.txt"):
        make(photos, out)
    assert (out / "diary.txt").read_text() == "mine"
    make(photos, out, force=True)
    assert not (out / "diary.txt").exists()


def test_your_own_file_in_a_dataset_is_not_deleted_unasked(photos, out):
    make(photos, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        make(photos, out, seed=1)


def test_the_current_folder_is_never_replaced(photos, tmp_path, monkeypatch):
    elsewhere = tmp_path / "here" / "below"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match="contains the current folder"):
        make(photos, tmp_path / "here", force=True)


@pytest.mark.parametrize("place", ["my photos", "my photos/data", "."])
def test_source_and_dataset_never_lie_one_in_the_other(photos, tmp_path, place):
    with pytest.raises(InputError, match="inside the other"):
        make(photos, tmp_path / place, force=True)
    assert (photos / "daisy" / "00.jpg").exists()


def test_bad_input_leaves_no_litter_and_the_old_dataset(photos, out, tmp_path):
    make(photos, out)
    before = state(out)
    shutil.rmtree(photos / "tulip")
    with pytest.raises(InputError, match="only one class"):
        make(photos, out)
    assert state(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, photos.name])


def test_a_disk_too_small_is_said_before_anything_is_written(out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 100 * 2**20))
    require_space(out / "not yet there", 10 * 2**20)
    with pytest.raises(InputError, match="105 MB free, 172 MB are needed"):
        require_space(out, 100 * 2**20)


def test_a_disk_that_fills_up_is_bad_input_not_a_bug(photos, out, monkeypatch):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        make(photos, out)
    assert not out.exists()


def test_two_runs_on_one_dataset_are_refused(photos, out, monkeypatch):
    monkeypatch.setattr(writing, "LOCK_TIMEOUT_S", 0.1)
    with Target(out).locked(), pytest.raises(InputError, match="another run"):
        make(photos, out)
    make(photos, out)


def test_runs_one_after_the_other_never_share_the_lock(tmp_path):
    inside, most = [], []

    def enter() -> None:
        for _ in range(20):
            with Target(tmp_path / "data").locked():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (80, 1)


def test_where_names_can_not_be_exchanged_two_renames_do(photos, out, monkeypatch):
    make(photos, out)
    monkeypatch.setattr(writing.ctypes, "CDLL", lambda *_, **__: object())
    make(photos, out, seed=1)
    assert make(photos, out, seed=1).state == "up to date"
    assert not Target(out).incomplete.exists()


def test_a_kill_between_the_two_renames_is_repaired_by_the_next_run(photos, out):
    make(photos, out)
    before = contents(out)
    target = Target(out)
    target.start()
    out.rename(target.incomplete / "old")
    with target.locked():
        assert contents(out) == before
    assert make(photos, out).state == "up to date"


KILLED = """
import sys
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
prepare(PrepareOptions(out=sys.argv[1], source=sys.argv[2], seed=1, workers=2))
"""


@pytest.fixture
def old_and_new(photos, out, tmp_path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What ``out`` holds, and what a run with seed 1 would put in its place."""
    make(photos, tmp_path / "new" / out.name, seed=1)
    make(photos, out)
    return contents(out), contents(tmp_path / "new" / out.name)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_any_moment_it_leaves_the_old_or_the_new_dataset_whole(photos, out, tmp_path, old_and_new):
    old, new = old_and_new
    source = state(photos)
    command = [sys.executable, "-c", KILLED, str(out), str(photos)]
    whole_run = None
    for share in (None, 0.5, 0.7, 0.9):
        shutil.rmtree(out)
        make(photos, out)
        start = time.monotonic()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            process.wait(share and share * whole_run)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        whole_run = whole_run or time.monotonic() - start
        assert contents(out) in (old, new)
        assert state(photos) == source
    make(photos, out, seed=1)
    assert contents(out) == new
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("moment", ["place_photos", "write_metadata", "_sync", "_exchange", "clear", "rmtree"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_the_moments_that_matter_the_next_run_still_gives_the_same_bytes(
    photos, out, tmp_path, old_and_new, moment, after
):
    old, new = old_and_new
    place = {"place_photos": prepare_module, "write_metadata": prepare_module, "clear": Target, "rmtree": shutil}
    owner = place.get(moment, writing)
    real = getattr(owner, moment)

    def die(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        setattr(owner, moment, die)
        make(photos, out, seed=1)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done = moment in ("clear", "rmtree") or (moment == "_exchange" and after)
    assert contents(out) == (new if done else old)
    make(photos, out, seed=1)
    assert contents(out) == new
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_digest_does_not_depend_on_the_order():
    files = [("b/x", "1" * 64), ("a/x", "2" * 64)]
    assert digest(files) == digest(reversed(files)) != digest([("b/x", "2" * 64), ("a/x", "1" * 64)])


def test_val_is_drawn_out_of_train_and_test_stays_as_it_is_if_the_split_has_no_val(tmp_path, out):
    source = tmp_path / "source"
    for label, name in enumerate(("daisy", "tulip")):
        for index in range(10):
            draw(source / "Training" / name / f"{index}.jpg", 100 * label + index)
        for index in range(3):
            draw(source / "Testing" / name / f"t{index}.jpg", 1000 + 100 * label + index)
    draw(source / "Testing" / "unknown" / "u.jpg", 5000)
    summary = make(source, out, split="keep")
    assert summary.counts == {
        "train": {"daisy": 8, "tulip": 8},
        "val": {"daisy": 2, "tulip": 2},
        "test": {"daisy": 3, "tulip": 3},
    }
    for path, row in rows(out).items():
        assert (row["split"] == "test") == path.startswith("Testing/")
        assert (row["verdict"] == "dropped") == ("unknown" in path)
    assert json.loads((out / "dataset.json").read_text("utf-8"))["source"]["split"] == (
        "its own folders, val drawn out of train"
    )
    card = (out / "DATA_CARD.md").read_text("utf-8")
    assert "- Split: as given by the source; 0.2 of each class in train drawn for val with seed 0.\n" in card
    said = str(make(source, out, split="keep", dry_run=True))
    assert said.startswith(
        "recognised: Testing/ is test, Training/ is train; 2 classes (daisy, tulip). unknown/ is in test only, "
        "so no class: not used. split: its own folders, val drawn out of train\n"
    )
    assert make(source, out, split="keep").state == "up to date"
    assert make(source, out, split="keep", val_ratio="0.5").counts["val"] == {"daisy": 5, "tulip": 5}
    with pytest.raises(InputError, match=r"--val-ratio has no effect on a given split"):
        make(out, tmp_path / "other", split="keep", val_ratio="0.5")

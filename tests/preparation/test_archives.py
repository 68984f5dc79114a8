import bz2
import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmflowers.preparation import archives
from mmflowers.preparation.archives import unpack
from mmflowers.utils.errors import InputError

PHOTOS = {"daisy/a.jpg": b"one" * 1000, "rose/deep/b.jpg": bytes(range(256)) * 40, "rose/ü b.jpg": b""}
TAR_MODES = ["w", "w:gz", "w:bz2", "w:xz"]


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch) -> None:
    """No test cuts the power, and a sync waits for whatever else the machine is writing."""
    monkeypatch.setattr(os, "sync", lambda: None, raising=False)


def make_tar(path: Path, files=PHOTOS, mode="w:gz", members=()) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return path


def make_zip(path: Path, files=PHOTOS, compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def special(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def open_it(archive: Path, staging: Path) -> Path:
    return unpack(archive, staging, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive: Path, tmp_path: Path) -> str:
    """Unpack what must be refused; nothing may be left or appear anywhere."""
    before = sorted(path for path in tmp_path.rglob("*") if path != tmp_path / "staging")
    with pytest.raises(InputError) as caught:
        open_it(archive, tmp_path / "staging")
    after = sorted(path for path in tmp_path.rglob("*") if path != tmp_path / "staging")
    assert after == before
    assert all(archive.name in problem.what and "\n" not in str(problem) for problem in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("mode", TAR_MODES)
def test_a_tar_of_any_compression_is_known_by_its_content_not_its_name(tmp_path, mode):
    archive = make_tar(tmp_path / "photos.zip", mode=mode)
    assert tree(open_it(archive, tmp_path / "staging")) == PHOTOS


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_known_by_its_content_not_its_name(tmp_path, compression):
    archive = make_zip(tmp_path / "photos.tgz", compression=compression)
    assert tree(open_it(archive, tmp_path / "staging")) == PHOTOS


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_all_tar_dialects_are_read_long_names_included(tmp_path, form):
    name = f"daisy/{'long' * 20}/{'n' * 60}.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        archive.addfile(special("daisy", tarfile.DIRTYPE))
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert tree(open_it(tmp_path / "a.tar", tmp_path / "staging")) == {name: b"abc"}


def test_an_unpacked_archive_is_found_again_and_an_interrupted_one_is_made_anew(tmp_path):
    archive = make_tar(tmp_path / "a.tgz")
    folder = open_it(archive, tmp_path / "staging")
    (folder / "mark").touch()
    assert open_it(archive, tmp_path / "staging") == folder
    assert (folder / "mark").exists()

    left = folder.rename(folder.with_name(f"{folder.name}.incomplete"))
    assert tree(open_it(archive, tmp_path / "staging")) == PHOTOS
    assert not left.exists()


def test_backslashes_in_member_names_separate_folders(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"daisy\\a.jpg": b"x"})
    assert tree(open_it(archive, tmp_path / "staging")) == {"daisy/a.jpg": b"x"}


def test_unpacked_files_carry_no_rights_to_run(tmp_path):
    info = tarfile.TarInfo("daisy/a.jpg")
    info.mode = 0o6777
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info, io.BytesIO(b""))
    folder = open_it(tmp_path / "a.tar", tmp_path / "staging")
    assert (folder / "daisy" / "a.jpg").stat().st_mode & 0o7111 == 0


BAD_NAMES = {
    "../out.jpg": "lead out",
    "daisy/../../out.jpg": "lead out",
    "..\\out.jpg": "lead out",
    "daisy\\..\\..\\out.jpg": "lead out",
    "/etc/out.jpg": "absolute",
    "\\out.jpg": "absolute",
    "C:/out.jpg": "absolute",
    "c:out.jpg": "absolute",
    "daisy/" + "n" * 300 + ".jpg": "too long",
    "d/" * 600 + "a.jpg": "too long",
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_name_that_leaves_the_folder_is_refused_by_name(tmp_path, make, name):
    said = refusal(make(tmp_path / "evil", {**PHOTOS, name: b"evil"}), tmp_path)
    assert BAD_NAMES[name] in said
    assert name.replace("\\", "/")[:100] in said


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("daisy/x", tarfile.SYMTYPE, linkname="../../.."), "links"),
        (special("daisy/x", tarfile.SYMTYPE, linkname="/etc/passwd"), "links"),
        (special("daisy/x", tarfile.LNKTYPE, linkname="daisy/a.jpg"), "links"),
        (special("daisy/x", tarfile.CHRTYPE, devmajor=1, devminor=3), "devices"),
        (special("daisy/x", tarfile.BLKTYPE), "devices"),
        (special("daisy/x", tarfile.FIFOTYPE), "devices"),
        (special("daisy/x", b"Z"), "devices"),
        (special("daisy/x", tarfile.GNUTYPE_SPARSE), "sparse"),
    ],
)
def test_what_is_no_plain_file_in_a_tar_is_refused_by_name(tmp_path, member, reason):
    said = refusal(make_tar(tmp_path / "evil.tgz", members=[member]), tmp_path)
    assert reason in said
    assert "daisy/x" in said


def test_a_file_cannot_be_written_through_a_link_of_the_same_archive(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(special("daisy", tarfile.SYMTYPE, linkname=str(outside)))
        archive.addfile(special("daisy/evil.jpg", tarfile.REGTYPE))
    assert "links: daisy" in refusal(tmp_path / "evil.tar", tmp_path)


@pytest.mark.parametrize(("kind", "reason"), [(stat.S_IFLNK, "links"), (stat.S_IFIFO, "devices")])
def test_what_is_no_plain_file_in_a_zip_is_refused_by_name(tmp_path, kind, reason):
    info = zipfile.ZipInfo("daisy/x.jpg")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "../../etc/passwd")
    assert f"{reason}" in refusal(tmp_path / "evil.zip", tmp_path)


def test_encrypted_members_are_refused_and_counted(tmp_path):
    files = {f"daisy/{number}.jpg": b"x" for number in range(7)}
    data = bytearray(make_zip(tmp_path / "a.zip", files).read_bytes())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 8] |= 1
        at += 4
    (tmp_path / "a.zip").write_bytes(data)
    said = refusal(tmp_path / "a.zip", tmp_path)
    assert "encrypted members: daisy/0.jpg, daisy/1.jpg, daisy/2.jpg and 4 more" in said


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_compressions_that_cannot_be_unpacked_in_bounded_memory_are_refused(tmp_path, compression):
    assert "compressed otherwise" in refusal(make_zip(tmp_path / "a.zip", compression=compression), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["daisy/a.jpg", "./daisy//a.jpg"])
def test_a_member_that_occurs_twice_is_refused(tmp_path, second):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("daisy/a.jpg", b"1")
        archive.writestr(second, b"2")
    assert "more than once" in refusal(tmp_path / "a.zip", tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("daisy/a.jpg"))
        archive.addfile(tarfile.TarInfo(second))
    assert "more than once" in refusal(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("names", [("daisy", "daisy/a.jpg"), ("daisy/a.jpg", "daisy")])
def test_a_name_that_is_file_and_folder_at_once_is_refused(tmp_path, names):
    assert "file and folder" in refusal(make_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x")), tmp_path)


def test_all_reasons_are_said_at_once(tmp_path):
    link = special("daisy/l", tarfile.SYMTYPE, linkname="a")
    archive = make_tar(tmp_path / "evil.tgz", {"/a": b"", "../b": b""}, members=[link])
    said = refusal(archive, tmp_path).splitlines()
    assert len(said) == 3
    assert all("hint:" in line for line in said)


def zeros(megabytes: int) -> bytes:
    return bytes(megabytes << 20)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_tar_that_unpacks_to_implausibly_much_is_refused_by_name(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1 << 20)
    archive = make_tar(tmp_path / "bomb.tgz", {**PHOTOS, "daisy/bomb.jpg": zeros(20)}, mode)
    assert "daisy/bomb.jpg" in refusal(archive, tmp_path)


def test_a_zip_that_unpacks_to_implausibly_much_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1 << 20)
    archive = make_zip(tmp_path / "bomb.zip", {**PHOTOS, "daisy/bomb.jpg": zeros(20)})
    assert "daisy/bomb.jpg" in refusal(archive, tmp_path)


def test_limits_of_total_size_and_of_number_are_kept(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", {"daisy/a.jpg": os.urandom(3000), "daisy/b.jpg": os.urandom(3000)})
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 6500)  # enough
    open_it(archive, tmp_path / "enough")
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 5000)
    with pytest.raises(InputError, match=r"daisy/b\.jpg"):
        open_it(archive, tmp_path / "little")
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 1 << 30)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(InputError, match="more than the 1 files and folders"):
        open_it(archive, tmp_path / "few")


def test_a_header_cannot_take_the_memory(tmp_path):
    """A GNU long name of 300 MB of zeros: tarfile would read it in one piece."""
    name = special("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=300 << 20)
    with gzip.open(tmp_path / "bomb.tgz", "wb", compresslevel=1) as stream:
        stream.write(name.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            stream.write(zeros(1))
    import tracemalloc

    tracemalloc.start()
    assert "bomb" in refusal(tmp_path / "bomb.tgz", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 4 * archives.MAX_HEADER_BYTES
    tracemalloc.stop()


def test_what_follows_the_end_of_a_tar_is_not_unpacked_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_HEADER_BYTES", 1 << 20)
    make_tar(tmp_path / "a.tar", mode="w")
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes() + zeros(50)))
    assert "bomb" in refusal(tmp_path / "a.tgz", tmp_path)


@pytest.mark.parametrize("mode", TAR_MODES)
def test_a_tar_cut_anywhere_is_damaged_never_silently_smaller(tmp_path, mode):
    files = {f"daisy/{number}.jpg": os.urandom(700) for number in range(4)}
    whole = make_tar(tmp_path / "whole", files, mode).read_bytes()
    end = len(whole) if mode != "w" else len(whole.rstrip(b"\0"))
    for length in range(1, end, max(1, end // 40)):
        (tmp_path / "cut").write_bytes(whole[:length])
        refusal(tmp_path / "cut", tmp_path)


def test_a_broken_header_amid_a_tar_is_damage_not_the_end(tmp_path):
    data = bytearray(make_tar(tmp_path / "a.tar", {f"daisy/{n}.jpg": b"x" * 512 for n in range(4)}, "w").read_bytes())
    data[2 * 1024 : 2 * 1024 + 20] = b"y" * 20
    (tmp_path / "a.tar").write_bytes(data)
    assert "damaged after its member daisy/1.jpg" in refusal(tmp_path / "a.tar", tmp_path)


def test_a_changed_byte_in_a_zip_is_seen_by_its_checksum(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"daisy/a.jpg": b"x" * 99}, zipfile.ZIP_STORED).read_bytes())
    data[data.index(b"xxxx")] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert "damaged after its member daisy/a.jpg" in refusal(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "no archive"),
        (b"<!DOCTYPE html><title>Log in</title>", "web page"),
        (b"Rar!\x1a\x07\x00" + b"x" * 600, "RAR"),
        (b"7z\xbc\xaf\x27\x1c" + b"x" * 600, "7-Zip"),
        (b"\xff\xd8\xff\xe0" + b"x" * 600, "no archive"),
        (gzip.compress(b"a single file"), "damaged"),
        (bz2.compress(b""), "damaged"),
        (b"PK\x05\x06" + bytes(18), "no file"),
        (gzip.compress(bytes(10240)), "no file"),
    ],
    ids=["empty", "text", "page", "rar", "7z", "jpeg", "gz", "bz2", "zip of nothing", "tar of nothing"],
)
def test_what_is_no_archive_is_called_what_it_is(tmp_path, data, said):
    (tmp_path / "thing").write_bytes(data)
    assert said in refusal(tmp_path / "thing", tmp_path)


SEEDS = {}


def seed_archives() -> dict[str, bytes]:
    if not SEEDS:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            for mode in TAR_MODES:
                SEEDS[mode] = make_tar(Path(folder) / "a", mode=mode).read_bytes()
            SEEDS["zip"] = make_zip(Path(folder) / "a").read_bytes()
    return SEEDS


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from([*TAR_MODES, "zip"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
@example(kind="zip", changes=[(0.0, 0x50)], cut=1.0)
def test_a_mutated_archive_is_unpacked_or_refused_and_nothing_appears_outside(tmp_path_factory, kind, changes, cut):
    data = bytearray(seed_archives()[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a").write_bytes(data[: int(cut * len(data)) + 1])
    try:
        open_it(folder / "a", folder / "staging")
    except InputError:
        assert not (folder / "staging").exists() or not list((folder / "staging").iterdir())
    assert {path.name for path in folder.iterdir()} <= {"a", "staging"}

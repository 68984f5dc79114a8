import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode, photo

from mmflowers.preparation.archives import unpack
from mmflowers.preparation.layouts import read_layout
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.preparation.sources import open_source
from mmflowers.preparation.zip_names import decoded_names
from mmflowers.utils.errors import InputError

FLOWERS = {
    "gbk": ["玫瑰", "郁金香", "雏菊"],
    "cp932": ["ひまわり", "バラ", "チューリップ"],
    "cp949": ["장미", "튤립", "해바라기"],
    "cp437": ["Gänseblümchen", "Löwenzahn", "Pâquerette"],
    "cp866": ["роза", "тюльпан", "подсолнух"],
    "big5": ["玫瑰", "鬱金香", "向日葵"],
    "utf-8": ["Gänseblümchen", "玫瑰", "роза"],
}
PHOTO = {
    "gbk": "照片",
    "cp932": "写真",
    "cp949": "꽃사진",
    "cp437": "für",
    "cp866": "фото",
    "big5": "照片",
    "utf-8": "é",
}


def undeclared_zip(path: Path, files: dict[bytes, bytes]) -> Path:
    """A zip whose names are these bytes, without the UTF-8 flag."""
    packed, names = io.BytesIO(), {}
    with zipfile.ZipFile(packed, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            stand_in = f"{number:02}".ljust(len(name), "X").encode()  # replaced in both headers of the member
            names[stand_in] = name
            archive.writestr(stand_in.decode(), data)
    content = packed.getvalue()
    for stand_in, name in names.items():
        assert content.count(stand_in) == 2
        content = content.replace(stand_in, name)
    path.write_bytes(content)
    return path


def member(raw: bytes, extra: bytes = b"") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(raw.decode("cp437"))
    info.extra = extra
    return info


@pytest.mark.parametrize("encoding", FLOWERS)
def test_names_are_read_in_the_encoding_that_they_were_written_in_and_it_is_shown(tmp_path, encoding):
    names = [f"{name}/{PHOTO[encoding]} {at}.jpg" for name in FLOWERS[encoding] for at in range(5)]
    photos = {name.encode(encoding): encode(photo(seed)) for seed, name in enumerate(names)}
    archive = undeclared_zip(tmp_path / "photos.zip", photos)
    options = PrepareOptions(out=tmp_path / "out", source=archive, workers=1)
    summary = prepare(options)
    assert summary.classes == sorted(FLOWERS[encoding])
    assert summary.counts["train"] == dict.fromkeys(summary.classes, 4)
    assert f"file names of photos.zip read as {encoding}, for example {names[0]}" in str(summary)
    assert f"read as {encoding}" in str(prepare(options))  # up to date: read again


@pytest.mark.parametrize(
    ("encoding", "name", "others"),
    [("gbk", "玫瑰", ["cp949", "big5"]), ("cp949", "장미", ["gbk"]), ("cp437", "RoseÆs", ["cp1252"])],
)
def test_names_that_could_be_in_several_encodings_are_a_question_that_the_option_answers(
    tmp_path, encoding, name, others
):
    files = {f"{name}/{at}.jpg".encode(encoding): b"" for at in range(3)}
    archive = undeclared_zip(tmp_path / "a.zip", files)
    with pytest.raises(InputError) as caught:
        open_source(archive, staging=tmp_path / "staging")
    assert f"{encoding}: {name}/0.jpg" in str(caught.value)
    for candidate in (encoding, *others):
        assert f"--zip-encoding {candidate}" in caught.value.problems[0].hint
    assert not list((tmp_path / "staging").iterdir())
    source = open_source(archive, staging=tmp_path / "staging", zip_encoding=encoding)
    assert {file.class_name for file in source.files} == {name}
    assert f"read as {encoding}" in source.recognised


def test_an_encoding_that_does_not_fit_or_does_not_exist_is_refused(tmp_path):
    archive = undeclared_zip(tmp_path / "a.zip", {"玫瑰/a.jpg".encode("gbk"): b""})
    with pytest.raises(InputError, match=r"--zip-encoding utf-8 doesn't fit the file names in a\.zip"):
        open_source(archive, staging=tmp_path / "staging", zip_encoding="utf-8")
    with pytest.raises(InputError, match="belongs to a zip"):
        open_source(tmp_path, staging=tmp_path / "staging", zip_encoding="gbk")
    for name in ("klingon", "zlib", "a\0"):
        with pytest.raises(InputError, match="is no encoding of text"):
            PrepareOptions(out=tmp_path, zip_encoding=name)
    with pytest.raises(InputError, match="no known encoding fits"):
        decoded_names([member(b"\xb0\xb1\xb2\xff.jpg")], "a.zip")


def test_names_that_state_their_encoding_are_not_guessed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("玫瑰/a.jpg", b"")
        archive.writestr("rose/b.jpg", b"")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert decoded_names(archive.infolist(), "a.zip") == (["玫瑰/a.jpg", "rose/b.jpg"], None)
    raw = "玫瑰".encode("gbk")
    stated = b"\x01" + struct.pack("<I", zlib.crc32(raw)) + "玫瑰".encode()
    extra = struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(stated)) + stated
    assert decoded_names([member(raw, extra)], "a.zip") == (["玫瑰"], None)
    wrong = extra.replace(struct.pack("<I", zlib.crc32(raw)), b"\0\0\0\0")  # of another name: not used
    assert decoded_names([member(raw, wrong)], "a.zip", "gbk") == (["玫瑰"], "gbk")


@given(names=st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_line(names):
    try:
        found, encoding = decoded_names(map(member, names), "a.zip")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert found == [name.decode(encoding or "ascii") for name in names]


def test_archives_in_an_archive_are_unpacked_one_level_deep(tmp_path):
    def zipped(files: dict[str, bytes]) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return packed.getvalue()

    third = zipped({"deep.jpg": b"d"})
    inner = {"rose.zip": zipped({"rose/1.jpg": b"1", "third.zip": third}), "tulip.ZIP": zipped({"2.jpg": b"2"})}
    beside = {
        "daisy/3.jpg": b"3",
        "daisy.zip": zipped({"4.jpg": b"4"}),
        "__MACOSX/x.zip": b"no zip",
        "daisy/5.zip": b"<html>",
    }
    (tmp_path / "a.zip").write_bytes(zipped({f"flowers/{name}": data for name, data in {**inner, **beside}.items()}))
    source = open_source(tmp_path / "a.zip", staging=tmp_path / "staging")
    assert {file.path: file.class_name for file in source.files if not file.refusal} == {
        "daisy/3.jpg": "daisy",
        "rose/rose/1.jpg": "rose",
        "tulip/2.jpg": "tulip",
    }
    assert {file.path for file in source.files if file.refusal} == {
        *("__MACOSX/x.zip", "daisy.zip", "daisy/5.zip", "rose/third.zip"),
    }
    assert "2 archives in a.zip unpacked: flowers/rose.zip, flowers/tulip.ZIP" in source.recognised
    assert "daisy.zip is not opened" in source.recognised


def test_an_archive_in_a_tar_may_have_any_name(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("1.jpg", b"1")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("ros\udce9.zip", ".zip", "daisy\n.zip"):
            info = tarfile.TarInfo(name)
            info.size = len(inner.getvalue())
            archive.addfile(info, io.BytesIO(inner.getvalue()))
    source = open_source(tmp_path / "a.tar", staging=tmp_path / "staging")
    assert {file.class_name for file in source.files if not file.refusal} == {"ros\udce9", "daisy\n"}
    assert source.recognised.isprintable()


def test_archives_in_an_archive_share_its_limits(tmp_path, monkeypatch):
    monkeypatch.setattr("mmflowers.preparation.archives.RATIO_FREE_BYTES", 3_000_000)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", bytes(2_000_000))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("one.zip", bomb.getvalue())
        archive.writestr("two.zip", bomb.getvalue())
    with pytest.raises(InputError, match="decompression bomb"):
        unpack(tmp_path / "outer.zip", tmp_path / "staging", sha256="0" * 64)
    assert not list((tmp_path / "staging").iterdir())


def test_a_zip_beside_class_folders_is_said_and_a_folder_of_zips_names_what_to_do(tmp_path):
    for name in ("rose/a.jpg", "daisy/b.jpg", "more.zip"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"")
    assert "more.zip is not opened: unpack what you need" in read_layout(tmp_path / "s").recognised
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "rose.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"unpack rose\.zip, or give one with --source"):
        open_source(tmp_path / "zips", staging=tmp_path / "staging")

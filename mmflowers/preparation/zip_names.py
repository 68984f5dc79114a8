"""Find the encoding of the file names in a zip that doesn't say it; Windows writes its own code page."""

from __future__ import annotations

import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable

from mmflowers.utils.errors import NAMED, InputError, shortened, some

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # the extra field in which Info-ZIP and 7-Zip repeat a name in UTF-8
_ENOUGH_HANGUL = 10  # different ones; of as many Chinese characters, all of them look like Hangul in 1 of 100 names


def decoded_names(
    infos: Iterable[zipfile.ZipInfo], archive: str, encoding: str | None = None
) -> tuple[list[str], str | None]:
    """Return the names of a zip's members as they were meant, and the encoding of those that don't say theirs.

    Args:
        infos: The members, as zipfile reads them: names without the UTF-8 flag decoded as code page 437.
        archive: Its name, for errors.
        encoding: Of the names that don't say theirs; None to find it out.

    Returns:
        The names, in order, and the encoding; None if every name is ASCII or UTF-8 by its flag.

    Raises:
        InputError: Several encodings are plausible, or none, or the given one doesn't fit.
    """
    names: list[str | bytes] = [_stated_name(info) for info in infos]
    raw = sorted({name for name in names if isinstance(name, bytes)})
    if not raw:
        return [str(name) for name in names], None
    used = encoding or _find(raw, archive)
    try:
        return [name.decode(used) if isinstance(name, bytes) else name for name in names], used
    except UnicodeError as error:
        what = f"--zip-encoding {used} doesn't fit the file names in {archive}"
        raise InputError(what, "remove --zip-encoding, or give another one") from error


def _stated_name(info: zipfile.ZipInfo) -> str | bytes:
    """Return the name of a member, or its bytes if the archive doesn't say how they are encoded."""
    if info.flag_bits & _UTF8_FLAG or info.orig_filename.isascii():
        return info.orig_filename
    raw, extra = info.orig_filename.encode("cp437"), info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[:1] == b"\x01" and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            try:
                return field[5:].decode()
            except UnicodeDecodeError:
                break
    return raw


def _find(raw: list[bytes], archive: str) -> str:
    """Return the encoding in which all names read like names.

    An encoding that was used for real gives letters of its own script, nearly all of them common ones; another gives
    rare characters, symbols or scripts mixed in a word. charset-normalizer's statistics need longer texts: of the
    plausible encodings it puts EUC-KR first for 玫瑰 and 郁金香 in GBK.
    """
    # Trail bytes of these encodings are neither digits nor slashes. Numbered names of a million photos are a few here.
    text = b"\n".join(sorted({re.sub(rb"[0-9]+", b"0", part) for name in raw for part in name.split(b"/")}))
    readings: dict[str, str] = {}  # what the names read → the encoding
    for common_only in (True, False):
        for encoding, common, is_plausible in _ENCODINGS:
            try:
                reading = text.decode(common if common_only else encoding)
            except UnicodeDecodeError:
                continue
            if is_plausible(reading):
                readings.setdefault(reading, encoding)
        if readings:
            break
    found = {encoding: reading for reading, encoding in readings.items()}
    strange = set(_strange(found.get("utf-8", "")))
    if len(strange) > 2 or any(c > "\u07ff" for c in strange):
        return "utf-8"  # no other encoding has such bytes by accident
    if len(set(_strange(found.get("cp949", "")))) >= _ENOUGH_HANGUL:
        return "cp949"
    if len(found) == 1:
        return next(iter(found))
    what = f"{archive} doesn't say how its file names are encoded"
    if not found:
        shown = some((shortened(name.decode("ascii", "backslashreplace")) for name in raw[:NAMED]), len(raw))
        raise InputError(f"{what}, and no known encoding fits: {shown}", "give it with --zip-encoding NAME")
    ways = "; ".join(
        f"{encoding}: {some((shortened(name.decode(encoding)) for name in raw[:NAMED]), len(raw))}"
        for encoding in found
    )
    raise InputError(f"{what}; they could be {ways}", " or ".join(f"--zip-encoding {name}" for name in found))


def known_encoding(name: str) -> bool:
    """Return whether Python knows an encoding of text by this name."""
    try:
        b"a".decode(name, "replace")
    except (LookupError, ValueError):
        return False
    return True


def _is_utf8(text: str) -> bool:
    return all(c == "\n" or c.isprintable() for c in text)


def _is_of(text: str, *scripts: str, punctuation: str = "’–—") -> bool:
    return all(
        c in punctuation or (c.isalpha() and unicodedata.name(c, "").startswith(scripts)) for c in set(_strange(text))
    )


def _is_east_asian(*scripts: str) -> Callable[[str], bool]:
    """Return the test whether these scripts are all that isn't ASCII, and stand nowhere inside a Latin word."""
    return lambda text: (
        _is_of(text, *scripts, punctuation="、。・（）【】「」『』《》！，：０１２３４５６７８９")
        and not re.search(r"[a-z][^\x00-\x7f]+[a-z]", text)
    )


def _is_common_big5(text: str) -> bool:
    # Big5 lists the common characters first, A440 to C67E.
    return _is_east_asian("CJK UNIFIED")(text) and all(c.encode("big5") < b"\xc6\x7f" for c in _strange(text))


def _is_latin(text: str) -> bool:
    letters = sum(c.isalpha() for c in text)
    return _is_of(text, "LATIN") and 2 * len(_strange(text)) <= letters and not re.search(r"[^\W\d_a-zA-Z]{3}|ƒ", text)


def _is_cyrillic(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text)
    return _is_of(text, "CYRILLIC") and all(word.isascii() or not re.search("[a-zA-Z]", word) for word in words)


def _strange(text: str) -> list[str]:
    return [c for c in text if not c.isascii()]


# Encoding, the part of it that has the common characters, and the test of a text.
_ENCODINGS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("utf-8", "utf-8", _is_utf8),
    ("gbk", "gb2312", _is_east_asian("CJK UNIFIED")),
    ("big5", "big5", _is_common_big5),
    ("cp932", "shift_jis", _is_east_asian("CJK UNIFIED", "HIRAGANA", "KATAKANA")),
    ("cp949", "euc_kr", _is_east_asian("HANGUL")),
    ("cp437", "cp437", _is_latin),
    ("cp850", "cp850", _is_latin),
    ("cp1252", "cp1252", _is_latin),
    ("cp866", "cp866", _is_cyrillic),
    ("cp1251", "cp1251", _is_cyrillic),
)

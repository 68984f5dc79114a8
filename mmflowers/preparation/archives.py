"""Unpack archives that may be hostile: every member is checked before a byte of it is written."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from mmflowers.preparation.zip_names import decoded_names
from mmflowers.utils.downloads import looks_like_html
from mmflowers.utils.errors import NAMED, InputError, Problem, count, shortened, some
from mmflowers.utils.files import creating_folder

# Every file and folder costs time on the disk, however small the archive is that asks for it. A photo is never as small
# as BYTES_PER_MEMBER, and few archives of anything have so little for each.
MAX_MEMBERS, FREE_MEMBERS, BYTES_PER_MEMBER = 1_000_000, 10_000, 256
MAX_TOTAL_BYTES = 64 << 30
# Photos compress to 0.9–1.0 of their size and plain bitmaps to a fiftieth; deflate can reach a thousandth, bzip2 less.
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 << 20  # up to here the ratio isn't limited
# The memory that one header (a long name, a zip's directory) may take: tarfile and zipfile read it in one piece,
# however long it claims to be.
MAX_HEADER_BYTES = 64 << 20
MAX_NAME_BYTES, MAX_PATH_CHARS = 255, 1024
INNER = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")  # in an archive: unpacked as well, one level deep

_COMPRESSIONS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_NOT_OURS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"MZ": "a program",
    b"PK\x07\x08": "one piece of a zip archive in several pieces",
}
# What zipfile, tarfile and the decompressors raise on damaged archives. RuntimeError includes RecursionError: tarfile
# follows chains of extended headers recursively.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(ValueError, OverflowError, LookupError, RuntimeError),
)


class _Member(NamedTuple):
    name: str
    size: int
    is_folder: bool
    refusal: str | None
    open: Callable[[], IO[bytes] | None]  # None of what isn't a regular file


class _Unpacked(NamedTuple):
    size: int  # bytes
    members: int
    files: set[str]
    said: list[str]  # sentences about what people should know


class _Bomb(Exception):
    """The archive asks for more than any archive of photos needs."""


def unpack(archive: Path, staging: Path, *, sha256: str, encoding: str | None = None) -> Path:
    """Unpack a zip or tar archive (plain, gzip, bzip2 or xz; recognised by content) and return the folder.

    Nothing is written outside ``staging``, and the folder gets its name when it is complete; an existing folder is
    returned unchanged. Backslashes in member names separate folders, as the tools on Windows mean them. Archives in the
    archive are unpacked into folders of their names, one level deep.

    Args:
        archive: The file.
        staging: A folder of this run alone; created if missing.
        sha256: Of the archive; the unpacked folder is named after it, so that a later run finds it.
        encoding: Of a zip's file names that don't say theirs; None to find it out.

    Raises:
        InputError: It is no archive of these kinds, it is damaged or too large, or members are refused: paths that
            are absolute or lead out, links, devices, encrypted or repeated members; or the encoding of the file names
            isn't clear.
    """
    target = staging / unpacked_name(sha256, encoding)
    if target.is_dir():
        return target
    try:
        with creating_folder(target) as folder:
            said = _unpack_nested(archive, folder, encoding)
            _notes(target).write_text("\n".join(said), "utf-8")
            if hasattr(os, "sync"):
                os.sync()  # or a power cut could leave empty files in a folder whose name says that it is complete
    except OSError as error:
        where = "no space is left" if error.errno == errno.ENOSPC else f"{error.strerror or error}"
        raise InputError(f"{archive.name} can't be unpacked into {staging}: {where}") from error
    return target


def unpacked_name(sha256: str, encoding: str | None = None) -> str:
    """Return the name of the folder below ``staging`` that holds the unpacked archive of this hash."""
    return f"unpacked-{sha256[:32]}{f'-{encoding}' if encoding else ''}"


def said_of(unpacked: Path) -> list[str]:
    """Return the sentences about an unpacked archive: the encoding of its names, archives in it."""
    notes = _notes(unpacked)
    return notes.read_text("utf-8").splitlines() if notes.exists() else []


def _notes(unpacked: Path) -> Path:
    return unpacked.with_name(f"{unpacked.name}.txt")


def _unpack_nested(archive: Path, folder: Path, encoding: str | None) -> list[str]:
    """Unpack an archive and the archives in it, all of them within the limits of the first."""
    most = _limits(archive)
    outer = _unpack(archive, folder, encoding, most)
    said, inner = list(outer.said), []
    left = [most[0] - outer.size, most[1] - outer.members]
    for path in sorted(outer.files):
        suffix = next((suffix for suffix in INNER if path.lower().endswith(suffix)), None)
        packed, hidden = folder / path, any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
        target = folder / path[: -len(suffix or " ")]
        if suffix is None or hidden or target.exists() or not _is_archive(packed):
            continue
        limits = _limits(packed)
        unpacked = _unpack(packed, target, encoding, (min(limits[0], left[0]), min(limits[1], left[1])))
        left = [left[0] - unpacked.size, left[1] - unpacked.members]
        packed.unlink()
        inner.append(path)
        said += unpacked.said
    if inner:
        said.append(
            f"{count(len(inner), 'archive')} in {shortened(archive.name)} unpacked: {some(map(shortened, inner))}"
        )
    return said


def _is_archive(path: Path) -> bool:
    """Return whether a file is an archive by its content, whole or damaged, and not by its extension alone."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    return head.startswith((b"PK\x03\x04", *_COMPRESSIONS)) or head[257:262] == b"ustar"


def _limits(archive: Path) -> tuple[int, int]:
    """Return how many bytes and how many members are plausible for an archive."""
    size = archive.stat().st_size
    return (
        min(MAX_TOTAL_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * size)),
        min(MAX_MEMBERS, FREE_MEMBERS + size // BYTES_PER_MEMBER),
    )


def _unpack(archive: Path, folder: Path, encoding: str | None, most: tuple[int, int]) -> _Unpacked:
    max_bytes, max_members = most
    # Reason → the first members; names can be long, and as many as an archive has.
    refused: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    said: list[str] = []
    files: set[str] = set()
    folders = {""}
    total, number, last = 0, 0, ""
    try:
        for number, member in enumerate(_members(archive, max_bytes, max_members, encoding, said), start=1):
            last = member.name
            total += member.size
            if total > max_bytes:
                raise _Bomb(f"unpacks to more than the {max_bytes:,} bytes that are plausible for its size")
            parts = _parts(member.name)
            reason = _unsafe(member.name, parts) or member.refusal
            if reason is None:
                path = "/".join(parts)
                if not member.is_folder and path in files:
                    reason = "members that are in it more than once"
                elif not member.is_folder:
                    files.add(path)
                parent = path if member.is_folder else path.rpartition("/")[0]
                while parent not in folders:  # overall as often as there are folders to create
                    folders.add(parent)
                    parent = parent.rpartition("/")[0]
            if max(number, len(files) + len(folders)) > max_members:
                raise _Bomb(_too_many(max_members))
            # After a refusal nothing is written any more, as nothing will be used.
            if reason is None and not refused and parts:
                reason = _write(member, folder.joinpath(*parts))
            if reason is not None:
                counts[reason] += 1
                if counts[reason] <= NAMED:
                    refused[reason].append(shortened(member.name))
    except _Bomb as bomb:
        where = f", as of its member {shortened(last)}" if last else ""
        raise InputError(
            f"{archive.name} {bomb}{where}: a decompression bomb?",
            "if the archive is right, unpack it by hand and give the folder with --source",
        ) from bomb
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        after = f" after its member {shortened(last)}" if last else ""
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive.name} is damaged{after}: {what}", "download or create it again") from error
    if refused:
        hint = "create the archive without them, or unpack it by hand and give the folder with --source"
        whats = (f"{archive.name} is refused, it holds {why}: {some(n, counts[why])}" for why, n in refused.items())
        raise InputError(problems=[Problem(what, hint) for what in whats])
    if not files:
        raise InputError(f"{archive.name} holds no file")
    return _Unpacked(total, max(number, len(files) + len(folders)), files, said)


def _members(archive: Path, limit: int, most: int, encoding: str | None, said: list[str]) -> Iterator[_Member]:
    with archive.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_members(file, most, archive.name, encoding, said)
            return
        for magic, decompress in _COMPRESSIONS.items():
            if head.startswith(magic):
                with decompress(file) as stream:
                    yield from _tar_members(stream, limit)
                return
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            is_what = next((what for magic, what in _NOT_OURS.items() if head.startswith(magic)), None)
            is_what = is_what or ("a web page" if looks_like_html(head) else "no archive" if head else "empty")
            raise InputError(
                f"{archive.name} is {is_what}; zip and tar (also .gz, .bz2, .xz) are read",
                "unpack it by hand and give the folder with --source",
            ) from error
        yield from _tar_members(file, limit)


def _zip_members(
    file: BinaryIO, most: int, archive_name: str, encoding: str | None, said: list[str]
) -> Iterator[_Member]:
    with zipfile.ZipFile(_Guarded(file, sys.maxsize)) as archive:
        if len(archive.infolist()) > most:  # before the first of them is written
            raise _Bomb(_too_many(most))
        names, used = decoded_names(archive.infolist(), archive_name, encoding)
        if used:
            first = next(name for name in names if not name.isascii())
            said.append(f"file names of {shortened(archive_name)} read as {used}, for example {shortened(first)}")
        for info, decoded in zip(archive.infolist(), names, strict=True):
            # ZipInfo.filename is cut at a NUL and has its separators changed: check the name in the archive.
            name = decoded.replace("\\", "/")
            kind = stat.S_IFMT(info.external_attr >> 16)  # the mode, where a Unix tool packed it
            refusal = None
            if kind == stat.S_IFLNK:
                refusal = "links"
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                refusal = "devices or the like"
            elif info.flag_bits & 0x2041:  # encrypted; strongly; its directory too
                refusal = "encrypted members"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks bzip2 and LZMA in pieces of any size: a few bytes could take all of the memory
                refusal = "members compressed otherwise than by deflate"
            yield _Member(name, info.file_size, name.endswith("/"), refusal, partial(archive.open, info))


def _tar_members(stream: BinaryIO, limit: int) -> Iterator[_Member]:
    guarded = _Guarded(stream, 2 * limit + MAX_HEADER_BYTES)  # headers and padding come on top
    with tarfile.open(  # type: ignore[call-overload]  # typeshed wants a write() even for reading
        fileobj=guarded, mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        empty = archive.firstmember is None  # next() of Python 3.10 fails then
        while not empty and (info := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps a record of each otherwise
            refusal = None
            if info.issym() or info.islnk():
                refusal = "links"
            elif info.issparse():
                refusal = "sparse files"
            elif not (info.isreg() or info.isdir()):
                refusal = "devices or the like"
            elif info.size < 0:
                refusal = "members of negative size"
            name = info.name.replace("\\", "/")
            size = info.size if info.isreg() and info.size > 0 else 0
            yield _Member(name, size, info.isdir(), refusal, partial(archive.extractfile, info))
        # tarfile takes a header that it can't read for the end; the true end is a block of zeros.
        guarded.seek(archive.offset)
        if guarded.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it breaks off, or a header is wrong")
        while guarded.read(1 << 20):  # to the end, where the compressed formats have their checksum
            pass


class _Guarded:
    """A readable file that limits the size of one read and its total size, whatever a header asks for."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self.tell = file.tell

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            size = MAX_HEADER_BYTES + 1
        data = self._file.read(size)
        if len(data) > MAX_HEADER_BYTES:
            raise _Bomb(f"has a header of more than {MAX_HEADER_BYTES:,} bytes")
        if self._file.tell() > self._limit:
            raise _Bomb(f"goes on for more than {self._limit:,} bytes")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if offset > self._limit:
            raise _Bomb(f"goes on for more than {self._limit:,} bytes")
        if whence == os.SEEK_SET and offset < 0:
            raise ValueError("a header points before the beginning")
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the caller that opened the file closes it."""


def _too_many(most: int) -> str:
    return f"holds more than the {most:,} files and folders that are plausible for its size"


def _parts(name: str) -> tuple[str, ...]:
    if len(name) > MAX_PATH_CHARS:  # refused for that; a header of MAX_HEADER_BYTES would make millions of parts
        return ()
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _unsafe(name: str, parts: tuple[str, ...]) -> str | None:
    """Return what is wrong with a member's name, None if it stays inside the folder that it is unpacked into."""
    if name.startswith("/") or (len(name) > 1 and name[1] == ":" and name[0].isalpha()):
        return "absolute paths"
    if ".." in parts:
        return "paths that lead out of it (..)"
    if "\0" in name:
        return "names with a NUL"
    if len(name) > MAX_PATH_CHARS or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts):
        return "names that are too long"
    if os.name == "nt" and any(set(part) & set('<>:"|?*') or part != part.rstrip(" .") for part in parts):
        return "names that Windows allows no file to have"
    return None


def _write(member: _Member, path: Path) -> str | None:
    """Write a member; return the reason if it can't be written because of the archive."""
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never overwrite: on a file system that folds case or Unicode forms, two names can be one file.
        file = path.open("xb")
    except (FileExistsError, NotADirectoryError):
        return "members that are in it more than once (as file and folder, or in names that count as the same here)"
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO, errno.EROFS):
            raise
        return "names that this file system refuses"
    with file, contextlib.ExitStack() as opened:
        stream = opened.enter_context(member.open() or io.BytesIO())
        left = member.size
        while left and (chunk := stream.read(min(left, 1 << 20))):
            file.write(chunk)
            left -= len(chunk)
        if left:
            raise EOFError(f"{left:,} bytes of it are missing")
        if stream.read(1):  # with this read zipfile compares the checksum
            raise zipfile.BadZipFile("it is larger than it says")
    return None

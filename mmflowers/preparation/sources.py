"""Where photos come from: the public flower photos, a folder, an archive, an address; split already or not."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from mmflowers.preparation.layouts import Layout, read_layout
from mmflowers.preparation.lists import assign_splits, find_lists
from mmflowers.preparation.records import Source
from mmflowers.utils.errors import InputError, Problem


class Published(NamedTuple):
    """An archive that anyone can fetch, known to the byte."""

    urls: tuple[str, ...]
    size: int | None
    sha256: str


# TensorFlow's flower photos: 3,670 photos in daisy, dandelion, roses, sunflowers, tulips, and a LICENSE.txt (CC BY).
# Plain http is no loss: the hash decides.
FLOWER_PHOTOS = Published(
    (
        "https://download.tensorflow.org/example_images/flower_photos.tgz",
        "http://download.tensorflow.org/example_images/flower_photos.tgz",
    ),
    228_813_984,
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)
WAYS_ON = "take photos of your own with --source FOLDER_OR_ARCHIVE, or let flowers be drawn with --rendered 200"


def open_source(
    source: str | Path | None,
    *,
    staging: Path,
    sha256: str | None = None,
    split: Literal["keep", "redo"] | None = None,
    split_lists: Path | None = None,
    cache: Path | None = None,
) -> Source:
    """Make the photos of a source available in a folder and say which files there are, in which class and split.

    Nothing in a given folder is changed. Downloads go to ``cache``, archives are unpacked below ``staging``; both are
    found again by a later run.

    Args:
        source: A folder, an archive (zip, tar, tar.gz, tar.bz2, tar.xz), an http(s) address of an archive, or None
            for TensorFlow's public flower photos.
        staging: A folder of this run alone, made if an archive needs it. The source lies there until it is removed.
        sha256: Of the archive: needed for an address, checked where given; 64 hex digits.
        split: Whether a split that the source brings is taken over or forgotten.
        split_lists: A folder with train.txt, val.txt and maybe test.txt and classes.txt, for a source without them;
            goes before a split that the source brings.
        cache: Folder for downloads; None for the user's cache folder of this operating system.

    Raises:
        InputError: With every problem found: no such source, damaged or dangerous archives, no network, lists that
            contradict the photos, no photo at all; and when the source is split already and ``split`` doesn't say
            what to do about it.
    """
    wanted = _checked_sha256(sha256)
    if split == "redo" and split_lists is not None:
        raise InputError("--split redo and --split-lists contradict each other", "give one of them")
    folder, description = _on_disk(source, staging, wanted, cache)
    layout = read_layout(folder)
    if all(file.refusal for file in layout.files):
        raise InputError(
            f"{source or description['name']} has no photos in class folders{_why_none(layout)}", _ONE_EACH
        )
    description["split"] = None

    if split_lists is not None:
        lists = find_lists(split_lists)
        if lists is None:
            has = "no such folder" if not split_lists.is_dir() else "no train.txt and val.txt in it"
            raise InputError(f"--split-lists {split_lists}: {has}", "give the folder that holds both lists")
        description["split"] = "given lists"
        description["split_sha256"] = assign_splits(layout.files, lists)
    elif not (layout.split_folders or layout.lists):
        if split == "keep":
            hint = "leave --split away, or name the lists with --split-lists DIR"
            raise InputError(f"--split keep: no split is recognised in {source or description['name']}", hint)
    elif split is None:
        raise InputError(
            f"{source or description['name']} is split already: {_brings(layout)}",
            "--split keep takes that split over, --split redo draws a new one",
        )
    elif split == "redo":
        description["split"] = "redone"
        for file in layout.files:
            file.split = None
    elif layout.lists:
        description["split"] = "its own lists"
        description["split_sha256"] = assign_splits(
            layout.files, layout.lists, against_folders=bool(layout.split_folders)
        )
    else:
        description["split"] = "its own folders"
        _check_split_folders(layout.split_folders)
    has_split = split_lists is not None or (split == "keep")
    return Source(layout.root, layout.files, description, has_split)


_ONE_EACH = "one folder for each class is needed: daisy/x.jpg, tulip/y.jpg …"


def _on_disk(source: str | Path | None, staging: Path, sha256: str | None, cache: Path | None) -> tuple[Path, dict]:
    """Return the folder of the source, downloaded and unpacked where need be, and the beginning of its description."""
    text = "" if source is None else os.fspath(source)
    path = Path(text).expanduser()
    if source is not None and path.is_dir():
        if sha256 is not None:
            raise InputError(f"--sha256 belongs to an archive, and {text} is a folder", "leave --sha256 away")
        return path.resolve(), _description("folder", path.resolve().name)

    from mmflowers.preparation.archives import unpack  # late: a folder needs no HTTP, TLS and decompressors
    from mmflowers.utils.downloads import file_name
    from mmflowers.utils.files import file_sha256

    if source is None:
        if sha256 not in (None, FLOWER_PHOTOS.sha256):
            raise InputError("--sha256 is given without --source", "--source names the archive that it belongs to")
        archive = _fetched(FLOWER_PHOTOS, staging, cache, WAYS_ON)
        return archive, _description("flower_photos", file_name(FLOWER_PHOTOS.urls[0]), FLOWER_PHOTOS.sha256)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _from_address(text, staging, sha256, cache)
    if not path.exists():
        raise InputError(f"{text} doesn't exist", "--source takes a folder, an archive or an address")
    if not path.is_file():
        raise InputError(f"{text} is neither a folder nor a file", "--source takes a folder, an archive or an address")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise InputError(f"{text} can't be read ({error.strerror})") from error
    if sha256 not in (None, found):
        raise InputError(f"{text} has the sha256 {found}, not {sha256}", "download it again, or correct --sha256")
    return unpack(path, staging, sha256=found), _description("archive", path.name, found)


def _from_address(url: str, staging: Path, sha256: str | None, cache: Path | None) -> tuple[Path, dict]:
    from mmflowers.utils.downloads import file_name

    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets or a port that make no sense
        usable = False
    if not usable:
        hint = "give an http(s) address, or a folder or archive on this disk as a plain path"
        raise InputError(f"{url} is no address that can be downloaded", hint)
    if sha256 is None:
        hint = "add --sha256 with the 64 hex digits that its publisher gives, or download it and give the file"
        raise InputError(f"nothing says what {url} should hold", hint)
    hint = "check address and --sha256, or download it by other means and give the file with --source"
    folder = _fetched(Published((url,), None, sha256), staging, cache, hint)
    return folder, _description("url", file_name(url), sha256)


def _fetched(archive: Published, staging: Path, cache: Path | None, hint: str) -> Path:
    from mmflowers.preparation.archives import unpack, unpacked_name
    from mmflowers.utils.downloads import fetch
    from mmflowers.utils.files import cache_root

    unpacked = staging / unpacked_name(archive.sha256)
    if unpacked.is_dir():
        return unpacked
    path = fetch(archive.urls, sha256=archive.sha256, size=archive.size, folder=cache or cache_root(), hint=hint)
    print(f"unpacking {path.name}", file=sys.stderr, flush=True)
    return unpack(path, staging, sha256=archive.sha256)


def _description(kind: str, name: str, sha256: str | None = None) -> dict:
    printable = os.fsencode(name).decode("utf-8", "replace")
    return {"kind": kind, "name": printable, **({"sha256": sha256} if sha256 else {})}


def _checked_sha256(text: str | None) -> str | None:
    if text is None:
        return None
    digits = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise InputError(f"--sha256 {text} is no sha256", "it has 64 hex digits")
    return digits


def _brings(layout: Layout) -> str:
    found = []
    if layout.split_folders:
        counts = Counter(file.path.split("/", 1)[0] for file in layout.files if not file.refusal)
        found.append("folders " + ", ".join(f"{name}/ ({counts[name]:,} files)" for name in layout.split_folders))
    if layout.lists:
        found.append("lists " + ", ".join(path.name for path in layout.lists.files.values()))
    return " and ".join(found)


def _check_split_folders(split_folders: dict[str, str]) -> None:
    problems = []
    for split in ("train", "val"):
        named = [f"{name}/" for name, meant in split_folders.items() if meant == split]
        if len(named) > 1:
            problems.append(
                Problem(f"{' and '.join(named)} both mean {split}", "take one of them away, or --split redo")
            )
        elif not named:
            problems.append(Problem(f"--split keep: there is no {split}/ beside the others", "--split redo draws one"))
    if problems:
        raise InputError(problems=problems)


def _why_none(layout: Layout) -> str:
    """Say in brackets what stands against the files, most frequent reason first."""
    reasons = Counter(file.refusal for file in layout.files).most_common(3)
    if not reasons:
        return " (it is empty)"
    return (
        " (" + "; ".join(f"{count:,} {'file is' if count == 1 else 'files are'} {why}" for why, count in reasons) + ")"
    )

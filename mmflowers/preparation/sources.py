"""Open the source of the photos: the public flower photos, a folder, an archive or a URL, already split or not."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from mmflowers.preparation.labels import LabelOptions, label_photos
from mmflowers.preparation.layouts import LEADS_OUT, Kind, Layout, is_archive, read_layout, split_named, tables_in
from mmflowers.preparation.lists import Lists, assign_splits, find_lists
from mmflowers.preparation.records import Source
from mmflowers.preparation.splitting import shown
from mmflowers.utils.errors import InputError, Problem, count, raise_all, some


class Published(NamedTuple):
    """An archive that can be downloaded, identified by its hash."""

    urls: tuple[str, ...]
    size: int | None
    sha256: str


# TensorFlow's flower photos: 3,670 photos in daisy, dandelion, roses, sunflowers, tulips, and a LICENSE.txt (CC BY).
# Plain http is no loss: the hash is checked.
FLOWER_PHOTOS = Published(
    (
        "https://download.tensorflow.org/example_images/flower_photos.tgz",
        "http://download.tensorflow.org/example_images/flower_photos.tgz",
    ),
    228_813_984,
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)
OTHER_SOURCES = "use your own photos with --source FOLDER_OR_ARCHIVE, or render flowers with --rendered 200"
VAL_DRAWN = ", val drawn out of train"  # ends the description of such a split
KINDS = "--source takes a folder, an archive or a URL"


def open_source(
    source: str | Path | None,
    *,
    staging: Path,
    sha256: str | None = None,
    split: Literal["keep", "redo"] | None = None,
    split_lists: Path | None = None,
    layout: Kind | None = None,
    follow_links: bool = False,
    zip_encoding: str | None = None,
    labels: LabelOptions | None = None,
    cache: Path | None = None,
) -> Source:
    """Make the photos of a source available in a folder, and find out their classes and splits.

    Nothing in a given folder is changed. Downloads go to ``cache``, archives are unpacked below ``staging``; a later
    run finds both again.

    Args:
        source: A folder, an archive (zip, tar, tar.gz, tar.bz2, tar.xz), an http(s) URL of an archive, or None for
            TensorFlow's public flower photos.
        staging: A folder of this run alone, created if an archive needs it. The source lies there until it is removed.
        sha256: Of the archive: required for a URL, checked if given; 64 hex digits.
        split: Whether a split that the source already has is kept or ignored.
        split_lists: A folder with train.txt, val.txt and maybe test.txt and classes.txt; takes precedence over a split
            that the source already has.
        layout: Whether folders with the names of splits are classes or splits; see ``read_layout``.
        follow_links: Whether links may lead out of the source.
        zip_encoding: Of the file names in a zip that don't say theirs; None to find it out.
        labels: The table that labels the photos, and its columns; see ``labels.label_photos``.
        cache: Folder for downloads; None for the operating system's cache folder.

    Raises:
        InputError: With every problem found: no such source, damaged or dangerous archives, no network, lists that
            contradict the photos, no photo at all, an ambiguous layout; and if the source is split already and
            ``split`` is None.
    """
    wanted = _checked_sha256(sha256)
    if split == "redo" and split_lists is not None:
        raise InputError("--split redo and --split-lists contradict each other", "give one of them")
    folder, description = _on_disk(source, staging, wanted, cache, zip_encoding)
    name = source or description["name"]
    labels = labels or LabelOptions()
    if layout is not None and labels.names_a_table:
        raise InputError("--layout says that folders are classes, and --labels that a table does", "give one of them")
    labelled = None if layout else label_photos(folder, labels, staging=staging, follow_links=follow_links)
    if labelled:
        found = Layout(labelled.root, labelled.files)
        description["labels"] = labelled.description
    else:
        found = read_layout(folder, kind=layout, follow_links=follow_links)
    table_split = labelled.split if labelled else ""
    if description["kind"] != "folder":
        from mmflowers.preparation.archives import said_of

        found.recognised[:0] = said_of(folder)
    if found.problem:
        raise InputError(problems=[found.problem._replace(what=f"{name}: {found.problem.what}")])
    if all(file.refusal for file in found.files):
        raise InputError(f"{name} has no photos in class folders{_reasons(found)}", _hint_without_photos(found))

    given: str | None = None
    draws_val = False
    lists = found.lists
    if split_lists is not None:
        lists = find_lists(split_lists)
        if lists is None:
            problem = "no such folder" if not split_lists.is_dir() else "no train.txt and val.txt in it"
            raise InputError(f"--split-lists {split_lists}: {problem}", "give the folder that has both lists")
        given = "given lists"
    elif not (found.split_folders or lists or table_split):
        if split == "keep":
            hint = "remove --split, or name the lists with --split-lists DIR"
            raise InputError(f"--split keep: no split is found in {name}", hint)
    elif split is None:
        splits = _splits(found, lists, bool(table_split))
        hint = "--split keep uses that split, --split redo draws a new one"
        if "val" not in splits and not lists:
            hint = "--split keep keeps test as it is and draws val out of train; --split redo pools all photos"
        elif "test" in splits:
            hint = "--split keep uses that split; --split redo pools all photos, those of test too, and draws a new one"
        raise InputError(f"{name} is split already: {table_split or _existing_split(found)}", hint)
    elif split == "redo":
        given, lists = "redone", None
        for file in found.files:
            file.split = None
    elif lists:
        given = "its own lists"
    else:
        if not table_split:
            _check_split_folders(found)
        draws_val = "val" not in _splits(found, lists, bool(table_split))
        given = ("its table" if table_split else "its own folders") + (VAL_DRAWN if draws_val else "")
    description["split"] = given
    if lists is not None:
        against_folders = split_lists is None and bool(found.split_folders)
        description["split_sha256"] = assign_splits(found.files, lists, against_folders=against_folders)
    return Source(
        found.root,
        found.files,
        description,
        has_split=split_lists is not None or split == "keep",
        draws_val=draws_val,
        recognised=_recognised(found, source, given),
        notes=labelled.notes if labelled else [],
    )


def _on_disk(
    source: str | Path | None, staging: Path, sha256: str | None, cache: Path | None, encoding: str | None
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the source, downloaded and unpacked if necessary, and its description."""
    text = "" if source is None else os.fspath(source)
    path = Path(text).expanduser()
    if source is not None and path.is_dir():
        if sha256 is not None:
            raise InputError(f"--sha256 belongs to an archive, and {text} is a folder", "remove --sha256")
        if encoding is not None:
            raise InputError(f"--zip-encoding belongs to a zip, and {text} is a folder", "remove --zip-encoding")
        return path.resolve(), _description("folder", path.resolve().name)

    from mmflowers.preparation.archives import unpack  # late: a folder needs no HTTP, TLS and decompressors
    from mmflowers.utils.downloads import file_name
    from mmflowers.utils.files import file_sha256

    if source is None:
        if sha256 not in (None, FLOWER_PHOTOS.sha256):
            raise InputError("--sha256 is given without --source", "name the archive with --source")
        kind, archive, hint = "flower_photos", FLOWER_PHOTOS, OTHER_SOURCES
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        kind, archive = "url", Published((text,), None, _checked_url(text, sha256))
        hint = "check the URL and --sha256, or download it by other means and give the file with --source"
    else:
        if not path.is_file():
            problem = "is neither a folder nor a file" if path.exists() else "doesn't exist"
            raise InputError(f"{text} {problem}", KINDS)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise InputError(f"{text} can't be read ({error.strerror})") from error
        if sha256 not in (None, found):
            raise InputError(f"{text} has the sha256 {found}, not {sha256}", "download it again, or correct --sha256")
        return unpack(path, staging, sha256=found, encoding=encoding), _description("archive", path.name, found)
    return _fetch(archive, staging, cache, hint, encoding), _description(
        kind, file_name(archive.urls[0]), archive.sha256
    )


def _checked_url(url: str, sha256: str | None) -> str:
    """Return the sha256 of what a URL should hold."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # invalid brackets or port
        usable = False
    if not usable:
        hint = "give an http(s) URL, or the path of a folder or archive on this disk"
        raise InputError(f"{url} is not a URL that can be downloaded", hint)
    if sha256 is None:
        hint = "add --sha256 with the 64 hex digits that its publisher gives, or download it and give the file"
        raise InputError(f"the download of {url} needs --sha256", hint)
    return sha256


def _fetch(archive: Published, staging: Path, cache: Path | None, hint: str, encoding: str | None) -> Path:
    from mmflowers.preparation.archives import unpack, unpacked_name
    from mmflowers.utils.downloads import fetch
    from mmflowers.utils.files import cache_root

    unpacked = staging / unpacked_name(archive.sha256, encoding)
    if unpacked.is_dir():
        return unpacked
    path = fetch(archive.urls, sha256=archive.sha256, size=archive.size, folder=cache or cache_root(), hint=hint)
    print(f"unpacking {path.name}", file=sys.stderr, flush=True)
    return unpack(path, staging, sha256=archive.sha256, encoding=encoding)


def _description(kind: str, name: str, sha256: str | None = None) -> dict[str, Any]:
    printable = os.fsencode(name).decode("utf-8", "replace")
    return {"kind": kind, "name": printable, **({"sha256": sha256} if sha256 else {})}


def _checked_sha256(text: str | None) -> str | None:
    digits = None if text is None else text.strip().lower().removeprefix("sha256:")
    if digits is not None and not re.fullmatch("[0-9a-f]{64}", digits):
        raise InputError(f"--sha256 {text} is not a sha256", "it has 64 hex digits")
    return digits


def _splits(layout: Layout, lists: Lists | None, of_table: bool) -> set[str | None]:
    """Return the splits that folders, lists or a table of the source name."""
    if of_table:
        return {file.split for file in layout.files}
    return {*layout.split_folders.values(), *(lists.files if lists else ())}


def _existing_split(layout: Layout) -> str:
    found = []
    if layout.split_folders:
        counts = Counter(
            next(part for part in file.path.split("/") if part in layout.split_folders)
            for file in layout.files
            if not file.refusal
        )
        found.append(
            "folders " + ", ".join(f"{name}/ ({count(counts[name], 'file')})" for name in layout.split_folders)
        )
    if layout.lists:
        found.append("lists " + ", ".join(path.name for path in layout.lists.files.values()))
    return " and ".join(found)


def _check_split_folders(layout: Layout) -> None:
    """Refuse two folders side by side that mean the same split."""
    tops = {file.path.split("/")[0] for file in layout.files}
    problems = []
    for split in ("train", "val"):
        meanings = split_named(layout.split_folders)
        named = [f"{name}/" for name, meaning in meanings.items() if meaning == split and name in tops]
        if len(named) > 1:
            problems.append(
                Problem(f"{' and '.join(named)} both mean {split}", "rename one of them; --split redo pools all photos")
            )
    raise_all(problems)


def _recognised(layout: Layout, source: str | Path | None, split: str | None) -> str:
    """Return the sentences about a source that is taken, in one paragraph."""
    said = list(layout.recognised)
    for folder, number in layout.unlabelled.items():
        place = f"{folder}/ of the unpacked archive"
        if source is not None and Path(source).expanduser().is_dir():
            place = shlex.quote(shown(str(layout.root / folder)))
        said.append(
            f"{count(number)} directly in {shown(folder)}/ {'has' if number == 1 else 'have'} no label and "
            f"{'is' if number == 1 else 'are'} not used; a trained model labels them: python tools/predict.py {place}"
        )
    said.append(f"split: {split or 'drawn from all photos'}")
    return ". ".join(said)


def _hint_without_photos(layout: Layout) -> str:
    if any(file.refusal == LEADS_OUT for file in layout.files):
        return "--follow-links reads what the links point to"
    hint = "one folder for each class is needed: daisy/x.jpg, tulip/y.jpg …"
    if tables := tables_in(layout):
        hint += f"; {some(map(shown, tables))} may hold the labels: --labels FILE"
    if archives := [file.path for file in layout.files if is_archive(file.path)]:
        hint += f"; unpack {some(map(shown, archives))}, or give one with --source"
    return hint


def _reasons(layout: Layout) -> str:
    """Return in brackets why the files are refused, the most frequent reasons first."""
    reasons = Counter(file.refusal for file in layout.files).most_common(3)
    texts = (f"{count(number, 'file is', 'files are')} {reason}" for reason, number in reasons)
    return f" ({'; '.join(texts) or 'it is empty'})"

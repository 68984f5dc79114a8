"""Find out how photos lie in a folder: the class folders, what can't be a photo, and whether there is a split."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmflowers.preparation.formats import EXTENSIONS
from mmflowers.preparation.lists import CLASSES_NAME, LIST_NAMES, Lists, find_lists
from mmflowers.preparation.records import SourceFile

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

OUTSIDE = "outside every class folder"
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # in lower case
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}
_LISTS = {*LIST_NAMES, CLASSES_NAME}
_DATASET_FILES = {"dataset.json", "files.csv"}  # a root with both is a dataset folder of ours
_DATASET_EXTRAS = {*_DATASET_FILES, "data_card.md", "readme.md", "contact_sheet.jpg"}  # in lower case
_MOST_WRAPPERS = 8


@dataclass(slots=True)
class Layout:
    """The layout of a folder of photos.

    Attributes:
        root: The folder that the paths are relative to: the given one, or the only folder in it.
        files: Every file below ``root``, sorted by path, with class, refusal and (from ``split_folders``) split.
        split_folders: Folder name → split, if the root has train and val (or test) folders with class folders below;
            empty otherwise.
        lists: The split lists in the folder, None if there are none.
    """

    root: Path
    files: list[SourceFile]
    split_folders: dict[str, str] = field(default_factory=dict)
    lists: Lists | None = None


def read_layout(folder: Path) -> Layout:
    """Find out what lies where in a folder; nothing is opened but directories.

    The immediate subfolders are the classes, or those below train/ and val/ if there are such; deeper folders
    belong to the class they lie in. Links are never followed into folders.

    Raises:
        InputError: Two lists claim the same split.
    """
    root, lists = _unwrapped(folder)
    files = [SourceFile(path, None, refusal=refusal) for path, refusal in walk(root)]
    files.sort(key=lambda file: file.path)

    # The names that the top folders have as splits, from the photos that are two folders deep.
    tops = Counter(file.path.split("/", 1)[0] for file in files if file.refusal is None and file.path.count("/") >= 2)
    split_folders = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    if not ({"train", "val"} <= set(split_folders.values()) or {"train", "test"} <= set(split_folders.values())):
        split_folders = {}

    in_root = {file.path for file in files if "/" not in file.path}
    is_dataset = in_root >= _DATASET_FILES
    for file in files:
        parts = file.path.split("/")
        if split_folders and parts[0] in split_folders:
            file.split = split_folders[parts.pop(0)]
        elif split_folders and len(parts) > 1:
            file.refusal = file.refusal or f"outside {'/ and '.join(sorted(split_folders))}/"
            continue
        if lists is not None and parts[0] == "meta" and parts[-1] in _LISTS:
            file.refusal = file.refusal or "a list, not a photo"
        elif len(parts) == 1:
            file.refusal = file.refusal or _why_outside(parts[0], is_dataset)
        elif not _is_hidden(parts[0]):
            file.class_name = parts[0]
            if PurePosixPath(parts[-1]).suffix.lower() in _ARCHIVES:
                file.refusal = file.refusal or "an archive within the source, which isn't opened"
    return Layout(root, files, split_folders, lists)


def walk(root: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the POSIX path of every file below a folder, in any order, and why it can't be a photo (else None).

    A folder that can't be read is yielded like a file. Names that aren't UTF-8 have surrogate escapes.
    """
    real_root = os.path.realpath(root)
    folders: list[tuple[str, str | None]] = [("", None)]
    while folders:
        prefix, inherited = folders.pop()
        try:
            with os.scandir(f"{root}/{prefix}") as entries:
                for entry in entries:
                    path = prefix + entry.name
                    refusal = inherited or ("hidden or a system file" if _is_hidden(entry.name) else None)
                    if entry.is_symlink() or getattr(entry, "is_junction", bool)():  # junctions: Python 3.12, Windows
                        yield path, refusal or _refused_link(entry.path, real_root)
                    elif entry.is_dir():
                        folders.append((f"{path}/", refusal))
                    else:
                        yield path, refusal or (None if entry.is_file() else _kind(entry.stat().st_mode))
        except OSError as error:
            yield prefix.rstrip("/"), f"a folder that can't be read ({error.strerror})"


def _unwrapped(folder: Path) -> tuple[Path, Lists | None]:
    """Go down while a folder has nothing but one folder of folders; return the last one, and lists on the way."""
    lists = find_lists(folder)
    for _ in range(_MOST_WRAPPERS):
        inner, photos = _look(folder)
        if lists is not None:
            inner = [name for name in inner if name != "meta"]
        if len(inner) != 1 or photos:
            break
        below, photos = _look(folder / inner[0])
        if photos or not below:
            break
        folder /= inner[0]
        lists = lists or find_lists(folder)
    return folder, lists


def _look(folder: Path) -> tuple[list[str], bool]:
    """Return the names of the visible folders in a folder, and whether photos lie directly in it."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError:
        return [], False
    inner = [entry.name for entry in visible if entry.is_dir(follow_symlinks=False)]
    return inner, any(PurePosixPath(entry.name).suffix.lower() in EXTENSIONS for entry in visible)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES or name.lower() in _SYSTEM_FOLDERS


def _refused_link(path: str, real_root: str) -> str | None:
    try:
        target = os.path.realpath(path, strict=True)
        mode = os.stat(target).st_mode  # noqa: PTH116 - a string here, for surrogate escapes and speed
    except OSError as error:
        return "a link that goes in a circle" if error.errno == errno.ELOOP else "a broken link"
    if not Path(target).is_relative_to(real_root):
        return "a link that leads out of the source"
    if stat.S_ISDIR(mode):
        return "a link to a folder of the source"
    return None if stat.S_ISREG(mode) else _kind(mode)


def _kind(mode: int) -> str:
    kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    return f"a {kind}, not a file"


def _why_outside(name: str, is_dataset: bool) -> str:
    if name in _LISTS:
        return "a list, not a photo"
    if is_dataset and name.lower() in _DATASET_EXTRAS:
        return "part of a dataset folder, not a photo"
    return OUTSIDE

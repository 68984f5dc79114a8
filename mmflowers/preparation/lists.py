"""Read lists of the photos of train, val and test in all common forms, and compare them with the photos."""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mmflowers.preparation.records import SPLITS, SourceFile
from mmflowers.utils.errors import NAMED, InputError, Problem, count, failing, raise_all, shortened, some

LIST_NAMES = {
    "train.txt": "train",
    "val.txt": "val",
    "valid.txt": "val",
    "validation.txt": "val",
    "test.txt": "test",
}
CLASSES_NAME = "classes.txt"
NOT_LISTED = "not in the given lists"

_BETWEEN = " \t,;"  # what may stand between a path and its label
_FILE_NAME = re.compile(r".+\.[A-Za-z0-9]{1,5}")


class Line(NamedTuple):
    """A line of a list; ``label`` is None if the line has none."""

    path: str
    label: int | None


class Lists(NamedTuple):
    """The lists of one folder: ``files`` by split ("train", "val", "test"), and ``classes`` if it exists."""

    files: dict[str, Path]
    classes: Path | None


def find_lists(folder: Path) -> Lists | None:
    """Return the lists that lie in a folder or its ``meta/``; None unless there is train.txt and one more.

    Raises:
        InputError: Two lists claim the same split (val.txt and valid.txt).
    """
    for place in (folder, folder / "meta"):
        found: dict[str, Path] = {}
        twice = []
        for name, split in LIST_NAMES.items():
            path = place / name
            if path.is_file():
                if split in found:
                    twice.append(Problem(f"{found[split]} and {path} are both lists of {split}", "remove one of them"))
                found[split] = path
        if "train" in found and len(found) > 1:
            if twice:
                raise InputError(problems=twice)
            classes = place / CLASSES_NAME
            return Lists(found, classes if classes.is_file() else None)
    return None


def parse_line(text: str) -> Line | None:
    """Read ``path label`` or ``path``; return None if the line is neither.

    Blanks, tabs, a comma or a semicolon separate path and label; the label is the last field, so a path may have
    blanks. Quotes around the path are removed.
    """
    text = text.strip()
    before = text.rstrip("0123456789")
    digits = text[len(before) :]
    if 0 < len(digits) < 10 and before and before[-1] in _BETWEEN:
        path, label = _unquoted(before.rstrip(_BETWEEN)), int(digits)
    else:
        path, label = _unquoted(text), None
        if not _FILE_NAME.fullmatch(path.replace("\\", "/").rpartition("/")[2]):
            return None
    return None if not path or "\0" in path else Line(path, label)


def assign_splits(files: Iterable[SourceFile], lists: Lists, *, against_folders: bool = False) -> str:
    """Set ``split`` of each file as the lists say, and refuse the files that they don't name.

    A line is looked up as it is, below the folder of its split (``daisy/x.jpg`` in train.txt for
    ``train/daisy/x.jpg``), and without its leading folders as long as class folder and name are left.

    Args:
        files: Changed in place.
        lists: As ``find_lists`` returns them.
        against_folders: The files carry the split of the folder they lie in, and the lists must agree with it.

    Returns:
        The sha256, 64 hex digits, of the splits: two sets of lists that mean the same have the same.

    Raises:
        InputError: With every problem of every list.
    """
    by_path = {file.path: file for file in files}
    locate = _locator(by_path)
    problems: list[Problem] = []
    if "val" not in lists.files:
        problems.append(Problem(f"{lists.files['train'].parent} has no val.txt", "name the list of val photos val.txt"))

    given: dict[str, tuple[str, str]] = {}  # path → split, "train.txt:7"
    labels: dict[tuple[int, str], list[str]] = defaultdict(list)  # label and class folder → where
    unlabelled, repeated, spanning, moved = (list[str]() for _ in range(4))
    for split, path in lists.files.items():
        malformed, missing, lines = [], [], _lines(path)
        for number, text in lines:
            where = f"{path.name}:{number}"
            file = by_path.get(text.strip())  # a name may end like a label, or have no extension
            line = Line(text.strip(), None) if file else parse_line(text)
            if line is None:
                malformed.append(f"{where} {shortened(text)}")
                continue
            file = file or locate(line.path, split)
            if file is None:
                missing.append(f"{shortened(line.path)} ({where})")
                continue
            if file.path in given:
                before, there = given[file.path]
                (repeated if before == split else spanning).append(f"{shortened(file.path)} ({there}, {where})")
                continue
            given[file.path] = (split, where)
            if file.split not in (None, split):
                moved.append(f"{shortened(file.path)} ({where})")
            if line.label is None:
                unlabelled.append(where)
            elif file.class_name is not None:
                labels[line.label, file.class_name].append(where)
        if not lines:
            problems.append(Problem(f"{path} is empty"))
        for what in malformed[:NAMED]:
            problems.append(Problem(f"{what}: neither 'path label' nor a path", "write lines like: daisy/x.jpg 0"))
        if more := malformed[NAMED:]:
            problems.append(Problem(f"{path.name}: {count(len(more), 'more line is', 'more lines are')} neither"))
        if missing:
            what = f"{path.name}: {len(missing):,} of {len(lines):,} lines name no file of the source: {some(missing)}"
            problems.append(Problem(what, "paths are relative to the folder that holds the class folders"))
    twice = f"{count(len(repeated), 'file is', 'files are')} listed twice: {some(repeated)}"
    in_both = f"{count(len(spanning), 'file is', 'files are')} in two splits: {some(spanning)}"
    files_lie = count(len(moved), "file lies", "files lie")
    elsewhere = f"{files_lie} in the folder of another split than listed: {some(moved)}"
    without = f"{count(len(unlabelled), 'line has', 'lines have')} no label while others have one: {some(unlabelled)}"
    problems += failing(
        [
            (repeated, twice, "list each once"),
            (spanning, in_both, "list each once"),
            (moved and against_folders, elsewhere, "correct the lists; --split redo pools all photos"),
            (unlabelled and labels, without, "give every line a label, or none"),
        ]
    )
    problems += _label_problems(labels, lists.classes)
    raise_all(problems)

    for name, file in by_path.items():
        file.split = given[name][0] if name in given else None
        if file.split is None and file.refusal is None:
            file.refusal = NOT_LISTED
    text = "".join(f"{given[name][0]} {name}\n" for name in sorted(given))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _locator(by_path: Mapping[str, SourceFile]) -> Callable[[str, str], SourceFile | None]:
    composed: dict[str, SourceFile] = {}  # macOS returns decomposed letters; filled when first needed

    def look_up(path: str) -> SourceFile | None:
        if file := by_path.get(path):
            return file
        if path.isascii():
            return None
        if not composed:
            composed.update({unicodedata.normalize("NFC", path): file for path, file in by_path.items()})
        return composed.get(unicodedata.normalize("NFC", path))

    def locate(entry: str, split: str) -> SourceFile | None:
        if file := look_up(entry):
            return file
        parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
        for first in range(max(1, len(parts) - 1)):
            tail = "/".join(parts[first:])
            for folder in ("", *_FOLDERS_OF[split]):
                if file := look_up(folder + tail):
                    return file
        return None

    return locate


_FOLDERS_OF = {"train": ("train/",), "val": ("val/", "valid/", "validation/"), "test": ("test/",)}
assert set(_FOLDERS_OF) == set(SPLITS) == set(LIST_NAMES.values())


def _label_problems(labels: Mapping[tuple[int, str], list[str]], classes: Path | None) -> list[Problem]:
    """Return where labels and class folders contradict each other, or contradict classes.txt."""
    problems = []
    if classes is not None:
        names = [text.strip() for _, text in _lines(classes)]
        if doubles := [shortened(name) for name, times in Counter(names).items() if times > 1]:
            return [Problem(f"{classes} names a class twice: {some(doubles)}", "one name per line, each once")]
        for (label, folder), places in sorted(labels.items()):
            photos = f"{count(len(places))} of {shortened(folder)}/ ({some(places)})"
            if label >= len(names):
                what = f"label {label} is given to {photos}, but {classes.name} has {len(names)} names"
                problems.append(Problem(what, "labels count from 0, in the order of classes.txt"))
            elif names[label] != folder:
                what = f"label {label} is {shortened(names[label])} in {classes.name}, but is given to {photos}"
                problems.append(Problem(what, "make classes.txt and class folders agree"))
        return problems
    by_folder, by_label = defaultdict(list), defaultdict(list)
    for (label, folder), places in sorted(labels.items()):
        by_folder[f"photos of {shortened(folder)}/ have several labels"].append(f"{label} ({_places(places)})")
        by_label[f"label {label} is given to several class folders"].append(f"{shortened(folder)}/ ({_places(places)})")
    for contradictions, hint in ((by_folder, "a folder is one class"), (by_label, "a label is one class")):
        problems += [
            Problem(f"{what}: {some(found)}", hint) for what, found in contradictions.items() if len(found) > 1
        ]
    return problems


def _places(places: list[str]) -> str:
    return f"{count(len(places))}, {places[0]}"


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that aren't blank with their numbers; bytes that aren't UTF-8 stay as surrogate escapes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's ">"
        text = data.decode("utf-16", "replace")
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    # Not splitlines(): it also breaks at characters that a file name may have.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _unquoted(path: str) -> str:
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'" else path

"""Find out how photos lie in a folder: the class folders, what can't be a photo, and whether there is a split."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmflowers.preparation.formats import EXTENSIONS as PHOTO_EXTENSIONS
from mmflowers.preparation.lists import CLASSES_NAME, LIST_NAMES, Lists, find_lists
from mmflowers.preparation.records import SourceFile
from mmflowers.preparation.splitting import shown
from mmflowers.preparation.tables import TABLE_EXTENSIONS
from mmflowers.utils.errors import NAMED, InputError, Problem, count, some

# Words that name a split in the name of a folder: train, Training, x_train, test_set, validationData …
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "训练", "训练集"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "验证", "验证集"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "测试", "测试集"), "test"),
}
CONTAINERS = {"images", "image", "imgs", "img", "photos", "pictures", "data", "dataset"}  # of photos, no class
_FILLERS = {*CONTAINERS, "set", "sets", "x", "seg", "split", "folder", "raw", "final"}  # beside the split's word
_GLUED = re.compile(r"(train|training|val|valid|validation|dev|test|testing)(sets?|data|images?|imgs?)")

OUTSIDE = "outside every class folder"
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # in lower case
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}
_LISTS = {*LIST_NAMES, CLASSES_NAME}
_DATASET_FILES = {"dataset.json", "files.csv"}  # a root with both is a dataset folder of ours
_DATASET_EXTRAS = {*_DATASET_FILES, "data_card.md", "readme.md", "contact_sheet.jpg"}  # in lower case
LEADS_OUT = "a link that leads out of the source"
Kind = Literal["classes", "splits"]


@dataclass(slots=True)
class Layout:
    """The layout of a folder of photos.

    Attributes:
        root: The folder that the paths are relative to: the given one, or the only folder with photos in it.
        files: Every file below ``root``, sorted by path, with class, refusal and (from ``split_folders``) split.
        split_folders: Folder name → split, if folders with the names of splits have class folders below, and there
            are at least two splits; or if every class folder has such folders in it. Empty otherwise.
        lists: The split lists in the folder, None if there are none.
        recognised: Sentences about what was recognised.
        problem: Why no photo to train on has a label, if folders have the names of splits.
        unlabelled: Folder below ``root`` → number of photos that lie in it without a class folder.
    """

    root: Path
    files: list[SourceFile]
    split_folders: dict[str, str] = field(default_factory=dict)
    lists: Lists | None = None
    recognised: list[str] = field(default_factory=list)
    problem: Problem | None = None
    unlabelled: dict[str, int] = field(default_factory=dict)


def read_layout(folder: Path, *, kind: Kind | None = None, follow_links: bool = False) -> Layout:
    """Find out what lies where in a folder; nothing is opened but directories.

    The immediate subfolders are the classes, or those below train/ and test/ if there are such; deeper folders belong
    to the class they lie in. A folder with the name of a split is a class only if it is called train, lies beside
    other classes and looks like them; anything else that could be both is an error that asks.

    Args:
        folder: The source.
        kind: What folders with the names of splits are, if that isn't clear: classes, or splits.
        follow_links: Whether links may lead out of the source.

    Raises:
        InputError: The layout is ambiguous, or two lists claim the same split.
    """
    found = sorted(walk(folder, follow_links=follow_links))
    photos = photo_paths(found)
    prefix = _wrapper(photos)
    root = folder / prefix if prefix else folder
    lists = next((lists for place in _down(folder, prefix) if (lists := find_lists(place))), None)
    files = [SourceFile(path[len(prefix) :], None, refusal=why) for path, why in found if path.startswith(prefix)]
    tops: dict[str, list[str]] = defaultdict(list)
    for path in photos:
        top, _, below = path[len(prefix) :].partition("/")
        if below:
            tops[top].append(below)

    layout = Layout(root, files, lists=lists)
    if prefix:
        beside = sorted({path.split("/")[0] for path, why in found if not (why or path.startswith(prefix))})
        without = f"; beside it, without photos: {some(map(shown, beside))}" if beside else ""
        layout.recognised.append(f"all photos are in {shown(prefix)}{without}")
    split_folders = {} if kind == "classes" else _split_folders(tops, kind)
    if split_folders:
        _read_splits(layout, tops, split_folders)
    else:
        _read_classes(layout, tops, {} if kind == "classes" else _inner_splits(tops))
    if archives := [file.path for file in files if "/" not in file.path and is_archive(file.path)]:
        layout.recognised.append(
            f"{some(map(shown, archives))} {'is' if len(archives) == 1 else 'are'} not opened: unpack what you need"
        )
    if out := [file.path for file in files if file.refusal == LEADS_OUT]:
        layout.recognised.append(
            f"{count(len(out), 'link leads', 'links lead')} out of the source ({some(map(shown, out))}): "
            "--follow-links reads what they point to"
        )
    return layout


def photo_paths(found: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return the paths that look like photos by their extension; if none does, all that may be photos."""
    paths = [path for path, refusal in found if refusal is None]
    return [path for path in paths if _extension(path) in PHOTO_EXTENSIONS] or paths


def is_archive(path: str) -> bool:
    """Return whether a file is an archive, by its extension."""
    return _extension(path) in _ARCHIVES


def tables_in(layout: Layout) -> list[str]:
    """Return the files beside the photos that may hold labels."""
    return [
        file.path
        for file in layout.files
        if file.refusal is None or file.path.count("/") == 0
        if _extension(file.path) in TABLE_EXTENSIONS and not file.path.lower().startswith(("readme", "license"))
    ]


def split_named(names: Iterable[str]) -> dict[str, str]:
    """Return which of the folders that lie side by side have the name of a split, and of which.

    What stands beside the split's word must be a filler (``x_train``, ``test_set``, ``Train Images``) or be the same
    in the name of another split (``flowers_train`` and ``flowers_test``), so ``steam train`` is none.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in names:
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
        words = [_GLUED.sub(r"\1", word) for word in re.findall(r"[^\W\d_]+", spaced)]
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        if len(splits) == 1:
            found[name] = splits[0], tuple(w for w in words if w not in SPLIT_WORDS and w not in _FILLERS)
    of_rest: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for split, rest in found.values():
        of_rest[rest].add(split)
    return {name: split for name, (split, rest) in found.items() if not rest or len(of_rest[rest]) > 1}


def _split_folders(tops: dict[str, list[str]], kind: Kind | None) -> dict[str, str]:
    """Return the folders that are splits; empty if all are classes.

    Raises:
        InputError: It isn't clear.
    """
    named = split_named(tops)
    others = sorted(set(tops) - set(named))
    if not named:
        if kind == "splits":
            raise InputError("--layout splits: no folder has the name of a split", "call them train, val and test")
        return {}
    if kind == "splits" or not others:
        return named
    classes = {name: _classes_below(tops[name], _split_wrapper(tops[name])) for name in named}
    shared = [name for name in named if classes[name] & set(others)]
    trained = {found for name, split in named.items() if split == "train" for found in classes[name]}
    if any(split != "train" and trained & classes[name] for name, split in named.items()):
        return named  # train/rose beside val/rose: what else lies there is no split
    only = next(iter(named)) if len(named) == 1 else ""
    if only.lower() == "train" and not shared and len(classes[only]) < 2:
        return {}  # the vehicle
    listed, has, whose = (
        _named(named),
        "has the name of a split" if only else "have the names of splits",
        _named(others),
    )
    what = f"{listed} {has}, but beside {'it' if only else 'them'} {'lies' if len(others) == 1 else 'lie'} {whose}"
    rest = "the other folders are " + ("left out" if "train" in named.values() else "the classes to train on")
    hint = f"--layout classes makes each of the {len(tops)} folders a class; --layout splits makes {listed} "
    raise InputError(what, f"{hint}{'a split' if only else 'splits'}, and {rest}")


def _inner_splits(tops: dict[str, list[str]]) -> dict[str, str]:
    """Return the folders of splits that every class folder has in it: rose/train and rose/test, daisy/train …

    Raises:
        InputError: Only some class folders have them.
    """
    inner: dict[str, dict[str, str]] = {}
    for top, paths in tops.items():
        named = split_named({path.split("/")[0] for path in paths if "/" in path})
        if "train" in named.values() and len(set(named.values())) > 1:
            inner[top] = named
    if not inner:
        return {}
    strays = [top for top, paths in tops.items() if any(path.split("/")[0] not in inner.get(top, ()) for path in paths)]
    if strays:
        what = f"{_named(inner)} {'has' if len(inner) == 1 else 'have'} folders of splits inside, but photos in "
        what += f"{_named(strays)} are in none"
        hint = "--layout classes ignores the inner folders and pools their photos; or move those photos into train/"
        raise InputError(what, hint)
    return dict(sorted((name, split) for named in inner.values() for name, split in named.items()))


def _read_classes(layout: Layout, tops: dict[str, list[str]], inner: dict[str, str]) -> None:
    """Take the folders at the top for the classes, and ``inner`` for the splits in each of them."""
    in_root = {file.path for file in layout.files if "/" not in file.path}
    for file in layout.files:
        if _is_outside(file, layout, in_root):
            continue
        parts = file.path.split("/")
        _set_class(file, parts[0])
        if len(parts) > 2 and parts[1] in inner:
            file.split = inner[parts[1]]
        elif inner:
            file.refusal = file.refusal or f"outside {_named(inner)}"
    layout.split_folders = inner
    if not tops:
        return
    what = f"{count(len(tops), 'class folder')} ({some(map(shown, sorted(tops)))})"
    if inner:
        what += f", each with {_named(inner)} inside"
    elif deep := [top for top, paths in tops.items() if any("/" in path for path in paths)]:
        folder = next(path.split("/")[0] for path in tops[deep[0]] if "/" in path)
        what += "; photos in deeper folders belong to the class at the top, for example those of "
        what += f"{shown(deep[0])}/{shown(folder)}/ to {shown(deep[0])}"
    what += _also_classes(tops)
    layout.recognised.append(what)


def _read_splits(layout: Layout, tops: dict[str, list[str]], splits: dict[str, str]) -> None:
    """Take some folders at the top for splits, and the folders in them for the classes."""
    wrapped = {name: _split_wrapper(tops[name]) for name in splits}  # x_train/x_train/rose
    classes = {name: _classes_below(tops[name], wrapped[name]) for name in splits}
    for name in splits:
        if flat := sum("/" not in path[len(wrapped[name]) :] for path in tops[name]):
            layout.unlabelled[f"{name}/{wrapped[name]}".rstrip("/")] = flat
    known = {found for name, split in splits.items() if split != "test" for found in classes[name]}
    beside = set() if "train" in splits.values() else set(tops) - set(splits)  # classes to train on
    known |= beside
    strange = {found for name in splits for found in classes[name]} - known
    trained = beside.union(*(classes[name] for name, split in splits.items() if split == "train"))
    if not trained:
        layout.problem = _without_labels(layout, splits)

    in_root = {file.path for file in layout.files if "/" not in file.path}
    for file in layout.files:
        top, *inner = file.path.split("/")
        if inner and top in splits:
            prefix = f"{top}/{wrapped[top]}"
            inner = file.path[len(prefix) :].split("/") if file.path.startswith(prefix) else []
            file.split = splits[top]
            if len(inner) < 2 or _is_hidden(inner[0]):
                file.refusal = file.refusal or OUTSIDE
            elif inner[0] in strange:
                file.refusal = file.refusal or f"in a class that only {shown(top)}/ has"
            else:
                _set_class(file, inner[0])
        elif not _is_outside(file, layout, in_root):
            if top in beside:
                file.split = "train"
                _set_class(file, top)
            else:
                file.refusal = file.refusal or f"outside {_named(splits)}"
    used = {name: split for name, split in splits.items() if classes[name] - strange}
    used |= dict.fromkeys(sorted(beside), "train")
    if set(used.values()) == {"train"} and (beside or len(used) == 1):
        used = {}  # what is left is no split
        for file in layout.files:
            file.split = None
    layout.split_folders = used
    said = ", ".join(f"{shown(name)}/{shown(wrapped[name])} is {split}" for name, split in sorted(splits.items()))
    layout.recognised.append(
        f"{said}; {count(len(trained), 'class', 'classes')} ({some(map(shown, sorted(trained)))})"
        + _also_classes(known)
    )
    if left_out := set(tops) - set(splits) - beside:
        layout.recognised.append(f"{_named(left_out)} {'is' if len(left_out) == 1 else 'are'} in no split: not used")
    if strange:
        layout.recognised.append(
            f"{_named(strange)} {'is' if len(strange) == 1 else 'are'} in test only, so no class: not used"
        )


def _also_classes(classes: Iterable[str]) -> str:
    """Return that classes have names of splits, if some have."""
    named = split_named(classes)
    return f"; {_named(named)} {'is a class' if len(named) == 1 else 'are classes'} here, not a split" if named else ""


def _without_labels(layout: Layout, splits: dict[str, str]) -> Problem:
    train = [name for name, split in splits.items() if split == "train"]
    hint = "one folder for each class is needed: train/daisy/x.jpg, train/tulip/y.jpg …"
    if train:
        what = f"the photos in {_named(train)} are in no class folders, so they have no labels"
    else:
        what = f"{_named(splits)} have the names of splits, and there is no train/"
        hint = "rename the folder to train on to train/, or make each folder a class with --layout classes"
    if tables := tables_in(layout):
        what += f"; {some(map(shown, tables))} may hold the labels"
        hint += "; --labels FILE names a table of labels"
    return Problem(what, hint)


def _named(folders: Iterable[str]) -> str:
    """Return ``train/ and test/``, or the first of many."""
    names = [f"{shown(name)}/" for name in sorted(folders)]
    return some(names) if len(names) > NAMED else " and ".join(names)


def _classes_below(paths: list[str], prefix: str) -> set[str]:
    return {path[len(prefix) :].split("/")[0] for path in paths if "/" in path[len(prefix) :]}


def _split_wrapper(paths: list[str]) -> str:
    """Return the folder in the folder of a split that holds all its photos and is no class: "x_train/", "images/"."""
    prefix = ""
    while len(inner := {path[len(prefix) :].partition("/")[0] for path in paths}) == 1:
        name = inner.pop()
        if any(f"{prefix}{name}" == path for path in paths) or not (name.lower() in CONTAINERS or split_named([name])):
            break
        prefix += f"{name}/"
    return prefix


def _is_outside(file: SourceFile, layout: Layout, in_root: set[str]) -> bool:
    """Return whether a file lies beside the class folders, and refuse it."""
    top, *inner = file.path.split("/")
    if layout.lists is not None and top == "meta" and (inner or [""])[-1] in _LISTS:
        file.refusal = file.refusal or "a list, not a photo"
    elif not inner:
        file.refusal = file.refusal or _why_outside(top, in_root >= _DATASET_FILES)
    else:
        return _is_hidden(top)
    return True


def _set_class(file: SourceFile, name: str) -> None:
    file.class_name = name
    if is_archive(file.path):
        file.refusal = file.refusal or "an archive within the source, which isn't opened"


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122  pathlib would take a third of the walk


def walk(root: Path, *, follow_links: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yield the POSIX path of every file below a folder, in any order, and why it can't be a photo (else None).

    A folder that can't be read is yielded like a file. Names that aren't UTF-8 have surrogate escapes. Links to files
    of the source are followed; with ``follow_links``, links to files and folders outside as well.
    """
    real_root = os.path.realpath(root)
    # With links followed: the real folders that are above, in which a link would go in a circle.
    folders: list[tuple[str, str | None, tuple[str, ...]]] = [("", None, (real_root,))]
    while folders:
        prefix, inherited, above = folders.pop()
        try:
            with os.scandir(f"{root}/{prefix}") as entries:
                for entry in entries:
                    path = prefix + entry.name
                    refusal = inherited or ("hidden or a system file" if _is_hidden(entry.name) else None)
                    if entry.is_symlink() or getattr(entry, "is_junction", bool)():  # junctions: Python 3.12, Windows
                        refusal = refusal or _refused_link(entry.path, real_root)
                        if refusal != LEADS_OUT or not follow_links:
                            yield path, refusal
                        elif not entry.is_dir():
                            yield path, None if entry.is_file() else _kind(entry.stat().st_mode)
                        elif any(Path(folder).is_relative_to(os.path.realpath(entry.path)) for folder in above):
                            yield path, "a link that goes in a circle"
                        else:
                            folders.append((f"{path}/", None, (*above, os.path.realpath(entry.path))))
                    elif entry.is_dir():
                        folders.append((f"{path}/", refusal, above))
                    else:
                        yield path, refusal or (None if entry.is_file() else _kind(entry.stat().st_mode))
        except OSError as error:
            yield prefix.rstrip("/"), f"a folder that can't be read ({error.strerror})"


def _wrapper(photos: list[str]) -> str:
    """Return the folder that wraps all class folders, with a slash at its end; empty if that is the source itself."""
    prefix = ""
    while photos:
        depth = len(prefix)
        tops = {path[depth:].partition("/")[0] for path in photos}
        if len(tops) != 1 or any(path.count("/", depth) < 2 for path in photos):
            break
        prefix += f"{tops.pop()}/"
    return prefix


def _down(folder: Path, prefix: str) -> Iterator[Path]:
    yield folder
    for name in prefix.split("/")[:-1]:
        folder /= name
        yield folder


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES or name.lower() in _SYSTEM_FOLDERS


def _refused_link(path: str, real_root: str) -> str | None:
    try:
        target = os.path.realpath(path, strict=True)
        mode = os.stat(target).st_mode  # noqa: PTH116 - a string here, for surrogate escapes and speed
    except OSError as error:
        return "a link that goes in a circle" if error.errno == errno.ELOOP else "a broken link"
    if not Path(target).is_relative_to(real_root):
        return LEADS_OUT
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

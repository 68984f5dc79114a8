"""Read a dataset folder as ``tools/prepare_flowers.py`` writes it, and report all its problems at once.

No torch here: the plain PyTorch exercise, the commands and the checks share this reader.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmflowers.utils.errors import InputError, Problem, count, failing, raise_all, some

PREPARE = "python tools/prepare_flowers.py writes a dataset folder"


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """A dataset folder without problems.

    Attributes:
        root: The folder.
        classes: Names in the order of their labels.
        samples: For each split the ``(path, label)`` pairs in the order of its list; paths are POSIX, relative to root.
    """

    root: Path
    classes: list[str]
    samples: dict[str, list[tuple[str, int]]]


def read_dataset_folder(
    data_root: str | Path, splits: Sequence[str] = ("train", "val"), *, files_may_be_gone: bool = False
) -> DatasetFolder:
    """Read ``classes.txt`` and the lists of ``splits``, and check them against each other and the files.

    Args:
        data_root: The folder.
        splits: Names of the lists.
        files_may_be_gone: Whether photos that don't exist any more are accepted; they are listed all the same.

    Raises:
        InputError: With every problem found: no folder, no list, malformed lines, labels outside of the classes or
            against the class folder, missing files, absolute paths, a photo listed twice or in two splits.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise InputError(f"no dataset folder at {root}", PREPARE)
    missing = [name for name in ("classes.txt", *(f"{split}.txt" for split in splits)) if not (root / name).is_file()]
    if missing:
        raise InputError(f"{root} has no {', '.join(missing)}", PREPARE)

    problems: list[Problem] = []
    classes = _read_classes(root, problems)
    samples = {split: _read_list(root, split, classes, problems, files_may_be_gone) for split in splits}
    _check_overlap(root, samples, problems)
    raise_all(problems)
    return DatasetFolder(root, classes, samples)


def _lines(path: Path, problems: list[Problem]) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        problems.append(Problem(f"{path} can't be read: {error}", "lists are UTF-8 text"))
        return []


def _read_classes(root: Path, problems: list[Problem]) -> list[str]:
    path = root / "classes.txt"
    classes = [line.strip() for line in _lines(path, problems)]
    while classes and not classes[-1]:
        classes.pop()
    blank = [number for number, name in enumerate(classes, 1) if not name]
    twice = [name for name, times in Counter(filter(None, classes)).items() if times > 1]
    problems += failing(
        [
            (not classes, f"{path} names no class", "one name per line, line number = label, from 0"),
            (len(classes) == 1, f"{path} names only one class, {some(classes)}", "a classifier needs at least two"),
            (blank, f"{path} has empty lines: {some(blank)}", "one name per line, line number = label"),
            (twice, f"{path} names a class twice: {some(twice)}", "each class once"),
        ]
    )
    return classes


def _read_list(
    root: Path, split: str, classes: list[str], problems: list[Problem], files_may_be_gone: bool
) -> list[tuple[str, int]]:
    path = root / f"{split}.txt"
    samples: list[tuple[str, int]] = []
    malformed, absolute, labels, gone, mislabelled = (list[str]() for _ in range(5))
    for number, line in enumerate(_lines(path, problems), 1):
        if not line.strip():
            continue
        name, _, digits = line.strip().rpartition(" ")
        # Python reads no number of thousands of digits, and no file system a name with a NUL.
        if not name or not digits.isdecimal() or len(digits) > 9 or "\0" in name:
            malformed.append(f"line {number}")
        elif name.startswith("/") or "\\" in name or ".." in name.split("/") or name[1:3] == ":/":
            absolute.append(f"line {number}: {name}")
        elif int(digits) >= len(classes):
            labels.append(f"line {number}: {digits}")
        else:
            # val/x, val//x and val/./x are one photo. Most names have neither, and pathlib takes a while for thousands.
            plain = PurePosixPath(name).as_posix() if "//" in name or "./" in name else name
            samples.append((plain, int(digits)))
    on_disk = _files_below({root / name.rpartition("/")[0] for name, _ in samples})
    start = os.fspath(root / "_")[:-1]
    for name, label in samples:
        folder = name.rpartition("/")[0].rpartition("/")[2]
        if start + name not in on_disk and not files_may_be_gone:
            gone.append(name)
        elif folder in classes and folder != classes[label]:
            mislabelled.append(f"{name} has label {label} ({classes[label]})")

    form = f"a line is `{split}/daisy/x.jpg 0`: path relative to the folder, with forward slashes, and label"
    for found, noun, what, hint in (
        (malformed, "malformed line", "", form),
        (absolute, "path", " absolute, outside of the folder or with backslashes", form),
        (labels, "label", f" outside of the {len(classes)} classes", "labels count from 0 as classes.txt does"),
        (gone, "missing file", "", PREPARE),
        (mislabelled, "label", " against the class folder", "is classes.txt in the order the labels were made with?"),
    ):
        if found:
            problems.append(Problem(f"{path}: {count(len(found), noun)}{what} ({some(found)})", hint))
    if not samples and not (malformed or absolute or labels):
        problems.append(Problem(f"{path} lists no photo", PREPARE))
    missing = sorted(set(range(len(classes))) - {label for _, label in samples})
    if samples and missing and not problems:
        names = [classes[label] for label in missing]
        problems.append(Problem(f"{path} has no photo of {some(names)}", "every class needs photos in every split"))
    return samples


def _files_below(folders: set[Path]) -> set[str]:
    """Every entry of ``folders`` as a path; a listing a folder is far cheaper than a stat a photo."""
    found: set[str] = set()
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                found.update(entry.path for entry in entries)
        except OSError:
            continue
    return found


def _check_overlap(root: Path, samples: dict[str, list[tuple[str, int]]], problems: list[Problem]) -> None:
    """A photo twice in one list counts twice; the same photo under the same name in two splits is a leak.

    Copies under other names are the preparation's business, which hashes every photo anyway.
    """
    seen: dict[str, tuple[str, str]] = {}
    for split, pairs in samples.items():
        counts = Counter(name for name, _ in pairs)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            problems.append(Problem(f"{root / f'{split}.txt'} lists {some(twice)} twice", "every photo once"))
        shared = []
        for name in counts:
            # train/daisy/x.jpg and val/daisy/x.jpg: a splitter that ran twice leaves such pairs. Cameras number photos
            # alike, so the bytes decide.
            top, _, rest = name.partition("/")
            identity = rest if top in samples else name
            first_split, first = seen.setdefault(identity, (split, name))
            if first_split != split and (first == name or _same_bytes(root / first, root / name)):
                shared.append(f"{identity} in {first_split} and {split}")
        if shared:
            what = f"{root}: {count(len(shared))} {'is' if len(shared) == 1 else 'are'} in two splits ({some(shared)})"
            problems.append(Problem(what, "a leak: prepare the dataset folder again"))


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # not there: said already
        return False

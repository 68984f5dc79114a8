"""Choose the split and the name of every photo in the dataset folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from fractions import Fraction
from math import ceil

from mmflowers.preparation.formats import is_remedied
from mmflowers.preparation.inspection import EXTENSIONS
from mmflowers.preparation.records import Record
from mmflowers.utils.errors import Problem, count, raise_all

IMAGE_EXTENSIONS = {*(name for names in EXTENSIONS.values() for name in names), ".gif", ".tif", ".tiff", ".mpo"}
MAX_NAME_BYTES = 200  # of UTF-8; file systems take 255, and a suffix must still fit


def sizes(number: int, *, val: Fraction, test: Fraction = Fraction(0)) -> dict[str, int]:
    """Return how many of ``number`` photos go into each split: ``int((1 - val - test) * number)`` into train, exactly.

    Fractions, because ``int((1 - 0.2 - 0.1) * 10)`` is 6 in floating point.
    """
    train, tested = int((1 - val - test) * number), int(test * number)
    return {"train": train, "val": number - train - tested, "test": tested}


def split(records: Iterable[Record], *, val: Fraction, test: Fraction = Fraction(0), seed: int = 0) -> list[str]:
    """Set ``split`` of every record that isn't dropped, stratified by class; a duplicate group never spans two.

    The draw depends on the seed, the class names and the contents of the files alone: not on file names, their order
    or the number of workers. Groups are placed first, single photos fill up the exact sizes. A group is drawn once,
    from the contents of all its photos, so it lands in a split as often as a single photo does, whatever its size.

    Returns:
        Lines about classes whose sizes couldn't be met because a group of similar photos is too large to fit.

    Raises:
        InputError: naming every class that has too few photos for these ratios.
    """
    records = list(records)
    photos = [record for record in records if record.verdict != "dropped"]
    counts = Counter(record.photo_class for record in photos)
    shares = {"train": 1 - val - test, "val": val, **({"test": test} if test else {})}
    planned = {name: sizes(number, val=val, test=test) for name, number in counts.items()}
    _refuse_small_classes(planned, shares, records)
    room = {name: Counter(of_class) for name, of_class in planned.items()}
    groups: dict[object, list[Record]] = defaultdict(list)
    for record in photos:
        groups[record.path if record.group is None else record.group].append(record)
    draws = {key: _draw(seed, group) for key, group in groups.items()}
    for key, group in sorted(groups.items(), key=lambda item: (-len(item[1]), draws[item[0]])):
        if len(group) > 1:
            name = _place(Counter(record.photo_class for record in group), room, shares, draws[key])
            for record in group:
                record.split = name
                room[record.photo_class][name] -= 1
    singles = sorted((draws[key], group[0].path, group[0]) for key, group in groups.items() if len(group) == 1)
    for _, _, record in singles:
        # test and val are filled up first: train takes the rest if a group has exceeded its share.
        places = [name for name in reversed(shares) if name == "train" or room[record.photo_class][name] > 0]
        record.split = places[0]
        room[record.photo_class][places[0]] -= 1
    return _check(photos, planned, shares)


def name_targets(records: Iterable[Record]) -> list[str]:
    """Set ``target`` of every record that isn't dropped, and return the class names in label order.

    Characters that a list or a file system can't hold are replaced. Files that would then collide, compared as a
    case-insensitive file system does, get a number in the order of their paths.

    Raises:
        InputError: if two classes would become one.
    """
    records = [record for record in records if record.verdict != "dropped"]
    names = {name: clean(name) for name in sorted({record.photo_class for record in records})}
    owners: dict[str, str] = {}
    problems = []
    for name, cleaned in names.items():
        if (other := owners.setdefault(_folded(cleaned), name)) != name:
            what = f"the classes {shown(other)!r} and {shown(name)!r} would share a folder"
            problems.append(Problem(what, "rename or merge one of the two folders"))
    raise_all(problems)
    taken: set[tuple[str, str]] = set()
    for record in sorted(records, key=lambda record: encoded(record.path)):
        folder = names[record.photo_class]
        stem, extension = _stem(record), record.extension
        name, number = stem + extension, 1
        while (folder, _folded(name)) in taken:
            number += 1
            name = f"{stem}_{number}{extension}"
        taken.add((folder, _folded(name)))
        record.target = f"{record.split}/{folder}/{name}"
    return sorted(names.values())


def clean(name: str) -> str:
    """Return a name that a line of a list and every common file system can hold."""
    name = re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\<>:"|?*/]', "_", name).strip().rstrip(".")
    while len(name.encode()) > MAX_NAME_BYTES:
        name = name[:-1].rstrip(" .")
    return name or "_"


def encoded(path: str) -> bytes:
    """Return the bytes of a path on a POSIX disk, even if they aren't UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """Return a path that can be printed and written as UTF-8 on one line: other characters are escaped."""
    if path.isprintable():
        return path
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def _draw(seed: int, group: Iterable[Record]) -> int:
    """Draw uniformly from the integers below 2**256, once for all photos of a group.

    Not the minimum of one draw per photo: that is small for a large group, and small draws go to train.
    """
    contents = sorted({(record.photo_class, record.sha256) for record in group})
    key = "\0".join((str(seed), *(part for content in contents for part in content)))
    return int.from_bytes(hashlib.sha256(encoded(key)).digest(), "big")


def _place(need: Counter[str], room: dict[str, Counter[str]], shares: dict[str, Fraction], draw: int) -> str:
    """Draw a split by the shares; if the group doesn't fit, take the roomiest one in which it does, or fits best."""
    threshold, drawn = Fraction(draw, 1 << 256), "train"
    for name, share in shares.items():
        if threshold < share:
            drawn = name
            break
        threshold -= share
    others = sorted((name for name in shares if name != drawn), key=lambda n: -sum(room[c][n] for c in need))
    for name in [drawn, *others]:
        if all(room[class_name][name] >= number for class_name, number in need.items()):
            return name
    return max(shares, key=lambda n: sum(min(room[class_name][n], number) for class_name, number in need.items()))


def _refuse_small_classes(
    planned: dict[str, dict[str, int]], shares: dict[str, Fraction], records: Iterable[Record]
) -> None:
    problems = []
    if len(planned) < 2:
        what = f"only one class, {shown(next(iter(planned)))!r}, has photos" if planned else "no photo is left"
        problems.append(Problem(what, "a classifier needs a folder of photos for each of at least two classes"))
    for class_name, of_class in sorted(planned.items()):
        if empty := [name for name in shares if not of_class[name]]:
            enough = max(ceil(1 / share) for name, share in shares.items() if name != "val")
            what = f"class {shown(class_name)!r} has {count(sum(of_class.values()), 'usable photo')}"
            hint = f"these ratios need at least {enough}: add some, remove the class, or change the ratios"
            problems.append(Problem(f"{what}: none for {' and '.join(empty)}", hint))
    raise_all(_convertible_first(problems, records))


def _convertible_first(problems: list[Problem], records: Iterable[Record]) -> list[Problem]:
    """Name the formats whose photos would be there after a conversion; then the classes aren't what is wrong."""
    reasons = Counter(record.reason for record in records if is_remedied(record.reason))
    if not problems or not reasons:
        return problems
    formats = []
    for reason, number in sorted(reasons.items()):
        what, _, hint = reason.partition(": ")
        formats.append(Problem(f"{number:,} × {what} can't be read", hint))
    return [*formats, *(Problem(problem.what) for problem in problems)]


def _check(photos: list[Record], planned: dict[str, dict[str, int]], shares: Iterable[str]) -> list[str]:
    got = Counter((record.photo_class, record.split) for record in photos)
    notes, problems = [], []
    for class_name, of_class in sorted(planned.items()):
        numbers = [got[class_name, name] for name in shares]
        expected = [of_class[name] for name in shares]
        if numbers == expected:
            continue
        what = f"class {shown(class_name)!r}: similar photos stay together, so its split is {_slashes(numbers)}"
        if not all(numbers):
            problems.append(Problem(what, "add photos that differ, or change the ratios"))
        notes.append(f"{what}, not {_slashes(expected)}")
    raise_all(problems)
    return notes


def _slashes(numbers: Iterable[int]) -> str:
    return "/".join(map(str, numbers))


def check_given(records: Iterable[Record]) -> None:
    """Refuse a given split that can't be trained or validated on.

    Raises:
        InputError: naming every class without photos in train or in val.
    """
    records = list(records)
    got = Counter((record.photo_class, record.split) for record in records if record.verdict != "dropped")
    classes = sorted({class_name for class_name, _ in got})
    has_test = any(split == "test" for _, split in got)
    problems = []
    if len(classes) < 2:
        problems.append(Problem(f"the given split has photos of {len(classes)} class", "at least two are needed"))
    for class_name in classes:
        empty = [name for name in ("train", "val") if not got[class_name, name]]
        if empty:
            what = f"class {shown(class_name)!r} has no usable photo in the given {' and '.join(empty)}"
            # A new split would train on the photos of test.
            pooling = "" if has_test else ", or draw a new split with --split redo"
            problems.append(Problem(what, f"add some, or remove the class{pooling}"))
    raise_all(_convertible_first(problems, records))


def _stem(record: Record) -> str:
    name = record.path.rpartition("/")[2]
    stem, _, extension = name.rpartition(".")
    # A wrong extension is replaced; another ending ("no. 7") is part of the name.
    return clean(stem if f".{extension.lower()}" in IMAGE_EXTENSIONS and stem else name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()

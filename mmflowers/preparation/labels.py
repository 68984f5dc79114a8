"""Find the table that labels the photos of a source, and take their classes and splits from it."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmflowers.preparation.formats import EXTENSIONS as PHOTO_EXTENSIONS
from mmflowers.preparation.layouts import CONTAINERS, SPLIT_WORDS, split_named, walk
from mmflowers.preparation.records import SPLITS, SourceFile
from mmflowers.preparation.tables import NAMES_FILES, OXFORD, TABLE_EXTENSIONS, Table, read_class_names, read_table
from mmflowers.utils.errors import InputError, Problem, count, raise_all, shortened, some
from mmflowers.utils.files import file_sha256

NO_TABLE = "none"  # as --labels: use the folders; as --split-column: the table says no split

_SPLIT_COLUMNS = {"split", "splits", "subset", "set", "partition", "phase", "usage", "fold", "datasplit", "datasettype"}
_VAL_COLUMNS = {"isvalid", "isval", "valid", "validation"}  # fastai: true for the photos of val
_LABEL_COLUMNS = {
    *("label", "labels", "class", "classes", "category", "categories", "target", "species", "breed", "y", "variety"),
    *("labelname", "labeltext", "classname", "categoryname", "labelid", "classid", "categoryid", "tag", "tags"),
}
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_NO_CLASSES = {  # names of folders that say nothing of the photos in them
    *CONTAINERS,
    *("photo", "pics", "jpg", "jpeg", "png", "raw", "files", "all", "input", "unlabeled", "unlabelled"),
}
_SPLIT_NAME = re.compile(
    rf"(?:x_)?({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?:[^a-z].*)?", re.IGNORECASE
)
_NAMED_SHARE = 0.95  # of the photos, in a table that is found by itself
_LEAST_SHARE = 0.5  # of the photos and of the rows, in any table
_SAMPLE = 1000  # rows by which columns are told apart
_MOST_OF_A_KIND = 20  # more files of one format in a folder aren't tables, but files about single photos
_MOST_BYTES = 500 << 20


class LabelOptions(NamedTuple):
    """The options about the table of labels, named as those of the command; a column's name or its number from 1."""

    labels: str | Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None

    @property
    def names_a_table(self) -> bool:
        """Whether any of them asks for a table."""
        return self.are_given and str(self.labels) != NO_TABLE

    @property
    def are_given(self) -> bool:
        """Whether any of them is set."""
        return any(value is not None for value in self)


@dataclass(slots=True)
class Labelled:
    """A source whose photos a table labels.

    Attributes:
        root: The folder that the paths are relative to.
        files: Every file below it, sorted by path.
        split: Where the split is said (``column split of labels.csv: train 80, val 20``); "" if nowhere.
        description: For ``dataset.json``: the tables and their columns.
        notes: Lines for the summary.
    """

    root: Path
    files: list[SourceFile]
    split: str
    description: dict[str, Any]
    notes: list[str]


@dataclass(slots=True)
class _Choice:
    """Tables of the same columns, and which of these say what; ``labels`` has several entries if they are one-hot."""

    tables: list[Table]
    image: int
    labels: list[int]
    split: int | None = None
    is_sure: bool = True  # that the column is one of labels, by its name
    found: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)  # path → (label, why none, split)
    missing: list[str] = field(default_factory=list)  # values that name no photo
    vague: list[str] = field(default_factory=list)  # values that name several
    rows: int = 0

    @property
    def name(self) -> str:
        return " and ".join(table.name for table in self.tables[:3]) + (" …" if len(self.tables) > 3 else "")

    @property
    def columns(self) -> list[str]:
        return self.tables[0].columns

    def labels_by_path(self) -> dict[str, str]:
        return {path: entries[0][0] for path, entries in self.found.items()}


def label_photos(folder: Path, options: LabelOptions, *, staging: Path, follow_links: bool = False) -> Labelled | None:
    """Label the photos of a folder by a table, if one is given or is found without doubt.

    A table is found by itself if a column of it names at least 95 % of the photos in the folders that it names any
    of, and exactly one column can be the classes. Where the photos already lie in folders of classes, the folders
    decide. Images within Parquet files are written below ``staging``.

    Returns:
        The labelled files, or None if the folders decide.

    Raises:
        InputError: With every problem found: no table or several, no column or several, labels that contradict each
            other, unknown splits, most photos without a row or most rows without a photo.
    """
    if options.labels is not None and str(options.labels) == NO_TABLE:
        return None
    walked = sorted(walk(folder, follow_links=follow_links))
    given = None if options.labels is None else _given(folder, Path(options.labels).expanduser())
    photos = _photos(path for path, refusal in walked if refusal is None)
    tables, problems = _read_tables(folder, walked, given, staging)
    if not tables:
        if options.are_given or (problems and not _class_folders(photos)):
            hint = "name the table with --labels FILE"
            raise InputError(problems=problems or [Problem("no table of labels is found in the source", hint)])
        return None
    root = folder
    if any(table.photos for table in tables):
        tables = [table for table in tables if table.photos]
        root = staging / "parquet"
        used = {f"{table.photos.name}/" for table in tables if table.photos}
        walked = sorted(entry for entry in walk(root) if entry[0].startswith(tuple(used)))
        for table in tables:
            for row in table.rows:
                row[0] = row[0] and f"{table.photos.name}/{row[0]}" if table.photos else row[0]
        photos = [path for path, refusal in walked if refusal is None]
    locator = _Locator(photos)
    choices, unclear = _choose(tables, locator, options, is_given=given is not None)
    problems += unclear
    if not options.are_given:
        choices, problems = _unambiguous(choices, problems, photos)
    if not choices:
        if options.are_given and not problems:
            problems = [Problem("no table in the source names its photos", "name one with --labels FILE")]
        raise_all(problems)
        return None
    if len(choices) > 1:
        listed = "; ".join(f"{choice.name} (columns {_listed(choice.columns)})" for choice in choices[:5])
        what = f"{count(len(choices), 'table')} can label the photos: {listed}"
        raise InputError(what, f"choose one: {_options(choices[0])}; --labels {NO_TABLE} uses the folders")
    place = given.parent if given and not given.resolve().is_relative_to(folder) else folder
    return _label(root, walked, photos, choices[0], place)


def _given(folder: Path, path: Path) -> Path:
    for place in (path, folder / path):
        if place.is_file():
            return place
    raise InputError(f"--labels {path}: no such file", f"give the path of a table, or {NO_TABLE} to use the folders")


def _read_tables(
    folder: Path, walked: Sequence[tuple[str, str | None]], given: Path | None, staging: Path
) -> tuple[list[Table], list[Problem]]:
    """Read the given table, or what can be one in the source; return also why some can't be read."""
    paths = [path for path, refusal in walked if refusal is None]
    has_photos = bool(_photos(paths))
    tables, problems = [], []
    for name in [_inside(given, folder)] if given else _candidates(paths):
        path = given or folder / name
        extension, images = path.suffix.lower(), None
        try:
            if extension == ".parquet" and not has_photos:
                images = staging / "parquet" / f"{_safe(path.stem)}-{file_sha256(path)[:16]}"
            elif path.stat().st_size > _MOST_BYTES:
                raise InputError(f"{name} has more than {_MOST_BYTES >> 20} MB, which no table of labels needs")
            table = read_table(path, name, images=images)
        except OSError as error:
            problems.append(Problem(f"{name} can't be read ({error.strerror})"))
        except InputError as error:
            if given or extension not in (".json", ".txt"):  # these can be anything
                problems += error.problems
        else:
            table.split = _split_of_table(Path(name).stem) or _split_of_folder(Path(name).parent.name)
            tables.append(table)
    return tables, problems


def _candidates(paths: Sequence[str]) -> list[str]:
    """Return the files of a source that can be tables of labels."""
    known = set(paths)
    for path in paths:
        if _name(path) == "dataset.json" and path.replace("dataset.json", "files.csv") in known:
            return []  # a dataset folder of ours has its classes in folders
    by_place = defaultdict(list)
    in_classes = _in_classes(paths)
    for path in paths:
        extension = Path(path).suffix.lower()
        if extension not in TABLE_EXTENSIONS or _name(path) in NAMES_FILES or "submission" in path:
            continue
        if (extension == ".mat" and _name(path) != OXFORD[0]) or (extension == ".txt" and in_classes):
            continue  # lists are compared with class folders elsewhere
        by_place[_folder(path), extension].append(path)
    return [path for alike in by_place.values() if len(alike) <= _MOST_OF_A_KIND or _is_hub(alike) for path in alike]


def _is_hub(paths: Sequence[str]) -> bool:
    """Whether these are the parts of a large Parquet file: ``train-00007-of-00100.parquet``."""
    return all(re.search(r"-\d+-of-\d+|/\d+\.parquet$", path) for path in paths)


def _split_of_table(name: str) -> str | None:
    """Return the split that a table is of by its name: ``train.csv``, ``train_labels.csv``, ``val-00000-of-00002``."""
    match = _SPLIT_NAME.fullmatch(name)
    return SPLIT_WORDS[match[1].lower()] if match else None


@functools.cache
def _split_of_folder(name: str) -> str | None:
    return split_named([name]).get(name)


class _Locator:
    """Finds the photo that a cell names: by its path, its name, both without the extension, or its number."""

    def __init__(self, photos: Sequence[str]) -> None:
        self.photos = photos
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        self._folders = {_folded(name) for parts in set(map(_parts, photos)) for name in parts}
        for path in photos:
            stem = _stem(path)
            self._by_stem[stem].append(path)
            if "/" in path:  # where many folders hold a photo of the same name
                self._by_stem[f"{_folded(path.split('/')[-2])}/{stem}"].append(path)
            if stem.isdecimal() and len(stem) < 19:
                self._by_number[int(stem)].append(path)

    def __call__(self, text: str, place: str = "", split: str | None = None) -> tuple[int, list[str]]:
        """Return how well the photos agree (2: with extension, 1: without, 0: as a number, -1: none), and the best."""
        wanted = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        if not wanted or len(text) > 4096:
            return -1, []
        stem = _stem(wanted[-1])
        photos = self._by_stem.get(f"{_folded(wanted[-2])}/{stem}") if len(wanted) > 1 else None
        photos = photos or self._by_stem.get(stem)
        quality = 1
        if photos is None:
            number = int(stem) if stem.isdecimal() and len(stem) < 19 else -1
            photos, quality = self._by_number.get(number, []), 0
        folders = [_folded(part) for part in reversed(wanted[:-1])]
        if folders and folders[0] in self._folders:  # a folder of another name may have been renamed
            photos = [path for path in photos if folders[0] in map(_folded, _parts(path))]
        if not photos:
            return -1, []
        if len(photos) > 1:
            ranked = [(_rank(path, wanted[-1], folders, place, split), path) for path in photos]
            best = max(ranked)[0]
            photos = [path for rank, path in ranked if rank == best]
        return (2 if quality and _folded(_name(photos[0])) == _folded(wanted[-1]) else quality), photos


def _rank(path: str, name: str, folders: list[str], place: str, split: str | None) -> tuple[int, bool, bool, bool]:
    parts = path.split("/")
    above = [_folded(part) for part in reversed(parts[:-1])]
    alike = 0
    while alike < min(len(folders), len(above)) and folders[alike] == above[alike]:
        alike += 1
    in_split = split is not None and any(_split_of_folder(part) == split for part in parts[:-1])
    return alike, parts[-1] == name, bool(place) and path.startswith(f"{place}/"), in_split


def _choose(
    tables: list[Table], locate: _Locator, options: LabelOptions, *, is_given: bool
) -> tuple[list[_Choice], list[Problem]]:
    """Find the columns of each table; tables of the same columns whose names say a split belong together."""
    groups: list[list[Table]] = []
    for table in tables:
        if table.header is None:
            _find_header(table, locate)
        for group in groups:
            are_parts = (group[0].split and table.split) or (group[0].photos and table.photos)
            if are_parts and group[0].columns == table.columns:
                group.append(table)
                break
        else:
            groups.append([table])
    choices, problems = [], []
    for group in groups:
        try:
            choice = _choose_columns(group, locate, options, is_given=is_given)
        except InputError as error:
            problems += error.problems
        else:
            if choice:
                _locate_rows(choice, locate)
                choices.append(choice)
    return choices, problems


def _choose_columns(tables: list[Table], locate: _Locator, options: LabelOptions, *, is_given: bool) -> _Choice | None:
    """Find out which columns are image, label and split; None if no column names photos.

    Raises:
        InputError: An option names no column, or several columns can be the label or the image.
    """
    first = tables[0]
    table = Table(first.name, first.columns, [row for part in tables for row in part.rows], first.header)
    split = None
    if options.split_column is None:
        split = _find_split(table)
    elif options.split_column != NO_TABLE:
        split = _column(table, options.split_column, "--split-column")
    image = _column(table, options.image_column, "--image-column")
    label = _column(table, options.label_column, "--label-column")
    matches = _matches(tables, locate, [column for column in range(len(table.columns)) if column != label])
    if image is None:
        image = _find_images(table, matches)
    if image is None:
        if not is_given:
            return None
        what = f"no column of {table.name} names the photos (columns: {_listed(table.columns)})"
        raise InputError(what, "name it with --image-column, and give the folder of the photos with --source")
    if label is not None:
        return _Choice(tables, image, [label], split)
    others = [c for c in range(len(table.columns)) if c not in (image, split) and matches[c][1] < _LEAST_SHARE]
    labels, is_sure = _find_labels(table, others)
    if not labels:
        if not is_given and not any(_plausible(table, column) for column in others):
            return None  # such as Kaggle's test.csv
        what = f"which column of {table.name} has the classes? Its columns are {_listed(table.columns)}"
        raise InputError(what, _options(_Choice(tables, image, [])))
    return _Choice(tables, image, labels, split, is_sure)


def _column(table: Table, wanted: str | None, flag: str) -> int | None:
    """Return the column that an option names, by its name or its number from 1."""
    if wanted is None:
        return None
    if wanted in table.columns:
        return table.columns.index(wanted)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(table.columns):
        return int(wanted) - 1
    what = f"{flag} {wanted}: {table.name} has no such column"
    raise InputError(what, f"its columns are {_listed(table.columns)}")


def _find_header(table: Table, locate: _Locator) -> None:
    """Take the first row for a header unless it is like the others: with a number, a file's name, or a known value."""
    first, rest = table.rows[0], table.rows[1:]
    known = [cell for cell in first if cell]
    table.header = (
        bool(rest)
        and len(set(known)) == len(known) >= len(first) - 1  # pandas leaves the name of its index empty
        and not any(re.fullmatch(r"[\d.+-]+", cell) or Path(cell).suffix.lower() in PHOTO_EXTENSIONS for cell in known)
        and not any(locate(cell)[1] for cell in known)
        and not any(cell and any(row[column] == cell for row in rest) for column, cell in enumerate(first))
    )
    if table.header:
        table.columns = [cell or str(number) for number, cell in enumerate(first, 1)]
        table.rows = rest


def _matches(tables: list[Table], locate: _Locator, columns: list[int]) -> list[tuple[float, float, list[str]]]:
    """Return for each column the mean quality of its matches, the share of cells with one, and which photos."""
    rows = [(row, table) for table in tables for row in table.rows]
    rows = rows[:: max(1, len(rows) // _SAMPLE)]
    result: list[tuple[float, float, list[str]]] = []
    for column in range(len(tables[0].columns)):
        cells = {(row[column], table.name): table for row, table in rows if row[column] and column in columns}
        located = [locate(cell, _folder(table.name), table.split) for (cell, _), table in cells.items()]
        found = [(quality, photos[0]) for quality, photos in located if photos]
        is_key = len(cells) * 2 > len(rows) or len(found) * 2 > len(locate.photos)  # not an index of few classes
        share = len(found) / len(cells) if cells and is_key else 0.0
        quality = sum(quality for quality, _ in found) / len(found) if found else -1.0
        result.append((round(quality, 1), share, sorted(photo for _, photo in found)))
    return result


def _find_images(table: Table, matches: list[tuple[float, float, list[str]]]) -> int | None:
    able = [column for column, (_, share, _) in enumerate(matches) if share >= _LEAST_SHARE]
    if not able:
        return None
    best = max(able, key=lambda column: matches[column][:2])
    rivals = [c for c in able if matches[c][:2] == matches[best][:2] and matches[c][2] != matches[best][2]]
    if rivals:
        names = _listed([table.columns[column] for column in (best, *rivals)])
        raise InputError(f"several columns of {table.name} name photos: {names}", "choose one with --image-column")
    return best


def _find_split(table: Table) -> int | None:
    for column, name in enumerate(table.columns):
        plain = _plain(name)
        values = {row[column].lower() for row in table.rows} - {""}
        is_split = bool(values) and values <= SPLIT_WORDS.keys() and len(values) > 1
        if (
            (plain in _SPLIT_COLUMNS and is_split)
            or plain == "split"
            or (plain in _VAL_COLUMNS and values <= _FLAGS.keys())
        ):
            return column
        if not table.header and is_split:
            return column
    return None


def _find_labels(table: Table, others: list[int]) -> tuple[list[int], bool]:
    """Return the column of labels, or several one-hot columns, and whether its name says so; empty if in doubt."""
    plausible = [column for column in others if _plausible(table, column)]
    sure = [column for column in plausible if _plain(table.columns[column]) in _LABEL_COLUMNS]
    flags = [column for column in others if {row[column].lower() for row in table.rows} <= _FLAGS.keys()]
    if not sure and len(flags) > 1:
        ones = [sum(_FLAGS[row[column].lower()] for column in flags) for row in table.rows]
        if ones.count(1) >= _NAMED_SHARE * len(ones):
            return flags, True
    for columns in (sure, plausible):
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)  # a class's number and its name say the same
        for column in columns:
            numbers: dict[str, int] = {}
            groups[tuple(numbers.setdefault(row[column], len(numbers)) for row in table.rows)].append(column)
        if len(groups) == 1:
            same = next(iter(groups.values()))
            return [min(same, key=lambda column: all(row[column].isdecimal() for row in table.rows))], bool(sure)
        if groups:
            break
    return [], False


def _plausible(table: Table, column: int) -> bool:
    """Whether a column can be one of classes: several values, most of them repeated, none of them a fraction."""
    cells = [row[column] for row in table.rows if row[column]]
    values = set(cells)
    few = len(values) * 2 <= len(cells) or (len(cells) < 10 and len(values) < len(cells))
    return len(values) > 1 and few and not any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value) for value in values)


def _locate_rows(choice: _Choice, locate: _Locator) -> None:
    for table in choice.tables:
        place = _folder(table.name)
        is_flag = choice.split is not None and _plain(table.columns[choice.split]) in _VAL_COLUMNS
        for row in table.rows:
            choice.rows += 1
            text = "" if choice.split is None else row[choice.split]
            if is_flag:
                text = {0: "train", 1: "val"}.get(_FLAGS.get(text.lower(), -1), text)
            split = SPLIT_WORDS.get(text.lower(), text) or table.split or ""
            quality, photos = locate(row[choice.image], place, split or None)
            if len(photos) == 1 and quality >= 0:
                choice.found.setdefault(photos[0], []).append((*_label_of(choice, row), split))
            else:
                where = choice.vague if photos else choice.missing
                where.append(shortened(row[choice.image]) or "(an empty cell)")


def _label_of(choice: _Choice, row: list[str]) -> tuple[str, str]:
    """Return the label of a row, and why it has none."""
    if len(choice.labels) == 1:
        label = row[choice.labels[0]]
        return label, "" if label else "no label"
    ones = [choice.columns[column] for column in choice.labels if _FLAGS.get(row[column].lower())]
    return (ones[0], "") if len(ones) == 1 else ("", "several classes" if ones else "no label")


def _unambiguous(
    choices: list[_Choice], problems: list[Problem], photos: list[str]
) -> tuple[list[_Choice], list[Problem]]:
    """Keep what labels the photos without doubt; where they lie in class folders, those decide or are asked about."""
    folders = _class_folders(photos)
    if folders and not any(choice.tables[0].photos for choice in choices):
        # A column that isn't called label or the like may be one of other things, such as who took the photos.
        whole = [choice for choice in choices if not _partial(choice, photos)]
        if mixed := [choice for choice in whole if _folder_names(choice) and not _in_classes([*choice.found])]:
            return mixed, []  # ImageNet: train/ in folders, val/ in a list
        rivals = [choice for choice in whole if choice.is_sure and not _folder_names(choice)]
        if not rivals:
            return [], []
        choice = rivals[0]
        column = f"column {_label_names(choice)} of {choice.name}"
        what = f"the photos lie in folders ({some(folders)}), but {column} has other classes"
        hint = f"{_options(choice)} takes the classes from the table, --labels {NO_TABLE} from the folders"
        return [], [Problem(what, hint)]
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda choice: not _splits(choice)[0]):  # of those that agree one with a split
        if missing := _partial(choice, photos):
            what = f"{choice.name} (columns {_listed(choice.columns)}) names {missing}"
            problems.append(Problem(what, f"{_options(choice)} uses it, --labels {NO_TABLE} uses the folders"))
        elif all(choice.labels_by_path() != other.labels_by_path() for other in kept):
            kept.append(choice)
    return kept, [] if kept else problems


def _partial(choice: _Choice, photos: list[str]) -> str:
    """Return how many photos a table names if these are too few to take it unasked, else ""."""
    beside = _beside(choice.found, photos)
    few = len(choice.found) < _NAMED_SHARE * len(beside)
    return f"{len(choice.found):,} of {count(len(beside))}" if few else ""


def _beside(found: Iterable[str], photos: Iterable[str]) -> list[str]:
    """Return the photos in the folders of which a table names any photo."""
    folders = {_folder(path) for path in found}
    return [path for path in photos if _folder(path) in folders]


def _folder_names(choice: _Choice) -> dict[str, str]:
    """Return the class folder of each label, if every label has a folder of photos to itself; else nothing."""
    level = _class_level(choice.found)
    if level is None:
        return {}
    labels = {path: label for path, label in choice.labels_by_path().items() if label}
    pairs = {(label, _parts(path)[level]) for path, label in labels.items() if len(_parts(path)) > level}
    names = dict(pairs)
    return names if len(pairs) == len(names) == len(set(names.values())) else {}


def _class_level(photos: Iterable[str]) -> int | None:
    """Return the first level of folders at which several can be classes, 0 for the top; None if there is none."""
    levels: dict[int, set[str]] = defaultdict(set)
    for parts in set(map(_parts, photos)):
        for level, name in enumerate(parts):
            if _folded(name) not in _NO_CLASSES and not _split_of_folder(name):
                levels[level].add(name)
    return min((level for level, names in levels.items() if len(names) > 1), default=None)


def _class_folders(photos: Sequence[str]) -> list[str]:
    """Return the names of the folders of photos that can be classes."""
    level = _class_level(photos)
    return [] if level is None else sorted({parts[level] for parts in map(_parts, photos) if len(parts) > level})


def _in_classes(paths: Sequence[str]) -> bool:
    """Whether all photos lie in folders that can be classes."""
    photos = _photos(paths)
    level = _class_level(photos)
    return level is not None and all(len(_parts(path)) > level for path in photos)


def _label(
    root: Path, walked: Sequence[tuple[str, str | None]], photos: list[str], choice: _Choice, place: Path
) -> Labelled:
    """Set class and split of every photo as the table says."""
    beside = _beside(choice.found, photos)
    unnamed = len(beside) - len(choice.found)
    problems = [*_row_problems(choice), *_split_problems(choice)]
    for number, total, what in (
        (len(choice.missing), choice.rows, "rows name no photo"),
        (unnamed, len(beside), "photos have no row"),
        (sum(not entries[0][0] for entries in choice.found.values()), len(choice.found), "photos have no label"),
    ):
        if number > _LEAST_SHARE * max(total, 1):
            hint = f"give the right columns: {_options(choice)}"
            examples = f": {some(choice.missing)}" if what.startswith("rows") else ""
            problems.append(Problem(f"{choice.name}: {number:,} of {total:,} {what}{examples}", hint))
    names: dict[str, str] = {}
    said = ""
    try:
        names, said = _class_names(choice, place)
    except InputError as error:
        problems += error.problems
    raise_all(problems)

    splits, from_where = _splits(choice)
    is_photo = set(photos)
    tables = {table.name for table in choice.tables}
    files = []
    for path, refusal in walked:
        file = SourceFile(path, None, refusal=refusal)
        files.append(file)
        if entries := choice.found.get(path):
            label, why, _ = entries[0]
            file.class_name = names.get(label, label) or None
            file.split = splits.get(path)
            file.refusal = f"{why} in {choice.name}" if why else None
        elif refusal is None:
            is_table = path in tables or _name(path) in (*NAMES_FILES, *OXFORD)
            file.refusal = "a table, not a photo" if is_table else "not a photo by its name"
            if path in is_photo:
                file.refusal = f"no row in {choice.name}"
    notes = [_said(choice, from_where) + said, *(table.note for table in choice.tables if table.note)]
    if choice.missing:
        notes.append(f"{count(len(choice.missing), 'row')} of {choice.name} without a photo: {some(choice.missing)}")
    if unnamed:
        without = [shortened(path) for path in beside if path not in choice.found]
        notes.append(f"{count(unnamed)} without a row in {choice.name}: {some(without)}")
    rest = Counter(_folder(path) for path in set(photos) - set(beside))
    notes += [f"{count(n)} in {folder or 'the source'}/ without labels: not used" for folder, n in sorted(rest.items())]
    description: dict[str, Any] = {
        "tables": [table.name for table in choice.tables],
        "image_column": choice.columns[choice.image],
        "label_column": _label_names(choice),
        "split_column": None if choice.split is None else choice.columns[choice.split],
    }
    numbers = Counter(splits.values())
    counted = ", ".join(f"{split} {numbers[split]:,}" for split in SPLITS if numbers[split])
    return Labelled(root, files, f"{from_where}: {counted}" if splits else "", description, notes)


def _row_problems(choice: _Choice) -> list[Problem]:
    problems = []
    for what, column, hint in (
        ("different labels", 0, "correct the table: one class for each photo"),
        ("different splits", 2, "correct the table: a photo belongs to one split"),
    ):
        values = {path: sorted({entry[column] for entry in entries}) for path, entries in choice.found.items()}
        twice = [f"{shortened(path)} ({', '.join(map(shortened, v))})" for path, v in values.items() if len(v) > 1]
        if twice:
            problems.append(Problem(f"{choice.name} gives {what} to {count(len(twice))}: {some(twice)}", hint))
    if choice.vague:
        what = f"{count(len(choice.vague), 'row')} of {choice.name} could mean several photos: {some(choice.vague)}"
        problems.append(Problem(what, "write their paths with folder and extension"))
    return problems


def _split_problems(choice: _Choice) -> list[Problem]:
    unknown = Counter(split for entries in choice.found.values() for _, _, split in entries if split)
    wrong = [f"{shortened(name)} ({number:,})" for name, number in unknown.items() if name not in SPLITS]
    if not wrong or choice.split is None:
        return []
    what = f"column {choice.columns[choice.split]} of {choice.name} has unknown splits: {some(wrong)}"
    return [Problem(what, f"splits are {', '.join(SPLITS)}; --split-column names another column, or {NO_TABLE}")]


def _splits(choice: _Choice) -> tuple[dict[str, str], str]:
    """Return the split of each photo, and what says so: a column, the tables' names, or the photos' folders."""
    splits = {path: entries[0][2] for path, entries in choice.found.items() if entries[0][2]}
    where = f"column {choice.columns[choice.split]}" if choice.split is not None else f"the names {choice.name}"
    if len(set(splits.values())) < 2:
        for path in choice.found:
            named = [split for part in path.split("/")[:-1] if (split := _split_of_folder(part))]
            if named:
                splits[path] = named[0]
        where = "the folders of the photos"
    is_split = "train" in splits.values() and len(set(splits.values())) > 1
    return (splits, where) if is_split else ({}, "")


def _class_names(choice: _Choice, place: Path) -> tuple[dict[str, str], str]:
    """Return the names of the classes by index, and where they are from; empty if the labels are names already."""
    labels = {label for label in choice.labels_by_path().values() if label}
    if not labels or not all(re.fullmatch(r"\d{1,9}(\.0*)?", label) for label in labels):
        return {}, ""
    indices = {label: int(label.partition(".")[0]) for label in labels}
    column = choice.columns[choice.labels[0]]
    named: dict[int, str] | list[str] | None = choice.tables[0].class_names.get(column)
    source = "the Parquet file"
    if named is None:
        above = Path(choice.tables[0].name).parents
        candidates = [place / folder / sub / name for folder in above for sub in ("", "meta") for name in NAMES_FILES]
        files = [path for path in candidates if path.is_file() and str(path) not in choice.name]
        if not files and (folders := _folder_names(choice)):
            if stray := sorted(labels - folders.keys()):
                what = f"{choice.name} has labels without a class folder: {some(stray)}"
                raise InputError(what, "write the names of the classes into a classes.txt beside it")
            return folders, ", their names from the folders"
        if not files:
            names = {label: str(index) for label, index in indices.items()}
            return names, "; the classes are called by their numbers, as no classes.txt beside the table names them"
        named, source = read_class_names(files[0]), files[0].name
    if isinstance(named, list):
        start = 1 if 0 not in indices.values() and max(indices.values()) == len(named) else 0
        named = dict(enumerate(named, start))
        source += f", counted from {start}"
    if unknown := sorted(index for index in indices.values() if index not in named):
        what = f"{source} has no name for label {some(unknown)} of {choice.name}"
        raise InputError(what, "add the names, one a line in the order of the labels")
    used = Counter(named[index] for index in set(indices.values()))
    if twice := [shortened(name) for name, number in used.items() if number > 1]:
        raise InputError(f"{source} names several classes {some(twice)}", "give each class a name of its own")
    return {label: named[index] for label, index in indices.items()}, f", their names in {source}"


def _said(choice: _Choice, split: str) -> str:
    kind = "column" if choice.tables[0].header else "column number"
    text = f"labels: {choice.name}, images in {kind} {choice.columns[choice.image]}, classes in "
    text += f"{kind} {_label_names(choice)}" if len(choice.labels) == 1 else f"{len(choice.labels)} one-hot columns"
    return f"{text}, split from {split}" if split else text


def _options(choice: _Choice) -> str:
    """Return the options that would choose these columns, those that aren't known in capitals."""
    image = choice.columns[choice.image]
    label = choice.columns[choice.labels[0]] if len(choice.labels) == 1 else "NAME"
    options = f"--labels {_quoted(choice.tables[0].name)} --image-column {_quoted(image)}"
    return options if len(choice.labels) > 1 else f"{options} --label-column {_quoted(label)}"


def _quoted(text: str) -> str:
    return f'"{shortened(text)}"' if re.search(r"[^\w./-]", text) else text


def _label_names(choice: _Choice) -> str:
    return ", ".join(choice.columns[column] for column in choice.labels)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(shortened, columns[:20])) + (" …" if len(columns) > 20 else "")


def _inside(path: Path, folder: Path) -> str:
    resolved = path.resolve()
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else path.name


def _photos(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if Path(path).suffix.lower() in PHOTO_EXTENSIONS]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _parts(path: str) -> tuple[str, ...]:
    """Return the names of the folders that a file lies in."""
    return tuple(path.split("/")[:-1])


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    """Return the name without the extension of a photo, for comparison."""
    name = _folded(_name(path))
    before, dot, after = name.rpartition(".")
    return before if before and dot + after in PHOTO_EXTENSIONS else name


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]

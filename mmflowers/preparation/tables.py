"""Read tables of labels in all common formats: CSV and its kin, JSON, JSON lines, Parquet, MATLAB files."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmflowers.utils.errors import InputError, count, shortened, some
from mmflowers.utils.files import creating_folder

_SPREADSHEETS = {".xlsx", ".xls", ".ods"}
TABLE_EXTENSIONS = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".mat", *_SPREADSHEETS}
OXFORD = ("imagelabels.mat", "setid.mat")  # Oxford 102 Flowers: labels, and the numbers of the photos of each split
NAMES_FILES = (
    *(f"{name}.txt" for name in ("classes", "labels", "class_names", "classnames", "label_names", "categories")),
    *(f"{name}.json" for name in ("classes", "class_names", "label_map", "labels_map", "label_names", "cat_to_name")),
    *(f"{name}.json" for name in ("class_to_idx", "idx_to_class", "id2label", "label2id", "imagenet_class_index")),
)

_DELIMITERS = ",;\t|"
_SNIFFED_CHARS = 1 << 16
_IMAGE_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}")
_INDEX_FIRST = re.compile(r"\s*(\d{1,9})\s*[\s,;:=]\s*(\S.*?)\s*")
_INDEX_LAST = re.compile(r"\s*(\S.*?)\s*[\s,;:=]\s*(\d{1,9})\s*")


@dataclass(slots=True)
class Table:
    """A table of labels as text.

    Attributes:
        name: Its path for messages, relative to the source where it lies in there.
        columns: The names of the columns; their numbers, from 1, if there is no header.
        rows: As many cells as columns each; an empty cell is "".
        header: Whether ``columns`` come from the file; None if that isn't known: the first of ``rows`` may be a header.
        class_names: For a column of indices, the names of its classes, if the file itself has them.
        photos: The folder into which the images within the table were written; None if it has none.
        split: "train", "val" or "test" if the name of the file or of its folder says so.
        note: What is worth a look in how it was read; "" if nothing is.
    """

    name: str
    columns: list[str]
    rows: list[list[str]]
    header: bool | None = True
    class_names: dict[str, list[str]] = field(default_factory=dict)
    photos: Path | None = None
    split: str | None = None
    note: str = ""


def read_table(path: Path, name: str, *, images: Path | None = None) -> Table:
    """Read a table in the format that the extension says.

    Args:
        path: Of the file.
        name: What messages call it.
        images: The folder for the images within a Parquet file, created if there are such; None: they are ignored.

    Raises:
        InputError: The file can't be read, has no rows, or is not what its extension says.
    """
    extension = path.suffix.lower()
    if extension in _SPREADSHEETS:
        raise InputError(f"{name} is a spreadsheet, which isn't read", "save it as CSV in your spreadsheet program")
    try:
        if extension == ".parquet":
            table = _read_parquet(path, name, images)
        elif extension == ".mat":
            table = _read_oxford(path.parent, name)
        else:
            text, is_guessed = _text(path)
            if extension in (".json", ".jsonl", ".ndjson"):
                table = _from_records(name, _json_records(text, name, lines=extension != ".json"))
            else:
                table = (_read_lines if extension == ".txt" else _read_csv)(text, name)
            if is_guessed:
                table.note = f"{name} isn't UTF-8 and was read as Windows-1252: check its names, or save it as UTF-8"
    except OSError as error:
        raise InputError(f"{name} can't be read ({error.strerror or error})") from error
    if not table.rows:
        raise InputError(f"{name} has no rows")
    return table


def read_class_names(path: Path) -> dict[int, str] | list[str]:
    """Read a file with the names of classes: by their index, or a list if it gives no indices.

    Text files have one name a line, with or without its index before or behind it. JSON files have a list, or an
    object of index → name or name → index.

    Raises:
        InputError: The file is neither, or an index occurs twice.
    """
    try:
        text, _ = _text(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from error
    pairs: list[tuple[int, str]] = []
    if path.suffix.lower() == ".json":
        value = _parsed(text, path.name)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return value
        for key, named in value.items() if isinstance(value, dict) else ():
            named = named[-1] if isinstance(named, list) and named else named  # [WordNet id, name]
            if isinstance(named, str) and key.isdecimal():
                pairs.append((int(key), named))
            elif isinstance(named, int) or (isinstance(named, str) and named.isdecimal()):
                pairs.append((int(named), key))
            else:
                raise InputError(f"{path.name} has {shortened(key)}, which is neither index → name nor name → index")
        if not pairs:
            raise InputError(f"{path.name} is neither a list of class names nor an object with their indices")
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for pattern, index, name in ((_INDEX_FIRST, 1, 2), (_INDEX_LAST, 2, 1)):
            matches = [match for match in map(pattern.fullmatch, lines) if match]
            if len(matches) == len(lines):
                pairs = [(int(match[index]), match[name]) for match in matches]
                if len(dict(pairs)) == len(pairs):
                    break
                pairs = []  # such as "100 roses", "100 tulips"
        if not pairs:
            return lines
    if len(dict(pairs)) < len(pairs):
        raise InputError(f"{path.name} names an index twice", "one name for each index")
    return dict(pairs)


def _text(path: Path) -> tuple[str, bool]:
    """Decode a text file as UTF-16 by its byte order mark, as UTF-8, or, and then return True, as Windows-1252."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), False
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), True


def _read_csv(text: str, name: str) -> Table:
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r"sep=(.)\s*", first):  # Excel's own line
        text, delimiter = rest, match[1]
    else:
        delimiter = _delimiter(text)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{name} is not a table of separated values ({error})") from error
    return _unheaded(name, rows)


def _delimiter(text: str) -> str:
    """Return what separates the cells; a comma for a single column."""
    sample = text[:_SNIFFED_CHARS]
    if len(text) > len(sample):
        sample = sample[: sample.rfind("\n") + 1] or sample
    with contextlib.suppress(csv.Error):
        found = csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
        if found in sample.split("\n", 1)[0]:  # the sniffer goes by frequencies, which a text in a cell can have too
            return found
    first = sample.split("\n", 1)[0]
    return max(_DELIMITERS, key=first.count)


def _read_lines(text: str, name: str) -> Table:
    """Read a list: ``path label`` a line, or separated values."""
    lines = [line for line in text.splitlines() if line.strip()]
    for delimiter in "\t;,|":
        if lines and all(delimiter in line for line in lines):
            return _read_csv(text, name)
    rows = []
    for line in lines:
        if line.lstrip()[:1] in ("'", '"'):
            rows.append(next(csv.reader([line.strip()], delimiter=" ", quotechar=line.lstrip()[0])))
        else:
            rows.append(line.rsplit(None, 1))  # a path may have blanks
    return _unheaded(name, rows)


def _unheaded(name: str, rows: Iterable[list[str]]) -> Table:
    """Make a table of rows of which the first may be a header; short rows are filled up."""
    stripped = [[cell.strip() for cell in row] for row in rows]
    numbered = [(number, row) for number, row in enumerate(stripped, 1) if any(row)]
    width = len(numbered[0][1]) if numbered else 0
    long = [f"row {number}" for number, row in numbered if any(row[width:])]
    if long:
        what = (
            f"{name}: {count(len(long), 'row has', 'rows have')} more cells than the first row's {width}: {some(long)}"
        )
        raise InputError(what, "put quotes around cells that have the separator in them")
    cells = [(row + [""] * width)[:width] for _, row in numbered]
    return Table(name, [str(number) for number in range(1, width + 1)], cells, header=None)


def _json_records(text: str, name: str, *, lines: bool) -> list[dict[str, Any]]:
    if lines:
        values: Any = [_parsed(line, f"{name}:{n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        values = _parsed(text, name)
    if isinstance(values, dict):
        values = _coco_records(values, name) if {"images", "annotations"} <= values.keys() else _pairs(values)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{name} is no list of objects", "write one object for each photo: file_name and label")
    return values


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON ({error})") from error


def _pairs(values: dict[str, Any]) -> Any:
    """Return an object of photo → label, or of photo → object, as a list of objects."""
    if all(isinstance(value, dict) for value in values.values()):
        return [{"file_name": key, **value} for key, value in values.items()]
    return [{"file_name": key, "label": value} for key, value in values.items()]


def _coco_records(values: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return image and category of every annotation of a COCO file, which most annotation tools can export."""
    try:
        images = {image["id"]: image["file_name"] for image in values["images"]}
        names = {category["id"]: category["name"] for category in values.get("categories", ())}
        labels = [(entry["image_id"], entry["category_id"]) for entry in values["annotations"]]
        labelled = [{"file_name": images[image], "category": names.get(label, label)} for image, label in labels]
    except (KeyError, TypeError) as error:
        raise InputError(f"{name} is no whole COCO file ({error})", "export the annotations again") from error
    known = {image for image, _ in labels}
    return labelled + [{"file_name": file, "category": None} for key, file in images.items() if key not in known]


def _from_records(name: str, records: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(name, columns, [[_cell(record.get(column)) for column in columns] for record in records])


def _cell(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, (dict, list)):
        return ""
    if isinstance(value, float) and value.is_integer():  # an integer column with a missing value
        value = int(value)
    return str(value).strip()


def _read_parquet(path: Path, name: str, images: Path | None) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow, which isn't installed", "pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            binary = [f.name for f in schema if "binary" in str(f.type) and not pyarrow.types.is_nested(f.type)]
            structs = [f for f in schema if pyarrow.types.is_struct(f.type)]
            embedded = [*(f.name for f in structs if "bytes" in [part.name for part in f.type]), *binary]
            plain = [f.name for f in schema if not pyarrow.types.is_nested(f.type) and f.name not in binary]
            table = Table(name, plain, [], class_names=_hub_names(schema.metadata))
            if embedded and images is not None:
                table.columns = [embedded[0], *plain]
                table.photos = images
            if table.photos is None:
                for batch in file.iter_batches(columns=plain):
                    table.rows += [[_cell(row[column]) for column in plain] for row in batch.to_pylist()]
            elif images is not None:
                with contextlib.nullcontext(images) if images.is_dir() else creating_folder(images) as folder:
                    for image, row in _embedded_rows(file, embedded[0], plain, folder):
                        table.rows.append([image, *(_cell(row[column]) for column in plain)])
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise InputError(f"{name} is damaged or no Parquet file ({shortened(str(error))})") from error
    return table


def _hub_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the class names that Hugging Face's datasets keeps in the metadata of a schema, by column."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {key: list(value["names"]) for key, value in features.items() if value.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _embedded_rows(file: Any, column: str, plain: list[str], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write the images of a column into a folder; yield the name of each there ("" if it has none) and its row."""
    number = 0
    for batch in file.iter_batches(batch_size=64, columns=[column, *plain]):
        for row in batch.to_pylist():
            number += 1
            value = row[column] or {}
            value = {"bytes": value} if isinstance(value, bytes) else value
            extension = Path(value.get("path") or "").suffix
            name = f"{number:07d}{extension if _IMAGE_EXTENSION.fullmatch(extension) else ''}"
            data = value.get("bytes")
            if data and not (folder / name).exists():
                (folder / name).write_bytes(data)
            yield name if data else "", row


def _read_oxford(folder: Path, name: str) -> Table:
    """Read the labels and splits of Oxford 102 Flowers: photo ``image_00001.jpg`` has the first label."""
    from scipy.io import loadmat

    names = {"trnid": "train", "valid": "val", "tstid": "test"}
    try:
        labels = [int(label) for label in loadmat(folder / OXFORD[0])["labels"].ravel()]
        ids = loadmat(folder / OXFORD[1])
        splits = {int(number): split for key, split in names.items() for number in ids[key].ravel()}
    except Exception as error:  # damaged files make it raise errors of many kinds, most of them its own
        what = f"{name}: {' and '.join(OXFORD)} are not those of Oxford 102 Flowers ({shortened(str(error))})"
        raise InputError(what) from error
    rows = [[f"image_{n:05d}", str(label), splits.get(n, "")] for n, label in enumerate(labels, 1)]
    return Table(name, ["image", "label", "split"], rows)

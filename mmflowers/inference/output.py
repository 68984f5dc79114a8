"""Write predictions: rows to a CSV, JSON Lines or Parquet file, photos to class folders. Doesn't import torch."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from mmflowers.inference.inputs import Input
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import AtomicFile, creating, explained, write_rows

if TYPE_CHECKING:
    from mmflowers.inference.classifier import Prediction

KINDS = (".csv", ".jsonl", ".parquet")
ELSEWHERE = "choose another --out"
ROW_GROUP = 8192  # rows of a Parquet file that are collected before they are written

Write = Callable[["list[Prediction]"], None]


def check_output(path: Path) -> None:
    """Raise an error before the prediction if the output can't be written.

    Raises:
        InputError: The extension is unknown, the folder doesn't exist, or Parquet is chosen without pyarrow.
    """
    if path.suffix.lower() not in KINDS:
        raise InputError(f"--out {path} has an unknown extension", f"use one of {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}", "create it first")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "Parquet needs pyarrow, which isn't installed", "pip install pyarrow, or --out predictions.csv"
        )


@contextmanager
def open_output(path: Path, top_k: int) -> Iterator[Write]:
    """Open a file of predictions and yield a function that writes a batch of them.

    The columns are ``path``, then ``class`` and ``score`` of each of the ``top_k`` classes, then ``reason``. The file
    gets its name at the end of the context; until then an older file of this name is unchanged. After an error the rows
    are deleted. After a stop by a signal they are kept as ``<name>.partial<extension>``, with a message on stderr.

    Raises:
        InputError: The file can't be written.
    """
    kind, written = path.suffix.lower(), False
    with explained(path, elsewhere=ELSEWHERE):
        whole = AtomicFile(path, text=kind != ".parquet", errors="surrogateescape")
    try:
        with explained(path, elsewhere=ELSEWHERE):
            rows = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}[kind](whole.file, top_k)

        def write(predictions: list[Prediction]) -> None:
            nonlocal written
            with explained(path, elsewhere=ELSEWHERE):
                rows.write(predictions)
                whole.file.flush()
            written = True

        yield write
        with explained(path, elsewhere=ELSEWHERE):
            rows.close()
            whole.commit()
    except BaseException as error:
        try:
            if written and not isinstance(error, Exception):  # a stop: the rows may be the result of hours
                with explained(path, elsewhere=ELSEWHERE):
                    rows.close()
                    print(f"the rows so far are in {whole.keep()}", file=sys.stderr)
        finally:
            whole.discard()
        raise


class _Csv:
    def __init__(self, file: IO[str], top_k: int) -> None:
        self._file, self._top_k = file, top_k
        write_rows(file, [_columns(top_k)])

    def write(self, predictions: list[Prediction]) -> None:
        write_rows(self._file, (_cells(found, self._top_k) for found in predictions))

    def close(self) -> None:
        pass


class _JsonLines:
    def __init__(self, file: IO[str], top_k: int) -> None:
        self._file = file

    def write(self, predictions: list[Prediction]) -> None:
        self._file.writelines(json.dumps(_object(found)) + "\n" for found in predictions)

    def close(self) -> None:
        pass


class _Parquet:
    """Write rows in row groups."""

    def __init__(self, file: IO[bytes], top_k: int) -> None:
        import pyarrow
        import pyarrow.parquet

        self._top_k = top_k
        self._rows: list[list[Any]] = []
        columns = _columns(top_k)
        types = [pyarrow.float32() if name.startswith("score") else pyarrow.string() for name in columns]
        self._schema = pyarrow.schema(zip(columns, types, strict=True))
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def write(self, predictions: list[Prediction]) -> None:
        for found in predictions:
            name, *rest = _cells(found, self._top_k, number=float)
            self._rows.append([os.fsencode(name).decode("utf-8", "backslashreplace"), *rest])
        if len(self._rows) >= ROW_GROUP:
            self._put()

    def close(self) -> None:
        self._put()
        self._writer.close()

    def _put(self) -> None:
        import pyarrow

        *columns, reasons = ([row[number] for row in self._rows] for number in range(len(self._schema)))
        values = [[None if value == "" else value for value in column] for column in columns]
        self._writer.write_table(pyarrow.table([*values, reasons], schema=self._schema))
        self._rows.clear()


def _columns(top_k: int) -> list[str]:
    numbers = ["", *(f"_{number}" for number in range(2, top_k + 1))]
    return ["path", *(f"{name}{number}" for number in numbers for name in ("class", "score")), "reason"]


def _cells(found: Prediction, top_k: int, number: Callable[[float], Any] = "{:.9g}".format) -> list:
    pairs = [(name, number(score)) for name, score in found.top] or [("", "")] * top_k
    return [found.image, *itertools.chain.from_iterable(pairs), found.reason]


def _object(found: Prediction) -> dict:
    top = [{"class": name, "score": score} for name, score in found.top]
    first = top[0] if top else {"class": None, "score": None}
    return {"path": found.image, **first, "top": top, "reason": found.reason}


class ClassFolders:
    """Put photos into one folder per class, without overwriting files.

    Args:
        folder: The parent folder, created if missing.
        classes: Names of the class folders.
        how: Whether files of the user are copied, moved or linked to. Photos from archives and addresses are always
            copied.

    Raises:
        InputError: A class name can't be the name of a folder.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], how: Literal["copy", "move", "link"] = "copy") -> None:
        invalid = [name for name in classes if name in ("", ".", "..") or set(name) & set("/\\:\0")]
        if invalid:
            what = f"class names that can't be names of folders: {', '.join(map(ascii, invalid))}"
            raise InputError(what, "remove --sort-into")
        self.folder, self.how = folder, how

    def add(self, input_: Input, class_name: str) -> Path:
        """Put a photo into a class folder and return its path; a number is added to a name that already exists.

        Raises:
            InputError: The disk is full, or the folder can't be written to.
        """
        name = Path(input_.name.rstrip("/").rpartition("/")[2]).name or "photo"
        path = self.folder / class_name / name
        with explained(f"{input_.name} into {path.parent}", elsewhere="choose another --sort-into"):
            path.parent.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(2):
                try:
                    self._put(input_, path)
                    break
                except FileExistsError:
                    path = path.with_name(f"{Path(name).stem}_{number}{Path(name).suffix}")
        return path

    def _put(self, input_: Input, path: Path) -> None:
        source = input_.source
        if isinstance(source, bytes):  # downloaded
            with creating(path) as file:
                file.write(source)
            return
        assert isinstance(source, str)  # ``PhotoDataset`` returns nothing else
        how = self.how if input_.is_own_file else "copy"
        if how == "link":
            path.symlink_to(Path(source).absolute())
            return
        if how == "move":
            try:
                os.link(source, path, follow_symlinks=False)  # unlike a rename, never replaces a file
                os.unlink(source)  # noqa: PTH108
                return
            except FileExistsError:
                raise
            except OSError:  # another file system, or one without hard links
                pass
        with creating(path) as file, open(source, "rb") as photo:  # noqa: PTH123
            shutil.copyfileobj(photo, file)
        if how == "move":
            os.unlink(source)  # noqa: PTH108

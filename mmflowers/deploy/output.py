"""Where predictions go: a file that grows row by row, folders by class. No torch."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmflowers.deploy.inputs import Input
from mmflowers.errors import InputError

if TYPE_CHECKING:
    from mmflowers.deploy.classifier import Prediction

KINDS = (".csv", ".jsonl", ".parquet")
ROW_GROUP = 8192  # rows of a Parquet file that are held until they are written

Write = Callable[["list[Prediction]"], None]


def check_output(path: Path) -> None:
    """Refuse what can't be written to, before anything is predicted.

    Raises:
        InputError: Another kind of file, no folder for it, or Parquet without pyarrow.
    """
    if path.suffix.lower() not in KINDS:
        raise InputError(f"--out {path} is none of {', '.join(KINDS)}", "the name's end says the kind")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}", "make it first")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "Parquet needs pyarrow, which isn't installed", "pip install pyarrow, or --out predictions.csv"
        )


@contextmanager
def open_output(path: Path, top_k: int) -> Iterator[Write]:
    """Open a file of predictions; what is yielded writes a batch of them.

    CSV and JSON Lines hold every batch as soon as it is written, Parquet gets its name at the end. ``path``, then
    ``class`` and ``score`` of each of the ``top_k`` classes, then ``reason``.

    Raises:
        InputError: It can't be written.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        with _parquet(path, top_k) as write:
            yield write
        return
    with _explained(path):
        file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    writer = csv.writer(file, lineterminator="\n")

    def write(predictions: list[Prediction]) -> None:
        with _explained(path):
            if kind == ".csv":
                writer.writerows(_cells(found, top_k) for found in predictions)
            else:
                file.writelines(json.dumps(_object(found)) + "\n" for found in predictions)
            file.flush()

    try:
        if kind == ".csv":
            writer.writerow(_columns(top_k))
        yield write
    finally:
        with _explained(path):
            file.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write {path}: {error.strerror or error}", "make room, or choose another --out"
        ) from error


@contextmanager
def _parquet(path: Path, top_k: int) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    columns = _columns(top_k)
    types = [pyarrow.float32() if name.startswith("score") else pyarrow.string() for name in columns]
    schema = pyarrow.schema(zip(columns, types, strict=True))
    partial = path.with_name(f".{path.name}.partial")
    held: list[list] = []

    def put() -> None:
        values = [[row[column] if row[column] != "" else None for row in held] for column in range(len(columns) - 1)]
        with _explained(path):
            writer.write_table(pyarrow.table([*values, [row[-1] for row in held]], schema=schema))
        held.clear()

    def write(predictions: list[Prediction]) -> None:
        for found in predictions:
            name, *rest = _cells(found, top_k, number=float)
            held.append([os.fsencode(name).decode("utf-8", "backslashreplace"), *rest])
        if len(held) >= ROW_GROUP:
            put()

    with _explained(path):
        writer = pyarrow.parquet.ParquetWriter(partial, schema)
    try:
        with writer:
            yield write
            put()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


class Sorter:
    """Puts photos into a folder for each class, over nothing that is there.

    Args:
        folder: Made if missing.
        classes: Names of the folders.
        how: Files of the user's are copied, moved, or linked to; what came out of an archive or from an address is
            always written.

    Raises:
        InputError: A class name that is no name of a folder.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], how: Literal["copy", "move", "link"] = "copy") -> None:
        strange = [name for name in classes if name in ("", ".", "..") or set(name) & set("/\\:\0")]
        if strange:
            raise InputError(
                f"classes that can't be folders: {', '.join(map(ascii, strange))}", "leave --sort-into away"
            )
        self.folder, self.how = folder, how

    def place(self, input_: Input, class_name: str) -> Path:
        """Put a photo into the folder of its class, under its own name or, where that is taken, a numbered one.

        Raises:
            InputError: The disk is full, or the folder can't be written to.
        """
        name = Path(input_.name.rstrip("/").rpartition("/")[2]).name or "photo"
        path = self.folder / class_name / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(2):
                try:
                    self._put(input_, path)
                    return path
                except FileExistsError:
                    path = path.with_name(f"{Path(name).stem}_{number}{Path(name).suffix}")
        except OSError as error:
            raise InputError(f"can't sort {input_.name} into {path.parent}: {error.strerror}", "make room") from error

    def _put(self, input_: Input, path: Path) -> None:
        how = self.how if input_.is_own_file else "copy"
        if how == "link":
            path.symlink_to(Path(input_.source).absolute())
            return
        if how == "move":
            try:
                os.link(input_.source, path, follow_symlinks=False)  # unlike a rename never over another file
                os.unlink(input_.source)  # noqa: PTH108
                return
            except FileExistsError:
                raise
            except OSError:  # another disk, or one without hard links
                pass
        with path.open("xb") as file:
            try:
                if isinstance(input_.source, bytes):
                    file.write(input_.source)
                else:
                    with open(input_.source, "rb") as source:  # noqa: PTH123
                        shutil.copyfileobj(source, file)
            except BaseException:
                path.unlink()
                raise
        if how == "move":
            os.unlink(input_.source)  # noqa: PTH108

"""Names that a spreadsheet would run as formulas: text in every CSV, and themselves again for our readers."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmflowers.datasets.card import read_card
from mmflowers.evaluation.calibration import calibrate
from mmflowers.evaluation.predictions import (
    Predictions,
    confusion_matrix,
    per_class_table,
    read_predictions,
    write_predictions,
)
from mmflowers.evaluation.report import RunRow
from mmflowers.inference.classifier import Prediction
from mmflowers.inference.output import open_output
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.utils.files import escape_cell, read_csv, read_rows, unescape_cell, write_rows
from mmflowers.visualization.report import _write_tables

HOSTILE = [
    *("=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "＝1", "＋1", "－1"),
    *("＠A1", "'=1", "''=1", "a;=1+1", 'a;"=1', "a\n=1", "a\t@x", "a; +1", "-1", "=", "'", "'tis", "70's", "", "a-b=c"),
]
# As a spreadsheet looks at a cell that a semicolon, a tab or a line end may have cut.
RUNS = re.compile(r"[;\t\r\n][\s]*[=+\-@＝＋－＠]")


def cells(path: Path) -> list[str]:
    """Every cell that is text to whoever reads the file without unescaping."""
    with path.open(newline="", encoding="utf-8") as file:
        found = [cell for row in csv.reader(file) for cell in row]
    return [cell for cell in found if not re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)]


def harmless(path: Path) -> bool:
    return not [cell for cell in cells(path) if RUNS.search(f"\n{cell}")]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cells_are_harmless_and_come_back(name: str) -> None:
    file = io.StringIO(newline="")
    write_rows(file, [[name, 1, "end"]])
    file.seek(0)
    ((cell, number, end),) = csv.reader(file)
    assert (number, end) == ("1", "end") and not RUNS.search(f"\n{cell}")
    assert unescape_cell(cell) == name


PIECES = st.sampled_from(
    ["=", "+", "-", "@", "＝", "'", '"', "\t", "\r", "\n", " ", ";", ",", "a", "é", "\ud800", "-1.5"]
)


@given(st.lists(st.lists(PIECES, max_size=6).map("".join) | st.text(st.characters(exclude_characters="\0"))))
def test_any_row_of_text_comes_back(row: list[str]) -> None:
    file = io.StringIO(newline="")
    write_rows(file, [["header"], row, ["end"]])
    file.seek(0)
    assert list(read_rows(file)) == [["header"], row, ["end"]]
    assert not any(RUNS.search(f"\n{escape_cell(cell)}") for cell in row)


def test_numbers_stay_numbers_and_harmless_text_as_it_is() -> None:
    file = io.StringIO()
    write_rows(file, [[-1.5, np.float64(-0.5), np.int64(-3), None, "rose", "'tis", "a-b", "70's; x"]])
    assert file.getvalue() == "-1.5,-0.5,-3,,rose,'tis,a-b,70's; x\n"


def test_long_cells_take_no_time() -> None:
    for cell in ("'\n" * 60_000, "; " * 60_000, "'" * 120_000, " " * 120_000 + "="):
        assert unescape_cell(escape_cell(cell)) == cell


def hostile_predictions() -> Predictions:
    names = [name for name in HOSTILE if name]
    scores = np.eye(len(names), dtype=np.float32)
    return Predictions([f"{name}/x.jpg" for name in names], np.arange(len(names)), scores, names)


def test_predictions_give_back_the_true_names(tmp_path: Path) -> None:
    predictions = hostile_predictions()
    write_predictions(predictions, tmp_path / "predictions_val.csv")
    assert harmless(tmp_path / "predictions_val.csv")
    read = read_predictions(tmp_path / "predictions_val.csv")
    assert (read.images, read.classes) == (predictions.images, predictions.classes)
    assert np.array_equal(read.labels, predictions.labels) and np.array_equal(read.scores, predictions.scores)


def test_predictions_of_before_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("image,label,predicted,score_=a,score_'tis\n-x.jpg,=a,'tis,0.25,0.75\n")
    read = read_predictions(tmp_path / "old.csv")
    assert (read.images, read.classes) == (["-x.jpg"], ["=a", "'tis"])


def test_the_tables_of_a_report_are_harmless(tmp_path: Path) -> None:
    predictions = hostile_predictions()

    report = SimpleNamespace(
        runs=[SimpleNamespace(name="=run", history=None)],
        rows=[RunRow("=run", 0.5, 1, 2, 0.1, 0.9, None, -1.5)],
        per_class=per_class_table(predictions),
        confusion=confusion_matrix(predictions),
        calibration=calibrate(predictions, 5),
    )
    _write_tables(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"per_class.csv", "confusion.csv", "runs.csv"}
    assert all(harmless(path) for path in tmp_path.iterdir())
    header, *rows = read_csv(tmp_path / "confusion.csv")
    assert header[1:] == predictions.classes == [row[0] for row in rows]
    assert [[int(count) for count in row[1:]] for row in rows] == confusion_matrix(predictions).tolist()
    assert [row[0] for row in read_csv(tmp_path / "per_class.csv")[1:]] == predictions.classes
    assert read_csv(tmp_path / "runs.csv")[1][RunRow._fields.index("ece")] == "-1.5"  # numbers stay numbers


def test_rows_of_predict_are_harmless(tmp_path: Path) -> None:
    found = [Prediction(name, 0, name, 0.5, ((name, 0.5),), reason="") for name in HOSTILE if name]
    with open_output(tmp_path / "rows.csv", 1) as write:
        write([*found, Prediction("x", reason="=1")])
    assert harmless(tmp_path / "rows.csv")
    rows = read_csv(tmp_path / "rows.csv")[1:]
    assert [row[:2] for row in rows] == [*([p.image, p.class_name] for p in found), ["x", ""]]
    assert rows[-1][-1] == "=1"


def test_files_csv_is_harmless_and_its_reader_gets_the_names(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "red")
    for number, name in enumerate(("=daisy", "+rose")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for shade in range(3):
            image.paste((200 * number, 60 * shade, 99), (0, 0, 32, 32))
            image.save(tmp_path / "photos" / name / f"@{shade}.png")
        (tmp_path / "photos" / name / "-copy.png").write_bytes(
            (tmp_path / "photos" / name / "@0.png").read_bytes()
        )  # left out as a copy
    prepare(PrepareOptions(out=tmp_path / "data", source=tmp_path / "photos", workers=1))
    assert harmless(tmp_path / "data" / "files.csv")
    copies = {frozenset(copy[:2]) for copy in read_card(tmp_path / "data").copies}
    assert copies == {frozenset({f"{name}/-copy.png", f"{name}/@0.png"}) for name in ("=daisy", "+rose")}

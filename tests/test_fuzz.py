"""A small slice of `make fuzz`, and that the fuzz itself would notice."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmflowers.checks.findings import Finding
from mmflowers.utils.errors import InputError

pytest.importorskip("resource", reason="measures memory as POSIX does")
import fuzz


@pytest.mark.slow
def test_whatever_comes_in_ends_in_a_verdict_or_an_input_error() -> None:
    kinds = {"images": 20, "archives": 40, "configs": 0, "lists": 40, "checkpoints": 40, "counts": 10, "kills": 0}
    numbers = [word for kind, number in kinds.items() for word in (f"--{kind}", str(number))]
    # A process of its own: the memory it may take is measured, and that of the tests would count as its.
    command = [sys.executable, fuzz.__file__, "--seed", "1", *numbers]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in result.stdout.splitlines() if line.split()[0] in kinds}
    for kind, number in kinds.items():
        if number:
            count, refused, accepted = (int(cell.replace(",", "")) for cell in rows[kind])
            assert count == refused + accepted == number


def raises(number: int, rng: random.Random, place: Path) -> Iterator[fuzz.Case]:
    yield fuzz.Case(lambda: 1 / 0, lambda error: (1, 0))


def says_two_lines(number: int, rng: random.Random, place: Path) -> Iterator[fuzz.Case]:
    def act() -> None:
        raise InputError("two\nlines")

    yield fuzz.Case(act, lambda error: (1, 0))


def dies(number: int, rng: random.Random, place: Path) -> Iterator[fuzz.Case]:
    yield fuzz.Case(lambda: os._exit(3), lambda error: (1, 0))


def does_nothing(number: int, rng: random.Random, place: Path) -> Iterator[fuzz.Case]:
    yield fuzz.Case(lambda: None, lambda error: (0, 1))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(raises, "ZeroDivisionError"), (says_two_lines, "no clear line"), (dies, "died"), (does_nothing, r"\d+ MB")],
)
def test_a_broken_promise_is_noticed_and_its_input_kept(
    kind: fuzz.Kind, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fuzz, "MOST_MB", 1 if kind is does_nothing else fuzz.MOST_MB)
    with pytest.raises(AssertionError, match=said) as caught:
        fuzz.run(kind, 1, seed=0)
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)


@pytest.mark.parametrize(
    ("falsehoods", "peculiar", "level", "said"),
    [
        ([("error", "counts twice")], True, None, "not refused"),
        ([("error", "counts twice")], True, "warning", "not refused"),
        ([("warning", "leaves out")], True, None, "not a word"),
        ([], False, "warning", "a false alarm"),
        ([("error", "counts twice")], True, "error", None),
        ([("warning", "leaves out")], True, "warning", None),
        ([], True, "warning", None),
        ([], False, None, None),
    ],
)
def test_findings_that_are_not_the_truth_about_the_photos_are_noticed(
    falsehoods: list, peculiar: bool, level: str | None, said: str | None
) -> None:
    import counting

    draw = types.SimpleNamespace(edits=[], config=str)
    found = [Finding(level, "val_dataloader", "counts 1 of 2", "…")] if level else []
    truth = counting.Truth(falsehoods, peculiar, {}, {})
    with pytest.raises(AssertionError, match=said) if said else contextlib.nullcontext():
        counting.judge(draw, truth, found, None)


def test_every_change_of_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    seen = [fuzz.tree(tmp_path)]
    for change in (
        lambda: (tmp_path / "a").write_text("y"),
        lambda: (tmp_path / "b").mkdir(),
        lambda: (tmp_path / "b" / "c").symlink_to("../a"),
        lambda: (tmp_path / "a").unlink(),
    ):
        change()
        seen.append(fuzz.tree(tmp_path))
    assert all(one != other for one, other in itertools.pairwise(seen))

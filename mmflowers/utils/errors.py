"""Errors caused by the user's input: one line per problem, all problems together."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE, STANDARD_LIBRARY = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
NAMED = 3  # items of a longer list that an error names
OPENMMLAB = ("mmpretrain", "mmengine", "mmcv", "pkg_resources")
RELAYED = "Original Traceback (most recent call last):"


class Problem(NamedTuple):
    """One problem with the input, and what the user can do about it."""

    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.what} · hint: {self.hint}" if self.hint else self.what


class InputError(Exception):
    """Bad input, as opposed to a bug: a command prints one line per problem and exits with code 2.

    Args:
        what: What is wrong and where, without a trailing full stop.
        hint: What to do about it.
        problems: Instead of ``what`` and ``hint``: several problems found together.
    """

    def __init__(self, what: str = "", hint: str = "", *, problems: Iterable[Problem] = ()) -> None:
        if RELAYED in what:
            # torch's DataLoader raises a worker's error again, with the text of its traceback as the only argument.
            what, _, hint = (
                what.strip()
                .rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2]
                .partition(" · hint: ")
            )
        self.problems = [*([Problem(what, hint)] if what else []), *problems]
        if not self.problems:
            raise ValueError("an InputError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions with keyword-only arguments can't be pickled otherwise
        return (_rebuild, (self.problems,))


def failing(checks: Iterable[tuple[object, str, str]]) -> list[Problem]:
    """Return the problems among ``(whether it is wrong, what is wrong, hint)``."""
    return [Problem(what, hint) for is_wrong, what, hint in checks if is_wrong]


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise an ``InputError`` with all problems, if there are any."""
    if problems := list(problems):
        raise InputError(problems=problems)


def some(items: Iterable[object], total: int = 0) -> str:
    """Format the first items of a list: ``a, b, c and 4 more``.

    Args:
        items: The items, or only the first of them.
        total: How many there are, if ``items`` are only the first.
    """
    names = [str(item) for item in items]
    more = max(total, len(names)) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def count(number: int, what: str = "photo", several: str = "") -> str:
    """Format a number with its noun: ``1 photo``, ``2 photos``; ``several`` is an irregular plural."""
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def shortened(name: str) -> str:
    """Format a name from a file for a message: at most 120 characters, non-printable ones escaped."""
    name = name if len(name) <= 120 else f"{name[:117]}…"
    return name if name.isprintable() else ascii(name)


def not_installed(error: BaseException) -> Problem | None:
    """Return what to install where an import failed for want of OpenMMLab's packages, which are an extra; else None.

    MMEngine 0.10 looks up the packages of ``mmpretrain::`` configs with pkg_resources, which setuptools 82 removed.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name not in OPENMMLAB:
        return None
    install = "pip install 'mmflowers[openmmlab]', or in a checkout pip install -r requirements.txt"
    return Problem(f"the package {error.name} isn't installed", install)


def is_own(error: BaseException) -> bool:
    """Return whether an error was raised in this package's own code, which makes it a bug.

    Where classes of the user are built and called, an error may come from them. It comes from this package if the
    innermost frame of the traceback outside the standard library is in this package. An ``InputError`` is never a bug.
    """
    if isinstance(error, InputError):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    outside = [file for file in files if file.is_absolute() and not _is_standard(file)]
    return bool(outside) and outside[-1].is_relative_to(PACKAGE)


def _is_standard(file: Path) -> bool:
    return file.is_relative_to(STANDARD_LIBRARY) and not {"site-packages", "dist-packages"} & set(file.parts)


def _rebuild(problems: list[Problem]) -> InputError:
    return InputError(problems=problems)

"""What goes wrong because of what came in: said in one line each, all of them at once."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PACKAGE, STANDARD_LIBRARY = Path(__file__).parent, Path(sysconfig.get_path("stdlib"))
NAMED = 3  # of many things an error names so many
RELAYED = "Original Traceback (most recent call last):"


class Problem(NamedTuple):
    """One thing that is wrong with the input, and what the user can do about it."""

    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.what} · hint: {self.hint}" if self.hint else self.what


class InputError(Exception):
    """Bad input, as opposed to a bug: a command prints every problem in one line each and exits with 2.

    Args:
        what: What is wrong and where, without a trailing full stop.
        hint: What to do about it.
        problems: Instead of ``what`` and ``hint``: several problems found together.
    """

    def __init__(self, what: str = "", hint: str = "", *, problems: Iterable[Problem] = ()) -> None:
        if RELAYED in what:
            # torch's DataLoader raises an error of a worker anew, from the text of its traceback alone.
            what, _, hint = (
                what.strip()
                .rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2]
                .partition(" · hint: ")
            )
        self.problems = [*([Problem(what, hint)] if what else []), *problems]
        if not self.problems:
            raise ValueError("an InputError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self):  # exceptions with keyword-only arguments do not travel between processes by themselves
        return (_rebuild, (self.problems,))


def some(items: Iterable[object]) -> str:
    """``a, b, c and 4 more``."""
    names = [str(item) for item in items]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def count(number: int, what: str = "photo") -> str:
    """``1 photo``, ``2 photos``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def is_own(error: BaseException) -> bool:
    """Whether an error arose in this package's own code: a bug, whatever the user's input was.

    Where user's classes are built and called, any error may be the user's. It isn't where the innermost frame of the
    traceback, the standard library's aside, is one of this package. An ``InputError`` is never a bug.
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

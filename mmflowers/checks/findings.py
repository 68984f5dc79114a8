"""What the checks find, the list of all checks, and how findings are told and kept."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import explained, write_text
from mmflowers.utils.terminal import is_first_process

AFTERWARDS = "correct the errors first; what stays then is a bug of mmflowers, which --skip-checks goes round"
KEPT = "checks.json"  # in the work dir; engine/record.py copies its warnings into the log


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or doubtful.

    Attributes:
        level: "error": the run would fail or its number be false. "warning": it is hardly what was meant.
        where: The config key, dataset folder or file.
        what: What is wrong there.
        hint: What to do about it.
        pitfall: The row of docs/pitfalls.md it belongs to; 0 for none of them.
    """

    level: str
    where: str
    what: str
    hint: str
    pitfall: int = 0


def error(where: str, what: str, hint: str) -> Finding:
    """A finding that stops."""
    return Finding("error", where, what, hint)


def warning(where: str, what: str, hint: str) -> Finding:
    """A finding that is told and kept."""
    return Finding("warning", where, what, hint)


def from_problems(where: str, problems: Iterable[Problem]) -> list[Finding]:
    """Errors of what other rooms found."""
    return [error(where, problem.what, problem.hint) for problem in problems]


Check = Callable[[Any], Iterable[Finding]]
CHECKS: dict[str, list[Check]] = {"config": [], "dataset": []}


def check(pitfall: int = 0, *, of: str = "config") -> Callable[[Check], Check]:
    """Enter a function ``case -> findings`` in the list of checks "of" a config or a dataset folder.

    ``pitfall`` is its row of docs/pitfalls.md, 0 for none.
    """

    def enter(function: Check) -> Check:
        def numbered(case: Any) -> Iterator[Finding]:
            for finding in function(case) or ():
                yield replace(finding, pitfall=finding.pitfall or pitfall)

        CHECKS[of].append(numbered)
        return function

    return enter


def run_checks(case: Any, checks: Iterable[Check], found: Iterable[Finding] = ()) -> list[Finding]:
    """Run ``checks`` on ``case``; return what they find after ``found``, errors first, none twice.

    A check may fail on a config that is wrong in a way that another check reports. Its failure is reported beside that,
    and never instead: without any error it is raised.
    """
    findings, crashes = list(found), []
    for function in checks:
        try:
            findings += function(case)
        except Exception as bug:  # of wrong types, or a bug
            crashes.append(bug)
    if crashes and not any(finding.level == "error" for finding in findings):
        raise crashes[0]
    for crash in crashes:
        place = traceback.extract_tb(crash.__traceback__)[-1]
        what = f"a check failed itself: {type(crash).__name__}: {' '.join(str(crash).split())}"
        findings.append(warning(f"{Path(place.filename).name}:{place.lineno}", what, AFTERWARDS))
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level)


def report(findings: list[Finding], work_dir: str | Path | None = None) -> None:
    """Tell warnings on stderr and keep them in ``work_dir``/checks.json; stop at errors.

    Of several processes that train together the first alone tells and keeps.

    Raises:
        InputError: With all errors, their places aligned.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    width = max((len(finding.where) for finding in findings), default=0) + 1
    first = is_first_process()
    if first:
        for finding in warnings:
            print(f"warning: {_problem(finding, width)}", file=sys.stderr)
    if errors:
        raise InputError(problems=[_problem(finding, width) for finding in errors])
    if work_dir is not None and first:
        path = Path(work_dir) / KEPT
        path.unlink(missing_ok=True)  # of an earlier run
        if not warnings:
            return
        with explained(path.parent, elsewhere="choose another --work-dir"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps([asdict(finding) for finding in warnings], indent=1) + "\n")


def _problem(finding: Finding, width: int) -> Problem:
    return Problem(f"{finding.where + ':':<{width}} {finding.what}", finding.hint)

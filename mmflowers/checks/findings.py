"""The findings of the checks, the list of all checks, and the report of their findings."""

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

AFTERWARDS = "fix the errors first; if this remains, it is a bug of mmflowers, and --skip-checks avoids it"
FILE = "checks.json"  # in the work dir; engine/record.py copies its warnings into the log


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        level: "error": the run would fail, or its result would be wrong. "warning": it is probably not intended.
        where: The config key, dataset folder or file.
        what: The problem.
        hint: How to fix it.
        pitfall: Its section of docs/pitfalls.md; 0 for none.
    """

    level: str
    where: str
    what: str
    hint: str
    pitfall: int = 0


def error(where: str, what: str, hint: str) -> Finding:
    """Return a finding that stops the run."""
    return Finding("error", where, what, hint)


def warning(where: str, what: str, hint: str) -> Finding:
    """Return a finding that is printed and recorded."""
    return Finding("warning", where, what, hint)


def from_problems(where: str, problems: Iterable[Problem]) -> list[Finding]:
    """Convert problems that other packages found to errors."""
    return [error(where, problem.what, problem.hint) for problem in problems]


Check = Callable[[Any], Iterable[Finding]]
CHECKS: dict[str, list[Check]] = {"config": [], "dataset": []}


def check(pitfall: int = 0, *, of: str = "config") -> Callable[[Check], Check]:
    """Register a function ``case -> findings`` as a check.

    Args:
        pitfall: Its section of docs/pitfalls.md, 0 for none.
        of: Whether it checks a "config" or a "dataset" folder.
    """

    def register(function: Check) -> Check:
        def numbered(case: Any) -> Iterator[Finding]:
            for finding in function(case) or ():
                yield replace(finding, pitfall=finding.pitfall or pitfall)

        CHECKS[of].append(numbered)
        return function

    return register


def run_checks(case: Any, checks: Iterable[Check], found: Iterable[Finding] = ()) -> list[Finding]:
    """Run ``checks`` on ``case``; return ``found`` and their findings, errors first, without duplicates.

    A check may crash on a config with an error that another check reports. The crash is then reported as a warning. If
    there is no error, it is raised.
    """
    findings, crashes = list(found), []
    for function in checks:
        try:
            findings += function(case)
        except Exception as bug:  # caused by wrong types in the config, or a bug
            crashes.append(bug)
    if crashes and not any(finding.level == "error" for finding in findings):
        raise crashes[0]
    for crash in crashes:
        place = traceback.extract_tb(crash.__traceback__)[-1]
        what = f"a check crashed: {type(crash).__name__}: {' '.join(str(crash).split())}"
        findings.append(warning(f"{Path(place.filename).name}:{place.lineno}", what, AFTERWARDS))
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level)


def report(findings: list[Finding], work_dir: str | Path | None = None) -> None:
    """Print warnings to stderr and write them to ``work_dir``/checks.json; raise the errors.

    In a distributed training only the first process prints and writes.

    Raises:
        InputError: With all errors, aligned by their places.
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
        path = Path(work_dir) / FILE
        path.unlink(missing_ok=True)  # of an earlier run
        if not warnings:
            return
        with explained(path.parent, elsewhere="choose another --work-dir"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps([asdict(finding) for finding in warnings], indent=1) + "\n")


def _problem(finding: Finding, width: int) -> Problem:
    return Problem(f"{finding.where + ':':<{width}} {finding.what}", finding.hint)

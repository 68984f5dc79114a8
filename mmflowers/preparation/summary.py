"""What a preparation has done, for people to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmflowers.preparation.duplicates import Duplicates
from mmflowers.preparation.records import SPLITS, Record
from mmflowers.preparation.splitting import shown

NAMED = 20  # groups of copies named in the summary; files.csv has them all


@dataclass(slots=True)
class Summary:
    """What ``prepare`` has done, or would do; ``str()`` is a table and a line for each finding.

    Attributes:
        out: The dataset folder.
        counts: For each split, the photos of each class: ``counts["train"]["daisy"]``.
        dropped: Files that are not in the dataset, by class ("" for none) and by reason.
        converted: Files that were re-encoded, by reason.
        duplicates: Copies and near pairs.
        notes: Lines worth a look.
        state: "written", "planned" (a dry run) or "up to date".
        seconds: The duration.
        recognised: What was recognised in the source, one paragraph.
    """

    out: Path
    counts: dict[str, dict[str, int]]
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    duplicates: Duplicates = field(default_factory=Duplicates)
    notes: list[str] = field(default_factory=list)
    state: Literal["written", "planned", "up to date"] = "written"
    seconds: float = 0.0
    recognised: str = ""

    @property
    def classes(self) -> list[str]:
        """The class names in the order of their labels."""
        return list(self.counts["train"])

    @property
    def photos(self) -> int:
        """The number of photos in all splits."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def dropped_by_reason(self) -> Counter[str]:
        """The number of dropped files for each reason."""
        return _sums(self.dropped, 1)

    def __str__(self) -> str:
        lines = [f"recognised: {self.recognised}\n"] if self.recognised else []
        lines.append(self.table())
        for what, reasons in (("dropped", self.dropped_by_reason), ("converted", self.converted)):
            lines += [f"{what}: {count:,} × {reason}" for reason, count in sorted(reasons.items())]
        for what, groups in (
            ("identical, in different classes", self.duplicates.conflicts),
            ("identical", [group for group in self.duplicates.identical if group not in self.duplicates.conflicts]),
            ("nearly the same", self.duplicates.near),
            ("nearly the same, in different classes: look at these", self.duplicates.mixed),
            ("spans the given split", self.duplicates.spanning),
        ):
            lines += [f"{what}: {' = '.join(map(shown, group))}" for group in groups[:NAMED]]
            if len(groups) > NAMED:
                lines.append(f"{what}: and {len(groups) - NAMED:,} more, see files.csv")
        lines += [f"note: {note}" for note in self.notes]
        end = {
            "written": f"{self.photos:,} photos in {self.out} ({self.seconds:.1f} s)",
            "planned": f"{self.photos:,} photos would be in {self.out}; nothing was written (--dry-run)",
            "up to date": f"{self.out} is already up to date: {self.photos:,} photos (--force rebuilds it)",
        }
        return "\n".join([*lines, end[self.state]])

    def table(self) -> str:
        """Classes × splits with sums, aligned, as plain text that is Markdown too."""
        classes = sorted({name for by_class in self.counts.values() for name in by_class})
        splits = [name for name in SPLITS if self.counts.get(name)]
        lost = _sums(self.dropped, 0)
        rows = [("class", *splits, "dropped")]
        rows += [(shown(c), *(f"{self.counts[s].get(c, 0):,}" for s in splits), f"{lost[c]:,}") for c in classes]
        if stray := sum(count for name, count in lost.items() if name not in classes):
            rows.append(("(none)", *("" for _ in splits), f"{stray:,}"))
        rows.append(("all", *(f"{sum(self.counts[s].values()):,}" for s in splits), f"{lost.total():,}"))
        if self.state == "up to date":  # what was dropped isn't known then
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * (width - 1) + ":" for width in widths))
        lines = [
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
            for cells in rows
        ]
        lines[1][0] = ":" + "-" * (widths[0] - 1)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summarize(out: Path, records: list[Record], classes: list[str], found: Duplicates, notes: list[str]) -> Summary:
    """Count the photos and verdicts of a planned dataset."""
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(classes, 0) for name in SPLITS}
    for record in records:
        if record.target:
            name, class_name, _ = record.target.split("/")
            counts[name][class_name] += 1
    return Summary(
        out,
        {name: by_class for name, by_class in counts.items() if any(by_class.values())},
        Counter((record.class_name or "", record.reason) for record in records if record.verdict == "dropped"),
        Counter(record.reason for record in records if record.verdict == "converted"),
        found,
        notes,
        "planned",
    )


def _sums(dropped: Counter[tuple[str, str]], part: Literal[0, 1]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for key, count in dropped.items():
        sums[key[part]] += count
    return sums

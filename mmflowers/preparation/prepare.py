"""Photos → dataset folder, all steps: sources → inspection → duplicates → splitting → writing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import PIL

from mmflowers.preparation.duplicates import Duplicates, resolve
from mmflowers.preparation.inspection import MIN_SIDE, Journal, hash_files, inspect
from mmflowers.preparation.records import SPLITS, Record, Source, SourceFile
from mmflowers.preparation.sources import FLOWER_PHOTOS, open_source
from mmflowers.preparation.splitting import check_given, name_targets, shown
from mmflowers.preparation.splitting import split as draw_split
from mmflowers.preparation.writing import (
    ELSEWHERE,
    FORMAT_VERSION,
    Target,
    digest,
    is_whole,
    place_photos,
    require_space,
    write_contact_sheet,
    write_metadata,
    write_tables,
    write_text,
)
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import DISK_ERRORS, explained
from mmflowers.utils.resources import processors
from mmflowers.utils.terminal import progress
from mmflowers.version import __version__

VAL_RATIO, TEST_RATIO = "0.2", "0"
HUB_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")  # by digits, from 3 to 7
HUB_SPLITS = {"val": "validation"}
NAMED = 20  # groups of copies named in the summary; files.csv has them all

CARD = """\
---
{metadata}---

# {name}

{photos:,} photos of {classes} classes for training an image classifier, prepared by mmflowers {version} from {source}.
{rights}

{table}
![some photos of each class](contact_sheet.jpg)

## How it was made

- Split: {split}.
- Every file was decoded as a whole. Of {files:,} files {kept:,} stay as they are, {converted:,} were re-encoded as
  upright RGB, {dropped:,} were dropped.
- {duplicates}
- {resize}

{reasons}
## What lies here

- `train/<class>/`, `val/<class>/` and so on: the photos.
- `train.txt`, `val.txt` …: a photo and its label a line. `classes.txt`: the name of label 0, 1, 2 … a line.
- `files.csv`: every file of the source with its verdict, the reason, and where it went.
- `dataset.json`: source, options, counts, and digests of what went in and of what came out.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the dataset depends on besides its source; see ``prepare``."""

    duplicates: Literal["drop", "keep"] = "drop"
    val: Fraction | None = None
    test: Fraction | None = None
    seed: int = 0
    resize: int | None = None
    link: Literal["copy", "hardlink", "symlink"] = "copy"

    @property
    def ratios(self) -> tuple[Fraction, Fraction]:
        """The shares of val and test where the split is drawn: those given, else the defaults."""
        return self.val or Fraction(VAL_RATIO), self.test or Fraction(TEST_RATIO)

    def as_json(self) -> dict:
        return {
            "duplicates": self.duplicates,
            "val_ratio": None if self.val is None else float(self.val),
            "test_ratio": None if self.test is None else float(self.test),
            "seed": self.seed,
            "resize": self.resize,
            "link": self.link,
        }


@dataclass(slots=True)
class Summary:
    """What ``prepare`` has done, or would do; ``str()`` is the table for people.

    Attributes:
        out: The dataset folder.
        counts: For each split, the photos of each class: ``counts["train"]["daisy"]``.
        dropped: Files that are not in the dataset, by class ("" for none) and by reason.
        converted: Files that were re-encoded, by reason.
        duplicates: Copies and near pairs.
        notes: Lines worth a look.
        state: "written", "planned" (a dry run) or "up to date".
        seconds: It took.
    """

    out: Path
    counts: dict[str, dict[str, int]]
    dropped: Counter = field(default_factory=Counter)
    converted: Counter = field(default_factory=Counter)
    duplicates: Duplicates = field(default_factory=Duplicates)
    notes: list[str] = field(default_factory=list)
    state: Literal["written", "planned", "up to date"] = "written"
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [counts_table(self.counts, None if self.state == "up to date" else self.dropped)]
        for what, reasons in (("dropped", _by_reason(self.dropped)), ("converted", self.converted)):
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
        photos = sum(sum(classes.values()) for classes in self.counts.values())
        end = {
            "written": f"{photos:,} photos in {self.out} ({self.seconds:.1f} s)",
            "planned": f"{photos:,} photos would be in {self.out}; nothing was written (--dry-run)",
            "up to date": f"{self.out} is already up to date: {photos:,} photos (--force rebuilds it)",
        }
        return "\n".join([*lines, end[self.state]])


def prepare(
    out: str | Path,
    *,
    source: str | Path | None = None,
    sha256: str | None = None,
    rendered: int | None = None,
    rendered_seed: int = 0,
    split: Literal["keep", "redo"] | None = None,
    split_lists: str | Path | None = None,
    duplicates: Literal["drop", "keep"] = "drop",
    val_ratio: str | float | None = None,
    test_ratio: str | float | None = None,
    seed: int = 0,
    resize: int | None = None,
    link: Literal["copy", "hardlink", "symlink"] = "copy",
    workers: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Summary:
    """Make a dataset folder that MMPretrain's and torchvision's datasets read.

    The source is never changed. The same files and options give the same bytes. Interrupted at any moment, it leaves
    the old dataset or the new one, whole; run again, it goes on where it was.

    Args:
        out: The dataset folder; an older one of ours is replaced.
        source, sha256, split, split_lists: See ``open_source``.
        rendered: Instead of a source: render this many flowers a class.
        rendered_seed: Of the rendering.
        duplicates: See ``duplicates.resolve``.
        val_ratio: Share of the photos of each class for validation, exact as written; default 0.2.
        test_ratio: Share for a test split; default none.
        seed: Of the split.
        resize: Short side in pixels that larger photos are scaled down to.
        link: How photos whose bytes are kept come into the folder.
        workers: Processes; default: as many as there are cores.
        force: Rebuild it even if it is up to date, and replace a folder that isn't a dataset.
        dry_run: Only find out what would be done.

    Raises:
        InputError: for whatever is wrong with arguments, source, photos or disk.
    """
    options = _checked_options(
        duplicates=duplicates,
        val_ratio=val_ratio,
        test_ratio=test_ratio,
        seed=seed,
        resize=resize,
        link=link,
        rendered=rendered,
        has_source=any(value is not None for value in (source, sha256, split, split_lists)),
        given_split=split == "keep" or split_lists is not None,
        workers=workers,
    )
    start = time.perf_counter()
    workers = workers or processors()
    target = Target(Path(out))
    target.check(force=force)
    _refuse_nesting(source, target)

    def open_it(staging: Path) -> Source:
        if rendered is not None:
            return _render(rendered, rendered_seed, staging, workers)
        lists = None if split_lists is None else Path(split_lists).expanduser()
        return open_source(source, staging=staging, sha256=sha256, split=split, split_lists=lists)

    summary: Summary | None
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="mmflowers-") as staging:
            summary, _, _ = _plan(open_it(Path(staging)), target, options, workers=workers)
    else:
        expected = _rendered_description(rendered, rendered_seed) if rendered is not None else None
        with target.locked():
            summary = None if force else _up_to_date_rendered(target, expected, options, workers)
            if summary is None:
                try:
                    with explained(target.out, elsewhere=ELSEWHERE, only=DISK_ERRORS):
                        opened = open_it(target.incomplete / "source")
                        summary = build(opened, target, options, workers=workers, force=force)
                except InputError:
                    with contextlib.suppress(OSError):  # a disk that has become read-only
                        target.clear()  # an interruption leaves its work for the next run; bad input doesn't
                    raise
    summary.seconds = time.perf_counter() - start
    return summary


def build(source: Source, target: Target, options: Options, *, workers: int, force: bool = False) -> Summary:
    """Make the dataset of an opened source; the caller holds the target's lock."""
    if options.link == "symlink" and target.incomplete in source.root.resolve().parents:
        hint = "unpack it and give the folder with --source, or use --link hardlink"
        raise InputError("--link symlink needs photos that stay where they are, not an archive's", hint)
    if not force and (summary := _up_to_date(source, target, options, workers)):
        target.clear()
        return summary
    _require_space(source, target, options)
    target.start()
    settings = {"root": str(source.root), "resize": options.resize, "link": options.link, "versions": _versions()}
    journal = Journal(target.incomplete / "inspection.jsonl", settings)
    if journal.inherited:
        print(f"going on with an interrupted run: {journal.inherited:,} files are inspected", file=sys.stderr)
    try:
        summary, records, classes = _plan(source, target, options, workers=workers, journal=journal)
    finally:
        journal.close()
    target.sync_early()
    summary.notes += place_photos(records, source.root, target, link=options.link)
    if (old := target.metadata()) and not source.has_split and old.get("format_version") != FORMAT_VERSION:
        what = f"the old {target.out.name} has format {old.get('format_version')}, this is {FORMAT_VERSION}"
        summary.notes.append(f"{what}: groups of similar photos are drawn again, so its split may differ")
    summary.state = "written"
    write_tables(records, classes, target)
    write_contact_sheet(records, classes, target)
    write_text(target.dataset / "DATA_CARD.md", _card(summary, records, source, options, target))
    verdicts = Counter(record.verdict for record in records)
    metadata = {
        "source": source.description,
        "options": options.as_json(),
        "classes": classes,
        "counts": {name: counts for name, counts in summary.counts.items() if counts},
        "files": {verdict: verdicts[verdict] for verdict in ("kept", "converted", "dropped")},
        "digests": {
            "input": digest((record.path, record.sha256) for record in records if not record.refusal),
            "layout": _layout_digest(source),
        },
        "versions": _versions(),
    }
    write_metadata(metadata, records, target)
    target.finish()
    return summary


def counts_table(counts: dict[str, dict[str, int]], dropped: Counter | None) -> str:
    """Classes × splits with sums, aligned, as plain text that is Markdown too."""
    classes = sorted({name for by_class in counts.values() for name in by_class})
    splits = [name for name in SPLITS if counts.get(name)]
    lost: Counter[str] = Counter()
    for (class_name, _), count in (dropped or {}).items():
        lost[class_name] += count
    rows = [("class", *splits, "dropped")]
    rows += [(shown(c), *(f"{counts[s].get(c, 0):,}" for s in splits), f"{lost[c]:,}") for c in classes]
    if stray := sum(count for name, count in lost.items() if name not in classes):
        rows.append(("(none)", *("" for _ in splits), f"{stray:,}"))
    rows.append(("all", *(f"{sum(counts[s].values()):,}" for s in splits), f"{lost.total():,}"))
    if dropped is None:  # not known
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines) + "\n"


def _plan(
    source: Source, target: Target, options: Options, *, workers: int, journal: Journal | None = None
) -> tuple[Summary, list[Record], list[str]]:
    records = inspect(
        source,
        workers=workers,
        content=target.content if journal else None,
        keep_copies=options.link == "copy",
        resize=options.resize,
        journal=journal,
    )
    if source.has_split:
        for record in records:
            if record.verdict != "dropped" and record.split is None:
                record.verdict, record.reason = "dropped", "in no split"
    found = resolve(records, policy=options.duplicates, has_split=source.has_split)
    notes = []
    if source.has_split:
        check_given(records)
    else:
        val, test = options.ratios
        notes = draw_split(records, val=val, test=test, seed=options.seed)
    classes = name_targets(records)
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(classes, 0) for name in SPLITS}
    for record in records:
        if record.target:
            name, class_name, _ = record.target.split("/")
            counts[name][class_name] += 1
    summary = Summary(
        target.out,
        {name: by_class for name, by_class in counts.items() if any(by_class.values())},
        Counter((record.class_name or "", record.reason) for record in records if record.verdict == "dropped"),
        Counter(record.reason for record in records if record.verdict == "converted"),
        found,
        notes,
        "planned",
    )
    return summary, records, classes


def _up_to_date(source: Source, target: Target, options: Options, workers: int) -> Summary | None:
    """Compare with what is there by reading and hashing alone: a third of the work of an inspection."""
    metadata = target.metadata()
    if not metadata or not _same(metadata, source.description, options):
        return None
    digests = metadata.get("digests", {})
    if digests.get("layout") != _layout_digest(source):
        return None
    if digests.get("input") != digest(hash_files(source, workers=workers)):
        return None
    return _as_it_is(target, metadata) if is_whole(target.out, metadata, workers=workers) else None


def _up_to_date_rendered(target: Target, description: dict | None, options: Options, workers: int) -> Summary | None:
    """Rendered flowers follow from count, seed and versions: there is no need to render them to know."""
    metadata = target.metadata()
    if not description or not metadata or not _same(metadata, description, options):
        return None
    return _as_it_is(target, metadata) if is_whole(target.out, metadata, workers=workers) else None


def _same(metadata: dict, description: dict, options: Options) -> bool:
    now = (FORMAT_VERSION, description, options.as_json(), _versions())
    return now == tuple(metadata.get(key) for key in ("format_version", "source", "options", "versions"))


def _as_it_is(target: Target, metadata: dict) -> Summary:
    return Summary(target.out, metadata["counts"], state="up to date")


def _layout_digest(source: Source) -> str:
    """Digest what is known of the files without opening them: names, classes, given splits, refusals."""
    parts = ((file.path, repr((file.class_name, file.split, file.refusal))) for file in source.files)
    return digest((path, part.encode("unicode_escape").decode()) for path, part in parts)


def _versions() -> dict[str, str]:
    return {"mmflowers": __version__, "pillow": PIL.__version__}


def _rendered_description(count: int, seed: int) -> dict:
    import numpy as np

    return {"kind": "rendered", "name": "rendered flowers", "per_class": count, "seed": seed, "numpy": np.__version__}


def _render(count: int, seed: int, staging: Path, workers: int) -> Source:
    from mmflowers.rendered.photos import render_flowers

    folder = staging / f"rendered-{count}-{seed}"
    if not folder.is_dir():
        unfinished = staging / f"{folder.name}.incomplete"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        render_flowers(unfinished, count, seed=seed, workers=workers, progress=progress)
        unfinished.rename(folder)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    files = [SourceFile(path, path.split("/")[0]) for path in paths]
    return Source(folder, files, _rendered_description(count, seed))


def _checked_options(
    *,
    duplicates: Literal["drop", "keep"],
    val_ratio: str | float | None,
    test_ratio: str | float | None,
    seed: int,
    resize: int | None,
    link: Literal["copy", "hardlink", "symlink"],
    rendered: int | None,
    has_source: bool,
    given_split: bool,
    workers: int | None,
) -> Options:
    problems = []
    ratios = {}
    for flag, value in (("--val-ratio", val_ratio), ("--test-ratio", test_ratio)):
        try:
            ratios[flag] = None if value is None else Fraction(str(value))  # of the text: 0.1 means a tenth
        except (ValueError, ZeroDivisionError):
            problems.append(Problem(f"{flag} {value} is no number", "give a share such as 0.2"))
            ratios[flag] = None
        if given_split and value is not None:
            problems.append(Problem(f"{flag} has no meaning where the split is given", "leave it away"))
    val, test = ratios["--val-ratio"], ratios["--test-ratio"]
    if val is not None and not 0 < val < 1:
        problems.append(Problem(f"--val-ratio {val_ratio} is not between 0 and 1", "give a share such as 0.2"))
    if test is not None and not 0 <= test < 1:
        problems.append(Problem(f"--test-ratio {test_ratio} is not between 0 and 1", "give a share such as 0.1"))
    if not problems and (val or Fraction(VAL_RATIO)) + (test or 0) >= 1:
        problems.append(Problem("--val-ratio and --test-ratio leave nothing to train on", "their sum must be below 1"))
    for flag, value, allowed in (
        ("--duplicates", duplicates, ("drop", "keep")),
        ("--link", link, ("copy", "hardlink", "symlink")),
    ):
        if value not in allowed:
            problems.append(Problem(f"{flag} {value} is unknown", f"one of {', '.join(allowed)}"))
    for flag, number, least in (("--resize", resize, MIN_SIDE), ("--rendered", rendered, 1), ("--workers", workers, 1)):
        if number is not None and number < least:
            problems.append(Problem(f"{flag} {number} is too small", f"give a number from {least}"))
    if rendered is not None and has_source:
        what = "--rendered stands for a source of its own"
        problems.append(Problem(what, "leave --source, --sha256, --split and --split-lists away"))
    if rendered is not None and link == "symlink":
        problems.append(Problem("--link symlink needs photos that stay where they are", "leave it away"))
    if problems:
        raise InputError(problems=problems)
    if not given_split:
        val, test = val or Fraction(VAL_RATIO), test or Fraction(TEST_RATIO)
    return Options(duplicates, val, test, seed, resize, link)


def _refuse_nesting(source: str | Path | None, target: Target) -> None:
    if source is None or "://" in str(source):
        return
    place = Path(source).expanduser().resolve()
    if target.out in (place, *place.parents) or (place.is_dir() and place in target.out.parents):
        raise InputError(f"{source} and {target.out} lie one in the other", "give another folder with --out")


def _require_space(source: Source, target: Target, options: Options) -> None:
    if options.link != "copy" and options.resize is None:
        return
    needed = 0
    for file in source.files:
        if not file.refusal:
            try:
                needed += os.lstat(f"{source.root}/{file.path}").st_size
            except OSError:  # the inspection will say so
                continue
    if target.content.is_dir():
        needed -= sum(entry.stat().st_size for entry in os.scandir(target.content))
    require_space(target.out, needed)


def _by_reason(dropped: Counter) -> Counter:
    reasons: Counter[str] = Counter()
    for (_, reason), count in dropped.items():
        reasons[reason] += count
    return reasons


def _card(summary: Summary, records: list[Record], source: Source, options: Options, target: Target) -> str:
    verdicts = Counter(record.verdict for record in records)
    description = source.description
    if source.has_split:
        how = "as given by the source"
    else:
        val, test = options.ratios
        parts = {"train": 1 - val - test, "val": val, "test": test}
        shares = ", ".join(f"{name} {float(share):g}" for name, share in parts.items() if share)
        how = f"drawn class by class with seed {options.seed} ({shares}); photos that look alike are on one side"
    reasons = sorted(_by_reason(summary.dropped).items()) + sorted(summary.converted.items())
    lines = [f"| {reason} | {count:,} |" for reason, count in reasons]
    found = summary.duplicates
    copies = (
        f"Found: {len(found.identical):,} sets of identical files, {len(found.conflicts):,} of them in different "
        f"classes, and {len(found.near):,} groups that look nearly the same."
    )
    policy = {
        "drop": "\n  Identical files of one class are kept once, those of different classes not at all.",
        "keep": "\n  All of them were left in.",
    }
    photos = sum(sum(by_class.values()) for by_class in summary.counts.values())
    public = description.get("sha256") == FLOWER_PHOTOS.sha256
    rights = (
        "The photos are under the Creative Commons Attribution licence 2.0; LICENSE.txt in their archive has names."
    )
    return CARD.format(
        metadata=_card_metadata(summary, description, target.out.name, photos),
        name=target.out.name,
        photos=photos,
        rights=rights if public else "The rights of the photos are those of their source; nothing is added here.",
        classes=len(summary.counts["train"]),
        version=__version__,
        source=f"{shown(str(description.get('name', 'a folder')))} ({description.get('kind', 'folder')})",
        table=counts_table(summary.counts, summary.dropped),
        split=how,
        files=len(records),
        kept=verdicts["kept"],
        converted=verdicts["converted"],
        dropped=verdicts["dropped"],
        duplicates=copies + policy[options.duplicates],
        resize=f"Scaled down to a short side of {options.resize} pixels."
        if options.resize
        else "Sizes were left alone.",
        reasons="\n".join(["| dropped or re-encoded because | files |", "| :-- | --: |", *lines, ""]) if lines else "",
    )


def _card_metadata(summary: Summary, description: dict, name: str, photos: int) -> str:
    """The card's YAML, as huggingface.co reads it at the head of a dataset's ``README.md``."""
    import yaml

    splits = [{"split": HUB_SPLITS.get(split, split), "path": f"{split}/**"} for split in summary.counts]
    metadata = {
        "pretty_name": shown(name),
        **({"license": "cc-by-2.0"} if description.get("sha256") == FLOWER_PHOTOS.sha256 else {}),
        "task_categories": ["image-classification"],
        "task_ids": ["multi-class-image-classification"],
        "size_categories": [HUB_SIZES[min(max(len(str(photos)) - 3, 0), len(HUB_SIZES) - 1)]],
        "tags": ["mmflowers", *(["synthetic"] if description.get("kind") == "rendered" else [])],
        # The photos alone, each with the name of its folder as the label; not the contact sheet.
        "configs": [{"config_name": "default", "drop_labels": False, "data_files": splits}],
    }
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)

"""Photos → dataset folder, all steps: sources → inspection → duplicates → splitting → writing."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import PIL

from mmflowers.preparation.data_card import data_card
from mmflowers.preparation.duplicates import resolve
from mmflowers.preparation.inspection import hash_files, inspect
from mmflowers.preparation.journal import Journal
from mmflowers.preparation.options import NO_EFFECT, PrepareOptions
from mmflowers.preparation.records import Record, Source, SourceFile
from mmflowers.preparation.sources import open_source
from mmflowers.preparation.splitting import check_given, name_targets, split
from mmflowers.preparation.summary import Summary, summarize
from mmflowers.preparation.writing import (
    FORMAT_VERSION,
    WRITING,
    Target,
    digest,
    is_whole,
    place_photos,
    require_space,
    write_contact_sheet,
    write_metadata,
    write_tables,
)
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import creating_folder, explained
from mmflowers.utils.resources import processors
from mmflowers.utils.terminal import progress
from mmflowers.version import __version__

VERSIONS = {"mmflowers": __version__, "pillow": PIL.__version__}


def prepare(options: PrepareOptions) -> Summary:
    """Make a dataset folder that MMPretrain's and torchvision's datasets read.

    The source is never changed. The same files and options give the same bytes. If it is interrupted at any moment,
    the folder is the complete old dataset or the complete new one; the next run resumes.

    Raises:
        InputError: For whatever is wrong with source, photos or disk.
    """
    start = time.perf_counter()
    target = Target(Path(options.out))
    target.check(force=options.force)
    _refuse_nesting(options.source, target)
    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="mmflowers-") as staging:
            summary, _ = _plan(_open(options, Path(staging)), target, options)
    else:
        with explained(target.out, elsewhere="choose another --out", only=WRITING), target.locked():
            summary = _update(target, options)
    summary.seconds = time.perf_counter() - start
    return summary


def _update(target: Target, options: PrepareOptions) -> Summary:
    """Rebuild the dataset folder unless it is up to date; the caller holds the target's lock."""
    # Rendered flowers follow from count, seed and versions: they needn't be rendered to compare them.
    if options.rendered is not None and _is_up_to_date(target, options, _rendered_description(options)):
        return Summary(target.out, target.metadata()["counts"], state="up to date")
    try:
        source = _open(options, target.incomplete / "source")
        if options.link == "symlink" and target.incomplete in source.root.resolve().parents:
            hint = "unpack it and give the folder with --source, or use --link hardlink"
            raise InputError("--link symlink needs photos that stay where they are, not an archive's", hint)
        if options.rendered is None and _is_up_to_date(target, options, source.description, source):
            target.clear()
            counts = target.metadata()["counts"]
            return Summary(target.out, counts, recognised=source.recognised, state="up to date")
        return _build(source, target, options)
    except (InputError, OSError):
        with contextlib.suppress(OSError):  # a disk that has become read-only
            target.clear()  # an interruption leaves its work for the next run; bad input doesn't
        raise


def _build(source: Source, target: Target, options: PrepareOptions) -> Summary:
    """Write the dataset of an opened source and put it in the place of the old one."""
    _require_space(source, target, options)
    target.start()
    settings = {"root": str(source.root), "resize": options.resize, "link": options.link, "versions": VERSIONS}
    with contextlib.closing(Journal(target.incomplete / "inspection.jsonl", settings)) as journal:
        if journal.inherited:
            print(f"resuming an interrupted run: {journal.inherited:,} files are inspected", file=sys.stderr)
        summary, records = _plan(source, target, options, journal)
    target.sync_early()
    summary.notes += place_photos(records, source.root, target, link=options.link)
    old_version = target.metadata().get("format_version", FORMAT_VERSION)
    if old_version != FORMAT_VERSION and not source.has_split:
        what = f"the old {target.out.name} has format {old_version}, this is {FORMAT_VERSION}"
        summary.notes.append(f"{what}: groups of similar photos are drawn again, so its split may differ")
    summary.state = "written"
    write_tables(records, summary.classes, target)
    write_contact_sheet(records, summary.classes, target)
    card = data_card(summary, records, source.description, options)
    (target.dataset / "DATA_CARD.md").write_bytes(card.encode())
    verdicts = Counter(record.verdict for record in records)
    metadata = {
        "source": source.description,
        "options": options.as_json(),
        "classes": summary.classes,
        "counts": summary.counts,
        "files": {verdict: verdicts[verdict] for verdict in ("kept", "converted", "dropped")},
        "digests": {
            "input": digest((record.path, record.sha256) for record in records if not record.refusal),
            "layout": _layout_digest(source),
        },
        "versions": VERSIONS,
    }
    write_metadata(metadata, records, target)
    target.finish()
    return summary


def _plan(
    source: Source, target: Target, options: PrepareOptions, journal: Journal | None = None
) -> tuple[Summary, list[Record]]:
    """Decide what becomes of every file; with a journal, write what is kept or converted into ``target.content``."""
    records = inspect(
        source,
        workers=options.workers or processors(),
        content=target.content if journal else None,
        keep_copies=options.link == "copy",
        resize=options.resize,
        journal=journal,
    )
    if source.has_split:
        for record in records:
            if record.verdict != "dropped" and record.split is None:
                record.drop("in no split")
    duplicates = resolve(records, policy=options.duplicates, has_split=source.has_split)
    notes = list(source.notes)
    if source.draws_val:
        train = [record for record in records if record.split == "train"]
        notes += split(train, val=options.val_share, seed=options.seed)
    if source.has_split:
        check_given(records)
    elif shares := options.shares:
        notes += split(records, val=shares["val"], test=shares["test"], seed=options.seed)
    classes = name_targets(records)
    summary = summarize(target.out, records, classes, duplicates, notes)
    summary.recognised = source.recognised
    return summary, records


def _is_up_to_date(
    target: Target, options: PrepareOptions, description: dict[str, Any], source: Source | None = None
) -> bool:
    """Compare with what is there by reading and hashing alone, which is a third of the work of an inspection."""
    metadata = target.metadata()
    expected = (FORMAT_VERSION, description, options.as_json(), VERSIONS)
    if options.force or expected != tuple(map(metadata.get, ("format_version", "source", "options", "versions"))):
        return False
    workers = options.workers or processors()
    if source is not None:
        digests = metadata.get("digests", {})
        if digests.get("layout") != _layout_digest(source):
            return False
        if digests.get("input") != digest(hash_files(source, workers=workers)):
            return False
    return is_whole(target.out, metadata, workers=workers)


def _layout_digest(source: Source) -> str:
    """Return the digest of what is known of the files without opening them: names, classes, given splits, refusals."""
    parts = ((file.path, repr((file.class_name, file.split, file.refusal))) for file in source.files)
    return digest((path, part.encode("unicode_escape").decode()) for path, part in parts)


def _open(options: PrepareOptions, staging: Path) -> Source:
    if options.rendered is not None:
        return _render(options, staging)
    lists = None if options.split_lists is None else Path(options.split_lists).expanduser()
    source = open_source(
        options.source,
        staging=staging,
        sha256=options.sha256,
        split=options.split,
        split_lists=lists,
        layout=options.layout,
        follow_links=options.follow_links,
        zip_encoding=options.zip_encoding,
        labels=options.label_options,
    )
    if source.has_split and not source.draws_val and options.val_ratio is not None:
        raise InputError(f"--val-ratio {NO_EFFECT}", "remove it")
    return source


def _render(options: PrepareOptions, staging: Path) -> Source:
    from mmflowers.rendered.photos import render_flowers

    count, seed, workers = options.rendered or 0, options.rendered_seed, options.workers or processors()
    folder = staging / f"rendered-{count}-{seed}"
    if not folder.is_dir():
        with creating_folder(folder) as incomplete:
            render_flowers(incomplete, count, seed=seed, workers=workers, progress=progress)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    files = [SourceFile(path, path.split("/")[0]) for path in paths]
    return Source(folder, files, _rendered_description(options))


def _rendered_description(options: PrepareOptions) -> dict[str, Any]:
    import numpy as np

    return {
        "kind": "rendered",
        "name": "rendered flowers",
        "per_class": options.rendered,
        "seed": options.rendered_seed,
        "numpy": np.__version__,
    }


def _refuse_nesting(source: str | Path | None, target: Target) -> None:
    if source is None or "://" in str(source):
        return
    place = Path(source).expanduser().resolve()
    if target.out in (place, *place.parents) or (place.is_dir() and place in target.out.parents):
        raise InputError(f"one of {source} and {target.out} is inside the other", "give another folder with --out")


def _require_space(source: Source, target: Target, options: PrepareOptions) -> None:
    if options.link != "copy" and options.resize is None:
        return
    needed = 0
    for file in source.files:
        if not file.refusal:
            with contextlib.suppress(OSError):  # the inspection will report it
                needed += os.lstat(f"{source.root}/{file.path}").st_size
    if target.content.is_dir():
        needed -= sum(entry.stat().st_size for entry in os.scandir(target.content))
    require_space(target.out, needed)

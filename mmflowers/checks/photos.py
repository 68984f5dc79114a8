"""Checks of the photos of each loader, which are compared with the lists, and of the photos in the lists."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.checks.findings import Finding, check, error, from_problems, warning
from mmflowers.utils.errors import InputError, count, some

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

AGAIN = "prepare the dataset folder again: python tools/prepare_flowers.py removes copies across splits"
ON_PURPOSE = "if the change is intended, prepare the dataset folder again to record it in files.csv"


def are(things: list) -> str:
    """Return "is" for one thing, "are" for several."""
    return "is" if len(things) == 1 else "are"


# ------------------------------------------------------------------------------------------ photos of the loaders


@check()
def loaders_can_be_built(case: Case) -> Iterator[Finding]:
    """Find loaders that can't be built. Problems of the dataset folder are reported by other checks."""
    for side, loader in case.built.items() if case.folder else ():
        if isinstance(loader, InputError):
            yield from from_problems(f"{side}_dataloader", loader.problems)


@check(pitfall=19)
def loaders_read_their_lists(case: Case) -> Iterator[Finding]:
    """Compare the paths and labels of each loader with the lists of the dataset folder."""
    if case.folder is None:
        return
    lists = {split: _by_path(case, samples) for split, samples in case.lists.items()}
    trained = {path for path, _ in case.loaders["train"].samples} if "train" in case.loaders else set()
    for side, loader in case.loaders.items():
        own = _own_list(case, side)
        where = f"{side}_dataloader.dataset"
        given = dict(loader.samples)
        for split, listed in lists.items():
            foreign = [path for path in given if split != own and path in listed]
            if not foreign:
                continue
            what = f"reads {count(len(foreign))} of {split}.txt ({some(_short(case, foreign))})"
            if split == "train" and not trained & set(foreign) and not case.testing:
                yield warning(
                    where, what, f"the run doesn't train on them, but the result isn't the top-1 of {own}.txt"
                )
            else:
                why = "the run trains on them; " if split == "train" else ""
                yield error(where, what, f"{why}set {where}.ann_file='{own}.txt'")
        unknown = [path for path in given if not any(path in listed for listed in lists.values())]
        if unknown:
            what = f"reads {count(len(unknown))} that {are(unknown)} on no list of {case.root}"
            what += f" ({some(_short(case, unknown))})"
            yield error(where, what, f"set {where}.ann_file='{own}.txt'")
        wrong = [path for path, label in given.items() if lists.get(own, {}).get(path, label) != label]
        if wrong:
            what = f"has other labels than {own}.txt for {count(len(wrong))} ({some(_short(case, wrong))})"
            yield error(where, what, "use type='FlowersDataset', which reads the labels of the list")


def _own_list(case: Case, side: str) -> str:
    """Return the split that a loader should read; for a training's test loader val, or test if it mostly reads it."""
    if case.testing or side != "test":
        return case.split if case.testing else side
    listed, samples = _by_path(case, case.lists.get("test", ())), case.loaders[side].samples
    return "test" if sum(path in listed for path, _ in samples) * 2 > len(samples) else "val"


def _by_path(case: Case, samples: Iterable[tuple[str, int]]) -> dict[str, int]:
    return {os.path.abspath(case.path(name)): label for name, label in samples}  # noqa: PTH100


def _short(case: Case, paths: Iterable[str]) -> list[str]:
    root = os.path.abspath(case.root or ".") + os.sep  # noqa: PTH100
    return [Path(path.removeprefix(root)).as_posix() for path in paths]


@check(pitfall=20)
def every_photo_counts_once(case: Case) -> Iterator[Finding]:
    """Find photos that a loader repeats or leaves out, because of a wrapper, a sampler, ``indices``, ``drop_last`` …"""
    for side, loader in case.loaders.items():
        own = _own_list(case, side)
        where, listed = f"{side}_dataloader", _by_path(case, case.lists.get(own, ()))
        times: Counter[str] = Counter()
        for (path, _), number in zip(loader.samples, loader.counts.tolist(), strict=True):
            times[path] += number
        if side == "train":
            total = len(listed)
            learned = {path for path, number in times.items() if number or not loader.is_fixed}
            given = len(learned & listed.keys())
            if not loader.counts.any():
                yield error(where, "yields no photos", "reduce batch_size or set drop_last=False")
            elif 0 < given < total:
                what = f"trains on {given} of the {total} photos of train.txt"
                yield warning(
                    f"{where}.dataset",
                    what,
                    "remove the setting that causes it, such as indices, or report it with the result",
                )
            continue
        repeated = [path for path, number in times.items() if number > 1]
        if repeated:
            what = f"counts {count(len(repeated))} more than once ({some(_short(case, repeated))})"
            hint = "count each photo once: remove RepeatDataset, ClassBalancedDataset or an endless sampler"
            yield error(where, what, hint)
        counted = sum(number > 0 for number in times.values())
        total = len(listed) if listed else len(times)
        if not counted:
            yield error(where, "counts no photos", "reduce batch_size or set drop_last=False")
        elif counted < total:
            what = f"counts {counted} of the {total} photos of {own}.txt"
            hint = "the result isn't the split's top-1: remove indices, drop_last, num_batch_per_epoch, samplers"
            yield warning(where, what, hint)


@check(pitfall=2)
def loaders_share_no_photo(case: Case) -> Iterator[Finding]:
    """Find files in training and validation if the loaders don't read a dataset folder."""
    if case.folder is None and "train" in case.loaders and "val" in case.loaders:
        trained = {path for path, _ in case.loaders["train"].samples}
        shared = [path for path, _ in case.loaders["val"].samples if path in trained]
        if shared:
            what = f"reads {count(len(shared))} of train_dataloader ({some(_short(case, shared))})"
            yield error("val_dataloader.dataset", what, "validate on photos that aren't trained on")


# ------------------------------------------------------------------------------------------- photos of the lists


@check(pitfall=2, of="dataset")
def copies_across_splits(case: Case) -> Iterator[Finding]:
    """Find photos with the same bytes in two splits, and similar photos; with ``--deep`` cropped ones etc. too."""
    splits = list(case.photos)
    for number, split in enumerate(splits):
        for other in splits[number + 1 :]:
            yield from _leak(case, split, other)


def _leak(case: Case, split: str, other: str) -> Iterator[Finding]:
    from mmflowers.datasets.identity import near_copies, same_content

    one, two = case.photos[split], case.photos[other]
    names = [name for name, _ in case.lists[other]]
    same = same_content(two, one)
    twins = {int(digest): name for digest, (name, _) in zip(one.content, case.lists[split], strict=True)}
    pairs = [f"{twins[int(two.content[index])]} = {names[index]}" for index in same.nonzero()[0]]
    features = (case.features[other], case.features[split]) if case.deep else None
    near = [names[index] for index in (near_copies(two, one, features) & ~same).nonzero()[0]]
    kind = "re-encoded, resized, mirrored, turned, cropped or framed" if case.deep else "re-encoded or resized"
    for found, what in (
        (pairs, f"of {other} {are(pairs)} in {split} too, under other names"),
        (
            near,
            f"of {other} {'looks' if len(near) == 1 else 'look'} like a photo of {split}: a {kind} copy",
        ),
    ):
        if not found:
            continue
        what = f"{count(len(found))} {what} ({some(found)}): a leak"
        if keeps_copies(case.root):  # requested, to compare results on a given split
            yield warning("dataset", what, "--duplicates keep left them in; without it the preparation removes them")
        else:
            yield error("dataset", what, AGAIN)


@check(pitfall=21, of="dataset")
def copies_within_a_split(case: Case) -> Iterator[Finding]:
    """Find photos with the same bytes in one list, which count twice and may have two labels."""
    for split, photos in case.photos.items():
        places = defaultdict(list)
        for index, digest in enumerate(photos.content.tolist()):
            if digest >= 0:
                places[digest].append(index)
        names = [name for name, _ in case.lists[split]]
        groups = [indices for indices in places.values() if len(indices) > 1]
        mixed = [indices for indices in groups if len(set(photos.labels[indices].tolist())) > 1]
        same = [indices for indices in groups if indices not in mixed]
        level = warning if keeps_copies(case.root) else error
        for found, how, hint in (
            (mixed, "in two classes", "one of the labels is wrong"),
            (same, "twice under other names", "it counts twice" if split != "train" else "it has twice the weight"),
        ):
            if found:
                pairs = [" = ".join(names[index] for index in indices) for indices in found]
                what = f"{split}.txt lists {count(len(found))} {how} ({some(pairs)})"
                one = warning if how.startswith("twice") and split == "train" else level
                yield one("dataset", what, f"{hint}; {AGAIN.partition(':')[0]}")


@check(pitfall=22, of="dataset")
def lists_as_prepared(case: Case) -> Iterator[Finding]:
    """Find lists that differ from ``files.csv``, and photos that were replaced since the preparation."""
    from mmflowers.datasets.identity import match_prepared

    if case.folder is None:
        return
    for split, samples in case.lists.items():
        labels = dict(samples)
        match = match_prepared(case.folder.root, split, list(labels))
        classes = case.folder.classes
        moved = [name for name, before in match.renamed.items() if Path(before).parent.name != classes[labels[name]]]
        photos = case.photos.get(split)
        replaced = [
            name
            for (name, _), digest in zip(samples, photos.content.tolist() if photos else (), strict=False)
            if match.prepared.get(name) not in (None, digest)
        ]
        of_all = f"of the {count(len(match.prepared))} prepared for {split}"
        for found, what in (
            (match.missing, f"{len(match.missing)} {of_all} {are(match.missing)} no longer listed"),
            (match.added, f"{split}.txt lists {count(len(match.added))} that the preparation didn't list"),
            (moved, f"{count(len(moved))} of {split}.txt changed class since the preparation"),
            (replaced, f"{count(len(replaced))} of {split} changed since the preparation"),
        ):
            if match.prepared and found:
                yield warning("dataset", f"{what} ({some(found)})", ON_PURPOSE)


@check(pitfall=4, of="dataset")
def leftovers(case: Case) -> Iterator[Finding]:
    """Find photos in the split folders that are on no list, from an earlier split or added by hand."""
    if case.folder is None:
        return
    root = case.folder.root
    listed = {root / name for samples in case.lists.values() for name, _ in samples}
    folders = {path.parent for path in listed if path.relative_to(root).parts[0] in case.lists}
    extra = sorted(
        path.relative_to(root).as_posix()
        for folder in folders
        for path in map(Path, _files(folder))
        if path not in listed
    )
    if extra:
        yield warning(
            "dataset",
            f"{count(len(extra))} {are(extra)} on no list ({some(extra)})",
            "they are not used; to use them, prepare the dataset folder again",
        )


def _files(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_file() and not entry.name.startswith(".")]


@check(of="dataset")
def photos_decode(case: Case) -> Iterator[Finding]:
    """Find damaged photos, which the preparation would drop, with ``--deep``."""
    if not case.deep or case.folder is None:
        return
    from mmflowers.datasets.identity import map_in_threads
    from mmflowers.preparation.inspection import inspect_file

    names = [name for samples in case.lists.values() for name, _ in samples]
    found = map_in_threads(lambda name: inspect_file(os.fspath(case.path(name))), names)
    broken = [f"{name}: {one.reason}" for name, one in zip(names, found, strict=True) if one.verdict == "dropped"]
    if broken:
        yield error("dataset", f"{count(len(broken))} can't be decoded ({some(broken)})", AGAIN.partition(":")[0])


def keeps_copies(root: Path | None) -> bool:
    """Return whether the dataset folder was prepared with ``--duplicates keep``."""
    if root is None:
        return False
    try:
        options = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["options"]
        return options["duplicates"] == "keep"
    except (OSError, ValueError, LookupError, TypeError):
        return False

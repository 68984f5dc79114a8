"""Checks of the lists' format: lists of other tools, loaders that read the folder in another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.checks.findings import Finding, check, error, warning
from mmflowers.checks.keys import LOADERS, as_list, get
from mmflowers.datasets.wrappers import innermost
from mmflowers.utils.errors import count, some

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

SPLITS = {"train", "val", "test"}


@check(pitfall=6, of="dataset")
def lists_of_other_tools(case: Case) -> Iterator[Finding]:
    """Find known wrong formats of lists that can't be read."""
    if case.folder is not None or case.root is None:
        return
    for split in ("train", "val"):
        path = case.root / f"{split}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            named = (case.root / "classes.txt").read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        for what, is_so in (
            ("lines aren't separated: they were written without \\n", re.compile(r"\.\w{3,4} \d+(?=[^\d\s])").search),
            ("lines are Python tuples", re.compile(r"^\s*[(\[].*[)\]],?$").match),
            ("labels are class names, not numbers", _ends_in({name.strip() for name in named} - {""})),
        ):
            wrong = [str(number) for number, line in enumerate(lines, 1) if is_so(line)]
            if wrong:
                yield error(str(path), f"{what} (line {some(wrong)})", f"a line must look like `{split}/daisy/x.jpg 0`")


def _ends_in(classes: set[str]) -> Callable[[str], bool]:
    return lambda line: line.strip().split(" ")[-1] in classes


@check(pitfall=10, of="dataset")
def class_folders(case: Case) -> Iterator[Finding]:
    """Find photos outside of class folders: their labels can't be verified, and equal names overwrite each other."""
    if case.folder is None:
        return
    for split, samples in case.folder.samples.items():
        flat = [name for name, label in samples if Path(name).parent.name != case.folder.classes[label]]
        if flat:
            what = f"{count(len(flat))} of {split}.txt are in no folder of their class ({some(flat)})"
            yield warning(
                "dataset",
                what,
                "keep class folders, which verify labels and separate equal names",
            )


def _foreign_datasets(case: Case) -> Iterator[tuple[str, dict, str, Path]]:
    """Yield key, config, type and folder of each loader's dataset that isn't a FlowersDataset."""
    for loader in LOADERS:
        dataset = innermost(get(case.config, loader)) or {}
        kind = str(dataset.get("type", "")).rpartition(".")[2]
        if kind and kind != "FlowersDataset" and (not case.testing or loader == "test_dataloader"):
            prefix = dataset.get("data_prefix") or (dataset.get("split") if kind == "ImageNet" else "") or ""
            prefix = prefix.get("img_path", "") if isinstance(prefix, dict) else prefix
            yield f"{loader}.dataset", dataset, kind, Path(str(dataset.get("data_root") or ""), str(prefix))


OURS = "use dataset = dict(type='FlowersDataset', data_root=…, ann_file='train.txt' or 'val.txt', pipeline=…)"


@check(pitfall=1)
def classes_a_loader_would_see(case: Case) -> Iterator[Finding]:
    """Find loaders that would use the wrong folders as classes."""
    for where, dataset, kind, folder in _foreign_datasets(case):
        if dataset.get("ann_file") or kind not in ("CustomDataset", "ImageNet"):
            continue
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        if SPLITS & set(names):
            yield error(where, f"would use the folders {' and '.join(names)} of {folder} as classes", OURS)
        elif case.folder and names and names != case.folder.classes:
            what = f"would use the folders {some(names)} of {folder} as classes, unlike classes.txt in names or order"
            yield error(where, what, OURS)


@check(pitfall=8)
def class_names(case: Case) -> Iterator[Finding]:
    """Find class names that differ from classes.txt, and missing class names."""
    if case.folder is None:
        return
    for where, dataset, kind, _ in _foreign_datasets(case):
        given = (dataset.get("metainfo") or {}).get("classes") or dataset.get("classes")
        if isinstance(given, str) and Path(given).is_file():
            given = Path(given).read_text(encoding="utf-8").splitlines()
        if given is None and kind == "ImageNet":
            yield error(where, "stores ImageNet's 1000 class names with the checkpoint", OURS)
        elif given is None and dataset.get("ann_file"):
            yield error(where, "has no class names, and its list contains only numbers", OURS)
        elif given is not None and as_list(given) != case.folder.classes:
            theirs, ours = (", ".join(map(str, names)) for names in (as_list(given), case.folder.classes))
            what = f"names the classes {theirs}, but classes.txt has {ours}"
            yield error(where, what, OURS)


@check(pitfall=9)
def two_prefixes(case: Case) -> Iterator[Finding]:
    """Find ``split`` and ``data_prefix`` both set, and a prefix for paths that already have it."""
    for loader in LOADERS:
        dataset = get(case.config, f"{loader}.dataset") or {}
        if dataset.get("split") and dataset.get("data_prefix"):
            yield error(f"{loader}.dataset", "split and data_prefix are both set", f"set only one of them, or {OURS}")
    for where, dataset, _, folder in _foreign_datasets(case):
        ann_file = Path(str(dataset.get("data_root") or ""), str(dataset.get("ann_file") or "nothing"))
        try:
            name = ann_file.read_text(encoding="utf-8").splitlines()[0].rpartition(" ")[0]
        except (OSError, UnicodeDecodeError, IndexError):
            continue
        if not (folder / name).is_file():
            yield error(where, f"the first photo of its list would be {folder / name}, which doesn't exist", OURS)

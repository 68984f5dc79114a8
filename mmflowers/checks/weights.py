"""Checks of what a training starts from and what a test tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.checks.data import some
from mmflowers.checks.findings import Finding, check, error, from_problems, warning
from mmflowers.datasets.fingerprints import TRAINED_ON, seen_photos
from mmflowers.errors import InputError

if TYPE_CHECKING:
    from mmflowers.checks.run import Case


@check()
def weights_fit(case: Case) -> Iterator[Finding]:
    """The same matching as when the run loads them."""
    from mmflowers.engine.weights import convert_state_dict

    if case.model is not None and case.checkpoint is not None:
        try:
            convert_state_dict(case.checkpoint, case.model, keep_head=case.testing or case.resume)
        except InputError as problem:
            yield from from_problems("weights", problem.problems)


@check(pitfall=3)
def trained_on_what_is_validated(case: Case) -> Iterator[Finding]:
    """Photos that the checkpoint was trained on, under another split."""
    split = case.split if case.testing else "val"
    if case.checkpoint is None or case.folder is None or split == "train":
        return
    meta = case.checkpoint.get("meta")
    photos = [case.root / name for name, _ in case.folder.samples[split]]
    seen = seen_photos(meta.get(TRAINED_ON) if isinstance(meta, dict) else None, photos)
    if seen:
        what = f"{case.source} was trained on {len(seen)} of the {len(photos)} photos of {split} ({some(seen)})"
        yield error("weights", what, "keep the split it was trained with, or start from weights that saw none of them")


@check(pitfall=15)
def last_in_place_of_best(case: Case) -> Iterator[Finding]:
    """``last.pth`` tested though ``best.pth`` lies beside it."""
    source = Path(case.source)
    best = source.parent / "best.pth"
    if case.testing and source.name == "last.pth" and best.is_file():
        yield warning("checkpoint", f"{source} is the last, not the best", f"{best} is the best by validation")

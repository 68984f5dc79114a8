"""Checks of the initial weights of a training and of the tested checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmflowers.checks.findings import Finding, check, error, from_problems, warning
from mmflowers.checks.photos import keeps_copies
from mmflowers.utils.errors import InputError, count, some

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

NEW_RUN = "resume with the dataset folder it was started with; --weights FILE --work-dir DIR starts a new run from it"


@check()
def weights_fit(case: Case) -> Iterator[Finding]:
    """Match the weights with the network, as the run does when it loads them."""
    from mmflowers.weights.conversion import convert_state_dict
    from mmflowers.weights.loading import require_finite

    if case.model is not None and case.checkpoint is not None:
        try:
            fitting = convert_state_dict(case.checkpoint, case.model, keep_head=case.testing or case.resume)
            require_finite(fitting.state_dict, case.source)
        except InputError as problem:
            yield from from_problems("weights", problem.problems)


@check()
def init_cfg_fits(case: Case) -> Iterator[Finding]:
    """Match the weights that parts of the model name by ``init_cfg``, as at initialisation."""
    from mmflowers.weights.init_cfg import convert_for_module
    from mmflowers.weights.sources import pretrained

    loaded = dict(case.checkpoints)
    for name, module in case.model.named_modules() if case.model is not None else ():
        for init in pretrained(getattr(module, "init_cfg", None)):
            if init["checkpoint"] not in loaded:
                continue
            where = f"model.{name}.init_cfg" if name else "model.init_cfg"
            try:
                gaps = convert_for_module(loaded[init["checkpoint"]], module, init.get("prefix")).gaps
            except InputError as problem:
                yield from from_problems(where, problem.problems)
                continue
            if gaps:
                yield warning(where, f"{init['checkpoint']} fills only a part: {gaps}", "use weights of this network")


@check(pitfall=3)
def trained_on_what_is_validated(case: Case) -> Iterator[Finding]:
    """Find photos of val or test that the weights were trained on, under any name and in any format."""
    from mmflowers.datasets.identity import TRAINED_ON, from_state, near_copies, same_content
    from mmflowers.weights.loading import meta_of

    split = case.split if case.testing else "val"
    if split == "train" or split not in case.photos:
        return
    photos, names = case.photos[split], [name for name, _ in case.lists[split]]
    for source, checkpoint in case.checkpoints:
        trained_on = from_state(meta_of(checkpoint).get(TRAINED_ON))
        if trained_on is None:
            continue
        same = same_content(photos, trained_on)
        near = near_copies(photos, trained_on) & ~same
        for found, what in ((same, "was trained on"), (near, "was trained on photos that look like")):
            if found.any():
                seen = [names[index] for index in found.nonzero()[0]]
                what = f"{source} {what} {len(seen)} of the {count(len(names))} of {split} ({some(seen)})"
                one = warning if keeps_copies(case.root) else error
                yield one(
                    "weights", what, "keep the split it was trained with, or use weights that weren't trained on them"
                )


@check(pitfall=3)
def chosen_on_what_is_tested(case: Case) -> Iterator[Finding]:
    """Find photos in the test split that chose the best epoch of the run."""
    from mmflowers.datasets.identity import PHOTOS, copies, from_state

    kept = case.meta.get(PHOTOS)
    validated_on = from_state(kept.get("val")) if isinstance(kept, dict) else None
    if not case.testing or case.split != "test" or validated_on is None or "test" not in case.photos:
        return
    photos, names = case.photos["test"], [name for name, _ in case.lists["test"]]
    found = copies(photos, validated_on)
    if found.any():
        seen = [names[index] for index in found.nonzero()[0]]
        what = f"the epoch of {case.source} was chosen on {len(seen)} of the {count(len(names))} of test ({some(seen)})"
        yield error("weights", what, "use a test split without photos of training or validation")


@check(pitfall=23)
def resumed_on_the_same_photos(case: Case) -> Iterator[Finding]:
    """Find changes of the photos since the start of a resumed run."""
    from mmflowers.engine.record import changed_photos

    if case.resume:
        for what in changed_photos(case.meta, case.given_photos):
            yield error("resume", f"{case.source} is of a run on other photos: {what}", NEW_RUN)


@check(pitfall=15)
def last_in_place_of_best(case: Case) -> Iterator[Finding]:
    """Find a test of ``last.pth`` if there is a ``best.pth``."""
    source = Path(case.source)
    best = source.parent / "best.pth"
    if case.testing and source.name == "last.pth" and best.is_file():
        yield warning("checkpoint", f"{source} is the last, not the best", f"use {best}, the best by validation")

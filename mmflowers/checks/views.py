"""Checks that the pipelines of training, validation and test produce the same kind of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmflowers.checks.findings import Finding, check, error, warning
from mmflowers.checks.keys import as_list, get, scope
from mmflowers.utils.errors import InputError, count

if TYPE_CHECKING:
    from mmflowers.checks.run import Case
    from mmflowers.datasets.views import Values, View

STRETCHED = 0.15  # natural logarithm of the change of the aspect ratio: 16 %
ZOOM = 2.0  # ratio of scales of training and validation; 1.1 to 1.3 for RandomResizedCrop and a centre crop
LITTLE = 0.2  # share of a photo that is visible
GAIN, OFFSET = 1.6, 0.15  # ratio of the values' ranges; shift as a share of the range
SAME_STEPS = "load, scale and normalise photos in the same way everywhere; only random augmentation may differ"


@check()
def pipelines_can_be_measured(case: Case) -> Iterator[Finding]:
    """Find pipelines that can't be measured, to which the checks below don't apply."""
    for side, view in case.measured.items():
        if isinstance(view, InputError):
            what = f"its output can't be compared: {view.problems[0].what}"
            yield warning(f"{side}_dataloader.dataset.pipeline", what, "look at its output with tools/browse.py")


@check(pitfall=5)
def augmented_validation(case: Case) -> Iterator[Finding]:
    """Find random transforms in validation and test by running them repeatedly, and training without augmentation."""
    train = case.views.get("train")
    for side in case.reported_sides:
        view = case.views.get(side)
        if view is not None and view.random_steps:
            swapped = not case.testing and train is not None and not train.random_steps
            hint = (
                "train and test pipelines are swapped"
                if swapped
                else "use deterministic transforms: resize and crop the centre"
            )
            what = f"{', '.join(view.random_steps)}: random, so the result changes from run to run"
            yield error(f"{side}_dataloader.dataset.pipeline", what, hint)
    if case.tta and case.config.get("tta_pipeline"):
        from mmflowers.datasets.views import random_steps

        drawn = random_steps(case.config.tta_pipeline, case.photo_size, scope(case.config), case.unusual)
        if drawn:
            what = f"{', '.join(drawn)}: random, so the result changes from run to run"
            yield error("tta_pipeline", what, "use fixed views: RandomFlip with prob=1.0, crops at fixed positions")
    plain = train is not None and not train.random_steps
    if not case.testing and plain and not get(case.config, "data_preprocessor.batch_augments"):
        yield warning(
            "train_dataloader.dataset.pipeline", "has no augmentation", "RandomResizedCrop and RandomFlip are usual"
        )


@check(pitfall=24)
def same_values_and_channels(case: Case) -> Iterator[Finding]:
    """Compare colours, channel order and value range of validation and test with those of the training."""
    reference, whose = _reference(case)
    for side in case.reported_sides:
        view, where = case.views.get(side), f"{side}_dataloader.dataset.pipeline"
        if view is None or reference is None:
            continue
        # With augmentation, one draw with unchanged colours is enough.
        one = view.draws[0]
        if all(draw.is_grey != one.is_grey for draw in reference.draws):
            what = f"outputs {'grey' if one.is_grey else 'coloured'} images, {whose} doesn't"
            yield error(where, what, SAME_STEPS)
        elif not one.is_grey and all(draw.order != one.order for draw in reference.draws):
            what = f"outputs channels as {_names(one)}, {whose} as {_names(reference.draws[0])}"
            yield error(
                where, what, "use the same loading and channel order everywhere; data_preprocessor.to_rgb converts BGR"
            )
        if not any(_alike(one, draw) for draw in reference.draws):
            what = f"outputs values from {_range(one)} for black to white, {whose} from {_range(reference.draws[0])}"
            yield error(where, what, SAME_STEPS)


def _reference(case: Case) -> tuple[View | None, str]:
    """Return the view to compare with, and its name."""
    if case.testing:
        return case.trained_view, "the run's validation"
    return case.views.get("train"), "train_dataloader"


def _alike(one: Values, other: Values) -> bool:
    ratio, shift = one.gain / other.gain, abs(one.offset - other.offset) / (255 * abs(other.gain))
    return 1 / GAIN <= ratio <= GAIN and shift <= OFFSET


def _range(values: Values) -> str:
    return f"{round(values.offset, 2) + 0:g} to {round(values.offset + 255 * values.gain, 2) + 0:g}"


def _names(values: Values) -> str:
    names: dict[tuple[int, ...], str] = {(0, 1, 2): "RGB", (2, 1, 0): "BGR"}
    return names.get(values.order, f"an order of its own {values.order}")


@check(pitfall=25)
def same_geometry(case: Case) -> Iterator[Finding]:
    """Find a validation with another aspect ratio or scale than the training."""
    train, whose = _reference(case)
    for side in case.reported_sides:
        view, where = case.views.get(side), f"{side}_dataloader.dataset.pipeline"
        if view is None:
            continue
        if view.is_turned and not (case.testing and train is not None and train.is_turned):
            yield warning(where, "mirrors every photo or turns it upside down", "flip only in training, at random")
        seen = view.seen[0] * view.seen[1]
        if seen < LITTLE:
            what = f"shows {seen:.0%} of a photo of {case.photo_size[1]} × {case.photo_size[0]} pixels"
            yield warning(where, what, "put ResizeEdge before CenterCrop")
        elif train is not None and not 1 / ZOOM <= view.zoom / train.zoom <= ZOOM:
            what = f"shows objects {view.zoom / train.zoom:.1f} times as large as {whose} does"
            yield warning(where, what, "scale photos to the training's size before the centre crop")
        stretch = math.log(view.stretch)
        if train is not None and min(abs(stretch), abs(stretch - math.log(train.stretch))) > STRETCHED:
            what = f"stretches photos by a factor of {max(view.stretch, 1 / view.stretch):.2f}, {whose} doesn't"
            yield warning(
                where, what, "use ResizeEdge, which keeps the aspect ratio, not Resize(scale=(width, height))"
            )


@check(pitfall=24)
def normalised_as_in_training(case: Case) -> Iterator[Finding]:
    """Find a test with another mean, std or channel order than the tested run."""
    from mmflowers.engine.record import RECIPE, recipe

    kept = case.meta.get(RECIPE)
    if not case.testing or not isinstance(kept, dict):
        return
    prefix = "data_preprocessor."
    now = {key: value for key, value in recipe(case.config).items() if key.startswith(prefix)}
    before = {key: value for key, value in kept.items() if str(key).startswith(prefix)}
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            what = f"{now.get(key, 'not set')}, but the run was trained with {before.get(key, 'not set')}"
            yield error(key, what, "test with the config in the work dir of the run")


@check(pitfall=26)
def metric_counts_all(case: Case) -> Iterator[Finding]:
    """Find thresholds on scores, and a best epoch chosen by a top-k that is nearly always correct."""
    for name in ("test_evaluator",) if case.testing else ("val_evaluator", "test_evaluator"):
        for metric in as_list(case.config.get(name)):
            thresholds = as_list(metric.get("thrs")) if isinstance(metric, dict) else []
            if any(isinstance(t, (int, float)) and t > 0 for t in thresholds):
                what = f"{thresholds} counts predictions with a smaller score as wrong: not the top-1"
                yield error(f"{name}.thrs", what, "remove thrs")
    chosen = get(case.config, "default_hooks.checkpoint.save_best")
    rank = str(chosen).rpartition("/top")[2] if isinstance(chosen, str) else ""
    classes = len(case.folder.classes) if case.folder else 0
    if not case.testing and rank.isdecimal() and int(rank) > 1 and int(rank) * 2 > classes:
        what = f"{chosen} of {classes} classes is high for nearly any network"
        yield error("default_hooks.checkpoint.save_best", what, "use accuracy/top1")


@check(pitfall=27)
def validation_happens(case: Case) -> Iterator[Finding]:
    """Find a validation that is too rare or too late to find the best epoch."""
    keys = ("max_epochs", "max_iters", "val_interval", "val_begin")
    epochs, iters, interval, begin = (get(case.config, f"train_cfg.{key}") for key in keys)
    last, unit = (epochs, "epoch") if type(epochs) is int else (iters, "iteration")
    if case.testing or type(last) is not int or case.config.get("val_dataloader") is None:
        return
    if type(begin) is int and begin > last:
        what = f"{begin} is after the last of {count(last, unit)}: nothing is validated, and there is no best.pth"
        yield error("train_cfg.val_begin", what, "set val_begin=1")
    if type(interval) is int and interval > last:
        what = f"{interval} is more than {count(last, unit)}: only the last is validated, so best.pth is the last"
        yield warning("train_cfg.val_interval", what, "set val_interval=1")

"""Checks of schedule, learning rate, metrics, normalisation and freezing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmflowers.checks.findings import Finding, check, error, from_problems, warning
from mmflowers.checks.keys import as_list, get
from mmflowers.datasets.wrappers import innermost
from mmflowers.utils.errors import InputError
from mmflowers.utils.errors import count as counted

if TYPE_CHECKING:
    from mmflowers.checks.run import Case
    from mmflowers.datasets.views import View

SCALED = 0.1  # gain of the pipeline per grey level; with a smaller one, pixels are no longer in 0..255
CONTRAST = (0.05, 20.0)  # white minus black at the network's input: 4.4 with ImageNet's std, 1 for pixels in 0..1
Normalisation = tuple[list[float], list[float], bool]  # mean and std of pixels in 0..255, and whether they are RGB
IMAGENET: Normalisation = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
CONSTANT = "param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1.0) sets a constant learning rate"


def _dataset(case: Case, side: str) -> dict:
    return innermost(get(case.config, f"{side}_dataloader")) or {}


def _fires(scheduler: dict, epochs: int) -> bool:
    """Return whether a scheduler may change the learning rate during the training."""
    kind, begin = scheduler.get("type"), scheduler.get("begin") or 0
    if not scheduler.get("by_epoch", True) or "LR" not in str(kind):
        return True
    if begin >= epochs:
        return False
    if kind == "MultiStepLR":
        return any(begin + at < epochs for at in as_list(scheduler.get("milestones")))
    if kind == "StepLR":
        return begin + scheduler.get("step_size", 1) < epochs
    return True


@check(pitfall=11)
def schedule_within_the_training(case: Case) -> Iterator[Finding]:
    """Find schedules whose steps come after the last epoch, and schedules that end before it."""
    from mmflowers.engine.schedule import schedule_end

    epochs = get(case.config, "train_cfg.max_epochs")
    if case.testing or type(epochs) is not int:
        return
    schedulers = [item for item in as_list(case.config.get("param_scheduler")) if isinstance(item, dict)]
    idle = [str(item.get("type")) for item in schedulers if not _fires(item, epochs)]
    if idle:
        rate = "is constant" if len(idle) == len(schedulers) else "lacks this part of the schedule"
        what = f"{', '.join(idle)} has no effect within {counted(epochs, 'epoch')}: the learning rate {rate}"
        yield warning("param_scheduler", what, CONSTANT)
    for item in schedulers:
        span = item.get("T_max")
        left = epochs - (item.get("begin") or 0)
        if (
            item.get("type") == "CosineAnnealingLR"
            and item.get("by_epoch", True)
            and type(span) is int
            and span > left > 0
        ):
            what = f"a cosine over {span} epochs is cut off after {left}: the learning rate doesn't reach its minimum"
            yield warning("param_scheduler", what, f"set T_max={left}")
    batches = None
    if case.config.get("launcher", "none") == "none" and (train := case.loaders.get("train")):
        batches = -(-int(train.counts.sum()) // get(case.config, "train_dataloader.batch_size"))
    end = schedule_end(case.config, batches)
    if end < epochs:
        what = f"ends at epoch {end:g} of {epochs}: the learning rate is then constant, or rises again after a cosine"
        yield warning("param_scheduler", what, "set the end of its last part to train_cfg.max_epochs")


@check(pitfall=12)
def rate_for_fine_tuning(case: Case) -> Iterator[Finding]:
    """Find a learning rate for training from scratch with pretrained weights."""
    optimizer = get(case.config, "optim_wrapper.optimizer") or {}
    rate: Any = optimizer.get("lr")
    limit = 0.1 if optimizer.get("type") == "SGD" else 0.01
    known = optimizer.get("type") in ("SGD", "Adam", "AdamW")
    if not case.testing and case.start and known and type(rate) in (int, float) and rate >= limit:
        what = f"{rate:g} is a learning rate for training from scratch, but {Path(case.start).name} is pretrained"
        yield warning("optim_wrapper.optimizer.lr", what, f"{limit / 20:g} is usual for fine-tuning")


@check(pitfall=14)
def test_side_is_that_of_val(case: Case) -> Iterator[Finding]:
    """Find test settings with other data or another metric than the validation."""
    val, test = _dataset(case, "val"), _dataset(case, "test")
    for key in ("type", "data_root") if val and test else ():
        one, other = (str(dataset.get(key)) for dataset in (val, test))
        if key == "type":  # FlowersDataset and mmpretrain.FlowersDataset are the same
            one, other = (name.rpartition(".")[2] for name in (one, other))
        if one != other:
            what = f"{test.get(key)} here, {val.get(key)} in val: the test uses other data"
            yield error(f"test_dataloader.dataset.{key}", what, "test_dataloader = val_dataloader")
    one, other = case.config.get("val_evaluator"), case.config.get("test_evaluator")
    if one and other and _topk(one) != _topk(other):
        what = f"measures top-{_topk(other)}, val top-{_topk(one)}"
        yield warning("test_evaluator.topk", what, "test_evaluator = val_evaluator")


def _topk(evaluator: Any) -> list[int]:
    return [
        k
        for metric in as_list(evaluator)
        if isinstance(metric, dict)
        for k in as_list(metric.get("topk", (1,)))
        if type(k) is int
    ]


@check(pitfall=16)
def topk_of_few_classes(case: Case) -> Iterator[Finding]:
    """Find a top-k of at least as many classes as there are, which is always correct."""
    count = len(case.folder.classes) if case.folder else 0
    for name in ("test_evaluator",) if case.testing else ("val_evaluator", "test_evaluator"):
        for metric in as_list(case.config.get(name)):
            given = metric.get("topk", 1) if isinstance(metric, dict) else 1
            if not as_list(given) or not all(type(k) is int and k > 0 for k in as_list(given)):
                yield error(f"{name}.topk", f"must be positive integers, not {given!r}", "set topk=(1, )")
        wrong = [k for k in _topk(case.config.get(name)) if count and k >= count]
        if wrong:
            what = f"top-{wrong[0]} of {count} classes " + ("is always 100 %" if wrong[0] == count else "doesn't exist")
            yield error(f"{name}.topk", what, "set topk=(1, )")
    head = get(case.config, "model.head") or {}
    wrong = [k for k in as_list(head.get("topk")) if head.get("cal_acc") and type(k) is int and count and k > count]
    if wrong:
        yield error("model.head.topk", f"top-{wrong[0]} of {count} classes doesn't exist", "set topk=(1, )")


@check()
def one_class_a_photo(case: Case) -> Iterator[Finding]:
    """Find a head for multiple labels, whose scores aren't probabilities of one class."""
    from mmflowers.engine.single_label import require_single_label

    if case.model is not None:
        try:
            require_single_label(case.model)
        except InputError as problem:
            yield from from_problems("model.head", problem.problems)


@check(pitfall=17)
def normalisation(case: Case) -> Iterator[Finding]:
    """Find mean and std that don't fit the range of the pixels or the weights."""
    preprocessor = get(case.config, "model.data_preprocessor") or case.config.get("data_preprocessor") or {}
    mean, std = (as_list(preprocessor.get(key)) for key in ("mean", "std"))
    view = case.views.get("test" if case.testing else "train")
    # Whether the pipeline itself scales pixels: to 0..1 the gain is 1/255, for normalised pixels about 1/58.
    scaled = view is not None and min(abs(draw.gain) for draw in view.draws) < SCALED
    numbers = all(type(value) in (int, float) for value in mean + std)
    if not numbers or len(mean) != len(std) or len(mean) not in (0, 1, 3):
        what = "mean and std must have three numbers each"
        yield error("data_preprocessor", what, "for example mean=[123.675, 116.28, 103.53]")
        return
    if any(mean) and not scaled and max(mean + std) <= 1:
        what = f"mean {mean} is for pixels in 0..1, but the pixels are in 0..255"
        hint = "multiply by 255: mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
        yield error("data_preprocessor.mean", what, hint)
        return
    if mean and view is not None and scaled and max(mean) > 1:
        what = f"the pipeline already scales pixels, to {view.white:.3g} for white, but mean {mean} is for 0..255"
        yield error("data_preprocessor.mean", what, "scale in one place only")
        return
    if view is not None and preprocessor.get("to_rgb") and all(draw.order == (0, 1, 2) for draw in view.draws):
        what = "the pipeline outputs RGB, which to_rgb converts to BGR"
        yield warning("data_preprocessor.to_rgb", what, "convert in one place only")
        return
    if case.testing:
        return
    expected = _normalisation_of_weights(case)
    values = _values_in_network(preprocessor, view) if view is not None else None
    is_usual = values is None or CONTRAST[0] <= values[1] - values[0] <= CONTRAST[1]
    if view is not None and values is not None and not is_usual and not _is_near(mean + std, expected):
        what = f"black and white reach the network as {values[0]:.3g} and {values[1]:.3g}: pixels aren't normalised"
        # An explicit mean and std may be intended, and a resumed run keeps its settings.
        level = warning if mean or case.resume else error
        yield level("data_preprocessor", what, _normalisation_options(case, view, expected or IMAGENET))
        return
    if not expected or scaled or not mean:
        return
    if not _is_near(mean + std, expected):
        what = f"mean {mean}, std {std}, but the weights were trained with {expected[0]}, {expected[1]}"
        order = "" if expected[2] else ", to_rgb=False"
        yield warning("data_preprocessor.mean", what, f"set mean={expected[0]}, std={expected[1]}{order}")
    elif bool(preprocessor.get("to_rgb")) != expected[2]:
        ours, theirs = ("BGR", "RGB") if expected[2] else ("RGB", "BGR")
        what = f"the network gets {ours}, but the weights expect {theirs}"
        yield warning("data_preprocessor.to_rgb", what, f"set to_rgb={expected[2]}")


def _is_near(numbers: list[float], expected: Normalisation | None) -> bool:
    """Return whether mean and std are close to those that the weights were trained with."""
    if not numbers or expected is None:
        return False
    return all(abs(a - b) <= 1.5 for a, b in zip(numbers, [*expected[0], *expected[1]], strict=False))


def _values_in_network(preprocessor: dict, view: View) -> tuple[float, float] | None:
    """Return black and white after pipeline and data preprocessor; None if the preprocessor can't be run."""
    import torch

    from mmflowers.registry import MODELS

    draw = view.draws[0]
    pixels = [torch.full((len(draw.channels), 2, 2), value) for value in (draw.offset, view.white)]
    try:
        made = MODELS.build({"type": "ClsDataPreprocessor", **preprocessor})({"inputs": pixels})["inputs"]
        black, white = (image[..., 0, 0].mean().item() for image in made)
    except Exception:  # a user's own class, or invalid arguments, which another check reports
        return None
    return black, white


def _normalisation_options(case: Case, view: View, expected: Normalisation) -> str:
    """Return the options that normalise pixels for the weights."""
    where = "model.data_preprocessor" if get(case.config, "model.data_preprocessor") else "data_preprocessor"
    if len(view.draws[0].channels) != 3:
        return f"--cfg-options {where}.mean=[127.5] {where}.std=[127.5]"
    mean, std = (",".join(f"{value:g}" for value in values) for values in expected[:2])
    rgb = f" {where}.to_rgb=True" if expected[2] and view.draws[0].order != (0, 1, 2) else ""
    return f"--cfg-options {where}.mean={mean} {where}.std={std}{rgb}"


def _normalisation_of_weights(case: Case) -> Normalisation | None:
    """Return the normalisation of the weights' training, from timm, from OpenMMLab's config for them, or for ResNet."""
    if not case.start:
        return None
    backbone = get(case.config, "model.backbone") or {}
    if backbone.get("type") == "TIMMBackbone":
        import timm

        entry = timm.models.get_pretrained_cfg(str(backbone.get("model_name")), allow_unregistered=True)
        return ([255 * value for value in entry.mean], [255 * value for value in entry.std], True) if entry else None
    found = _config_of(Path(case.start).name)
    if found is not None:
        theirs = found.get("data_preprocessor") or {}
        return (theirs["mean"], theirs["std"], bool(theirs.get("to_rgb"))) if theirs.get("mean") else None
    own_run = bool(case.meta)
    return IMAGENET if backbone.get("type") == "ResNet" and not own_run else None


def _config_of(weights: str) -> Any:
    """MMPretrain's config for the weights of a file name, by its metafiles; None if they don't have it."""
    import mmpretrain
    import yaml
    from mmengine.config import Config

    installed = Path(mmpretrain.__file__).parent / ".mim"
    for path in installed.glob("configs/*/metafile.yml"):
        text = path.read_text(encoding="utf-8")
        if f"/{weights}\n" in text:  # spares reading the others, which takes a second
            for model in yaml.safe_load(text)["Models"]:
                if str(model.get("Weights")).endswith(f"/{weights}") and model.get("Config"):
                    return Config.fromfile(installed / model["Config"])
    return None


@check(pitfall=18)
def freezing(case: Case) -> Iterator[Finding]:
    """Find freezing and learning rates of layers that match no layer."""
    if case.testing or case.model is None:
        return
    frozen = get(case.config, "model.backbone.frozen_stages")
    if type(frozen) is int and frozen >= 0 and all(p.requires_grad for p in case.model.backbone.parameters()):
        yield error(
            "model.backbone.frozen_stages", f"{frozen} freezes no layer", "1 freezes the stem and the first stage"
        )
    names = [name for name, _ in case.model.named_parameters()]
    custom = get(case.config, "optim_wrapper.paramwise_cfg.custom_keys") or {}
    for key, options in custom.items():
        if not any(key in name for name in names):
            near = sorted({name.rpartition(".")[0] for name in names if key.split(".")[0] in name})[:1]
            hint = f"parameter names look like {(near or names)[0]}"
            stops = isinstance(options, dict) and options.get("lr_mult") == 0
            yield (error if stops else warning)(
                f"optim_wrapper.paramwise_cfg.custom_keys.{key}", "matches no parameter of the model", hint
            )

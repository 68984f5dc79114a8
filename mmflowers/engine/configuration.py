"""Read a config, merge the command line's overrides, and complete it for a run."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config, DictAction

import mmflowers.registry  # noqa: F401  by which a config may have bases of mmflowers::
from mmflowers.datasets.wrappers import all_innermost, dataset_of, get
from mmflowers.engine.shipped import find_config
from mmflowers.evaluation.metrics import rule_of
from mmflowers.models.classifier import WITH_BACKBONE
from mmflowers.utils.errors import InputError, Problem, count, is_own, not_installed

T = TypeVar("T")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {  # the types of keys that a config may leave out
    dict: (
        *("model", "model.backbone", "model.head", "model.head.loss", "model.data_preprocessor", "data_preprocessor"),
        *("train_cfg", "val_cfg", "test_cfg", "default_hooks", "randomness", "env_cfg", "visualizer"),
        *("optim_wrapper", "optim_wrapper.optimizer", "optim_wrapper.paramwise_cfg", "custom_imports"),
        *(path for loader in LOADERS for path in (loader, f"{loader}.dataset", f"{loader}.sampler")),
    ),
    (dict, list): ("val_evaluator", "test_evaluator", "param_scheduler", "model.neck"),
    list: ("custom_hooks", "visualizer.vis_backends"),
    str: ("load_from", "default_scope"),
    (str, os.PathLike): ("data_root",),
}
NEEDED = ("model", "model.head", "train_cfg", "train_dataloader", "optim_wrapper", "optim_wrapper.optimizer")
# MMEngine takes a name after :: only if it begins with a folder, and shipped configs are in none.
FOLDER_FIRST = "a folder comes first in such a base: _base_ = 'mmflowers::_base_/../resnet50_flowers.py'"
FORM_ERRORS = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError)
OF_ITERATIONS = r"^((train|val|test)/)?[^/]*(loss|time|grad_norm)[^/]*$"  # not metrics, which have a prefix: nll/loss


class RunConfig(Config):
    """MMEngine's Config, which is formatted only after a change.

    Every checkpoint has its text, and formatting it takes longer than writing a small network.
    """

    _formatted: tuple[str, str] = ("", "")

    @property
    def pretty_text(self) -> str:
        """The config as Python source."""
        content = repr(self._cfg_dict)
        if RunConfig._formatted[0] != content:
            RunConfig._formatted = (content, super().pretty_text)
        return RunConfig._formatted[1]


def load_config(path: str | Path) -> Config:
    """Read a config file.

    Args:
        path: As of ``mmflowers.engine.shipped.find_config``.

    Raises:
        InputError: No such file, or Python refuses it.
    """
    path = find_config(path)
    try:
        read = Config.fromfile(path)
    except Exception as error:  # a config is code, so any error in it is bad input
        if is_own(error):  # of a module of ours that the config imports
            raise
        if problem := not_installed(error):
            raise InputError(problems=[problem]) from error
        what = " ".join(str(error).split())
        hint = FOLDER_FIRST if "_get_package_and_cfg_path" in what else "correct the config"
        raise InputError(f"{path} can't be read: {type(error).__name__}: {what}", hint) from error
    config = RunConfig.__new__(RunConfig)
    config.__setstate__(read.__getstate__())
    if config.get("default_scope") in (None, "mmpretrain"):
        config.default_scope = "mmflowers"
    _adapted(config._cfg_dict)
    return config


def _adapted(part: Any) -> Any:
    """Adapt a part of a config in place: ``mmpretrain::…`` types are also found in our registries, paths are strings.

    Our registries have MMPretrain's types and ours. A ``pathlib.Path`` can't be written into the config that MMEngine
    keeps in the work dir.
    """
    if isinstance(part, os.PathLike):
        return os.fspath(part)
    if isinstance(part, dict):
        for key, value in part.items():
            adapted = "mmflowers" if key == "_scope_" and value == "mmpretrain" else _adapted(value)
            if adapted is not value:  # setting a list would copy it
                part[key] = adapted
    elif isinstance(part, list):
        part[:] = map(_adapted, part)
    elif type(part) is tuple:
        return tuple(map(_adapted, part))
    return part


def malformed(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the keys with a value of a type that MMEngine can't use (``KINDS``), and the type that is needed."""
    places = [(path, get(config, path), kind) for kind, paths in KINDS.items() for path in paths]
    hooks = config.get("default_hooks")
    places += [
        (f"default_hooks.{name}", hook, dict) for name, hook in (hooks if isinstance(hooks, dict) else {}).items()
    ]
    for name in LOADERS:
        for dataset in all_innermost(config.get(name)):
            places.append((f"{name}.dataset.pipeline", dataset.get("pipeline"), (list, tuple)))
            places.append((f"{name}.dataset.data_root", dataset.get("data_root"), (str, os.PathLike)))
    for path, value, kind in places:
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        if value is not None and not isinstance(value, kind):
            yield path, f"a {wanted} is needed, not {value!r}"
        elif not all(isinstance(item, dict) for item in (value if isinstance(value, (list, tuple)) else ())):
            yield path, f"a list of dicts is needed, not {value!r}"


def requires_form(step: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function of a config: if it fails and the config is malformed, the ``InputError`` says where.

    Without it, the functions would have to check every key that they read. If nothing is malformed, the error is a bug.
    """

    @functools.wraps(step)
    def wrapped(config: Config, *arguments: Any, **options: Any) -> T:
        try:
            return step(config, *arguments, **options)
        except FORM_ERRORS as error:
            wrong = [(path, f"{what} in the config") for path, what in malformed(config)]
            wrong += [(path, "the config has none") for path in NEEDED if get(config, path) is None]
            if not wrong:
                raise
            hint = "compare it with the configs in configs/"
            raise InputError(problems=[Problem(f"{path}: {what}", hint) for path, what in wrong]) from error

    return wrapped


def attempt(found: list[tuple[str, Problem]], where: str, step: Callable[..., T], *arguments: Any) -> T | None:
    """Run a step of the configuration and collect its problems, so that all are reported together.

    Args:
        found: Takes the problems, each with its place.
        where: The place.
        step: Called with ``arguments``; see ``requires_form`` if the first one is a config.

    Returns:
        The result of the step; None if it fails.
    """
    if arguments and isinstance(arguments[0], Config):
        step = requires_form(step)
    try:
        return step(*arguments)
    except InputError as error:
        found.extend((where, problem) for problem in error.problems)
        return None


def merge_options(config: Config, options: Sequence[str]) -> None:
    """Apply ``--cfg-options``, each ``KEY=VALUE`` with a dotted key, in the syntax of MMEngine's ``DictAction``.

    Raises:
        InputError: The syntax is wrong, or a key leads through something that isn't a dict or list.
    """
    problems = [problem for option in options if (problem := _unreachable(config, option.partition("=")[0]))]
    if problems:
        raise InputError(problems=problems)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--options", nargs="+", action=DictAction)
    try:
        if options:
            config.merge_from_dict(parser.parse_args(["--options", *options]).options)
    except RecursionError as error:  # of DictAction, on parentheses with a comma in them
        what = f"--cfg-options can't be applied: {' '.join(options)} is no plain value or list of plain values"
        raise InputError(what, "set a dict in a config, or its keys one by one: KEY.SUBKEY=VALUE") from error
    except (argparse.ArgumentError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
        raise InputError(f"--cfg-options can't be applied: {error}", "KEY=VALUE, with dotted keys") from error


def _unreachable(config: Config, key: str) -> Problem | None:
    """Return why an option's key doesn't exist, or None. MMEngine would fail, or create a dict in place of a list."""
    lists = {
        path
        for kind, paths in KINDS.items()
        if kind is list or list in (kind if isinstance(kind, tuple) else ())
        for path in paths
    }
    place, value = "", config
    for name in key.split("."):
        if isinstance(value, list):
            if not name.isdecimal() or int(name) >= len(value):
                what = f"{place} has {count(len(value), 'item')}, counted from 0, and no {name}"
                return Problem(f"--cfg-options {key}: {what}", "name one of them, or add an item in a config")
            value = value[int(name)]
        elif isinstance(value, (dict, Config)):
            if name.isdecimal() and place in lists:
                what = f"{place} is a dict, not a list" if value else f"the config has no {place}"
                return Problem(f"--cfg-options {key}: {what}", f"set {place} in a config")
            value = value.get(name, {})
        else:
            return Problem(f"--cfg-options {key}: {place} is {value!r}, not a dict", f"set {place} in a config")
        place = f"{place}.{name}".lstrip(".")
    return None


def datasets(config: Config) -> Iterator[dict]:
    """Yield the innermost datasets of all dataloaders."""
    for name in LOADERS:
        yield from all_innermost(config.get(name))


@requires_form
def data_root(config: Config) -> str:
    """Return the dataset folder of the config.

    Raises:
        InputError: Its datasets and the top-level ``data_root`` name different folders. A child config that sets only
            the top-level value changes no dataset.
    """
    roots: set[Any] = {dataset.get("data_root") for dataset in datasets(config)} | {config.get("data_root")} - {None}
    if len(roots) != 1 or None in roots:
        named = ", ".join(sorted(map(str, roots)))
        raise InputError(f"the config names different dataset folders: {named}", "--data DIR sets all of them")
    return roots.pop()


@requires_form
def set_data_root(config: Config, data_root: str | Path) -> None:
    """Set the dataset folder of every dataset."""
    config.data_root = str(data_root)
    for dataset in datasets(config):
        dataset["data_root"] = str(data_root)


@requires_form
def test_on(config: Config, split: str) -> None:
    """Set the list that the test dataloader reads to that of ``split``."""
    dataset_of(config, "test_dataloader")  # there must be one
    for dataset in all_innermost(config.test_dataloader):
        dataset["ann_file"] = f"{split}.txt"


@requires_form
def set_classes(config: Config, count: int) -> None:
    """Set the number of classes in all parts of the config that have one.

    These are the head (in VGG and Inception, whose head has no layers, the backbone), the head's loss, the data
    preprocessor and its batch augmentations. Without the preprocessor's number, Mixup and CutMix can't make one-hot
    labels.

    Args:
        config: Changed in place.
        count: Classes of the dataset folder.

    Raises:
        InputError: The model has no backbone and head, or neither of them takes a number of classes.
    """
    model = config.model
    if "backbone" not in model and "head" not in model:
        raise InputError(f"the model {_name(model)} has no backbone and head", WITH_BACKBONE)
    places = [part for part in (model.head, model.backbone) if takes(part, "num_classes")]
    if not places:
        raise InputError(
            f"neither the head {_name(model.head)} nor the backbone {_name(model.backbone)} takes num_classes",
            "head=dict(type='LinearClsHead', in_channels=…) gives a backbone a classifier",
        )
    places = places[:1]
    losses = model.head.get("loss")
    places += [loss for loss in (losses if isinstance(losses, list) else [losses]) if takes(loss, "num_classes")]
    preprocessors = [one for one in (config.get("data_preprocessor"), model.get("data_preprocessor")) if one]
    if not preprocessors:
        config.data_preprocessor = {}
        preprocessors = [config.data_preprocessor]
    places += [one for one in preprocessors if takes(one, "num_classes", "ClsDataPreprocessor")]
    places += [augment for _, augment in batch_augments(config) if "num_classes" in augment]
    for place in places:
        place["num_classes"] = count


def _name(part: Any) -> Any:
    """Return the name of the class that a part of a config is built from."""
    return getattr(part.get("type"), "__name__", part.get("type"))


def batch_augments(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the augmentations that mix a batch's images, such as Mixup and CutMix, each with its key."""
    for key in ("model.train_cfg", "model.data_preprocessor.batch_augments", "data_preprocessor.batch_augments"):
        place = config
        for name in key.split("."):
            place = place.get(name) or {}
        augments = place.get("augments") or []
        yield from ((key, one) for one in (augments if isinstance(augments, (list, tuple)) else [augments]))


def takes(part: Any, argument: str, default: str | None = None) -> bool:
    """Whether the class that a part of a model is built from has an argument of that name.

    Args:
        part: Of the config, with the ``type``.
        argument: The name.
        default: The type where the part names none.
    """
    from mmflowers.registry import MODELS

    kind = part.get("type", default) if isinstance(part, dict) else None
    builder = MODELS.get(kind) if isinstance(kind, str) else kind
    if builder is None:
        return kind is not None  # not registered: the checks report it
    return any(
        argument in inspect.signature(base.__init__).parameters for base in builder.__mro__ if "__init__" in vars(base)
    )


def switches(config: Config, what: str) -> bool:
    """Whether an MMPretrain ``SwitchRecipeHook`` of the config changes ``what`` during the training."""
    hooks = [hook for hook in config.get("custom_hooks") or [] if str(hook.get("type")).endswith("SwitchRecipeHook")]
    return any(what in recipe for hook in hooks for recipe in hook.get("schedule") or [])


@requires_form
def set_best_rule(config: Config) -> None:
    """Set whether a larger or a smaller ``save_best`` is better, for the checkpoint hook and the report.

    Validation metrics are logged unchanged: by default MMEngine logs the mean of a few epochs for each metric with
    "loss" or "time" in its name.

    Raises:
        InputError: Neither the metric's name nor the config decides it.
    """
    hook: Any = (config.get("default_hooks") or {}).get("checkpoint") or {}
    knows_rules = str(hook.get("type")).rpartition(".")[2] in ("BestAndLastHook", "CheckpointHook")
    if knows_rules and isinstance(hook.get("save_best"), str) and hook.save_best != "auto":
        hook.rule = rule_of(hook.save_best, hook.get("rule"))
    config.log_processor = {"mean_pattern": OF_ITERATIONS, **(config.get("log_processor") or {})}


@requires_form
def disable_idle_workers(config: Config) -> None:
    """Set ``persistent_workers=False`` for loaders without workers: torch refuses True there."""
    for name in LOADERS:
        if config.get(name) and not config[name].get("num_workers"):
            config[name].persistent_workers = False


@requires_form
def require_our_checkpoints(config: Config) -> None:
    """Use the ``BestAndLastHook``, whose checkpoints the other commands look for; an explicit None keeps none.

    Raises:
        InputError: The config has MMEngine's ``CheckpointHook``, which keeps other files.
    """
    hooks = config.get("default_hooks")
    if hooks is None:
        hooks = config.default_hooks = {}
    named = hooks.setdefault("checkpoint", dict(type="BestAndLastHook"))
    if named is not None and str(named["type"]).rpartition(".")[2] == "CheckpointHook":
        what = "default_hooks.checkpoint is MMEngine's CheckpointHook; no command finds its epoch_N.pth"
        raise InputError(what, "default_hooks = dict(checkpoint=dict(_delete_=True, type='BestAndLastHook'))")

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
from mmflowers.datasets.wrappers import all_innermost, get
from mmflowers.engine.shipped import find_config
from mmflowers.evaluation.metrics import rule_of
from mmflowers.utils.errors import InputError, Problem, count, is_own, not_installed

T = TypeVar("T")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {  # what may lie where, beside nothing at all
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
    """MMEngine's Config, formatted again only after a change: every checkpoint holds its text, and formatting it
    takes longer than writing a small network."""

    _formatted: tuple[str, str] = ("", "")

    @property
    def pretty_text(self) -> str:
        """The config as Python."""
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
    except Exception as error:  # a config is code: whatever its author got wrong is bad input
        if is_own(error):  # of a module of ours that the config imports
            raise
        if problem := not_installed(error):
            raise InputError(problems=[problem]) from error
        what = " ".join(str(error).split())
        hint = FOLDER_FIRST if "_get_package_and_cfg_path" in what else "mend the config"
        raise InputError(f"{path} can't be read: {type(error).__name__}: {what}", hint) from error
    config = RunConfig.__new__(RunConfig)
    config.__setstate__(read.__getstate__())
    if config.get("default_scope") in (None, "mmpretrain"):
        config.default_scope = "mmflowers"
    _set_scope(list(config.values()))
    return config


def _set_scope(part: Any) -> None:
    """Look up what was inherited from ``mmpretrain::…`` in our registries, which have MMPretrain's types and ours."""
    if isinstance(part, dict) and part.get("_scope_") == "mmpretrain":
        part["_scope_"] = "mmflowers"
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ():
        _set_scope(value)


def malformed(config: Config) -> Iterator[tuple[str, str]]:
    """Where something lies that MMEngine can't take apart (``KINDS``): the key, and what is needed there."""
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


def _put_down_to_the_config(config: Config, error: Exception) -> list[Problem]:
    """The places of a config that may have made a step of ours fail.

    Raises:
        Exception: ``error``, where the config is in order: then it is a bug of ours.
    """
    wrong = [(path, f"{what} in the config") for path, what in malformed(config)]
    wrong += [(path, "the config has none") for path in NEEDED if get(config, path) is None]
    if not wrong:
        raise error
    return [Problem(f"{path}: {what}", "compare it with the configs in configs/") for path, what in wrong]


def _of_a_known_form(step: Callable[..., T]) -> Callable[..., T]:
    """Make a step that trips over a malformed config say so, and no other; a check of each key would be most of this
    module."""

    @functools.wraps(step)
    def tried(config: Config, *arguments: Any, **options: Any) -> T:
        try:
            return step(config, *arguments, **options)
        except FORM_ERRORS as error:
            raise InputError(problems=_put_down_to_the_config(config, error)) from error

    return tried


def attempt(found: list[tuple[str, Problem]], where: str, step: Callable[..., T], *arguments: Any) -> T | None:
    """Run a step of the configuration, so that all problems are reported together.

    Args:
        found: Takes the problems, each with its place.
        where: The place.
        step: Called with ``arguments``. An error other than an ``InputError`` is put down to a config among them if
            that is malformed; otherwise it is a bug and goes on.

    Returns:
        What the step returns; None if it fails.
    """
    try:
        return step(*arguments)
    except InputError as error:
        found.extend((where, problem) for problem in error.problems)
    except FORM_ERRORS as error:
        configs = [argument for argument in arguments if isinstance(argument, Config)]
        if not configs:
            raise
        found.extend((where, problem) for problem in _put_down_to_the_config(configs[0], error))
    return None


def merge_options(config: Config, options: Sequence[str]) -> None:
    """Apply ``--cfg-options``, each ``KEY=VALUE`` with a dotted key, read as MMEngine's ``DictAction`` reads them.

    Raises:
        InputError: Not of that form, or keys lead through something that isn't a dict or list.
    """
    problems = [problem for option in options if (problem := _unreachable(config, option.partition("=")[0]))]
    if problems:
        raise InputError(problems=problems)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--options", nargs="+", action=DictAction)
    try:
        if options:
            config.merge_from_dict(parser.parse_args(["--options", *options]).options)
    except (argparse.ArgumentError, ValueError, KeyError, TypeError, IndexError, AssertionError) as error:
        raise InputError(f"--cfg-options can't be applied: {error}", "KEY=VALUE, with dotted keys") from error


def _unreachable(config: Config, key: str) -> Problem | None:
    """Why an option's key leads nowhere, if it does; MMEngine would fail, or make a dict where a list is meant."""
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
    """The innermost datasets of each dataloader the config has."""
    for name in LOADERS:
        yield from all_innermost(config.get(name))


@_of_a_known_form
def data_root(config: Config) -> str:
    """The one dataset folder that the config means.

    Raises:
        InputError: Its datasets, or the top-level ``data_root``, name different ones: a child config that sets the
            top-level value alone changes no dataset.
    """
    roots: set[Any] = {dataset.get("data_root") for dataset in datasets(config)} | {config.get("data_root")} - {None}
    if len(roots) != 1 or None in roots:
        named = ", ".join(sorted(map(str, roots)))
        raise InputError(f"the config names different dataset folders: {named}", "--data DIR sets all of them")
    return roots.pop()


@_of_a_known_form
def set_data_root(config: Config, data_root: str | Path) -> None:
    """Point every dataset at another dataset folder."""
    config.data_root = str(data_root)
    for dataset in datasets(config):
        dataset["data_root"] = str(data_root)


@_of_a_known_form
def test_on(config: Config, split: str) -> None:
    """Point the test side at the list of ``split``."""
    datasets = list(all_innermost(config.test_dataloader))
    if not datasets:
        raise ValueError("test_dataloader has no dataset")
    for dataset in datasets:
        dataset["ann_file"] = f"{split}.txt"


@_of_a_known_form
def set_classes(config: Config, count: int) -> None:
    """Set the number of classes wherever the config's parts take one.

    These are the head (VGG and Inception: the backbone, whose head has no layers), the head's loss, the data
    preprocessor and its batch augmentations. MMPretrain's recipes leave the preprocessor's to their base config, and
    without it Mixup and CutMix can't make one-hot labels.

    Args:
        config: Changed in place.
        count: Classes of the dataset folder.

    Raises:
        InputError: Neither the head nor the backbone takes a number of classes.
    """
    model = config.model
    places = [part for part in (model.head, model.backbone) if _takes_classes(part)]
    if not places:
        head, backbone = (
            getattr(part.get("type"), "__name__", part.get("type")) for part in (model.head, model.backbone)
        )
        raise InputError(
            f"neither the head {head} nor the backbone {backbone} takes num_classes",
            "head=dict(type='LinearClsHead', in_channels=…) gives a backbone a classifier",
        )
    places = places[:1]
    losses = model.head.get("loss")
    places += [loss for loss in (losses if isinstance(losses, list) else [losses]) if _takes_classes(loss)]
    preprocessors = [one for one in (config.get("data_preprocessor"), model.get("data_preprocessor")) if one]
    if not preprocessors:
        config.data_preprocessor = {}
        preprocessors = [config.data_preprocessor]
    places += [one for one in preprocessors if _takes_classes(one, "ClsDataPreprocessor")]
    places += [augment for _, augment in _batch_augments(config) if "num_classes" in augment]
    for place in places:
        place["num_classes"] = count


def _batch_augments(config: Config) -> Iterator[tuple[str, Any]]:
    """The augmentations that mix a batch's images, as Mixup and CutMix do, each with the key they are under."""
    for key in ("model.train_cfg", "model.data_preprocessor.batch_augments", "data_preprocessor.batch_augments"):
        place = config
        for name in key.split("."):
            place = place.get(name) or {}
        augments = place.get("augments") or []
        yield from ((key, one) for one in (augments if isinstance(augments, (list, tuple)) else [augments]))


def _takes_classes(part: Any, default: str | None = None) -> bool:
    """Whether the class that a part of a model is built from has an argument ``num_classes``."""
    from mmflowers.registry import MODELS

    kind = part.get("type", default) if isinstance(part, dict) else None
    builder = MODELS.get(kind) if isinstance(kind, str) else kind
    if builder is None:
        return kind is not None  # not registered, which the checks say
    return any(
        "num_classes" in inspect.signature(base.__init__).parameters
        for base in builder.__mro__
        if "__init__" in vars(base)
    )


def switches(config: Config, what: str) -> bool:
    """Whether an MMPretrain ``SwitchRecipeHook`` of the config exchanges ``what`` in the course of the training."""
    hooks = [hook for hook in config.get("custom_hooks") or [] if str(hook.get("type")).endswith("SwitchRecipeHook")]
    return any(what in recipe for hook in hooks for recipe in hook.get("schedule") or [])


@_of_a_known_form
def settle_best(config: Config) -> None:
    """Write into the config whether a larger score of ``save_best`` is the better one; the report reads it there.

    Validation metrics are logged as they are: MMEngine's default would log the mean of a few epochs for each that has
    "loss" or "time" in its name.

    Raises:
        InputError: The metric's name doesn't tell, and the config doesn't either.
    """
    hook: Any = (config.get("default_hooks") or {}).get("checkpoint") or {}
    knows_rules = str(hook.get("type")).rpartition(".")[2] in ("BestAndLastHook", "CheckpointHook")
    if knows_rules and isinstance(hook.get("save_best"), str) and hook.save_best != "auto":
        hook.rule = rule_of(hook.save_best, hook.get("rule"))
    config.log_processor = {"mean_pattern": OF_ITERATIONS, **(config.get("log_processor") or {})}


@_of_a_known_form
def settle_loaders(config: Config) -> None:
    """Let loaders without workers persist nobody: torch refuses the pair."""
    for name in LOADERS:
        if config.get(name) and not config[name].get("num_workers"):
            config[name].persistent_workers = False


@_of_a_known_form
def settle_checkpoints(config: Config) -> None:
    """Let the run keep the checkpoints that ``--resume``, predict, test and export look for; None keeps none.

    Raises:
        InputError: The config has MMEngine's ``CheckpointHook``, which keeps others.
    """
    hooks = config.get("default_hooks")
    if hooks is None:
        hooks = config.default_hooks = {}
    named = hooks.setdefault("checkpoint", dict(type="BestAndLastHook"))
    if named is not None and str(named["type"]).rpartition(".")[2] == "CheckpointHook":
        what = (
            "default_hooks.checkpoint is MMEngine's CheckpointHook, whose epoch_N.pth aren't resumed and predicted with"
        )
        raise InputError(what, "default_hooks = dict(checkpoint=dict(_delete_=True, type='BestAndLastHook'))")

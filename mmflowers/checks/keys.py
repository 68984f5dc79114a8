"""Checks of the config's form: unknown keys, unregistered types, invalid numbers."""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import inspect
import math
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mmflowers.checks.findings import Finding, check, error
from mmflowers.datasets.wrappers import get

if TYPE_CHECKING:
    from mmflowers.checks.run import Case

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
READ_BY_RUNNER = {  # besides the arguments of its constructor
    *("custom_imports", "default_scope", "runner_type", "strategy", "model_wrapper_cfg", "find_unused_parameters"),
    *("sync_bn", "compile", "activation_checkpointing", "efficient_conv_bn_eval", "data_root", "dataset_type"),
    *("query_dataloader", "gallery_dataloader", "vis_backends"),
}
OLD_KEYS = {  # keys of MMPretrain 0.x (before MMEngine) and their replacements
    "data": "train_dataloader, val_dataloader and test_dataloader",
    "optimizer": "optim_wrapper = dict(optimizer=dict(…))",
    "optimizer_config": "optim_wrapper = dict(clip_grad=…)",
    "lr_config": "param_scheduler",
    "runner": "train_cfg = dict(by_epoch=True, max_epochs=…)",
    "total_epochs": "train_cfg = dict(by_epoch=True, max_epochs=…)",
    "evaluation": "val_evaluator, and train_cfg = dict(val_interval=…)",
    "checkpoint_config": "default_hooks = dict(checkpoint=…)",
    "log_config": "default_hooks = dict(logger=…)",
    "workflow": "train_cfg and val_cfg",
    "resume_from": "--resume",
    "dist_params": "env_cfg = dict(dist_cfg=…)",
    "cudnn_benchmark": "env_cfg = dict(cudnn_benchmark=…)",
    "fp16": "--amp",
    "img_norm_cfg": "data_preprocessor",
    "seed": "randomness = dict(seed=…)",
}
OLD_ARGUMENTS = {
    "samples_per_gpu": ("batch_size",),
    "workers_per_gpu": ("num_workers",),
    "size": ("scale", "crop_size"),
    "flip_prob": ("prob",),
}
OLD_TRANSFORMS = ("Collect", "ImageToTensor", "ToTensor", "DefaultFormatBundle")
PARAMWISE = {
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult"),
    *("dcn_offset_lr_mult", "bypass_duplicate", "layer_decay_rate", "num_layers"),
}
INTEGERS = {  # key → minimum
    "train_cfg.max_epochs": 1,
    "train_cfg.max_iters": 1,
    "train_cfg.val_interval": 1,
    "optim_wrapper.accumulative_counts": 1,
    "model.head.num_classes": 2,
    "randomness.seed": 0,
    **{f"{loader}.batch_size": 1 for loader in LOADERS},
    **{f"{loader}.num_workers": 0 for loader in LOADERS},
}
NUMBERS = {  # key → minimum and maximum
    "optim_wrapper.optimizer.lr": (1e-300, math.inf),
    "optim_wrapper.optimizer.momentum": (0, 1),
    "optim_wrapper.optimizer.weight_decay": (0, math.inf),
    "model.head.loss.label_smooth_val": (0, 1),
}
EXAMPLES = "compare it with the configs in configs/"
UNKNOWN = "unknown key, which is ignored"
TRAINING = ("model", "model.backbone", "model.head", "train_dataloader.dataset", "train_cfg", "optim_wrapper.optimizer")
TESTING = ("model", "model.backbone", "model.head", "test_dataloader.dataset", "test_evaluator")


def as_list(value: Any) -> list:
    """Return a dict or list of a config as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def scope(config: Any) -> str:
    """Return the registry scope in which a config's types are looked up."""
    named = config.get("default_scope")
    return named if named and isinstance(named, str) else "mmflowers"


def find_class(config: Any, part: Any, registry: str) -> type | None:
    """Return the class of a part of a config; None if it isn't registered."""
    from mmengine.registry import DefaultScope

    import mmflowers.registry

    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind:
        with DefaultScope.overwrite_default_scope(scope(config)):
            kind = getattr(mmflowers.registry, registry).get(kind)
    return kind if inspect.isclass(kind) else None


def build(config: Any, part: dict, registry: str) -> Any:
    """Build a part of a config, in the scope of the config."""
    from mmengine.registry import DefaultScope

    import mmflowers.registry

    with DefaultScope.overwrite_default_scope(scope(config)):
        return getattr(mmflowers.registry, registry).build(copy.deepcopy(part))


def suggest(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Return a hint with the most similar name in ``known``; without one, ``otherwise``."""
    close = difflib.get_close_matches(name, sorted(known), 1, cutoff)
    return f"did you mean {close[0]}?" if close else otherwise


@check(pitfall=13)
def parts_are_there(case: Case) -> Iterator[Finding]:
    """Find parts of the config that are missing, without which nothing can be built."""
    for path in TESTING if case.testing else TRAINING:
        value = get(case.config, path)
        if not isinstance(value, (dict, list) if path.endswith("evaluator") else dict):
            what = "missing in the config" if value is None else f"must be a dict, not {value!r}"
            yield error(path, what, EXAMPLES)
    for side in ("val", "test"):
        keys = [f"{side}_dataloader", f"{side}_cfg", f"{side}_evaluator"]
        missing = [name for name in keys if case.config.get(name) is None]
        if 0 < len(missing) < 3:
            what = f"missing, but other {side} settings are set"
            yield error(", ".join(missing), what, f"set all or none of {', '.join(keys)}")


@check(pitfall=13)
def kinds(case: Case) -> Iterator[Finding]:
    """Find values that must be dicts or lists of dicts, because MMEngine reads their items."""
    from mmflowers.engine.configuration import malformed

    reported = TESTING if case.testing else TRAINING  # by parts_are_there
    optional = {option.partition("=")[0] for option in case.options}
    for path, what in malformed(case.config):
        if path not in reported:
            hint = "--cfg-options can't set a dict; set it in a config" if path in optional else EXAMPLES
            yield error(path, what, hint)


@check(pitfall=13)
def top_level_keys(case: Case) -> Iterator[Finding]:
    """Find unknown top-level keys, which MMEngine silently ignores."""
    from mmengine.runner import Runner

    known = {*inspect.signature(Runner.__init__).parameters, *READ_BY_RUNNER} - {"self", "cfg"}
    optional = {option.partition("=")[0].split(".")[0] for option in case.options}
    for key in case.config:
        value = case.config[key]
        if key in OLD_KEYS:
            if value is not None and not _is_used(value, {k: v for k, v in case.config.items() if k != key}):
                yield error(key, "a key of MMPretrain 0.x, which is ignored", f"use {OLD_KEYS[key]}")
        elif key not in known:
            close = difflib.get_close_matches(key, sorted(known), 1, 0.8)
            if close or key in optional:
                hint = suggest(key, known, "give the full key, such as train_dataloader.batch_size", 0.8)
                yield error(key, UNKNOWN, hint)


def _is_used(value: Any, place: Any) -> bool:
    """Return whether a variable's dict or list was used in another part of the config."""
    if isinstance(place, dict):
        if isinstance(value, dict) and all(key in place and place[key] == value[key] for key in value):
            return True
        return any(_is_used(value, item) for item in place.values())
    if isinstance(place, (list, tuple)):
        return place == value or any(_is_used(value, item) for item in place)
    return False


class Built(NamedTuple):
    """A dict of the config from which a class is built."""

    where: str
    config: dict
    registry: str
    default: str = ""  # the type if none is set
    extra: tuple[str, ...] = ()  # keys that the builder reads


def _known(registry: Any) -> set[str]:
    """Return the names in a registry and its parents."""
    return {*registry.module_dict, *(_known(registry.parent) if registry.parent else ())}


@check(pitfall=13)
def arguments(case: Case) -> Iterator[Finding]:
    """Find types that aren't registered, and arguments that their constructors don't take."""
    from mmengine.registry import DefaultScope

    import mmflowers.registry

    with DefaultScope.overwrite_default_scope(scope(case.config)):
        for where, config, name, default, extra in built(case.config):
            kind = config.get("type", default)
            registry = getattr(mmflowers.registry, name)
            if isinstance(kind, str) and kind:
                builder = registry.get(kind)
                if builder is None:
                    hint = suggest(kind, _known(registry), "add its module to custom_imports")
                    hint = "use PackInputs" if kind in OLD_TRANSFORMS else hint
                    yield error(f"{where}.type", f"{kind} isn't registered", hint)
                    continue
            elif inspect.isclass(kind):
                builder = kind
            else:
                if "type" in config or not default:
                    yield error(where, "has no valid type", "set type='…' to the name of a class")
                continue
            names = accepted(builder)
            if names is None:
                continue
            what = f"unknown argument of {kind if isinstance(kind, str) else kind.__name__}"
            for key in config:
                if key not in names | {"type", "_scope_", *extra}:
                    yield error(f"{where}.{key}", what, _replacement(key, names, extra))
    yield from _plain_arguments(case.config)


def _replacement(key: str, names: set[str], extra: Iterable[str] = ()) -> str:
    """Return a hint with the name that replaces an unknown key."""
    new = [name for name in OLD_ARGUMENTS.get(key, ()) if name in names]
    return f"use {new[0]}" if new else suggest(key, {*names, *extra} - {"self"}, "remove it")


def built(config: Any) -> Iterator[Built]:
    """Yield every dict of a config from which a class is built."""
    hooks, by_epoch = config.get("default_hooks"), get(config, "train_cfg.by_epoch")
    loop = "" if by_epoch is None else "ExactTrainLoop" if by_epoch else "IterBasedTrainLoop"
    for where, registry, default, extra in (
        *((f"model{part}", "MODELS", "", ()) for part in ("", ".backbone", ".neck", ".head", ".head.loss")),
        ("val_evaluator", "METRICS", "", ()),
        ("test_evaluator", "METRICS", "", ()),
        *((f"default_hooks.{name}", "HOOKS", "", ("priority",)) for name in (hooks if isinstance(hooks, dict) else ())),
        ("custom_hooks", "HOOKS", "", ("priority",)),
        ("optim_wrapper", "OPTIM_WRAPPERS", "OptimWrapper", ("constructor", "paramwise_cfg")),
        ("optim_wrapper.optimizer", "OPTIMIZERS", "", ()),
        ("param_scheduler", "PARAM_SCHEDULERS", "", ("convert_to_iter_based",)),
        ("train_cfg", "LOOPS", loop, ("by_epoch",)),
        ("val_cfg", "LOOPS", "ValLoop", ()),
        ("test_cfg", "LOOPS", "TestLoop", ()),
        ("visualizer", "VISUALIZERS", "Visualizer", ()),
    ):
        yield from _dicts(where, get(config, where), registry, default, extra)
    classifier = "ClsDataPreprocessor" if get(config, "model.type") == "ImageClassifier" else ""
    for where in ("data_preprocessor", "model.data_preprocessor"):
        preprocessor = get(config, where)
        if classifier or "type" in (preprocessor or ()):
            yield from _dicts(where, preprocessor, "MODELS", classifier)
    for loader in LOADERS:
        for where, dataset in _datasets(f"{loader}.dataset", get(config, f"{loader}.dataset")):
            yield Built(where, dataset, "DATASETS")
            for index, transform in enumerate(as_list(dataset.get("pipeline"))):
                yield from _dicts(f"{where}.pipeline.{index}", transform, "TRANSFORMS")
        for sampler in ("sampler", "batch_sampler"):
            yield from _dicts(f"{loader}.{sampler}", get(config, f"{loader}.{sampler}"), "DATA_SAMPLERS")


def _dicts(where: str, value: Any, registry: str, default: str = "", extra: tuple[str, ...] = ()) -> Iterator[Built]:
    several = isinstance(value, (list, tuple))
    for index, item in enumerate(as_list(value)):
        if isinstance(item, dict):
            yield Built(f"{where}.{index}" if several else where, item, registry, default, extra)


def _datasets(where: str, dataset: Any) -> Iterator[tuple[str, dict]]:
    """Yield a dataset and those that it wraps."""
    if isinstance(dataset, dict):
        yield where, dataset
        yield from _datasets(f"{where}.dataset", dataset.get("dataset"))
        for index, inner in enumerate(as_list(dataset.get("datasets"))):
            yield from _datasets(f"{where}.datasets.{index}", inner)


def _plain_arguments(config: Any) -> Iterator[Finding]:
    """Find unknown keys in dicts that Runner reads itself."""
    from mmengine.runner import set_random_seed
    from torch.utils.data import DataLoader

    loader = {*inspect.signature(DataLoader.__init__).parameters, "num_batch_per_epoch"} - {"self"}
    known = dict.fromkeys(LOADERS, loader)
    known["randomness"] = {*inspect.signature(set_random_seed).parameters}
    known["env_cfg"] = {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}
    if "constructor" not in (config.get("optim_wrapper") or ()):
        known["optim_wrapper.paramwise_cfg"] = PARAMWISE
    for where, names in known.items():
        value = get(config, where)
        for key in value if isinstance(value, dict) else ():
            if key not in names:
                yield error(f"{where}.{key}", UNKNOWN, _replacement(key, names))


def accepted(builder: Any) -> set[str] | None:
    """Return the names of a class's arguments, including those passed to its bases; None if any name is accepted."""
    if isinstance(builder, functools.partial):  # MMPretrain registers torchvision's transforms as partials
        return accepted(builder.keywords["transform"]) if "transform" in builder.keywords else None
    if not inspect.isclass(builder):
        return None
    names: set[str] = set()
    for kind in builder.__mro__:
        if kind is object:
            break
        if "__init__" in vars(kind):
            init = vars(kind)["__init__"]
            parameters = inspect.signature(init).parameters.values()
            names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
            rest = [one.name for one in parameters if one.kind == one.VAR_KEYWORD]
            if not rest:
                break
            taken = _taken(init, rest[0])
            if taken is None:
                return None
            names |= taken
    return names


def _taken(init: Any, rest: str) -> set[str] | None:
    """Return the names that a constructor reads from ``**rest``; None unless it passes the others only to its base."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    taken: set[str] = set()
    passed_on: list[bool] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target = node.func
        if any(
            word.arg is None and isinstance(word.value, ast.Name) and word.value.id == rest for word in node.keywords
        ):
            passed_on.append(isinstance(target, ast.Attribute) and target.attr == "__init__")
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == rest:
            taken |= {
                item.value for item in node.args[:1] if isinstance(item, ast.Constant) and isinstance(item.value, str)
            }
    return taken if passed_on and all(passed_on) else None


@check()
def numbers(case: Case) -> Iterator[Finding]:
    """Find strings instead of numbers, fractions instead of integers, and numbers out of range."""
    for path, least in INTEGERS.items():
        value = get(case.config, path)
        if value is not None and (type(value) is not int or value < least):
            example = f"{path.split('.')[-1]}={max(least, 1)}"
            yield error(path, f"must be an integer of at least {least}, not {value!r}", f"for example {example}")
    for path, (smallest, largest) in NUMBERS.items():
        value = get(case.config, path)
        if value is not None and not (type(value) in (int, float) and smallest <= value <= largest):
            kind = "above 0" if smallest > 0 else f"from {smallest} to {largest}"
            hint = "write it without quotes" if isinstance(value, str) else "set a number in this range"
            yield error(path, f"must be a number {kind}, not {value!r}", hint)

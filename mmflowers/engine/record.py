"""The record of a run in its checkpoints: its recipe and its photos, which a resumed run must share."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmflowers.datasets.identity import PHOTOS, TRAINED_ON, PhotoSet, from_state, joined, read_photos
from mmflowers.datasets.seeded import SEEDING_VERSION
from mmflowers.datasets.served import samples_of
from mmflowers.datasets.views import measure_view, usual_size
from mmflowers.datasets.wrappers import innermost
from mmflowers.engine.schedule import follows_length, schedule_end, schedulers
from mmflowers.registry import HOOKS
from mmflowers.utils.errors import InputError
from mmflowers.weights.loading import load_checkpoint_file, meta_of
from mmflowers.weights.sources import fetch_weights, sources_in_model

NAMED, SHOWN = 3, 60  # differences that an error names, characters of a value
RECIPE, COMMAND, VIEW, SEEDING = "recipe", "command", "view", "seeding"  # in a checkpoint's meta
# Keys that don't change what is learned, only its speed, and keys that are compared elsewhere.
NOT_RECIPE = re.compile(
    r"model\.data_preprocessor\b|model\.head\.loss\.type$|.*\bnum_classes$|data_preprocessor\.type$|"
    r"optim_wrapper\.(type|where_fast|dtype|loss_scale|accumulative_counts|optimizer\.fused)$"
)
# Keys that a resumed run can't change, not even with --cfg-options. With another validation, the numbers before and
# after can't be compared. The settings of optimizer and schedulers are restored from the checkpoint: new ones would be
# recorded, but not used.
KEPT: tuple[str, ...] = ("val_dataloader.", "val_evaluator", "save_best", "param_scheduler", "auto_scale_lr")
KEPT += tuple(f"optim_wrapper.{key}" for key in ("optimizer.", "paramwise_cfg", "constructor"))
LENGTHS = ("max_epochs", "max_iters")  # of train_cfg; without "max_" and "s" a checkpoint's keys for the place


def recipe(config: Config) -> dict[str, str]:
    """Return what decides what is learned from a photo and how it is measured: JSON values by dotted keys.

    Loaders are not included: a resumed run may use another machine.
    """
    parts = {
        "model": config.model,
        "data_preprocessor": config.model.get("data_preprocessor") or config.get("data_preprocessor") or {},
        "optim_wrapper": config.optim_wrapper,
        "train_cfg": {
            key: config.train_cfg[key] for key in ("freeze_to", "views", *LENGTHS) if key in config.train_cfg
        },
        "train_dataloader.dataset.pipeline": (innermost(config.train_dataloader) or {}).get("pipeline", []),
        "val_dataloader.dataset.pipeline": (innermost(config.get("val_dataloader")) or {}).get("pipeline", []),
        "val_evaluator": config.get("val_evaluator") or [],
        "save_best": ((config.get("default_hooks") or {}).get("checkpoint") or {}).get("save_best"),
        "param_scheduler": schedulers(config),
        "auto_scale_lr": config.get("auto_scale_lr") or {},
    }
    if ((config.get("default_hooks") or {}).get("checkpoint") or {}).get("rule") == "less":  # "greater" isn't recorded
        parts["save_best.rule"] = "less"
    if config.train_cfg.get("type") == "LinearProbeLoop":
        parts["train_cfg"] = {"type": "LinearProbeLoop"}
    return {key: value for key, value in _flat("", parts) if not NOT_RECIPE.match(key)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, (dict, list, tuple)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, json.dumps(value, default=str)


def check_recipe(checkpoint: Path, meta: dict, config: Config, cfg_options: Sequence[str]) -> None:
    """Compare the recipe of a config with that of the checkpoint to resume.

    Args:
        checkpoint: Its path, for the message.
        meta: Its ``meta``.
        config: The config to run.
        cfg_options: ``KEY=VALUE``; these keys may differ, unless they can't change (``KEPT``).

    Raises:
        InputError: The recipes differ, for example by a ``--freeze-to`` that is missing now; the checkpoint has no
            recipe; ``max_epochs`` differs, and the schedule doesn't allow that.
    """
    kept = meta.get(RECIPE)
    new_run = f"--weights {checkpoint} with another --work-dir starts a new run from its weights"
    if not isinstance(kept, dict):
        what = f"{checkpoint} has no record of its recipe, so it can't be compared with this config"
        raise InputError(what, new_run)
    now = recipe(config)
    if not any(key.startswith("param_scheduler") for key in kept):  # of an earlier version, which didn't record these
        now = {key: value for key, value in now.items() if not key.startswith(("param_scheduler", "auto_scale_lr"))}
    meant = tuple(option.partition("=")[0] for option in cfg_options)
    keys = sorted({*kept, *now} - {f"train_cfg.{name}" for name in LENGTHS}, key=str)
    changed = [
        key
        for key in sorted(keys, key=lambda key: key.startswith("param_scheduler"))  # many, and less telling
        if kept.get(key) != now.get(key)
        and (key.startswith(KEPT) or not any(f"{key}.".startswith(f"{name}.") for name in meant))
    ]
    if changed:
        told = [
            f"{key} was {str(kept.get(key, 'not set'))[:SHOWN]}, now {now.get(key, 'not set')[:SHOWN]}"
            for key in changed[:NAMED]
        ]
        told += [f"and {len(changed) - NAMED} more"] if len(changed) > NAMED else []
        command = str(meta.get(COMMAND) or "")
        started = f"give the options that it was started with: {command}" if command else "resume with its own config"
        on_purpose = "" if all(key.startswith(KEPT) for key in changed) else "--cfg-options changes on purpose, "
        raise InputError(f"{checkpoint} is of another recipe: {'; '.join(told)}", f"{started}; {on_purpose}{new_run}")
    for name in LENGTHS:
        length, before = config.train_cfg.get(name), json.loads(kept.get(f"train_cfg.{name}", "null"))
        if not isinstance(length, int):
            continue
        unit = name[len("max_") : -1]
        # Within an epoch, that one has to be finished.
        begun = meta.get(unit, 0) + (1 if unit == "epoch" and meta.get("epoch_iter") else 0)
        if length < begun:
            what = f"train_cfg.{name} is {length}, and {checkpoint} has come to {unit} {begun} already"
            raise InputError(what, f"--cfg-options train_cfg.{name}={begun} ends there; {new_run}")
        if before is None or length == before:
            continue
        change = f"{checkpoint} can't go on by this schedule: train_cfg.{name} was {before}, now {length}, and"
        batches = (meta.get("batches") or [None])[-1]
        end = schedule_end(config, batches, by_epoch=unit == "epoch")
        if stretched := follows_length(config):
            what = f"{change} {stretched[0]} names no end: with another length its rates would have been others"
            raise InputError(what, f"{new_run} and a schedule of its own")
        if before < length and end < length:
            raise InputError(f"{change} param_scheduler ends at {unit} {end:g}", f"{new_run} and a schedule of its own")


def changed_photos(meta: dict, now: dict[str, PhotoSet]) -> list[str]:
    """Return the changes of a run's photos since its checkpoint was written, a sentence for each split with changes.

    Names don't count. Contents and labels do, and the order of the training photos, which decides what an epoch draws.

    Args:
        meta: The checkpoint's.
        now: The current photos of the train and val split.
    """
    kept = meta.get(PHOTOS)
    before = {split: from_state(kept.get(split)) if isinstance(kept, dict) else None for split in now}
    return [
        f"{split} had {len(known)} photos and has {len(photos)}: {', '.join(parts)}"
        for split, photos in now.items()
        if (known := before[split]) is not None and (parts := _changes(split, known, photos, before))
    ]


def _changes(split: str, known: PhotoSet, photos: PhotoSet, before: dict[str, PhotoSet | None]) -> list[str]:
    if split != "train":
        known, photos = _sorted(known), _sorted(photos)
    if np.array_equal(known.content, photos.content) and _same_labels(known, photos):
        return []
    gone, added = np.setdiff1d(known.content, photos.content), np.setdiff1d(photos.content, known.content)
    others = [found.content for other, found in before.items() if other != split and found is not None]
    moved = np.isin(added, np.concatenate(others)) if others else np.zeros(len(added), dtype=bool)
    counts = {
        "gone": len(gone),
        "new": int((~moved).sum()),
        "moved here from another split": int(moved.sum()),
        "counted more than once": len(photos) - len(np.unique(photos.content)),
    }
    parts = [f"{number} {what}" for what, number in counts.items() if number]
    return parts or ["in another order" if _same_labels(_sorted(known), _sorted(photos)) else "with other labels"]


def _same_labels(one: PhotoSet, other: PhotoSet) -> bool:
    return np.array_equal(one.labels, other.labels)


def _sorted(photos: PhotoSet) -> PhotoSet:
    order = np.argsort(photos.content, kind="stable")
    return PhotoSet(*(values[order] for values in vars(photos).values()))


@HOOKS.register_module()
class RecordHook(Hook):
    """Store the photos and the recipe of a run in its checkpoints, and the checks' warnings in its log file.

    From the photos, a later run recognises a checkpoint that was trained on its validation photos, whatever their names
    (``datasets.identity``). A resumed run must have the same photos and the same recipe (``check_recipe``).
    ``FlowersRunner`` adds this hook if a config doesn't have it.

    Args:
        command: The command line that started the run; the config in the work dir shows it.
    """

    def __init__(self, command: str = "") -> None:
        self.command = command

    def before_train(self, runner: Runner) -> None:
        """Identify the photos, and log the checks' warnings, which stderr has shown already.

        Raises:
            InputError: The run is resumed, and its photos differ from those of its checkpoint.
        """
        loaders = {"train": runner.train_dataloader, "val": runner.val_loop.dataloader if runner.val_loop else None}
        photos = {split: read_photos(samples_of(loader.dataset)) for split, loader in loaders.items() if loader}
        resumed = runner.resumed_meta
        if changes := changed_photos(resumed, photos):
            what = f"the resumed checkpoint is of a run on other photos: {'; '.join(changes)}"
            raise InputError(what, "resume with the dataset folder it was started with")
        seeding = resumed.get(SEEDING, 1) if resumed else SEEDING_VERSION  # the first version didn't record it
        if seeding != SEEDING_VERSION:
            runner.logger.warning(
                f"the run was started with seeding version {seeding}, this is {SEEDING_VERSION}: the random numbers "
                "differ from here on, so its weights will not be those of an uninterrupted run"
            )
        earlier = [resumed, *(_meta(source) for source in sources_in_model(runner.cfg.model)), runner.loaded_meta]
        trained_on = joined([photos["train"], *(from_state(meta.get(TRAINED_ON)) for meta in earlier)])
        assert trained_on is not None  # the photos of train are in it
        self._meta = {
            PHOTOS: {split: found.state() for split, found in photos.items()},
            TRAINED_ON: trained_on.state(),
            RECIPE: recipe(runner.cfg),
            COMMAND: self.command,
            VIEW: self._view(runner),
            SEEDING: seeding,
        }
        runner.logger.info(f"training on {len(photos['train']):,} photos, log in {runner.logger.log_file}")
        kept = Path(runner.work_dir, "checks.json")
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler) and kept.is_file():
                for item in json.loads(kept.read_text(encoding="utf-8")):
                    text = f"{item['where']}: {item['what']} · hint: {item['hint']}"
                    handler.handle(runner.logger.makeRecord(runner.logger.name, logging.WARNING, "", 0, text, (), None))

    def _view(self, runner: Runner) -> dict | None:
        """Measure the view of the validation pipeline, with which a later test is compared."""
        steps = (innermost(runner.cfg.get("val_dataloader")) or {}).get("pipeline")
        paths = [path for path, _ in samples_of(runner.train_dataloader.dataset)]
        if not steps:
            return None
        try:
            scope = runner.cfg.get("default_scope") or "mmflowers"
            return measure_view(steps, usual_size(paths), scope).to_dict()
        except InputError:  # the checks have warned of it
            return None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the record to ``meta``."""
        checkpoint["meta"] |= self._meta


def _meta(source: str) -> dict:
    """Return the ``meta`` of weights that a model's config names; {} if they have none."""
    try:
        return meta_of(load_checkpoint_file(fetch_weights(source)))
    except InputError:  # an error of building the model, where it matters
        return {}

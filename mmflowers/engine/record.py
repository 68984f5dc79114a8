"""What a run keeps about itself: its recipe and photos, in its checkpoints, and what the checks warned of."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mmflowers.datasets.fingerprints import TRAINED_ON, fingerprints
from mmflowers.datasets.wrappers import innermost
from mmflowers.errors import InputError

NAMED, SHOWN = 3, 60  # differences that an error names, characters of a value
RECIPE, COMMAND = "recipe", "command"  # in a checkpoint's meta
# Of what a recipe is made of: what makes it quicker and not another one, and what checkpoints are held to elsewhere.
NOT_RECIPE = re.compile(
    r"model\.data_preprocessor\b|model\.head\.loss\.type$|.*\bnum_classes$|data_preprocessor\.type$|"
    r"optim_wrapper\.(type|where_fast|dtype|loss_scale|accumulative_counts|optimizer\.fused)$"
)


def recipe(config: Config) -> dict[str, str]:
    """What decides what is learned from a photo, by the config's dotted keys, as JSON: network, optimizer, pipeline.

    Epochs, schedule and loaders aren't in it: a resumed run may go on longer, or elsewhere.
    """
    parts = {
        "model": config.model,
        "data_preprocessor": config.get("data_preprocessor") or {},
        "optim_wrapper": config.optim_wrapper,
        "train_cfg": {key: config.train_cfg[key] for key in ("freeze_to", "views") if key in config.train_cfg},
        "train_dataloader.dataset.pipeline": (innermost(config.train_dataloader) or {}).get("pipeline", []),
    }
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
    """Hold the recipe that is to be resumed against that of the checkpoint, where it has one.

    Args:
        checkpoint: Its path, for the message.
        meta: The checkpoint's.
        config: The one that would run.
        cfg_options: ``KEY=VALUE``; what they change is changed on purpose.

    Raises:
        InputError: They differ, as when the first command had a ``--freeze-to`` that this one lacks.
    """
    kept = meta.get(RECIPE)
    if not isinstance(kept, dict):
        return
    now = recipe(config)
    meant = tuple(option.partition("=")[0] for option in cfg_options)
    changed = [
        f"{key} was {str(kept.get(key, 'not set'))[:SHOWN]}, now {now.get(key, 'not set')[:SHOWN]}"
        for key in sorted({*kept, *now}, key=str)
        if kept.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in meant)
    ]
    if changed:
        told = "; ".join(changed[:NAMED]) + (f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else "")
        command = str(meta.get(COMMAND) or "")
        started = f"give the options that it was started with: {command}" if command else "resume with its own config"
        raise InputError(
            f"{checkpoint} is of another recipe: {told}",
            f"{started}; --cfg-options changes on purpose, --weights starts a new run from it",
        )


@HOOKS.register_module()
class RecordHook(Hook):
    """Write which photos a run trains on, and how, into its checkpoints, and the checks' warnings into its log.

    With the photos in the checkpoint, a later run on another split of them is recognised (``seen_photos``); with the
    recipe, a resumption by another one (``check_recipe``).

    Args:
        command: What was typed to start the run; the config that the run leaves has it from here.
    """

    def __init__(self, command: str = "") -> None:
        self.command = command

    def before_train(self, runner: Runner) -> None:
        """Take the photos' fingerprints; put the warnings into the log's file alone, as stderr had them."""
        dataset = runner.train_dataloader.dataset
        while hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        self._photos = fingerprints(dataset.get_data_info(index)["img_path"] for index in range(len(dataset)))
        kept = Path(runner.work_dir, "checks.json")
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler) and kept.is_file():
                for item in json.loads(kept.read_text(encoding="utf-8")):
                    text = f"{item['where']}: {item['what']} · hint: {item['hint']}"
                    handler.handle(runner.logger.makeRecord(runner.logger.name, logging.WARNING, "", 0, text, (), None))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add to ``meta``."""
        checkpoint["meta"] |= {TRAINED_ON: self._photos, RECIPE: recipe(runner.cfg), COMMAND: self.command}

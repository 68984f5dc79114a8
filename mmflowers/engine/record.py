"""What a run keeps about itself: the photos it trained on, in its checkpoints, and what the checks warned of."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mmflowers.datasets.fingerprints import TRAINED_ON, fingerprints


@HOOKS.register_module()
class RecordHook(Hook):
    """Write which photos a run trains on into its checkpoints, and the checks' warnings into its log.

    With the photos in the checkpoint, a later run on another split of them is recognised (``seen_photos``).

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
        """Add the fingerprints to ``meta``."""
        checkpoint["meta"][TRAINED_ON] = self._photos

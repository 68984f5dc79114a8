"""Checkpoints are written beside the training, of the moment they were asked for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import NARROW
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.weights.saving import CheckpointWriter

PATIENCE = 60  # seconds, after which something that should have come hasn't


class SlowDisk:
    """An ``os.fsync`` that returns when ``goes_on`` is set, and counts whom that left waiting."""

    def __init__(self) -> None:
        self.goes_on, self.kept_waiting = threading.Event(), 0

    def __call__(self, fd: int) -> None:
        self.kept_waiting += not self.goes_on.wait(PATIENCE)


@HOOKS.register_module()
class SecondEpochHook(Hook):
    """Lets the slow disk go on when the second epoch has begun."""

    disk: SlowDisk

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.epoch == 1:
            self.disk.goes_on.set()


def test_a_training_does_not_wait_for_the_checkpoints_of_an_epoch(
    dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["experiment_name=slow_disk", *NARROW, "train_cfg.max_epochs=2"]
    config = configure(TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path, cfg_options=options))
    config.custom_hooks = [*config.custom_hooks, dict(type="SecondEpochHook")]
    SecondEpochHook.disk = disk = SlowDisk()
    monkeypatch.setattr(os, "fsync", disk)
    train(config)
    assert disk.goes_on.is_set() and disk.kept_waiting == 0
    assert torch.load(tmp_path / "last.pth", weights_only=True)["meta"]["epoch"] == 2
    assert (tmp_path / "best.pth").is_file() and not list(tmp_path.glob(".*partial"))


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk()
    monkeypatch.setattr(os, "fsync", disk)
    weight = torch.zeros(3)
    with CheckpointWriter() as writer:
        writer.submit({"weight": weight}, tmp_path / "first.pth")  # the disk is busy with it …
        writer.submit({"weight": weight}, tmp_path / "second.pth")  # … while this one waits
        weight += 1
        disk.goes_on.set()
    for name in ("first.pth", "second.pth"):
        assert torch.equal(torch.load(tmp_path / name)["weight"], torch.zeros(3))


def test_what_the_disk_refused_is_raised_later_but_never_in_place_of_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter() as writer:
        writer.submit({}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="of the training"), CheckpointWriter() as writer:
        writer.submit({}, tmp_path / "a.pth")
        raise ValueError("of the training")
    assert not list(tmp_path.iterdir())

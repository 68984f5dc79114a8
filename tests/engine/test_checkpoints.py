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
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from soak import differences

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


@pytest.mark.slow
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


@HOOKS.register_module()
class SaveBothWaysHook(Hook):
    """Saves after an iteration what MMEngine saves and what we save."""

    priority = "LOWEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == 6:
            meta = {"epoch": 1, "iter": 7}
            Runner.save_checkpoint(runner, runner.work_dir, "theirs.pth", meta=dict(meta))
            runner.save_checkpoint(runner.work_dir, "ours.pth", meta=dict(meta))


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_checkpoint_has_the_keys_and_values_that_mmengine_saves(
    scheduled: bool, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    options = [f"experiment_name=both_ways_{scheduled}", *NARROW, "optim_wrapper.accumulative_counts=2"]
    options += [] if scheduled else ["param_scheduler=None"]
    config = configure(TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path, cfg_options=options))
    ema = dict(type="EMAHook", momentum=0.1)
    config.custom_hooks = [*config.custom_hooks, ema, dict(type="SaveBothWaysHook")]
    train(config)
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=False)  # its message hub has HistoryBuffer objects
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert ours.keys() == theirs.keys() | {"gradients"}  # within an accumulation
    assert ours["meta"].pop("time") >= theirs["meta"].pop("time")
    assert ours["meta"].keys() == theirs["meta"].keys()
    for key in theirs.keys() - {"message_hub"}:
        assert not differences(ours[key], theirs[key], key)
    hub, plain = theirs["message_hub"], ours["message_hub"]
    assert hub.keys() == plain.keys() and hub["log_scalars"].keys() == plain["log_scalars"].keys()
    for name, buffer in hub["log_scalars"].items():
        assert plain["log_scalars"][name]["log"].tolist() == list(buffer.data[0])
        assert plain["log_scalars"][name]["count"].tolist() == list(buffer.data[1])
    for name, value in hub["runtime_info"].items():
        assert name not in plain["runtime_info"] or plain["runtime_info"][name] == value


@pytest.mark.slow
def test_a_resume_reads_the_checkpoint_once_for_the_config_and_once_for_the_model(
    dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configured(epochs: int, **more):
        options = [f"experiment_name=reads_{epochs}", *NARROW, f"train_cfg.max_epochs={epochs}"]
        return configure(TrainOptions(tiny_config, data=dataset, work_dir=tmp_path, cfg_options=options, **more))

    train(configured(1, weights="none"))
    reads: list[str] = []
    load = torch.load

    def counted(path, *arguments, **options):
        reads.append(Path(path).name)
        return load(path, *arguments, **options)

    monkeypatch.setattr(torch, "load", counted)
    config = configured(2, resume=True)
    assert reads == ["last.pth"]
    train(config)
    assert reads == ["last.pth", "last.pth"]

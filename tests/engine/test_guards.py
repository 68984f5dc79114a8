"""Failures during training: each ends in one line, and no existing checkpoint is touched."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import NARROW
from mmengine.hooks import Hook
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import HOOKS, MODELS, TRANSFORMS

from mmflowers.engine.finite_loss import BATCH_LIST
from mmflowers.engine.memory import OutOfMemory
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.utils.errors import InputError

names = itertools.count()
Run = Callable[..., object]


@pytest.fixture
def run(dataset: Path, tiny_config: Path, tmp_path: Path) -> Run:
    """Train in ``tmp_path / "run"``; ``change`` edits the config, ``oom`` is the option."""

    def train_it(
        *options: str, change: Callable = lambda config: None, oom: str = "stop", data: Path = dataset, **arguments
    ):
        config = configure(
            TrainOptions(
                tiny_config,
                data=data,
                weights=None if arguments.get("resume") else "none",
                work_dir=tmp_path / "run",
                cfg_options=[f"experiment_name=guard{next(names)}", *NARROW, *options],
                **arguments,
            )
        )
        change(config)
        return train(config, oom=oom)

    return train_it


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.pth")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*partial"))


def test_a_loss_that_is_not_finite_stops_at_once_and_names_iteration_rate_and_files(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run("optim_wrapper.optimizer.lr=1e30", "param_scheduler=None")
    message = str(caught.value)
    assert "in epoch 1, iteration 2, at a learning rate of 1e+30, with " in message
    listed = (tmp_path / "run" / BATCH_LIST).read_text().splitlines()
    assert len(listed) == 8 and all(Path(path).is_file() for path in listed)
    assert not files(tmp_path / "run")  # nothing was good yet


@HOOKS.register_module()
class SpoilHook(Hook):
    """Puts NaN into the weights after an iteration, as an overflow in the optimizer would."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iteration:
            next(runner.model.parameters()).data.fill_(float("nan"))


@pytest.mark.slow
def test_weights_that_are_not_finite_are_neither_saved_nor_validated(run: Run, tmp_path: Path) -> None:
    kept: dict[str, bytes] = {}

    def spoil_second_epoch(config) -> None:
        config.custom_hooks.append(dict(type="SpoilHook", iteration=9))  # the last of epoch 2: no loss comes after it

    run("train_cfg.max_epochs=1")
    kept = files(tmp_path / "run")
    with pytest.raises(InputError, match=r"the weights are no longer finite after iteration 10 \(\d+ tensors"):
        run(change=spoil_second_epoch, resume=True)
    assert files(tmp_path / "run") == kept and kept.keys() == {"best.pth", "last.pth"}


@MODELS.register_module()
class NarrowClassifier(ImageClassifier):
    """Has memory for so many photos a step, in training and in testing."""

    room: ClassVar = {"train": 3, "test": 99}

    def train_step(self, data, optim_wrapper):
        if len(data["inputs"]) > self.room["train"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().train_step(data, optim_wrapper)

    def val_step(self, data):
        if len(data["inputs"]) > self.room["test"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().val_step(data)


def test_out_of_memory_says_what_fits(run: Run) -> None:
    with pytest.raises(OutOfMemory) as caught:
        run("model.type=NarrowClassifier")
    assert "out of memory with batches of 8; 2 fit" in str(caught.value)
    assert "train_dataloader.batch_size=2 optim_wrapper.accumulative_counts=4" in str(caught.value)


@pytest.mark.slow
def test_out_of_memory_retries_with_the_same_effective_batch(run: Run, tmp_path: Path) -> None:
    outcome = run("model.type=NarrowClassifier", oom="retry")
    last = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert last["meta"]["batches"] == [2, 1, 20] and last["meta"]["iter"] == 40
    assert outcome.best_score is not None
    (steps,) = {int(state["step"]) for state in last["optimizer"]["state"].values() if "step" in state} or {10}
    assert steps == 10  # as many updates as with batches of 8


@pytest.mark.slow
def test_a_validation_out_of_memory_goes_on_with_half_from_the_trained_epoch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NarrowClassifier, "room", {"train": 99, "test": 4})
    with pytest.raises(OutOfMemory, match="out of memory with batches of 8; 4 fit") as caught:
        run("model.type=NarrowClassifier")
    assert "val_dataloader.batch_size=4" in str(caught.value)
    shutil.rmtree(tmp_path / "run")
    run("model.type=NarrowClassifier", oom="retry")
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["iter"] == 10


@TRANSFORMS.register_module()
class DeadlyTransform:
    """Kills the process that loads a certain photo, as a decoder's bug or the system's memory killer does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, results: dict) -> dict:
        if results["img_path"].endswith(self.name):
            os.kill(os.getpid(), signal.SIGKILL)
        return results


@pytest.mark.slow
def test_a_dead_loader_worker_is_named_with_its_photo(run: Run, dataset: Path) -> None:
    photo = (dataset / "train.txt").read_text().splitlines()[17].rpartition(" ")[0]

    def poison(config) -> None:
        step = dict(type="DeadlyTransform", name=photo)
        config.train_dataloader.dataset.pipeline = [step, *config.train_dataloader.dataset.pipeline]

    with pytest.raises(InputError, match=f"a loader worker died while it read {photo}: DataLoader worker"):
        run("train_dataloader.num_workers=2", change=poison)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_loaded_is_named(run: Run, dataset: Path, tmp_path: Path, workers: int) -> None:
    copied = tmp_path / "data"
    shutil.copytree(dataset, copied)
    photo = (copied / "train.txt").read_text().splitlines()[0].rpartition(" ")[0]
    (copied / photo).write_bytes(b"no photo")
    with pytest.raises(InputError) as caught:
        run(f"train_dataloader.num_workers={workers}", data=copied)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{photo} can't be loaded: ") and "\n" not in str(problem)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
def test_a_full_disk_loses_nothing_that_was_there(run: Run, tmp_path: Path) -> None:
    import resource

    run("train_cfg.max_epochs=1")
    kept = files(tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # a checkpoint is larger, a log is not
    try:
        with pytest.raises(InputError, match=r"can't write .*the checkpoints in .* are complete"):
            run(resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(tmp_path / "run") == kept
    assert not leftovers(tmp_path / "run")
    run(resume=True)


@pytest.mark.slow
def test_a_disk_that_fails_to_flush_loses_nothing_that_was_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("train_cfg.max_epochs=1")
    kept = files(tmp_path / "run")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match="Input/output error"):
            run(resume=True)
    assert files(tmp_path / "run") == kept
    assert not leftovers(tmp_path / "run")


def test_a_disk_without_room_is_refused_before_the_first_iteration(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match=r"has 1 MB free; the checkpoints and logs need \d+ MB"):
        run()
    assert not files(tmp_path / "run")

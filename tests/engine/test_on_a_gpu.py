"""Every mode of training, testing, predicting and exporting, on a GPU that is simulated (``simulated_gpu.py``)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import NARROW
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmpretrain.registry import HOOKS
from replay import Replay
from simulated_gpu import GPUTensor, simulated_gpu, waited

from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.export.export import export
from mmflowers.inference.classifier import FlowerClassifier
from mmflowers.inference.grad_cam import overlays
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.speed.hooks import CUDAGraphHook

names = itertools.count()
ONE = dict(batch_size=1, workers=0)
# Two stages of a narrow ResNet, and batches of 12, 12, 12 and 4.
SMALL = (*NARROW[:2], "model.backbone.num_stages=2", "model.backbone.strides=(1,2)", "model.backbone.dilations=(1,1)")
SMALL += ("model.backbone.out_indices=(1,)", "model.head.in_channels=32", "train_dataloader.batch_size=12")


@HOOKS.register_module()
class WaitsHook(Hook):
    """Notes what the host had waited for when an iteration was done, and where the model and its averages are."""

    priority = "LOWEST"
    seen: ClassVar[list[list[list[str]]]] = []  # of each epoch, of each iteration

    def before_train_epoch(self, runner: FlowersRunner) -> None:
        self.seen.append([])
        waited.clear()

    def after_train_iter(self, runner: FlowersRunner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.seen[-1].append(list(waited))
        waited.clear()

    def after_train(self, runner: FlowersRunner) -> None:
        state = [*runner.model.parameters(), *runner.model.buffers()]
        state += [value for values in runner.optim_wrapper.state_dict()["state"].values() for value in values.values()]
        assert all(isinstance(value, GPUTensor) for value in state if torch.is_tensor(value) and value.ndim)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):  # of one layout, which foreach kernels ask for
                strides = [[p.stride() for p in model.parameters()] for model in (hook.ema_model, runner.model)]
                assert strides[0] == strides[1]


def add_ema(config: Config) -> None:
    # First, as where a config has it and --fast adds its hooks.
    config.custom_hooks.insert(0, dict(type="EMAHook", ema_type="ForeachEMA", momentum=0.1))


def mix(config: Config) -> None:
    config.model.train_cfg = dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)])


def accumulate(config: Config) -> None:
    config.optim_wrapper.accumulative_counts = 2


def leave_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1, 1))


MODES = {
    "plain": dict(),
    "amp": dict(amp=True),
    "fast": dict(fast=True),
    "fast EMA": dict(fast=True, change=add_ema),
    "fast, without room for the photos": dict(fast=True, crowded=True),
    "freeze-to layer1": dict(freeze_to="layer1", views=2),
    "freeze-to layer1, without room for the features": dict(freeze_to="layer1", views=1, crowded=True),
    "freeze-to backbone": dict(freeze_to="backbone", views=1),
    "probe": dict(probe=True),
    "accumulation": dict(change=accumulate),
    "mixup": dict(change=mix),
}


@pytest.fixture
def train_on_a_gpu(dataset: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    def run(change: Callable[[Config], None] | None = None, crowded: bool = False, **flags) -> Path:
        options = [f"experiment_name=gpu{next(names)}", *SMALL]
        monkeypatch.setattr(CUDAGraphHook, "make", staticmethod(Replay()))
        monkeypatch.setattr(WaitsHook, "seen", [])
        with simulated_gpu(monkeypatch):
            if crowded:
                leave_no_room(monkeypatch)
            flags = dict(weights="none", work_dir=tmp_path / "run", cfg_options=options) | flags
            config = configure(TrainOptions(tiny_config, data=dataset, **flags))
            config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != "CurvesHook"]
            config.custom_hooks.append(dict(type="WaitsHook"))
            if change:
                change(config)
            train(config)
        return tmp_path / "run"

    return run


QUICK = ("plain", "fast", "probe")


@pytest.mark.parametrize(
    "mode", [mode if mode in QUICK else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
)
def test_a_training_runs_and_leaves_nothing_on_the_gpu(mode: str, train_on_a_gpu: Callable) -> None:
    work_dir = train_on_a_gpu(**MODES[mode])
    for name in ("best.pth", "last.pth"):  # whose tensors were written from the host's memory
        assert torch.load(work_dir / name, weights_only=True)["state_dict"]
    if mode in ("fast", "fast EMA"):
        assert WaitsHook.seen[1][1:-1] == [[], []]  # in the first epoch a CUDA graph was captured and compared


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"tta": True}, {"amp": True}], ids=["plain", "tta", "amp"])
def test_a_test_finds_what_it_finds_on_the_cpu(
    options: dict, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_test(checkpoint=trained / "best.pth", work_dir=tmp_path / "cpu", **options).predictions
    with simulated_gpu(monkeypatch):
        found = run_test(checkpoint=trained / "best.pth", work_dir=tmp_path / "gpu", **options).predictions
    assert found.images == expected.images
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.02 if options.get("amp") else 1e-4)


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"amp": True}], ids=["plain", "tta", "amp"])
def test_predictions_are_those_of_the_cpu(
    options: dict, trained: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted((dataset / "val").glob("*/*.jpg"))[:4]
    expected = FlowerClassifier.from_run(trained, device="cpu", **options).predict(photos)
    with simulated_gpu(monkeypatch):
        classifier = FlowerClassifier.from_run(trained, **options)
        assert {type(parameter) for parameter in classifier.model.parameters()} == {GPUTensor}
        found = classifier.predict(photos)
        (batch,) = read_batches([Input(photos[0].name, str(photos[0]))], PhotoDataset(classifier.pipeline), **ONE)
        assert classifier.features(batch.pixels).shape == (1, 128)
        assert len(overlays(classifier.model, batch.pixels[0], [0, 1])) == 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=0.02 if options.get("amp") else 1e-4)


def test_an_export_stays_on_the_cpu_where_there_is_a_gpu(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_gpu(monkeypatch):
        exported = export(trained, tmp_path / "out", chosen=("torchscript", "slim"), workers=0)
        assert not waited
    assert [check.same for check in exported.checks] == [exported.photos] * 2


def test_photos_that_may_be_on_the_gpu_are_not_pinned(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    options = ["train_dataloader.pin_memory=True"]
    for fast in (False, True):
        config = configure(
            TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path, fast=fast, cfg_options=options)
        )
        assert FlowersRunner.build_dataloader(config.train_dataloader).pin_memory is not fast


def test_the_simulation_finds_what_a_gpu_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu(monkeypatch):
        on_gpu = torch.ones(3, device="cuda")
        assert on_gpu.device.type == "cuda" and on_gpu.cpu().device.type == "cpu"
        for mixed in (lambda: on_gpu + torch.ones(3), lambda: torch.ones(3)[on_gpu.long()]):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            on_gpu.numpy()
        waited.clear()
        on_gpu.mul_(2).add_(torch.tensor(1.0))
        on_gpu[torch.arange(3).pin_memory().to("cuda", non_blocking=True)] = 3.0
        assert not waited
        assert float(on_gpu.sum()) == 9.0
        assert len(waited) == 1

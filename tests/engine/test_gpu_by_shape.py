"""A GPU's training step by shapes alone, so that a machine without one can see what would go wrong on one.

PyTorch's FakeTensorMode knows each tensor's shape and device and has no values: an operation on tensors of two devices
is an error in it, and so is whatever would have to read a result, for which a GPU would be waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.registry import DefaultScope
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import mmflowers.engine  # noqa: F401  registers
from mmflowers.datasets.flowers import FlowersDataset
from mmflowers.engine import configuration, options
from mmflowers.registry import DATASETS, MODELS
from mmflowers.speed.hooks import LazyRuntimeInfoHook
from mmflowers.speed.loops import _Evaluation

BATCH = 8
CONFIGS = ("resnet50_flowers", "resnet18_flowers", "efficientnet_lite0_flowers")


@contextmanager
def on_a_gpu_without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # asks CUDA
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield device


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmflowers"):  # as the Runner sets it
        yield


def fast_parts(name: str, root: Path) -> tuple[torch.nn.Module, FlowersDataset, FlowersDataset]:
    """Classifier, photos to train on and photos to validate on, of a config's fast form."""
    config = configuration.load_config(ROOT / "configs" / f"{name}.py")
    options.make_fast(config)
    configuration.set_data_root(config, root)
    preprocessor = config.model.get("data_preprocessor") or config.data_preprocessor
    model = MODELS.build({**config.model, "data_preprocessor": preprocessor})
    train, val, _ = map(DATASETS.build, configuration.datasets(config))
    return model.train(), train, val


def move(model: torch.nn.Module, device: torch.device) -> None:
    """As Module.to, which exchanges what a tensor without values doesn't let itself be exchanged for."""
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(tensor, device=device)))
        for name, tensor in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(tensor, device=device))
    model.data_preprocessor._device = device


def batch_of(dataset: FlowersDataset, device: torch.device) -> dict:
    """A batch of a dataset whose photos lie on the device."""
    if dataset._photos.device != device:
        dataset._photos = torch.empty_like(dataset._photos, device=device)
    return dataset.batch([(0, 0, index) for index in range(BATCH)], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_and_an_evaluation_wait_for_nothing(name: str, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, val = fast_parts(name, dataset)
    train._load(), val._load()
    with on_a_gpu_without_values(monkeypatch) as device:
        move(model, device)
        batch = batch_of(train, device)
        data = model.data_preprocessor(batch, True)
        size = train.augmentation.size
        assert data["inputs"].shape == (BATCH, 3, size, size) and data["inputs"].device == device
        loss, outputs = model.parse_losses(model(**data, mode="loss"))
        assert loss.device == device
        hook, runner = LazyRuntimeInfoHook(interval=50), SimpleNamespace(train_dataloader=[None] * 9)
        hook.after_train_iter(runner, 0, outputs=outputs)

        evaluation = _Evaluation(SimpleNamespace(model=model.eval()), nullcontext)
        evaluation._foldable = []  # found once in a run, by comparing
        evaluation.take(batch_of(val, device))
        evaluation.take(batch_of(val, device))
        judged: list = []
        evaluation.finish(SimpleNamespace(process=lambda data_samples, data_batch: judged.extend(data_samples)))
        assert len(judged) == 2 * BATCH
        assert not evaluation._features and not evaluation._samples and evaluation._network is None
        assert {sample.get(key).device.type for sample in judged for key in ("pred_score", "gt_label")} == {"cpu"}


def test_it_would_see_a_result_that_is_read_and_a_tensor_that_stayed_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_gpu_without_values(monkeypatch) as device:
        with pytest.raises(DataDependentOutputException):
            torch.ones(3, device=device).sum().item()
        with pytest.raises(RuntimeError, match=r"found at least two devices|two different devices"):
            torch.ones(3, device=device) + torch.ones(3, device="cpu")
        # What MMPretrain's own loss does, and the reason for FlowersLabelSmoothLoss.
        loss = MODELS.build(dict(type="LabelSmoothLoss", label_smooth_val=0.1, num_classes=5, mode="original"))
        with pytest.raises(DataDependentOutputException):
            loss(torch.zeros(3, 5, device=device), torch.zeros(3, dtype=torch.long, device=device))

"""Frozen layers: their features are computed once, and the rest trains as if it were the whole network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import NARROW, run_tool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import LinearClsHead, ResNet
from sklearn.linear_model import LogisticRegression

import mmflowers.engine  # noqa: F401  registers
from mmflowers.engine.memory import OutOfMemory
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.evaluation.predictions import read_predictions
from mmflowers.frozen.parts import FrozenBackbone, FrozenNetwork, FrozenStem
from mmflowers.frozen.probe import fit_linear
from mmflowers.models.classifier import classifier_layers
from mmflowers.registry import MODELS
from mmflowers.speed.precision import has_fast_bfloat16
from mmflowers.utils.errors import InputError

names = itertools.count()
RESNET = dict(
    backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=5, in_channels=64),
)
LITE = dict(
    backbone=dict(type="TIMMBackbone", model_name="tf_efficientnet_lite0", features_only=False),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=5, in_channels=1280),
)


def build(model: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type="ImageClassifier", **model)).eval()


@pytest.mark.parametrize(
    ("model", "layer"),
    [(RESNET, "layer1"), (RESNET, "layer3"), (RESNET, "backbone"), (LITE, "blocks.4"), (LITE, "backbone")],
)
@torch.no_grad()
def test_frozen_part_and_rest_are_the_network(model: dict, layer: str) -> None:
    network = build(model)
    before = list(network.state_dict())
    inputs = torch.randn(2, 3, 64, 64)
    expected = network(inputs, mode="tensor")
    frozen_part = FrozenBackbone(network) if layer == "backbone" else FrozenStem(network, layer)
    frozen_part.verify(inputs)
    features = frozen_part(inputs)
    with frozen_part.bypassed():
        torch.testing.assert_close(network(features, mode="tensor"), expected)
        assert list(network.state_dict()) == before
    torch.testing.assert_close(network(inputs, mode="tensor"), expected)


def test_a_layer_that_isnt_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no layer layer9 .*layer3, layer4, or backbone for all"):
        FrozenStem(build(RESNET), "layer9")
    with pytest.raises(InputError, match=r"blocks\.0, blocks\.1, .*blocks\.6, or backbone"):
        FrozenStem(build(LITE), "blocks.7")


@torch.no_grad()
def test_a_classifier_in_the_backbone_is_found_there() -> None:
    lenet = dict(type="LeNet5", num_classes=3)  # as VGG and Inception, and small
    network = build(dict(backbone=lenet, head=dict(type="ClsHead")))
    inputs = torch.randn(4, 1, 32, 32)
    assert list(classifier_layers(network)) == ["backbone.classifier.2"]
    frozen_part = FrozenNetwork(network)
    frozen_part.verify(inputs)
    expected, features = network(inputs, mode="tensor"), frozen_part(inputs)
    assert features.shape == (4, 84)
    with frozen_part.bypassed():
        torch.testing.assert_close(network(features, mode="tensor"), expected)
    with pytest.raises(InputError, match=r"backbone\.classifier\.2: with the whole backbone frozen nothing is left"):
        FrozenBackbone(network)


@torch.no_grad()
def test_a_probe_refuses_a_head_whose_scores_are_not_those_of_its_last_layer() -> None:
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)
    backbone = dict(type="DistilledVisionTransformer", arch=arch, img_size=32, patch_size=16)
    network = build(dict(backbone=backbone, head=dict(type="DeiTClsHead", num_classes=3, in_channels=16)))
    assert list(classifier_layers(network)) == ["head.layers.head", "head.layers.head_dist"]
    for layer in classifier_layers(network).values():
        torch.nn.init.zeros_(layer.weight)  # as MMPretrain begins: every score is 0 whatever is left out
    with pytest.raises(InputError, match=r"DeiTClsHead by its last linear layer .* · hint: --freeze-to"):
        FrozenNetwork(network).verify(torch.randn(4, 3, 32, 32))
    assert not network.head.layers.head_dist.weight.any()  # as it was


@torch.no_grad()
def test_a_cut_that_paths_lead_around_is_refused() -> None:
    network = build(RESNET)
    with pytest.raises(InputError, match=r"ResNet can't be cut after layer3\.1\.conv1: the rest needs more"):
        FrozenStem(network, "layer3.1.conv1").verify(torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--freeze-to", "layer2", "--views", "2"), ("--probe",)], ids=["layer2", "probe"])
def test_what_was_trained_on_features_is_a_whole_network(
    dataset: Path, tiny_config: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    options = ("--cfg-options", *NARROW)
    trained = run_tool("train.py", tiny_config, *flags, "--data", dataset, "--weights", "none", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Warning" not in trained.stderr and "WARNING" not in trained.stderr
    assert "paramwise_options --" not in trained.stderr  # hundreds of lines; the log's file has them
    (best,) = [line for line in trained.stdout.splitlines() if line.startswith("best val top-1")]
    tested = run_tool("test.py", cwd=tmp_path)  # photo by photo, through all layers
    assert tested.returncode == 0, tested.stderr
    assert best.split()[3] in tested.stdout
    assert len(read_predictions(tmp_path / "work_dirs" / "tiny" / "predictions_val.csv").images) == 10


@pytest.mark.slow
def test_the_frozen_layers_keep_their_weights(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = tmp_path / "start.pth"
    config = configure(
        TrainOptions(
            tiny_config,
            data=dataset,
            weights="none",
            work_dir=tmp_path / "run",
            freeze_to="layer3",
            views=1,
            cfg_options=["experiment_name=frozen", *NARROW],
        )
    )
    with DefaultScope.overwrite_default_scope("mmflowers"):
        model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
    torch.save({f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}, start)
    config.load_from = str(start)
    train(config)
    before, after = torch.load(start), torch.load(tmp_path / "run" / "last.pth", weights_only=True)["state_dict"]
    same = {key: torch.equal(value, after[key]) for key, value in before.items()}
    assert all(same[key] for key in same if "layer4" not in key)
    assert not all(same[key] for key in same if "layer4" in key)


@pytest.fixture
def frozen(dataset: Path, tiny_config: Path, tmp_path: Path) -> Callable[..., Config]:
    """Gives a config of the tiny network, frozen up to layer 3 where nothing else is said."""

    def configured(*options: str, config: Path = tiny_config, problems: list | None = None, **flags) -> Config:
        settings = dict(data=dataset, weights="none", work_dir=tmp_path / "run", freeze_to="layer3", views=1) | flags
        cfg_options = [f"experiment_name=frozen{next(names)}", *NARROW, *options]
        return configure(TrainOptions(config, cfg_options=cfg_options, **settings), problems)

    return configured


@pytest.fixture
def with_mixup(tiny_config: Path, tmp_path: Path) -> Path:
    """The tiny network's config with Mixup, as MMPretrain's recipes have it."""
    augments = "model = dict(train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))"
    (tmp_path / "mixup.py").write_text(f"_base_ = {str(tiny_config)!r}\n{augments}\n", encoding="utf-8")
    return tmp_path / "mixup.py"


def log_of(work_dir: Path) -> str:
    (log,) = work_dir.glob("*/*.log")
    return log.read_text()


def test_mixup_is_refused_on_frozen_features(frozen: Callable[..., Config], with_mixup: Path) -> None:
    with pytest.raises(InputError, match=r"Mixup can't be applied .* --cfg-options model\.train_cfg=None") as caught:
        frozen(config=with_mixup)
    assert len(caught.value.problems) == 1
    found: list = []
    frozen(config=with_mixup, problems=found)  # as tools/check.py asks
    assert [(where, problem.what.partition(" ")[0]) for where, problem in found] == [("config", "Mixup")]
    frozen("model.train_cfg=None", config=with_mixup)  # what the hint says


@pytest.mark.slow
def test_a_probe_says_that_it_leaves_mixup_out(frozen, with_mixup: Path, tmp_path: Path) -> None:
    train(frozen(config=with_mixup, freeze_to=None, probe=True))
    assert log_of(tmp_path / "run").count("no Mixup and no CutMix") == 1


@pytest.mark.slow
def test_features_beyond_float16_are_kept_in_the_type_they_are_computed_in(frozen, tmp_path: Path) -> None:
    config = frozen("train_cfg.max_epochs=1")
    state = MODELS.build(config.model).backbone.state_dict()
    state["layer3.1.bn2.weight"].fill_(1e7)
    torch.save({f"backbone.{key}": value for key, value in state.items()}, tmp_path / "start.pth")
    config.load_from = str(tmp_path / "start.pth")
    runner = FlowersRunner.from_cfg(config)
    runner.train()
    fast = has_fast_bfloat16(torch.device("cpu"))
    for loop in (runner.train_loop, runner.val_loop):
        features = loop.dataloader.dataset.features
        assert features.isfinite().all() and features.max() > torch.finfo(torch.float16).max
        assert features.dtype == (torch.bfloat16 if fast else torch.float32)
    stored = "bfloat16" if fast else "float32"
    assert log_of(tmp_path / "run").count(f"beyond float16: stored as {stored}") == 2  # of train and val


@MODELS.register_module()
class NarrowResNet(ResNet):
    """Has memory for so many photos, in training and in evaluation."""

    room: ClassVar = {True: 99, False: 99}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(x) > self.room[self.training]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@MODELS.register_module()
class NarrowHead(LinearClsHead):
    """Has no memory for predictions."""

    def predict(self, feats: tuple[torch.Tensor], data_samples: list | None = None) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "room", "said"),
    [
        (
            "model.backbone.type=NarrowResNet",
            {True: 3, False: 99},
            r"2 fit .* train_dataloader\.batch_size=2 optim_wrap",
        ),
        (
            "model.backbone.type=NarrowResNet",
            {True: 99, False: 6},
            r"4 fit .* train_dataloader\.batch_size=4 optim_wrap",
        ),
        ("model.head.type=NarrowHead", {True: 99, False: 99}, r"4 fit .* val_dataloader\.batch_size=4"),
    ],
    ids=["training", "computing features", "validation"],
)
def test_out_of_memory_on_features_says_what_fits(frozen, option: str, room: dict, said: str, monkeypatch) -> None:
    monkeypatch.setattr(NarrowResNet, "room", room)
    with pytest.raises(OutOfMemory, match=f"out of memory with batches of 8; {said}"):
        train(frozen(option, "train_cfg.max_epochs=1"))


def test_features_larger_than_the_containers_memory_are_refused(frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmflowers.frozen.loops.available_memory", lambda: 10_000)
    with pytest.raises(InputError, match=r"the features need .* GB are free · hint: use fewer --views"):
        train(frozen())


@pytest.mark.parametrize("classes", [2, 5])
def test_the_linear_layer_is_the_one_scikit_learn_fits(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % classes
    centres = rng.normal(size=(classes, 12)) * 3
    features = (rng.normal(size=(200, 12)) * 3 + 2 + centres[labels]).astype(np.float32)
    weight, bias = fit_linear(torch.from_numpy(features), torch.from_numpy(labels), classes, (0.1,))
    assert weight.shape == (classes, 12) and bias.shape == (classes,)
    got = (torch.from_numpy(features) @ weight.T + bias).softmax(1).numpy()
    # Of two classes scikit-learn keeps the difference of our two vectors, whose squares are twice ours.
    scaled = (features - features.mean(0)) / features.std(0)
    expected = LogisticRegression(C=0.1 if classes > 2 else 0.2, tol=1e-6).fit(scaled, labels)
    np.testing.assert_allclose(got, expected.predict_proba(scaled), atol=2e-3)


def test_the_linear_layer_has_an_output_for_a_class_of_one_photo_and_for_one_of_none() -> None:
    features, labels = torch.randn(21, 8), torch.tensor([0] * 10 + [1] * 10 + [3])
    weight, bias = fit_linear(features, labels, 4, (0.01, 1.0))
    assert weight.shape == (4, 8) and bias.isfinite().all() and weight.isfinite().all()


def test_the_strength_is_the_one_that_predicts_photos_it_was_not_fitted_on() -> None:
    # Many features without meaning: a layer that may use them freely learns the noise by heart.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 400, generator=generator)
    features[:, :3] += 1.5 * torch.nn.functional.one_hot(labels, 3)
    chosen = fit_linear(features, labels, 3, (0.0003, 100.0))
    alone = fit_linear(features, labels, 3, (0.0003,))
    torch.testing.assert_close(chosen, alone, atol=1e-2, rtol=1e-2)

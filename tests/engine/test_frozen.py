"""A frozen trunk: computed once, and the rest trains as if it were the whole network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NARROW, run_tool
from mmpretrain.registry import MODELS
from sklearn.linear_model import LogisticRegression

import mmflowers.engine  # noqa: F401  registers
from mmflowers.engine.frozen import Trunk, fit_linear
from mmflowers.errors import InputError
from mmflowers.evaluation.predictions import read_predictions

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
def test_trunk_and_rest_are_the_network(model: dict, layer: str) -> None:
    network = build(model)
    before = list(network.state_dict())
    inputs = torch.randn(2, 3, 64, 64)
    expected = network(inputs, mode="tensor")
    trunk = Trunk(network, layer)
    features = trunk(inputs)
    with trunk.aside():
        torch.testing.assert_close(network(features, mode="tensor"), expected)
        assert list(network.state_dict()) == before
    torch.testing.assert_close(network(inputs, mode="tensor"), expected)


def test_a_layer_that_isnt_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no layer layer9 .*layer3, layer4, or backbone for all"):
        Trunk(build(RESNET), "layer9")
    with pytest.raises(InputError, match=r"blocks\.0, blocks\.1, .*blocks\.6, or backbone"):
        Trunk(build(LITE), "blocks.7")


@torch.no_grad()
def test_a_cut_that_paths_lead_around_is_refused() -> None:
    network = build(RESNET)
    with pytest.raises(InputError, match="can't be cut there"):
        Trunk(network, "layer3.1.conv1").check(torch.randn(2, 3, 64, 64))


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


def test_the_trunk_stays_as_it_was(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    from mmflowers.engine.training import configure, train

    torch.manual_seed(0)
    start = tmp_path / "start.pth"
    config = configure(
        tiny_config,
        data=dataset,
        weights="none",
        work_dir=tmp_path / "run",
        freeze_to="layer3",
        views=1,
        cfg_options=["experiment_name=frozen", *NARROW],
    )
    model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
    torch.save({f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}, start)
    config.load_from = str(start)
    train(config)
    before, after = torch.load(start), torch.load(tmp_path / "run" / "last.pth", weights_only=True)["state_dict"]
    same = {key: torch.equal(value, after[key]) for key, value in before.items()}
    assert all(same[key] for key in same if "layer4" not in key)
    assert not all(same[key] for key in same if "layer4" in key)


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

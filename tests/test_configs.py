"""Every shipped config is read, built, and means what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmflowers.datasets.flowers
import mmflowers.engine  # noqa: F401  registers
from mmflowers.engine import configuration, options
from mmflowers.engine.runner import FlowersRunner
from mmflowers.registry import MODELS, TRANSFORMS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Config:
    return configuration.load_config(request.param)


def transforms(dataset: dict) -> list[str]:
    return [transform["type"] for transform in dataset["pipeline"]]


def test_there_are_configs() -> None:
    assert {"resnet50_flowers", "resnet18_flowers", "efficientnet_lite0_flowers"} <= {path.stem for path in CONFIGS}


def test_model_and_pipelines_can_be_built(config: Config) -> None:
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
        assert model.head.fc.out_features == 5
        for dataset in configuration.datasets(config):
            for transform in dataset["pipeline"]:
                TRANSFORMS.build(transform)


def test_validation_and_test_see_plain_pictures_of_the_val_list(config: Config) -> None:
    train, val, test = configuration.datasets(config)
    assert train["ann_file"] == "train.txt" and val["ann_file"] == test["ann_file"] == "val.txt"
    assert any("RandomResizedCrop" in name for name in transforms(train))
    for dataset in (val, test):
        assert not any("Random" in name or "Jitter" in name for name in transforms(dataset))
    assert config.val_evaluator == config.test_evaluator == dict(type="Accuracy", topk=(1,))
    assert "imagenet" not in str([train, val, test]).lower()


def test_every_schedule_ends_or_fires_within_the_training(config: Config) -> None:
    epochs = config.train_cfg.max_epochs
    schedulers = config.param_scheduler
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        assert scheduler.get("end", epochs) <= epochs
        assert scheduler.get("step_size", 1) < epochs
        assert all(at < epochs for at in scheduler.get("milestones", []))


def test_mean_and_std_are_those_of_the_weights(config: Config) -> None:
    lite = "efficientnet_lite" in config.load_from
    assert config.data_preprocessor.mean[0] == (127.5 if lite else 123.675)
    assert config.data_preprocessor.to_rgb


def test_the_reports_recipe_stands_in_its_config_to_the_letter() -> None:
    config = configuration.load_config(next(path for path in CONFIGS if path.stem == "resnet50_flowers"))
    optimizer = {key: config.optim_wrapper.optimizer[key] for key in ("type", "lr", "momentum", "weight_decay")}
    assert optimizer == dict(type="SGD", lr=0.005, momentum=0.9, weight_decay=1e-4)
    assert (config.train_cfg.max_epochs, config.train_cfg.val_interval) == (20, 1)
    assert config.train_dataloader.batch_size == 32
    assert config.model.backbone.type == "ResNet" and config.model.backbone.depth == 50
    assert config.model.head.topk == (1,)
    assert config.load_from.endswith("resnet50_8xb32_in1k_20210831-ea4938fc.pth")


@pytest.mark.parametrize("epochs", [2, 3, 50])
def test_the_laptop_mode_shrinks_every_recipe_in_proportion(config: Config, epochs: int) -> None:
    full = config.train_cfg.max_epochs
    crops = [224, 256, 256]
    if "resnet" in config.filename:
        crops = [224, 224, 224]
    elif "lite2" in config.filename:
        crops = [260, 296, 296]
    options.fit_to_laptop(config, epochs=epochs)
    assert config.train_cfg.max_epochs == min(full, epochs)
    schedulers = config.param_scheduler
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        assert scheduler.get("begin", 0) < max(scheduler.get("end", full), 1)
        assert scheduler.get("end", 0) <= config.train_cfg.max_epochs
        assert scheduler.get("T_max", 0) <= scheduler.get("end", epochs) - scheduler.get("begin", 0)
    fit = [
        transform.get("scale", transform.get("crop_size", transform.get("size")))
        for dataset in configuration.datasets(config)
        for transform in dataset["pipeline"]
        if "Crop" in transform["type"]
    ]
    assert fit == [round(size * 5 / 7) for size in crops]  # once each, though val and test may share a pipeline


def test_exercise_2s_script_and_its_config_train_on_the_same_pixels(tmp_path: Path) -> None:
    import runpy

    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 400)).save(tmp_path / "x.png")
    script = runpy.run_path(str(CONFIGS[0].parent.parent / "tools" / "train_torch.py"))
    config = configuration.load_config(next(path for path in CONFIGS if path.stem == "resnet18_flowers"))
    mean, std = (torch.tensor(config.data_preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
    train, val, _ = configuration.datasets(config)
    for dataset, steps in ((train, "TRAIN_TRANSFORMS"), (val, "VAL_TRANSFORMS")):
        torch.manual_seed(0)
        with Image.open(tmp_path / "x.png") as image:
            theirs = transforms.Compose(script[steps])(image)
        torch.manual_seed(0)
        results = {"img_path": str(tmp_path / "x.png"), "gt_label": 0}
        with DefaultScope.overwrite_default_scope("mmflowers"):
            for transform in dataset["pipeline"]:
                results = TRANSFORMS.build(transform)(results)
        ours = (results["inputs"].flip(0).float() - mean) / std  # BGR to RGB, as the data preprocessor does
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_broken_config_is_one_clear_line(tmp_path: Path) -> None:
    from mmflowers.utils.errors import InputError

    (tmp_path / "broken.py").write_text("model = dict(\n")
    with pytest.raises(InputError, match=r"broken\.py can't be read"):
        configuration.load_config(tmp_path / "broken.py")
    with pytest.raises(InputError, match="no config at"):
        configuration.load_config(tmp_path / "missing.py")


def test_the_runner_is_mmengines_with_its_own_registry_name() -> None:
    from mmflowers.registry import RUNNERS

    assert RUNNERS.get("FlowersRunner") is FlowersRunner

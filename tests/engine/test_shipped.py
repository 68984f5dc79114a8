"""Configs are found by their path, and the shipped ones by their name from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config

from mmflowers.engine.configuration import load_config
from mmflowers.engine.shipped import find_config
from mmflowers.utils.errors import InputError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["resnet50_flowers", "resnet50_flowers.py", "configs/resnet50_flowers.py"])
def test_a_shipped_config_is_found_from_any_folder_and_said_to_be_used(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    shipped = ROOT / "configs" / "resnet50_flowers.py"
    assert find_config(name) == shipped
    assert load_config(name).filename == str(shipped)
    told = f"config: {shipped}, which mmflowers ships; there is no file {name} here\n"
    assert capsys.readouterr() == ("", told * 2)


def test_of_several_processes_the_first_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RANK", "1")
    find_config("resnet50_flowers")
    assert capsys.readouterr().err == ""


def test_a_file_that_is_there_comes_first(elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    (elsewhere / "configs").mkdir()
    for name in ("resnet50_flowers", "configs/resnet50_flowers.py"):
        Path(name).touch()
        assert find_config(name) == Path(name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet50_flower.py", "did you mean resnet50_flowers? "),
        (
            "mine/resnet50_flowers.py",
            "did you mean resnet50_flowers? ",
        ),  # a file of the user's own may be meant as well
        ("_base_/data.py", ""),
        ("xyz", ""),
        ("configs", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_lists_the_shipped_configs(name: str, meant: str) -> None:
    with pytest.raises(InputError, match="no config at") as error:
        find_config(name)
    shipped = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert error.value.problems[0].hint == f"{meant}mmflowers ships {', '.join(shipped)}"


def test_a_config_anywhere_may_have_shipped_bases(elsewhere: Path) -> None:
    (elsewhere / "whole.py").write_text("_base_ = 'mmflowers::_base_/../resnet18_flowers.py'\nbatch = 4\n")
    config = load_config("whole.py")
    shipped = load_config(ROOT / "configs" / "resnet18_flowers.py")
    assert config.batch == 4 and config.default_scope == "mmflowers"
    assert config.load_from == shipped.load_from
    assert len(config.train_dataloader.dataset.pipeline) == len(shipped.train_dataloader.dataset.pipeline)
    (elsewhere / "part.py").write_text(
        "_base_ = ['mmflowers::_base_/datasets/flowers_224.py', 'mmflowers::_base_/default_runtime.py']\n"
    )
    assert Config.fromfile("part.py").train_dataloader.dataset.ann_file == "train.txt"


def test_a_base_without_a_folder_is_told_how_to_name_one(elsewhere: Path) -> None:
    (elsewhere / "mine.py").write_text("_base_ = 'mmflowers::resnet18_flowers.py'\n")
    with pytest.raises(InputError, match=r"mmflowers::_base_/\.\./resnet50_flowers\.py"):
        load_config("mine.py")

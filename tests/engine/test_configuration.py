"""What a config gets wrong is said in a line, not in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmflowers.engine import configuration
from mmflowers.errors import InputError


def test_an_error_of_several_lines_is_said_in_one(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("raise ValueError('first\\nsecond')")
    with pytest.raises(InputError, match=r"x\.py can't be read: ValueError: first second") as caught:
        configuration.load_config(tmp_path / "x.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ({}, lambda config: configuration.fit_to_laptop(config)),
        ({"train_cfg": {"max_epochs": None}}, lambda config: configuration.fit_to_laptop(config)),
        ({"train_cfg": {"max_epochs": 0}}, lambda config: configuration.fit_to_laptop(config)),
        ({"model": None}, lambda config: configuration.set_classes(config, 5)),
        ({"test_dataloader": 0}, lambda config: configuration.test_on(config, "val")),
        ({"val_dataloader": "x"}, lambda config: configuration.settle_loaders(config)),
        ({"val_dataloader": "x"}, lambda config: configuration.data_root(config)),
    ],
)
def test_a_config_of_another_form_is_bad_input(content: dict, step) -> None:
    with pytest.raises(InputError, match="config"):
        step(Config(content))

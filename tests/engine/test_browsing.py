"""tools/browse.py: the sheet holds the pixels of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool
from mmengine.registry import DefaultScope
from PIL import Image

from mmflowers.engine import configuration
from mmflowers.engine.browsing import browse
from mmflowers.engine.runner import FlowersRunner


def holds(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether an image lies somewhere on the sheet, pixel for pixel."""
    height, width = image.shape[:2]
    rows, columns = np.nonzero((sheet == image[0, 0]).all(axis=-1))
    return any(
        np.array_equal(sheet[row : row + height, column : column + width], image)
        for row, column in zip(rows, columns, strict=True)
    )


CACHED = ["train_dataloader.dataset.cache=True", "data_preprocessor.type=FlowersDataPreprocessor"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], CACHED], ids=["single photos", "whole batches"])
def test_a_sheet_shows_the_pixels_of_the_first_epochs(dataset: Path, tiny_config: Path, options: list[str]) -> None:
    config = configuration.load_config(tiny_config)
    configuration.set_data_root(config, dataset)
    configuration.merge_options(config, options)
    configuration.disable_idle_workers(config)
    sheet = np.asarray(browse(tiny_config, data=dataset, number=40, views=2, seed=5, cfg_options=options))
    with DefaultScope.overwrite_default_scope("mmflowers"):
        train, val = (
            FlowersRunner.build_dataloader(config[name], seed=5) for name in ("train_dataloader", "val_dataloader")
        )
    for epoch in range(3):
        train.batch_sampler.sampler.set_epoch(epoch)
        batch = next(iter(train))
        pixels = batch["augment"](batch["inputs"]) if options else batch["inputs"]
        found = [holds(sheet, image.flip(0).permute(1, 2, 0).numpy()) for image in pixels]
        assert all(found) if epoch < 2 else not any(found)
    tested = np.asarray(browse(tiny_config, data=dataset, split="val", number=10, views=1))
    assert all(holds(tested, image.flip(0).permute(1, 2, 0).numpy()) for image in next(iter(val))["inputs"])


def test_the_command_leaves_a_picture(dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    options = ("--data", dataset, "--number", "3", "--views", "2")
    result = run_tool("browse.py", tiny_config, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "work_dirs" / "browse_tiny.png") as picture:
        assert "\npicture: " in f"\n{result.stdout}"  # OneDL's edition says something of its own before
        assert f"{picture.width} × {picture.height} px" in result.stdout


@pytest.mark.parametrize(("arguments", "said"), [(("--out", "x.gif"), "x.gif"), (("--views", "0"), "less than 1")])
def test_wrong_options_are_said_at_once(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = run_tool("browse.py", "config.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr and result.stderr.startswith("error: ")

"""The curves of a run, over its starts and its breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmflowers.evaluation.history import read_history
from mmflowers.utils.errors import InputError
from mmflowers.visualization.figures import draw_curves


def log(work_dir: Path, start: str, *entries: dict, tail: str = "") -> None:
    folder = work_dir / start / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)


def train(epoch: int, loss: float) -> dict:
    return {
        "loss": loss * 2,
        "loss_epoch": loss,
        "lr": 0.01 / epoch,
        "epoch": epoch,
        "iter": epoch * 9,
        "step": epoch * 9,
    }


def val(epoch: int, accuracy: float) -> dict:
    return {"accuracy/top1": accuracy, "step": epoch}


def test_a_resumed_run_is_one_history_and_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", train(1, 1.0), val(1, 50.0), train(2, 9.0), tail='{"loss": 0.')
    log(tmp_path, "20260101_000100", train(2, 0.5), val(2, 75.0))
    history = read_history(tmp_path)
    assert history.epochs == history.val_epochs == [1, 2]
    assert history.losses == [1.0, 0.5]
    assert history.scores == [50.0, 75.0]


def test_the_last_line_of_an_epoch_gives_its_loss(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", train(1, 3.0), train(1, 2.0))
    assert read_history(tmp_path).losses == [2.0]


def test_a_picture_is_drawn_whole(tmp_path: Path) -> None:
    log(tmp_path, "20260101_000000", *(entry for n in (1, 2, 3) for entry in (train(n, 1 / n), val(n, 60.0 + n))))
    with Image.open(draw_curves(tmp_path)) as picture:
        picture.load()
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # lines and text, not an empty sheet


def test_without_logs_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no vis_data"):
        draw_curves(tmp_path)

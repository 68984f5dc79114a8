"""Checkpoint files are data: what MMEngine writes loads, what would run does not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmflowers.utils.errors import InputError
from mmflowers.weights.loading import load_checkpoint_file


class Reduce:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker: Path):
    """Pairs of a name and an object whose unpickling would create ``marker`` or reach for what could."""
    path = str(marker)
    yield "os.system", Reduce(os.system, f"touch {path!r}")
    yield "exec", Reduce(exec, f"open({path!r}, 'w')")
    yield "eval", Reduce(eval, f"open({path!r}, 'w')")
    yield "open", Reduce(open, path, "w")
    yield "nested", Reduce(list, (Reduce(os.system, f"touch {path!r}"),))
    yield "getattr on os", Reduce(getattr, Reduce(__import__, "os"), "system")
    yield "getattr of another attribute", Reduce(getattr, HistoryBuffer, "__init__")
    yield "import", Reduce(__import__, "subprocess")
    yield "torch.load", Reduce(torch.load, path)
    yield "mkdir", Reduce(os.mkdir, path)
    yield "Path.touch", Reduce(Path.touch, marker)
    yield "pickle.loads", Reduce(pickle.loads, pickle.dumps(Reduce(os.system, f"touch {path!r}")))


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_hostile_checkpoints_are_refused_without_running(number: int, form: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    name, payload = list(hostile(marker))[number]
    path = tmp_path / "hostile.pth"
    checkpoint = {"state_dict": {"weight": torch.ones(2)}, "meta": payload}
    if form == "pickle":
        path.write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError) as caught:
        load_checkpoint_file(path)
    assert not marker.exists(), name
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize("as_zip", [True, False])
def test_the_type_that_would_run_is_named(as_zip: bool, tmp_path: Path) -> None:
    torch.save({"state_dict": Reduce(os.system, "true")}, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError, match=r"x\.pth is refused: to load it would run posix\.system"):
        load_checkpoint_file(tmp_path / "x.pth")


def test_a_checkpoint_as_mmengine_writes_it_loads(tmp_path: Path) -> None:
    hub = {"loss": HistoryBuffer([0.5, 0.25], [1, 1])}
    hub["loss"].update(0.125)
    meta = {"eta": np.float64(3.5), "epoch": 3, "dataset_meta": {"classes": ("a", "b"), "palette": np.arange(3)}}
    torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": hub, "meta": meta}, tmp_path / "epoch_3.pth")
    loaded = load_checkpoint_file(tmp_path / "epoch_3.pth")
    assert loaded["message_hub"]["loss"].current() == 0.125
    assert loaded["meta"]["eta"] == 3.5
    assert loaded["meta"]["dataset_meta"]["palette"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00.", pickle.dumps([1, 2]), b"\x80\x02a."],
)
def test_what_is_no_checkpoint_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pth") as caught:
        load_checkpoint_file(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": {"w": torch.arange(64.0)}}, whole)
    data = whole.read_bytes()
    for length in range(0, len(data) - 1, 37):
        (tmp_path / "cut.pth").write_bytes(data[:length])
        with pytest.raises(InputError):
            load_checkpoint_file(tmp_path / "cut.pth")


def test_safetensors_load_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.arange(4.0)}, tmp_path / "x.safetensors")
    assert load_checkpoint_file(tmp_path / "x.safetensors")["w"].tolist() == [0, 1, 2, 3]
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="safetensors"):
        load_checkpoint_file(tmp_path / "x.safetensors")

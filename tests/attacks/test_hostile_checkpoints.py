"""Checkpoints that claim more than they hold, or hold what gives no number: refused at once, in one line."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from mmflowers.utils.errors import InputError
from mmflowers.weights.loading import load_checkpoint_file, require_finite

GIB = 1 << 30
COUNT = 1 << 19  # floats: 2 MB


def zipped(data: bytes, records: dict[str, bytes], *, packed: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint file around a pickle and its storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def saved(content: object, **kwargs) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, out, **kwargs)
    return out.getvalue()


def claiming(count: int, *, as_zip: bool) -> bytes:
    """A tensor of 2 MB whose pickle claims ``count`` floats."""
    data = saved({"w": torch.zeros(COUNT)}, _use_new_zipfile_serialization=as_zip)
    number = b"J" + struct.pack("<i", COUNT)
    assert number in data
    if not as_zip:
        return data.replace(number, b"J" + struct.pack("<i", count))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("archive/data.pkl").replace(number, b"J" + struct.pack("<i", count))
        return zipped(pickled, {"data/0": archive.read("archive/data/0")})


def packed(**_: object) -> bytes:
    """2 GiB of zeros, deflated in pieces that a member is put together of, as a zip of 2 MB can hold them."""
    out = io.BytesIO()
    data = saved({"w": torch.zeros(COUNT)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("archive/data.pkl")
    pickled = pickled.replace(b"J" + struct.pack("<i", COUNT), b"J" + struct.pack("<i", 64 << 20))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data/0", "w") as member:
            for _ in range(256):
                member.write(bytes(1 << 20))
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def torchscript() -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


def sparse() -> Tensor:
    return torch.sparse_coo_tensor([[0]], [1.0], (GIB,), check_invariants=True)


def safetensors(header: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + bytes(64)


CLAIMS: dict[str, Callable[[], bytes]] = {
    "deflated": packed,
    "zip, storage": lambda: claiming(GIB // 2, as_zip=True),
    "legacy, storage": lambda: claiming(GIB // 2, as_zip=False),
    "zip, stride 0": lambda: saved({"w": torch.zeros(1).expand(GIB)}),
    "legacy, stride 0": lambda: saved({"w": torch.zeros(1).expand(GIB)}, _use_new_zipfile_serialization=False),
    "overlapping strides": lambda: saved({"w": torch.zeros(COUNT).as_strided((COUNT // 2, COUNT // 2), (1, 1))}),
    "deep within": lambda: saved({"a": [{"b": (torch.zeros(1).expand(GIB),)}]}),
    "sparse": lambda: saved({"w": sparse()}),
    "sparse, legacy": lambda: saved({"w": sparse()}, _use_new_zipfile_serialization=False),
    "csr": lambda: saved({"w": torch.eye(3).to_sparse_csr()}),
    "meta": lambda: saved({"w": torch.zeros(GIB, device="meta")}),
    "complex": lambda: saved({"w": torch.zeros(3, dtype=torch.complex64)}),
    "quantized": lambda: saved({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}),
    "array of stride 0": lambda: saved({"w": np.broadcast_to(np.zeros(1), (3,)), "v": torch.zeros(1).expand(GIB)}),
    "tar": tar,
    "TorchScript": torchscript,
    "bytes of nothing": lambda: saved({"w": bytearray(2)}).replace(b"PK\x01\x02", b"PK\x01\x03"),
    "a list of millions": lambda: zipped(b"\x80\x02](" + b"N" * 1_500_000 + b"e.", {}),
    "a string that is not there": lambda: zipped(b"\x80\x02X\xff\xff\xff\x7f.", {}),
    "a pickle alone": lambda: pickle.dumps({"w": 1}, protocol=4),
    "safetensors, header of 2 GiB": lambda: safetensors(b"{}", 2 * GIB),
    "safetensors, data of 2 GiB": lambda: safetensors(
        b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (GIB // 2, 2 * GIB)
    ),
    "safetensors, complex": lambda: safetensors(b'{"w":{"dtype":"C64","shape":[8],"data_offsets":[0,64]}}'),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_file_that_claims_more_than_it_holds_is_refused_at_once(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / ("x.safetensors" if kind.startswith("safetensors") else "x.pth")
    path.write_bytes(CLAIMS[kind]())
    recwarn.clear()
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    with pytest.raises(InputError, match=r"x\.\w+ ") as caught:
        load_checkpoint_file(path)
    assert time.perf_counter() - started < 5  # a second on an idle machine, for the list of millions
    assert psutil.Process().memory_info().rss - before < 256 << 20
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 500
    assert "weights_only" not in text and "trust the source" not in text and "torch.serialization" not in text


def test_what_an_honest_checkpoint_holds_loads(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    content = {
        "views": [base, base[3:9], base.view(4, 6).t()],
        "kinds": [torch.ones(2, dtype=kind) for kind in (torch.half, torch.bfloat16, torch.int64, torch.bool)],
        "positions": torch.arange(5).expand(1, -1),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "meta": {"classes": ("a", "b"), "set": {1, 2}, "array": np.arange(5)},
    }
    content["itself"] = content["meta"]
    for as_zip in (True, False):
        (tmp_path / "x.pth").write_bytes(saved(content, _use_new_zipfile_serialization=as_zip))
        loaded = load_checkpoint_file(tmp_path / "x.pth")
        assert torch.equal(loaded["views"][2], base.view(4, 6).t()) and loaded["meta"]["set"] == {1, 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["head.fc.weight", "backbone.bn1.running_var"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_named(value: float, name: str, kind: torch.dtype) -> None:
    state = {"counter": torch.tensor(2**60), "whole": torch.ones(3), name: torch.tensor([1.0, value]).to(kind)}
    with pytest.raises(InputError, match=rf"^x\.pth holds NaN or infinite weights in 1 tensor: {name} · hint: "):
        require_finite(state, "x.pth")
    del state[name]
    require_finite(state, "x.pth")


def test_of_many_spoilt_tensors_the_first_are_named() -> None:
    with pytest.raises(InputError, match=r"in 9 tensors: w0, w1, w2 and 6 more · hint"):
        require_finite({f"w{number}": torch.tensor(float("nan")) for number in range(9)}, "x.pth")


def test_a_classifier_with_weights_that_are_not_finite_gives_no_number(trained: Path, tmp_path: Path) -> None:
    from mmflowers.inference.classifier import FlowerClassifier

    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("last.pth"))
    checkpoint = torch.load(run / "best.pth", weights_only=True)
    checkpoint["state_dict"]["backbone.bn1.running_mean"][0] = float("inf")
    torch.save(checkpoint, run / "best.pth")
    with pytest.raises(InputError, match=r"best\.pth holds NaN or infinite weights in 1 tensor: backbone\.bn1"):
        FlowerClassifier.from_run(run)

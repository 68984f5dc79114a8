"""Load checkpoint files without running code that is in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmflowers.utils.errors import InputError, count, some

MAX_PICKLE = 64 << 20  # bytes at the head of a file of torch's older format that are looked at for its pickles
GET_AGAIN = "get the file again"
PLAIN = "a checkpoint holds dense tensors of real numbers; save it as a plain state_dict where it was made"
_GLOBAL = re.compile(rb"ctorch\._utils\n(\w+)\n")
# Functions by which torch.load builds other tensors than dense ones of the bytes in the file; some of them compute.
_OTHER_TENSORS = {
    b"_rebuild_sparse_tensor": "sparse",
    b"_rebuild_nested_tensor": "nested",
    b"_rebuild_qtensor": "quantized",
    b"_rebuild_meta_tensor_no_storage": "meta",
    b"_rebuild_wrapper_subclass": "wrapped",
    b"_rebuild_device_tensor_from_numpy": "converted",
    b"_rebuild_device_tensor_from_cpu_tensor": "converted",
}


def load_checkpoint_file(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a ``.pth`` or ``.safetensors`` file as data: tensors, containers and plain values, no code.

    Besides the types of ``torch.load(weights_only=True)``, only those of MMEngine's checkpoints are admitted: NumPy
    arrays and numbers, and ``HistoryBuffer`` with its four statistics. Tensors are dense, of real numbers, and all of
    their bytes are in the file, so memory and time are bounded by the size of the file.

    torch's own error messages are not shown: they advise to load the file unsafely.

    Raises:
        InputError: The file doesn't exist, is damaged or isn't a checkpoint; it needs a type that isn't admitted (which
            is named); it has tensors of other kinds or of more bytes than the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", "name a file that exists")
    try:
        size = path.stat().st_size
        checkpoint = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickled(path, map_location)
    except InputError:
        raise
    except Exception as error:  # damaged bytes cause any of IndexError, TypeError, MemoryError …
        reason = getattr(error, "strerror", None) or "it is damaged, or no checkpoint"
        raise InputError(f"{path} can't be read as a checkpoint: {reason}", GET_AGAIN) from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint", "save a state_dict")
    _check_tensors(checkpoint, path, size)
    return checkpoint


def meta_of(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return MMEngine's ``meta`` of a checkpoint; {} if it has none."""
    meta = (checkpoint or {}).get("meta")
    return meta if isinstance(meta, dict) else {}


def require_finite(state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights and BatchNorm statistics that hold NaN or infinity.

    Args:
        state_dict: Tensors by name; integers are not checked.
        source: Their file, for the error.

    Raises:
        InputError: Naming the first of those tensors.
    """
    broken = [name for name, tensor in state_dict.items() if not _is_finite(tensor)]
    if broken:
        what = f"{source} holds NaN or infinite weights in {count(len(broken), 'tensor')}: {some(broken)}"
        raise InputError(what, "take an earlier checkpoint, or train again with a lower learning rate")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # compares the sizes in the header with the file's
    except SafetensorError as error:
        raise InputError(f"{path} can't be read as safetensors: {' '.join(str(error).split())}", GET_AGAIN) from error


def _load_pickled(path: Path, map_location: Any) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # torch distinguishes its two formats by this
        file.seek(0)
        pickled = _pickles_of_zip(path) if is_zip else [file.read(MAX_PICKLE)]
    others = {_OTHER_TENSORS[name] for data in pickled for name in _GLOBAL.findall(data) if name in _OTHER_TENSORS}
    if others:
        raise InputError(f"{path} is refused: it holds {', '.join(sorted(others))} tensors", PLAIN)
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        types = _unadmitted_types(path, error)
        if not types:
            raise
        raise InputError(
            f"{path} is refused: to load it would run {', '.join(types)}",
            "a checkpoint holds data, not code; convert one that you trust to a plain state_dict where it was made",
        ) from error


def _pickles_of_zip(path: Path) -> list[bytes]:
    """Return the pickles in a file of torch's zip format; torch stores its members uncompressed, others are refused."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename.rpartition("/")[2] for member in members}
        if "constants.pkl" in names:
            raise InputError(f"{path} is a TorchScript file, not a checkpoint", "name the .pth that it was made from")
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        claimed = sum(member.file_size for member in members)
        if not stored or claimed > path.stat().st_size:
            what = f"{path} is refused: it is compressed and claims {claimed:,} bytes in {path.stat().st_size:,}"
            raise InputError(what, "a checkpoint isn't compressed; write it with torch.save")
        return [archive.read(member) for member in members if member.filename.endswith("/data.pkl")]


def _check_tensors(checkpoint: dict, path: Path, size: int) -> None:
    """Refuse tensors and arrays that aren't dense, real and in the file; ``size`` is the file's, in bytes."""
    storages: dict[int, int] = {}
    problems: dict[str, list[str]] = {}
    waiting: list[tuple[str, Any]] = [("", checkpoint)]
    seen = set()
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:  # a pickle can hold an object any number of times
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(name, item) for item in value]
        elif isinstance(value, Tensor):
            if wrong := _unusable(value):
                problems.setdefault(wrong, []).append(name)
            else:
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        elif isinstance(value, np.ndarray) and value.nbytes > size:
            problems.setdefault("larger than the file", []).append(name)
    if problems:
        wrong, names = next(iter(problems.items()))
        raise InputError(f"{path} is refused: it holds tensors that are {wrong} ({some(sorted(names))})", PLAIN)
    if sum(storages.values()) > size:
        what = f"{path} is refused: its tensors claim {sum(storages.values()):,} bytes, the file has {size:,}"
        raise InputError(what, GET_AGAIN)


def _unusable(tensor: Tensor) -> str:
    """Return why a tensor can't be in a checkpoint; empty if it can."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse"
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return "without data" if tensor.is_meta else "quantized" if tensor.is_quantized else "complex"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a stride of 0
        return "larger than their data"
    return ""


def _unadmitted_types(path: Path, error: Exception) -> list[str]:
    """Return the types of the file that aren't admitted, as far as torch can tell; none if it is damaged."""
    try:
        admitted = {
            f"{item[1]}" if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in _ADMITTED
        }
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - admitted)
    except Exception:  # the old non-zip format, or a damaged file
        # torch's message names the first one.
        return re.findall(r"\bGLOBAL (\S+)", str(error))[:1]


def _getattr_of_history_buffer(owner: Any, name: str) -> Any:
    """Replaces ``getattr`` in MMEngine's checkpoints, which refer to ``HistoryBuffer.min`` and its siblings by it."""
    if owner is HistoryBuffer and name in ("min", "max", "mean", "current"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not admitted")


_multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]

# A checkpoint written under NumPy 1 says numpy.core, one written under NumPy 2 numpy._core: both are admitted.
_ADMITTED: list[Any] = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")},
    *[
        (function, f"{module}.multiarray.{function.__name__}")
        for module in ("numpy.core", "numpy._core")
        for function in (_multiarray._reconstruct, _multiarray.scalar)
    ],
    (_getattr_of_history_buffer, "builtins.getattr"),
    (_getattr_of_history_buffer, "__builtin__.getattr"),
]

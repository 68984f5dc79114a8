"""Loads checkpoint files without running what is in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmflowers.errors import InputError


def load_checkpoint_file(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a ``.pth`` or ``.safetensors`` file as data: tensors, containers and plain values, nothing that runs.

    Beside what ``torch.load(weights_only=True)`` admits, only the types in MMEngine's own checkpoints are let in: NumPy
    arrays and numbers, and ``HistoryBuffer`` with its four statistics.

    Raises:
        InputError: No such file, not a checkpoint, damaged, or in need of a type that isn't admitted (which is named).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", "name a file that exists")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} can't be read as safetensors: {error}", "get the file anew") from error
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: {_strangers(path, error)}",
            "a checkpoint holds data, not code; convert one that you trust to a plain state_dict where it was made",
        ) from error
    except Exception as error:  # whatever torch's reader makes of damaged bytes: IndexError, TypeError, MemoryError …
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} can't be read as a checkpoint: {first_line}", "get the file anew") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint", "save a state_dict")
    return checkpoint


def _strangers(path: Path, error: Exception) -> str:
    """Which types of the file aren't admitted, as far as torch can tell."""
    try:
        admitted = {
            f"{item[1]}" if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in _ADMITTED
        }
        names = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - admitted)
    except Exception:  # the old non-zip format, or a file too broken to be looked through
        # torch names the first one amid advice, in words that vary between its versions, on how to load it unsafely.
        names = re.findall(r"\bGLOBAL (\S+)", str(error))[:1]
    return f"to load it would run {', '.join(names)}" if names else "it holds more than data"


def _getattr_of_history_buffer(owner: Any, name: str) -> Any:
    """Stands for ``getattr`` in MMEngine's checkpoints, which name ``HistoryBuffer.min`` and its siblings that way."""
    if owner is HistoryBuffer and name in ("min", "max", "mean", "current"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not admitted")


_multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray

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

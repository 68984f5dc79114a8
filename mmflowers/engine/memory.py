"""Out of memory: recognise the error, and tell which batch would fit."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from mmflowers.utils.errors import InputError


class OutOfMemory(InputError):
    """A batch doesn't fit into memory.

    Attributes:
        loader: The config's name of its loader, ``train_dataloader`` or ``val_dataloader``.
        fits: The largest batch found to fit, by halving; 0 where not even one sample does.
    """

    def __init__(self, loader: str, batch_size: int, fits: int) -> None:
        self.loader, self.fits = loader, fits
        parts = -(-batch_size // max(fits, 1))
        smaller = f"--cfg-options {loader}.batch_size={fits}"
        if loader == "train_dataloader":
            smaller += f" optim_wrapper.accumulative_counts={parts} keeps the effective batch; --oom retry does it"
        super().__init__(
            f"out of memory with batches of {batch_size}; {fits} fit" if fits else "out of memory with a single photo",
            smaller if fits else "a smaller network, smaller images, or another device",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or a CPU: PyTorch's allocators raise RuntimeErrors that differ by their text."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def _batch_size(loader: DataLoader) -> int:
    return getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1

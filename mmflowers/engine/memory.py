"""Out of memory: recognise the error, and find the batch size that fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmflowers.utils.errors import InputError


class OutOfMemory(InputError):
    """A batch doesn't fit into memory.

    Attributes:
        loader: The config's name of its loader, ``train_dataloader`` or ``val_dataloader``.
        fits: The largest batch size found to fit, by halving; 0 if not even one sample does.
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


def fits_into_memory(step: Callable[[], object]) -> bool:
    """Call ``step`` and return whether memory sufficed.

    When this returns False, the exception is gone, and with it the references to the memory of the failed step.
    """
    try:
        step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def batch_size_of(loader: DataLoader) -> int:
    """Return the batch size of a loader, in samples of this process."""
    return getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1


def largest_batch(runner: Runner, data_batch: dict, batch_size: int) -> int:
    """Halve a training batch until a step fits; return the largest divisor of ``batch_size`` up to that.

    The steps change the weights: the run must end or start again. With several processes, which can't search together,
    half of the batch is assumed to fit.
    """
    size = len(data_batch["inputs"]) // 2
    while size and get_world_size() == 1:
        runner.optim_wrapper.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        part = {name: values if isinstance(values, bool) else values[:size] for name, values in data_batch.items()}
        if fits_into_memory(partial(runner.model.train_step, part, optim_wrapper=runner.optim_wrapper)):
            break
        size //= 2
    return max((divisor for divisor in range(1, size + 1) if batch_size % divisor == 0), default=0)

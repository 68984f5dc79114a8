"""Read inputs as batches of pixels, in loader workers while the network computes."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmflowers.datasets.seeded import leave_signals_to_the_trainer
from mmflowers.inference.inputs import Input, is_url
from mmflowers.preparation.decoding import MAX_BYTES, decode, upright_rgb
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import open_regular


class Batch(NamedTuple):
    """Inputs that were read together.

    Attributes:
        inputs: All inputs in order; those that can't be read have a reason.
        pixels: Of the others: uint8 of shape (n, 3, H, W), a list of (3, H, W) if sizes differ, None if there are none.
    """

    inputs: list[Input]
    pixels: Tensor | list[Tensor] | None


class PhotoDataset(Dataset):
    """Read whole batches; the sampler yields lists of inputs instead of indices.

    Args:
        pipeline: The transforms of the config, without the first, which loads the file.
        keep: Whether the returned inputs contain the encoded bytes of downloaded photos.
    """

    def __init__(self, pipeline: Callable[[dict], dict], *, keep: bool = False) -> None:
        self.pipeline, self.keep = pipeline, keep

    def __getitems__(self, inputs: list[Input]) -> Batch:
        read, pixels = [], []
        for input_ in inputs:
            try:
                data = _load(input_.source) if isinstance(input_.source, str) else input_.source
                image, reason = _as_array(data, input_.name) if data is not None else (None, input_.reason)
                if image is not None:
                    pixels.append(self._transform(image))
            except InputError as error:
                data, reason = None, error.problems[0].what
            except OSError as error:
                data, reason = None, f"unreadable ({error.strerror or type(error).__name__})"
            except MemoryError:
                data, reason = None, "too large for the memory"
            kept = data if self.keep and isinstance(input_.source, str) and is_url(input_.source) else input_.source
            # Photos that were in memory aren't sent back from another process: the caller has them.
            read.append(Input(input_.name, kept if isinstance(kept, (str, bytes)) else None, reason))
        same_size = len({image.shape for image in pixels}) == 1
        return Batch(read, torch.stack(pixels) if same_size else pixels or None)

    def _transform(self, image: np.ndarray) -> Tensor:
        # BGR, as loaded by LoadImageFromFile.
        image = np.ascontiguousarray(image[..., ::-1])
        shape = image.shape[:2]
        try:
            return self.pipeline({"img": image, "img_shape": shape, "ori_shape": shape})["inputs"]
        except MemoryError:
            raise
        except Exception as error:
            raise InputError(f"the config's test pipeline fails on it: {type(error).__name__}: {error}") from error


def read_batches(inputs: Iterable[Input], dataset: PhotoDataset, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Yield batches in the order of the inputs; at most two per worker are in memory.

    If a worker crashes (an error in a decoder), the inputs of the batches that were in progress are read one by one to
    find the one that causes it.
    """
    inputs = iter(inputs)
    pending: deque[list[Input]] = deque()

    def drawn() -> Iterator[list[Input]]:
        while some := list(islice(inputs, batch_size)):
            pending.append(some)
            yield some

    draws = drawn()
    while True:
        try:
            for batch in _start(dataset, draws, workers):
                pending.popleft()
                yield batch
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
        lost = [input_ for some in pending for input_ in some]
        pending.clear()
        for input_ in lost:
            try:
                yield from _start(dataset, [[input_]], 1)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                yield Batch([input_._replace(reason="crashes the decoder")], None)


def _start(dataset: PhotoDataset, draws: Iterable[list[Input]], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=draws,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_init_worker,
        pin_memory=torch.cuda.is_available(),
    )
    if workers == 0 or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    # If a worker dies, torch's signal handler raises an exception at any point of the main thread, also within the
    # network. Without the handler, the loader raises it when the next batch is requested.
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)
    return batches


def _unchanged(batch: Any) -> Any:
    return batch


def _init_worker(worker_id: int) -> None:
    import cv2

    leave_signals_to_the_trainer(worker_id)
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")  # Pillow's, for example about corrupt EXIF; errors are in the reason


def _load(source: str) -> bytes:
    if is_url(source):
        from mmflowers.utils.downloads import fetch_photo

        return fetch_photo(source)
    with open_regular(source) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise InputError(f"the file is larger than {MAX_BYTES:,} bytes")
        return file.read()


def _as_array(photo: bytes | np.ndarray | Image.Image, name: str) -> tuple[np.ndarray | None, str]:
    """Return the photo of a name as RGB, uint8 of shape (H, W, 3), or None and the reason."""
    if isinstance(photo, bytes):
        decoded, reason = decode(photo, os.path.splitext(name)[1])  # noqa: PTH122
        return (None, reason) if decoded is None else (np.asarray(decoded), "")
    if isinstance(photo, Image.Image):
        return np.asarray(upright_rgb(photo)), ""
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3:
        return (photo, "") if photo.size else (None, "empty")
    what = f"{photo.dtype} of shape {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
    return None, f"not an RGB image of uint8 and shape (H, W, 3): {what}"

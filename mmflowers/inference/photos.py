"""Inputs → batches of the network's pixels, decoded by loader processes while the network computes."""

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
from mmflowers.preparation.inspection import MAX_BYTES, decode, open_regular, upright_rgb
from mmflowers.utils.errors import InputError


class Batch(NamedTuple):
    """Inputs that were read together.

    Attributes:
        inputs: All of them in order, with the reason where one can't be read.
        pixels: Of those that can: uint8 of shape (n, 3, H, W), a list of (3, H, W) where sizes differ, None if none.
    """

    inputs: list[Input]
    pixels: Tensor | list[Tensor] | None


class PhotoDataset(Dataset):
    """Reads whole batches of inputs: asked for by the inputs themselves in place of numbers.

    Args:
        pipeline: The config's transforms after the loading of the file.
        keep: Whether inputs come back with the encoded bytes of what was downloaded.
    """

    def __init__(self, pipeline: Callable[[dict], dict], *, keep: bool = False) -> None:
        self.pipeline, self.keep = pipeline, keep

    def __getitems__(self, inputs: list[Input]) -> Batch:
        read, pixels = [], []
        for input_ in inputs:
            try:
                data = _load(input_.source) if isinstance(input_.source, str) else input_.source
                image, reason = _as_array(data) if data is not None else (None, input_.reason)
                if image is not None:
                    pixels.append(self._transform(image))
            except InputError as error:
                data, reason = None, error.problems[0].what
            except OSError as error:
                data, reason = None, f"unreadable ({error.strerror or type(error).__name__})"
            except MemoryError:
                data, reason = None, "takes more memory than there is"
            kept = data if self.keep and isinstance(input_.source, str) and is_url(input_.source) else input_.source
            # What was in memory doesn't come back from another process: it is the caller's already.
            read.append(Input(input_.name, kept if isinstance(kept, (str, bytes)) else None, reason))
        same_size = len({image.shape for image in pixels}) == 1
        return Batch(read, torch.stack(pixels) if same_size else pixels or None)

    def _transform(self, image: np.ndarray) -> Tensor:
        # As LoadImageFromFile leaves it: BGR.
        image = np.ascontiguousarray(image[..., ::-1])
        shape = image.shape[:2]
        try:
            return self.pipeline({"img": image, "img_shape": shape, "ori_shape": shape})["inputs"]
        except MemoryError:
            raise
        except Exception as error:
            raise InputError(f"the config's test pipeline fails on it: {type(error).__name__}: {error}") from error


def read_batches(inputs: Iterable[Input], dataset: PhotoDataset, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Yield the batches in the inputs' order; at most two a worker are held.

    An input that kills the process that reads it (a fault in a decoder) is found by reading the batches that were under
    way one by one.
    """
    inputs = iter(inputs)
    under_way: deque[list[Input]] = deque()

    def drawn() -> Iterator[list[Input]]:
        while some := list(islice(inputs, batch_size)):
            under_way.append(some)
            yield some

    draws = drawn()
    while True:
        try:
            for batch in _start(dataset, draws, workers):
                under_way.popleft()
                yield batch
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
        lost = [input_ for some in under_way for input_ in some]
        under_way.clear()
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
        collate_fn=_as_it_is,
        worker_init_fn=_settle_worker,
        pin_memory=torch.cuda.is_available(),
    )
    if workers == 0 or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    # torch answers the death of a worker by an exception wherever the main thread is just then, amid the network too.
    # Without its handler the loader says so itself when it is asked for the next batch.
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)
    return batches


def _as_it_is(batch: Any) -> Any:
    return batch


def _settle_worker(worker_id: int) -> None:
    import cv2

    leave_signals_to_the_trainer(worker_id)
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")  # Pillow's on corrupt EXIF and the like; the reason says what matters


def _load(source: str) -> bytes:
    if is_url(source):
        from mmflowers.utils.downloads import fetch_photo

        return fetch_photo(source)
    with open_regular(source) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise InputError("absurdly large file")
        return file.read()


def _as_array(photo: bytes | np.ndarray | Image.Image) -> tuple[np.ndarray | None, str]:
    """RGB, uint8 of shape (H, W, 3); or None and the reason."""
    if isinstance(photo, bytes):
        decoded, reason = decode(photo)
        return (None, reason) if decoded is None else (np.asarray(decoded), "")
    if isinstance(photo, Image.Image):
        return np.asarray(upright_rgb(photo)), ""
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3:
        return (photo, "") if photo.size else (None, "empty")
    what = f"{photo.dtype} of shape {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
    return None, f"not an RGB image of uint8 and shape (H, W, 3): {what}"

"""What a transform pipeline makes of a photo, measured by giving it test images: no list of names of transforms.

Test images have known pixels: grey ramps tell which part of a photo is seen and at what scale, flat grey tells how
values are mapped, one colour tells the order of the channels.
"""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmflowers.datasets.seeded import seed_generators

COLOUR = (40, 120, 220)  # RGB of the coloured test image
GREYS = (64, 192)
GREY = 20  # grey levels between the channels of what counts as grey
TRAIN_DRAWS = 12  # measured draws of a pipeline that augments; their median is compared
SOME = 32  # photos whose size is looked at
CHECKED_DRAWS = 200  # in which a step that asks for random numbers may show that it uses them
MAX_PIXELS = 2_000_000  # of the test images: larger photos are measured at this size, of the same shape
SEED = 20  # of the measurements: any number


@dataclass(frozen=True)
class View:
    """A pipeline's view of photos of one size.

    Attributes:
        random_steps: Names of the steps whose result differs from one call to the next; empty for a deterministic one.
        scale: (vertical, horizontal): pixels of the result for one pixel of the photo.
        seen: (vertical, horizontal): share of the photo that is seen, at most about 1.
        gain: Values of the result for one grey level of the photo (1 for pixels as they are, 1/255 for pixels of 0..1).
        offset: Value of the result for black.
        channels: Values of the channels for a photo in ``COLOUR``, in grey levels: three, or one of grey images.
        always_grey: Whether a colour comes out grey in every draw.
    """

    random_steps: tuple[str, ...]
    scale: tuple[float, float]
    seen: tuple[float, float]
    gain: float
    offset: float
    channels: tuple[float, ...]
    always_grey: bool

    @classmethod
    def from_dict(cls, values: Any) -> View | None:
        """The view that ``dataclasses.asdict`` made ``values`` of; None of anything else."""
        try:
            view = cls(**values)
            numbers = [*view.scale, *view.seen, view.gain, view.offset, *view.channels]
            return view if np.isfinite(np.array(numbers, dtype=np.float64)).all() and view.gain else None
        except (TypeError, ValueError):
            return None

    @property
    def stretch(self) -> float:
        """Horizontal by vertical scale: 1 where a circle stays a circle."""
        return self.scale[1] / self.scale[0]

    @property
    def zoom(self) -> float:
        """Geometric mean of both scales."""
        return float(np.sqrt(self.scale[0] * self.scale[1]))

    @property
    def order(self) -> tuple[int, ...]:
        """The channels from the darkest to the brightest for ``COLOUR``: (0, 1, 2) is RGB, (2, 1, 0) BGR."""
        return tuple(int(index) for index in np.argsort(self.channels, kind="stable"))


def usual_size(paths: Sequence[str | Path]) -> tuple[int, int]:
    """(height, width) of a photo of the most usual shape among some of ``paths``: the one of median aspect ratio."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SOME)]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # what can't be opened, other checks report
            sizes.append((image.height, image.width))
    sizes.sort(key=lambda size: (max(size) / min(size), size))
    return sizes[len(sizes) // 2] if sizes else (240, 320)


def measure_view(pipeline: Sequence[dict], size: tuple[int, int], scope: str = "mmpretrain") -> View | None:
    """Measure what a pipeline's config makes of photos of one size.

    Args:
        pipeline: The transforms, of which the first loads a file, and the last gives ``inputs``.
        size: (height, width) of the photos, in pixels.
        scope: The registry that types are looked up in.

    Returns:
        None where the pipeline makes no image of three channels that depends on the photo in a way that can be told.
    """
    shrink = min(1.0, (MAX_PIXELS / (size[0] * size[1])) ** 0.5)
    size = (max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope(scope):
            images = {name: _save(Path(folder), name, pixels) for name, pixels in _test_images(size).items()}
            steps = Compose(copy.deepcopy(list(pipeline))).transforms
            random_steps = _random_steps(steps, images["noise"])
            return _measure(steps, images, size, random_steps)
    except Exception:  # what a transform can't do with a plain RGB photo, the run itself reports
        return None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _test_images(size: tuple[int, int]) -> dict[str, np.ndarray]:
    height, width = size
    down, across = (np.linspace(0, 255, length).round().astype(np.uint8) for length in size)
    patches = np.random.default_rng(SEED).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    noise = patches.repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)[:height, :width]
    pixels = {"across": across[None, :, None], "down": down[:, None, None], "noise": noise}
    pixels |= {f"grey{value}": np.uint8(value) for value in GREYS} | {"colour": np.array(COLOUR, np.uint8)}
    return {name: np.broadcast_to(values, (height, width, 3)) for name, values in pixels.items()}


def _save(folder: Path, name: str, pixels: np.ndarray) -> str:
    path = folder / f"{name}.bmp"  # read alike by every loader, and written at once
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return str(path)


def _sample(path: str) -> dict[str, Any]:
    return {"img_path": path, "gt_label": 0, "sample_idx": 0}


def _generators() -> tuple[bytes, ...]:
    state = np.random.get_state()
    return (
        repr(random.getstate()).encode(),
        state[1].tobytes() + bytes([state[2] % 256]),
        torch.get_rng_state().numpy().tobytes(),
    )


def _random_steps(steps: Sequence, path: str) -> tuple[str, ...]:
    """The steps that draw, if that ever shows in the result.

    A step that asks a generator for numbers changes its state, however rarely it then changes the photo; one with a
    generator of its own shows by its results.
    """
    asking: set[int] = set()
    results: set[bytes] = set()
    differing: int | None = None
    first: list[bytes] = []
    draws, number = 4, 0
    while number < draws:
        seed_generators(SEED, number)
        sample: Any = _sample(path)
        for index, step in enumerate(steps):
            before = _generators()
            sample = step(sample)
            if _generators() != before:
                asking.add(index)
            digest = _pixels(sample)
            if number == 0:
                first.append(digest)
            elif digest != first[index]:
                differing = index if differing is None else min(differing, index)
        results.add(_pixels(sample))
        number += 1
        if number == 2 and asking:
            draws = CHECKED_DRAWS
        if len(results) > 1 and number >= 4:
            break
    if len(results) == 1:
        return ()
    found = sorted(asking) or ([differing] if differing is not None else [])
    return tuple(type(steps[index]).__name__ for index in found)


def _pixels(sample: Any) -> bytes:
    image = sample.get("inputs", sample.get("img")) if isinstance(sample, dict) else None
    image = image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    return image.tobytes()


def _measure(
    steps: Sequence, images: dict[str, str], size: tuple[int, int], random_steps: tuple[str, ...]
) -> View | None:
    rows = []
    for draw in range(TRAIN_DRAWS if random_steps else 1):
        made = {}
        for name in images.keys() - {"noise"}:
            seed_generators(SEED, draw)  # every test image gets the same draw
            sample: Any = _sample(images[name])
            for step in steps:
                sample = step(sample)
            made[name] = np.asarray(sample["inputs"], dtype=np.float64)
        rows.append(_row(made, size))
    values = np.nanmedian(np.array(rows), axis=0)
    if not np.isfinite(values).all():
        return None
    down, across, seen_down, seen_across, gain, offset, *channels = values.tolist()
    always_grey = bool(np.nanmax(np.ptp(np.array(rows)[:, 6:], axis=1)) < GREY)
    return View(random_steps, (down, across), (seen_down, seen_across), gain, offset, tuple(channels), always_grey)


def _row(made: dict[str, np.ndarray], size: tuple[int, int]) -> list[float]:
    """Of one draw: both scales, both shares, gain, offset and the channels; nan for what can't be told."""
    dark, bright = (np.median(made[f"grey{value}"], axis=(1, 2)) for value in GREYS)
    gain = (bright - dark) / (GREYS[1] - GREYS[0])
    offset = dark - gain * GREYS[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        channels = (np.median(made["colour"], axis=(1, 2)) - offset) / gain
        grey = {
            name: ((made[name] - offset[:, None, None]) / gain[:, None, None]).mean(0) for name in ("across", "down")
        }
    scales, seen = [], []
    for name, side, length in (("down", 0, size[0]), ("across", 1, size[1])):
        # Levels of the ramp for one pixel of the result; turned by 90 degrees the other direction has them.
        slopes = np.abs(_slopes(grey[name]))
        slope = float(slopes.max())
        if not slope > 1e-3:  # a single level over the whole result: nothing of the ramp is left
            return [np.nan] * (6 + len(channels))
        scale = 255 / (length - 1) / slope
        scales.append(scale)
        shape = grey[name].shape
        seen.append(shape[int(slopes.argmax())] / scale / size[side])
    return [*scales, *seen, float(np.median(gain)), float(np.median(offset)), *channels.tolist()]


def _slopes(values: np.ndarray) -> np.ndarray:
    """Least-squares slope (per row, per column) over the middle half: padding and rounding show least there."""
    height, width = values.shape
    middle = values[
        height // 4 : max(height - height // 4, height // 4 + 2), width // 4 : max(width - width // 4, width // 4 + 2)
    ]
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in middle.shape)
    down = (middle.mean(1) * rows).sum() / (rows**2).sum()
    across = (middle.mean(0) * columns).sum() / (columns**2).sum()
    return np.array([down, across])

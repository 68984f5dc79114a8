"""Measure the output of a transform pipeline with test images, so that it works for any transform.

Test images have known pixels. Grey ramps show the visible part of a photo and its scale, uniform grey shows the mapping
of values, and one colour shows the channel order.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmflowers.datasets.seeded import seed_generators
from mmflowers.utils.errors import InputError

COLOUR = (40, 120, 220)  # RGB of the coloured test image
GREYS = (64, 192)
GREY = 20  # maximum difference of the channels of a grey image, in grey levels
DRAWS = 12  # measurements of a random pipeline
SAMPLED = 32  # photos whose size is read
CHECKED_DRAWS = 200  # runs of a step that draws random numbers, to find whether they change its output
MAX_PIXELS = 2_000_000  # of the test images; for larger photos they have the same aspect ratio
SEED = 20  # arbitrary


class Values(NamedTuple):
    """The mapping of colours in one run of a pipeline.

    Attributes:
        gain: Output values per grey level of the photo (1 for unchanged pixels, 1/255 for pixels in 0..1).
        offset: Output value for black.
        channels: Values of the channels (three, or one for grey images) for a photo in ``COLOUR``, in grey levels.
    """

    gain: float
    offset: float
    channels: tuple[float, ...]

    @property
    def is_grey(self) -> bool:
        """Whether the output for a colour is grey."""
        return max(self.channels) - min(self.channels) < GREY

    @property
    def order(self) -> tuple[int, ...]:
        """The channels sorted by their value for ``COLOUR``: (0, 1, 2) is RGB, (2, 1, 0) BGR."""
        return tuple(int(index) for index in np.argsort(self.channels, kind="stable"))


@dataclass(frozen=True)
class View:
    """The measured output of a pipeline for photos of one size.

    Attributes:
        random_steps: Names of the steps with random output; empty for a deterministic pipeline.
        scale: (vertical, horizontal): output pixels per pixel of the photo; negative if every photo is upside down or
            mirrored.
        seen: (vertical, horizontal): visible share of the photo, at most about 1.
        draws: The mapping of colours in one run of a deterministic pipeline, or in several runs of a random one.
    """

    random_steps: tuple[str, ...]
    scale: tuple[float, float]
    seen: tuple[float, float]
    draws: tuple[Values, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the view as lists, strings and numbers, for a checkpoint."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Any) -> View | None:
        """Return the view from the values of ``to_dict``; None for invalid values."""
        try:
            draws = tuple(
                Values(float(gain), float(offset), tuple(channels)) for gain, offset, channels in values["draws"]
            )
            view = cls(tuple(values["random_steps"]), tuple(values["scale"]), tuple(values["seen"]), draws)
            numbers = [
                *view.scale,
                *view.seen,
                *(n for draw in draws for n in (draw.gain, draw.offset, *draw.channels)),
            ]
            whole = np.isfinite(np.array(numbers, dtype=np.float64)).all() and all(draw.gain for draw in draws)
            return view if whole and draws and all(view.scale) else None
        except (TypeError, ValueError, LookupError):
            return None

    @property
    def stretch(self) -> float:
        """Horizontal divided by vertical scale; 1 if the aspect ratio is kept."""
        return abs(self.scale[1] / self.scale[0])

    @property
    def zoom(self) -> float:
        """Geometric mean of both scales."""
        return float(np.sqrt(abs(self.scale[0] * self.scale[1])))

    @property
    def white(self) -> float:
        """Output value for white, in the first run."""
        return self.draws[0].offset + 255 * self.draws[0].gain

    @property
    def is_turned(self) -> bool:
        """Whether every photo is mirrored or upside down."""
        return not self.random_steps and min(self.scale) < 0


def usual_size(paths: Sequence[str | Path]) -> tuple[int, int]:
    """Return (height, width) of the photo with the median aspect ratio, among some of ``paths``."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SAMPLED)]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # other checks report damaged photos
            sizes.append((image.height, image.width))
    sizes.sort(key=lambda size: (max(size) / min(size), size))
    return sizes[len(sizes) // 2] if sizes else (240, 320)


def unusual_photos(paths: Sequence[str | Path], number: int = 3) -> list[str]:
    """Return the widest, the highest and the smallest photo among some of ``paths``."""
    sizes = {}
    for path in paths[:: max(1, len(paths) // SAMPLED)]:
        with contextlib.suppress(Exception), Image.open(path) as image:
            sizes[str(path)] = image.size
    measures: list[Callable[[str], float]] = [
        lambda path: -sizes[path][0] / sizes[path][1],
        lambda path: sizes[path][0] / sizes[path][1],
        lambda path: sizes[path][0] * sizes[path][1],
    ]
    return list(dict.fromkeys(min(sizes, key=measure) for measure in measures[:number] if sizes))


def measure_view(
    pipeline: Sequence[dict[str, Any]], size: tuple[int, int], scope: str = "mmpretrain", photos: Sequence[str] = ()
) -> View:
    """Measure the output of a pipeline for photos of one size.

    Args:
        pipeline: Configs of the transforms; the first loads a file, the last outputs ``inputs``.
        size: (height, width) of the photos, in pixels.
        scope: The registry scope in which types are looked up.
        photos: Paths of real photos, on which random steps are searched too.

    Raises:
        InputError: The pipeline fails, or its output has no simple relation to the photo.
    """
    shrink = min(1.0, (MAX_PIXELS / (size[0] * size[1])) ** 0.5)
    size = (max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1))
    with _prepared(pipeline, size, scope) as (steps, images):
        return _measure(steps, images, size, _all_random_steps(steps, [images["noise"], *photos]))


def random_steps(
    pipeline: Sequence[dict[str, Any]], size: tuple[int, int], scope: str = "mmpretrain", photos: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the names of the steps with random output, also for a pipeline with several views per photo.

    Args:
        pipeline, size, scope, photos: See ``measure_view``.

    Raises:
        InputError: The pipeline fails.
    """
    with _prepared(pipeline, size, scope) as (steps, images):
        return _all_random_steps(steps, [images["noise"], *photos])


def example(pipeline: Sequence[dict[str, Any]], size: tuple[int, int], scope: str = "mmpretrain") -> torch.Tensor:
    """Return the output of a pipeline for a test image, of shape (channels, height, width).

    Args:
        pipeline, size, scope: See ``measure_view``.

    Raises:
        InputError: The pipeline fails.
    """
    with _prepared(pipeline, size, scope) as (steps, images):
        seed_generators(SEED, 0)
        sample: Any = _sample(images["noise"])
        for step in steps:
            sample = step(sample)
        inputs: torch.Tensor = sample["inputs"]
        return inputs


@contextlib.contextmanager
def _prepared(
    pipeline: Sequence[dict[str, Any]], size: tuple[int, int], scope: str
) -> Iterator[tuple[list[Any], dict[str, str]]]:
    """Build the transforms and write the test images; restore the random generators afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope(scope):
            images = {name: _save(Path(folder), name, pixels) for name, pixels in _test_images(size).items()}
            yield Compose(copy.deepcopy(list(pipeline))).transforms, images
    except InputError:
        raise
    except Exception as error:  # transforms raise any type
        raise InputError(f"it fails on a test image: {type(error).__name__}: {error}") from error
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
    path = folder / f"{name}.bmp"  # lossless and fast to write
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return str(path)


def _sample(path: str) -> dict[str, Any]:
    return {"img_path": path, "gt_label": 0, "sample_idx": 0}


def _generators() -> tuple[bytes, ...]:
    state = np.random.get_state(legacy=False)["state"]
    return (
        repr(random.getstate()).encode(),
        state["key"].tobytes() + bytes([state["pos"] % 256]),
        torch.get_rng_state().numpy().tobytes(),
    )


def _all_random_steps(steps: Sequence[Any], paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for path in paths for name in _random_steps(steps, path)))


def _random_steps(steps: Sequence[Any], path: str) -> tuple[str, ...]:
    """Return the names of the random steps, if the output of the pipeline ever differs.

    A step that draws from a global generator changes its state, even if it seldom changes the photo. A step with
    its own generator is found by its output.
    """
    drawing: set[int] = set()
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
                drawing.add(index)
            digest = _pixels(sample)
            if number == 0:
                first.append(digest)
            elif digest != first[index]:
                differing = index if differing is None else min(differing, index)
        results.add(_pixels(sample))
        number += 1
        if number == 2 and drawing:
            draws = CHECKED_DRAWS
        if len(results) > 1 and number >= 4:
            break
    if len(results) == 1:
        return ()
    found = sorted(drawing) or ([differing] if differing is not None else [])
    return tuple(type(steps[index]).__name__ for index in found)


def _pixels(sample: Any) -> bytes:
    image = sample.get("inputs", sample.get("img")) if isinstance(sample, dict) else None
    views = image if isinstance(image, (list, tuple)) else [image]  # test-time augmentation has several
    return b"".join(np.asarray(view).tobytes() for view in views)


def _measure(
    steps: Sequence[Any], images: dict[str, str], size: tuple[int, int], random_steps: tuple[str, ...]
) -> View:
    geometry, draws = [], []
    for draw in range(DRAWS if random_steps else 1):
        outputs = {}
        for name in images.keys() - {"noise"}:
            seed_generators(SEED, draw)  # the same random numbers for every test image
            sample: Any = _sample(images[name])
            for step in steps:
                sample = step(sample)
            outputs[name] = np.asarray(sample["inputs"], dtype=np.float64)
        values, shape = _values(outputs), _geometry(outputs, size)
        if values is not None:
            draws.append(values)
        if shape is not None:
            geometry.append(shape)
    if not draws or not geometry:
        raise InputError("its output has no measurable relation to the pixels of a photo")
    measured = np.array(geometry)
    turned = np.where((measured < 0).all(axis=0), -1, 1)  # in every run, so not for a random flip
    down, across, seen_down, seen_across = (np.median(np.abs(measured), axis=0) * turned).tolist()
    return View(random_steps, (down, across), (seen_down, seen_across), tuple(draws))


def _values(outputs: dict[str, np.ndarray]) -> Values | None:
    """Return the mapping of colours of one run; None if all greys have the same output."""
    gains, offsets = _map_of_grey(outputs)
    if not np.abs(gains).min() > 0:
        return None
    channels = (np.median(outputs["colour"], axis=(1, 2)) - offsets) / gains
    return Values(float(np.median(gains)), float(np.median(offsets)), tuple(channels.tolist()))


def _map_of_grey(outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and offset of each channel."""
    dark, bright = (np.median(outputs[f"grey{value}"], axis=(1, 2)) for value in GREYS)
    gains = (bright - dark) / (GREYS[1] - GREYS[0])
    return gains, dark - gains * GREYS[0]


def _geometry(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[float] | None:
    """Return both scales and both visible shares of one run; None if the ramps aren't visible."""
    gains, offsets = _map_of_grey(outputs)
    if not np.abs(gains).min() > 0:
        return None
    scales, seen = [], []
    for name, length in (("down", size[0]), ("across", size[1])):
        # Grey levels of the ramp per output pixel; after a rotation by 90 degrees, the ramp is in the other direction.
        grey = ((outputs[name] - offsets[:, None, None]) / gains[:, None, None]).mean(0)
        slopes = [_slope(grey), _slope(grey.T)]
        steepest = int(np.argmax(np.abs(slopes)))
        if not abs(slopes[steepest]) > 1e-3:  # uniform output, without the ramp
            return None
        scale = 255 / (length - 1) / slopes[steepest]
        scales.append(scale)
        seen.append(grey.shape[steepest] / abs(scale) / length)
    return [*scales, *seen]


def _slope(values: np.ndarray) -> float:
    """Return the typical slope from row to row: the mean of the middle half, unaffected by erased and padded parts."""
    distance = max(1, values.shape[0] // 3)
    steps = np.sort(values[distance:] - values[:-distance], axis=None)
    middle = steps[len(steps) // 4 : len(steps) - len(steps) // 4]
    return float(middle.mean()) / distance if middle.size else 0.0

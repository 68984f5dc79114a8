"""What a transform pipeline makes of a photo, measured by giving it test images: no list of names of transforms.

Test images have known pixels: grey ramps tell which part of a photo is seen and at what scale, flat grey tells how
values are mapped, one colour tells the order of the channels.
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
GREY = 20  # grey levels between the channels of what counts as grey
DRAWS = 12  # that are measured of a pipeline that augments
SOME = 32  # photos whose size is looked at
CHECKED_DRAWS = 200  # in which a step that asks for random numbers may show that it uses them
MAX_PIXELS = 2_000_000  # of the test images: larger photos are measured at this size, of the same shape
SEED = 20  # of the measurements: any number


class Values(NamedTuple):
    """What one draw of a pipeline makes of colours.

    Attributes:
        gain: Values of the result for one grey level of the photo (1 for pixels as they are, 1/255 for pixels of 0..1).
        offset: Value of the result for black.
        channels: Values of the channels (three, or one of a pipeline that makes grey images) for a photo in ``COLOUR``,
            in grey levels.
    """

    gain: float
    offset: float
    channels: tuple[float, ...]

    @property
    def is_grey(self) -> bool:
        """Whether a colour comes out grey."""
        return max(self.channels) - min(self.channels) < GREY

    @property
    def order(self) -> tuple[int, ...]:
        """The channels from the darkest to the brightest for ``COLOUR``: (0, 1, 2) is RGB, (2, 1, 0) BGR."""
        return tuple(int(index) for index in np.argsort(self.channels, kind="stable"))


@dataclass(frozen=True)
class View:
    """A pipeline's view of photos of one size.

    Attributes:
        random_steps: Names of the steps whose result differs from one call to the next; empty for a deterministic one.
        scale: (vertical, horizontal): pixels of the result for one pixel of the photo; negative where every photo is
            upside down or mirrored.
        seen: (vertical, horizontal): share of the photo that is seen, at most about 1.
        draws: What single draws make of colours: one of a deterministic pipeline, several of a random one.
    """

    random_steps: tuple[str, ...]
    scale: tuple[float, float]
    seen: tuple[float, float]
    draws: tuple[Values, ...]

    def to_dict(self) -> dict[str, Any]:
        """This view as plain lists, text and numbers, which a checkpoint can hold."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Any) -> View | None:
        """The view that ``to_dict`` made ``values`` of; None of anything else."""
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
        """Horizontal by vertical scale: 1 where a circle stays a circle."""
        return abs(self.scale[1] / self.scale[0])

    @property
    def zoom(self) -> float:
        """Geometric mean of both scales."""
        return float(np.sqrt(abs(self.scale[0] * self.scale[1])))

    @property
    def white(self) -> float:
        """Value of the result for white, of one draw."""
        return self.draws[0].offset + 255 * self.draws[0].gain

    @property
    def is_turned(self) -> bool:
        """Whether every photo is mirrored or upside down."""
        return not self.random_steps and min(self.scale) < 0


def usual_size(paths: Sequence[str | Path]) -> tuple[int, int]:
    """(height, width) of a photo of the most usual shape among some of ``paths``: the one of median aspect ratio."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SOME)]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # what can't be opened, other checks report
            sizes.append((image.height, image.width))
    sizes.sort(key=lambda size: (max(size) / min(size), size))
    return sizes[len(sizes) // 2] if sizes else (240, 320)


def unusual_photos(paths: Sequence[str | Path], number: int = 3) -> list[str]:
    """The widest, the highest and the smallest photo among some of ``paths``."""
    sizes = {}
    for path in paths[:: max(1, len(paths) // SOME)]:
        with contextlib.suppress(Exception), Image.open(path) as image:
            sizes[str(path)] = image.size
    measures: list[Callable[[str], float]] = [
        lambda path: -sizes[path][0] / sizes[path][1],
        lambda path: sizes[path][0] / sizes[path][1],
        lambda path: sizes[path][0] * sizes[path][1],
    ]
    return list(dict.fromkeys(min(sizes, key=measure) for measure in measures[:number] if sizes))


def measure_view(
    pipeline: Sequence[dict], size: tuple[int, int], scope: str = "mmpretrain", photos: Sequence[str] = ()
) -> View:
    """Measure what a pipeline's config makes of photos of one size.

    Args:
        pipeline: The transforms, of which the first loads a file, and the last gives ``inputs``.
        size: (height, width) of the photos, in pixels.
        scope: The registry that types are looked up in.
        photos: Paths of some real photos, on which chance is looked for too.

    Raises:
        InputError: It can't be measured: the pipeline fails, or what it makes depends on the photo in no simple way.
    """
    shrink = min(1.0, (MAX_PIXELS / (size[0] * size[1])) ** 0.5)
    size = (max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1))
    with _laid_out(pipeline, size, scope) as (steps, images):
        return _measure(steps, images, size, _all_random_steps(steps, [images["noise"], *photos]))


def random_steps(
    pipeline: Sequence[dict], size: tuple[int, int], scope: str = "mmpretrain", photos: Sequence[str] = ()
) -> tuple[str, ...]:
    """The steps of a pipeline whose result differs from one call to the next, also of one that makes several views.

    Args:
        pipeline: See ``measure_view``, as for the rest.
        size: Of the test image.
        scope: The registry.
        photos: Paths.

    Raises:
        InputError: The pipeline fails.
    """
    with _laid_out(pipeline, size, scope) as (steps, images):
        return _all_random_steps(steps, [images["noise"], *photos])


def example(pipeline: Sequence[dict], size: tuple[int, int], scope: str = "mmpretrain") -> torch.Tensor:
    """What a pipeline makes of one made-up photo: its ``inputs``, of shape (channels, height, width).

    Args:
        pipeline: See ``measure_view``, as for the rest.
        size: Of the photo.
        scope: The registry.

    Raises:
        InputError: The pipeline fails.
    """
    with _laid_out(pipeline, size, scope) as (steps, images):
        seed_generators(SEED, 0)
        sample: Any = _sample(images["noise"])
        for step in steps:
            sample = step(sample)
        return sample["inputs"]


@contextlib.contextmanager
def _laid_out(pipeline: Sequence[dict], size: tuple[int, int], scope: str) -> Iterator[tuple[list, dict[str, str]]]:
    """The pipeline's transforms and the paths of the test images; generators are left as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope(scope):
            images = {name: _save(Path(folder), name, pixels) for name, pixels in _test_images(size).items()}
            yield Compose(copy.deepcopy(list(pipeline))).transforms, images
    except InputError:
        raise
    except Exception as error:  # a transform fails in any way
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
    path = folder / f"{name}.bmp"  # read alike by every loader, and written at once
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


def _all_random_steps(steps: Sequence, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for path in paths for name in _random_steps(steps, path)))


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
    views = image if isinstance(image, (list, tuple)) else [image]  # several of a test-time augmentation
    return b"".join(np.asarray(view).tobytes() for view in views)


def _measure(steps: Sequence, images: dict[str, str], size: tuple[int, int], random_steps: tuple[str, ...]) -> View:
    geometry, draws = [], []
    for draw in range(DRAWS if random_steps else 1):
        made = {}
        for name in images.keys() - {"noise"}:
            seed_generators(SEED, draw)  # every test image gets the same draw
            sample: Any = _sample(images[name])
            for step in steps:
                sample = step(sample)
            made[name] = np.asarray(sample["inputs"], dtype=np.float64)
        values, shape = _values(made), _geometry(made, size)
        if values is not None:
            draws.append(values)
        if shape is not None:
            geometry.append(shape)
    if not draws or not geometry:
        raise InputError("a photo's pixels can't be recognised in what it makes")
    measured = np.array(geometry)
    turned = np.where((measured < 0).all(axis=0), -1, 1)  # in every draw: a flip at random is none
    down, across, seen_down, seen_across = (np.median(np.abs(measured), axis=0) * turned).tolist()
    return View(random_steps, (down, across), (seen_down, seen_across), tuple(draws))


def _values(made: dict[str, np.ndarray]) -> Values | None:
    """Of one draw; None where grey comes out as one value."""
    gains, offsets = _map_of_grey(made)
    if not np.abs(gains).min() > 0:
        return None
    channels = (np.median(made["colour"], axis=(1, 2)) - offsets) / gains
    return Values(float(np.median(gains)), float(np.median(offsets)), tuple(channels.tolist()))


def _map_of_grey(made: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each channel."""
    dark, bright = (np.median(made[f"grey{value}"], axis=(1, 2)) for value in GREYS)
    gains = (bright - dark) / (GREYS[1] - GREYS[0])
    return gains, dark - gains * GREYS[0]


def _geometry(made: dict[str, np.ndarray], size: tuple[int, int]) -> list[float] | None:
    """Of one draw: both scales, both shares; None where the ramps don't show."""
    gains, offsets = _map_of_grey(made)
    if not np.abs(gains).min() > 0:
        return None
    scales, seen = [], []
    for name, length in (("down", size[0]), ("across", size[1])):
        # Levels of the ramp for one pixel of the result; turned by 90 degrees the other direction has them.
        grey = ((made[name] - offsets[:, None, None]) / gains[:, None, None]).mean(0)
        slopes = [_slope(grey), _slope(grey.T)]
        steepest = int(np.argmax(np.abs(slopes)))
        if not abs(slopes[steepest]) > 1e-3:  # a single level over the whole result: nothing of the ramp is left
            return None
        scale = 255 / (length - 1) / slopes[steepest]
        scales.append(scale)
        seen.append(grey.shape[steepest] / abs(scale) / length)
    return [*scales, *seen]


def _slope(values: np.ndarray) -> float:
    """The usual slope from row to row: the mean of the middle half of all, whatever is erased or padded."""
    distance = max(1, values.shape[0] // 3)
    steps = np.sort(values[distance:] - values[:-distance], axis=None)
    middle = steps[len(steps) // 4 : len(steps) - len(steps) // 4]
    return float(middle.mean()) / distance if middle.size else 0.0

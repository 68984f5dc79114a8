"""Augmentation of whole batches on any device: the random transforms of a pipeline.

A photo's augmentation has the same distribution as MMPretrain's or torchvision's (a test compares them). It depends
only on seed, epoch and photo, not on the batch.

Each transform has two forms. ``apply`` transforms a batch on a GPU. On a CPU, ``apply_one`` transforms photo by photo,
so that a photo stays in the cache; it uses OpenCV, in uint8 as with Pillow's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflowers.utils.errors import InputError

LOAD = "LoadImageFromFile"
NEUTRAL = (LOAD, "NumpyToPIL", "PILToNumpy", "PackInputs")
# Deterministic transforms: their result can be cached.
STILL = (*NEUTRAL, "Resize", "ResizeEdge", "CenterCrop", "EfficientNetCenterCrop", "Pad")
GREY_BGR = (0.114, 0.587, 0.2989)  # torchvision's weights, for blue, green, red
LEVELS = np.arange(256.0)
RESAMPLED = ("bilinear", "bicubic")
LOAD_OPTIONS = ("imdecode_backend", "backend_args", "file_client_args")  # with any values the result is uint8 in BGR


class RandomResizedCrop:
    """MMPretrain's and torchvision's transform of that name: a box of random area and shape, scaled to a square.

    The whole photo was scaled to a square before. The box is drawn in the photo's own proportions, and cut out of the
    square by its fractions of height and width, so that the proportions are right.

    Args:
        size: Edge of the result in pixels.
        area: Least and largest share of the photo.
        aspect: Least and largest width over height.
        attempts: Boxes to draw until one is inside; otherwise the largest allowed one in the middle is used.
        mode: "bilinear" or "bicubic", both with antialiasing, as Pillow's.
    """

    def __init__(
        self,
        size: int,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        attempts: int = 10,
        mode: str = "bilinear",
    ) -> None:
        self.size, self.area, self.aspect, self.attempts, self.mode = size, area, aspect, attempts, mode

    def draw(self, rng: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
        """Boxes as fractions (top, left, bottom, right), float64 of shape (n, 4), for photos of ``shapes`` (n, 2)."""
        count = len(shapes)
        height, width = shapes[:, :1].astype(float), shapes[:, 1:].astype(float)
        area = rng.uniform(*self.area, (count, self.attempts)) * height * width
        low, high = np.log(self.aspect)
        aspect = np.exp(rng.uniform(low, high, (count, self.attempts)))
        box_h, box_w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        inside = (box_h > 0) & (box_h <= height) & (box_w > 0) & (box_w <= width)
        first = inside.argmax(1)[:, None]
        box_h, box_w = np.take_along_axis(box_h, first, 1), np.take_along_axis(box_w, first, 1)
        top = np.floor(rng.random((count, 1)) * (height - box_h + 1))
        left = np.floor(rng.random((count, 1)) * (width - box_w + 1))

        least, largest = self.aspect
        ratio = width / height
        middle_h = np.where(ratio < least, np.rint(width / least), height)
        middle_w = np.where(ratio > largest, np.rint(height * largest), width)
        found = inside.any(1, keepdims=True)
        box_h, box_w = np.where(found, box_h, middle_h), np.where(found, box_w, middle_w)
        top = np.where(found, top, (height - box_h) // 2)
        left = np.where(found, left, (width - box_w) // 2)
        return np.hstack([top / height, left / width, (top + box_h) / height, (left + box_w) / width])

    def apply(self, images: Tensor, boxes: np.ndarray) -> Tensor:
        """uint8 of shape (n, 3, S, S) → (n, 3, size, size): uint8 on a CPU, float32 on another device."""
        way = cut_one_by_one if images.device.type == "cpu" else cut
        return way(images, boxes, self.size, self.mode)


def cut_one_by_one(images: Tensor, boxes: np.ndarray, size: int, mode: str = "bilinear") -> Tensor:
    """Crop and scale each image by PyTorch's uint8 kernel: 30 times as fast on a CPU as ``cut``."""
    edge = images.shape[-1]
    start = np.clip(np.rint(boxes[:, :2] * edge), 0, edge - 1).astype(int)
    end = np.clip(np.rint(boxes[:, 2:] * edge), start + 1, edge).astype(int)
    shape = (len(images), images.shape[1], size, size)
    result = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    for number, ((top, left), (bottom, right)) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        box = images[number : number + 1, :, top:bottom, left:right]
        result[number] = F.interpolate(box, (size, size), mode=mode, antialias=True)[0]
    return result


def cut(images: Tensor, boxes: np.ndarray, size: int, mode: str = "bilinear") -> Tensor:
    """Crop and scale a whole batch by two matrix products: scaling is linear in rows and in columns."""
    edge = images.shape[-1]
    dtype = torch.float16 if images.is_cuda else torch.float32  # 0…255 is exact in float16
    rows, columns = (
        _resampling(boxes[:, [side, side + 2]] * edge, size, edge, images.device, mode).to(dtype)[:, None]
        for side in (0, 1)
    )
    return (rows @ images.to(dtype) @ columns.mT).float().round_().clamp_(0, 255)


def _resampling(spans: np.ndarray, size: int, edge: int, device: torch.device, mode: str) -> Tensor:
    """The matrices (n, size, edge) that scale ``spans`` (n, 2) of a line of ``edge`` pixels to ``size`` pixels.

    Pillow's filters: a triangle, or Keys' cubic with a = -1/2, as wide as a pixel of the coarser of the two grids, cut
    off at the span's ends.
    """
    start, end = on_device(spans, device).float()[:, :, None].unbind(1)
    scale = (end - start) / size
    centre = start[:, None] + (torch.arange(size, device=device)[:, None] + 0.5) * scale[:, None]
    pixel = torch.arange(edge, device=device) + 0.5
    distance = (pixel - centre).abs() / scale[:, None].clamp(min=1)
    if mode == "bicubic":
        near = (1.5 * distance - 2.5) * distance.square() + 1
        far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weights = (1 - distance).clamp(min=0)
    inside = (pixel > start.floor()) & (pixel < end.ceil())
    weights = weights * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


class RandomFlip:
    """Mirror left and right with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def draw(self, rng: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
        """Whether to, bool of shape (n,)."""
        return rng.random(len(shapes)) < self.prob

    def apply(self, images: Tensor, flips: np.ndarray) -> Tensor:
        """(n, 3, H, W) → the same shape and dtype."""
        chosen = on_device(np.flatnonzero(flips), images.device)
        images[chosen] = images[chosen].flip(3)
        return images

    def apply_one(self, image: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """uint8 of shape (H, W, 3) → the same."""
        return cv2.flip(image, 1) if flip else image


class ColorJitter:
    """torchvision's: brightness, contrast, saturation and hue by random factors in random order.

    Args:
        brightness: Least and largest factor.
        contrast: Likewise.
        saturation: Likewise.
        hue: Least and largest turn of the hue, in turns.
    """

    def __init__(self, brightness: Sequence, contrast: Sequence, saturation: Sequence, hue: Sequence) -> None:
        self.ranges = (brightness, contrast, saturation, hue)

    def draw(self, rng: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
        """Four factors and the order of the four, float64 of shape (n, 8)."""
        order = rng.permuted(np.tile(np.arange(4.0), (len(shapes), 1)), axis=1)
        return np.hstack([rng.uniform(low, high, (len(shapes), 1)) for low, high in self.ranges] + [order])

    def apply(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """BGR of shape (n, 3, H, W) and 0…255 → float32 likewise."""
        images = images.float().contiguous()  # planes of one colour: every step below takes them apart
        factors, order = drawn[:, :4], drawn[:, 4:]
        for place in range(4):
            for kind, change in enumerate((_brightness, _contrast, _saturation, _hue)):
                here = np.flatnonzero(order[:, place] == kind)
                if len(here) and self.ranges[kind][0] != self.ranges[kind][1]:
                    chosen = on_device(here, images.device)
                    factor = on_device(factors[here, kind], images.device).float().view(-1, 1, 1, 1)
                    images[chosen] = change(images[chosen], factor)
        return images

    def apply_one(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """BGR, uint8 of shape (H, W, 3) → the same."""
        for kind in drawn[4:].astype(int):
            if self.ranges[kind][0] != self.ranges[kind][1]:
                image = _CHANGE_ONE[kind](image, drawn[kind])
        return image


def _grey(images: Tensor) -> Tensor:
    blue, green, red = GREY_BGR
    return blue * images[:, :1] + green * images[:, 1:2] + red * images[:, 2:]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 255)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images).mean((2, 3), keepdim=True).round(), images, factor).clamp_(0, 255)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images), images, factor).clamp_(0, 255)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue in HSV, by the formula f(n) = V − V·S·max(0, min(k, 4 − k, 1)), k = (n + 6·hue) mod 6."""
    blue, green, red = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turn[:, :, 0]
    channels = []
    for number in (1, 3, 5):  # blue, green, red
        k = (number + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def _brightness_of_one(image: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(image, LEVELS * factor)


def _contrast_of_one(image: np.ndarray, factor: float) -> np.ndarray:
    mean = round(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean())
    return _look_up(image, mean + (LEVELS - mean) * factor)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, levels.round().clip(0, 255).astype(np.uint8))


def _saturation_of_one(image: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def _hue_of_one(image: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # a turn is 256 steps, and uint8 wraps at the next
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


_CHANGE_ONE = (_brightness_of_one, _contrast_of_one, _saturation_of_one, _hue_of_one)


class RandomAffine:
    """torchvision's RandomAffine, and with angles alone its RandomRotation; pixels from outside are black.

    Args:
        degrees: Least and largest angle.
        translate: Largest shift as shares of width and height.
        scale: Least and largest factor.
        shear: Least and largest shear of x and of y in degrees, four numbers.
        mode: "bilinear" or "nearest".
        sign: −1 for RandomRotation, which turns the other way.
    """

    def __init__(
        self,
        degrees: Sequence,
        translate: Sequence = (0.0, 0.0),
        scale: Sequence = (1.0, 1.0),
        shear: Sequence = (0.0, 0.0, 0.0, 0.0),
        mode: str = "nearest",
        sign: int = 1,
    ) -> None:
        self.degrees, self.translate, self.scale = degrees, translate, scale
        self.shear, self.mode, self.sign = shear, mode, sign

    def draw(self, rng: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
        """Angle, shift of x and y (shares), scale, shear of x and y (degrees): float64 of shape (n, 6)."""
        limits = (
            *(self.degrees, (-self.translate[0], self.translate[0]), (-self.translate[1], self.translate[1])),
            *(self.scale, self.shear[:2], self.shear[2:]),
        )
        return np.hstack([rng.uniform(low, high, (len(shapes), 1)) for low, high in limits])

    def apply(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """(n, 3, size, size), 0…255 → float32 of the same shape."""
        size = images.shape[-1]
        inverse, shift = self._inverse(drawn, size)
        offset = inverse @ -shift[:, :, None] * 2 / size
        theta = on_device(np.concatenate([inverse, offset], 2), images.device).float()
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, mode=self.mode, padding_mode="zeros", align_corners=False)

    def apply_one(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """uint8 of shape (size, size, 3) → the same."""
        size = len(image)
        (inverse,), (shift,) = self._inverse(drawn[None], size)
        middle = (size - 1) / 2  # OpenCV counts from the middle of the first pixel
        offset = middle - inverse @ (middle + shift)
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if self.mode == "bilinear" else cv2.INTER_NEAREST)
        return cv2.warpAffine(image, np.column_stack([inverse, offset]), (size, size), flags=flags)

    def _inverse(self, drawn: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of rotation, scale and shear (n, 2, 2), and the shift before it in pixels (n, 2)."""
        angle, shear_x, shear_y = np.radians(drawn[:, [0, 4, 5]].T)
        angle = self.sign * angle
        # As torchvision has it (functional._get_inverse_affine_matrix).
        a, c = np.cos(angle - shear_y) / np.cos(shear_y), np.sin(angle - shear_y) / np.cos(shear_y)
        b, d = -a * np.tan(shear_x) - np.sin(angle), -c * np.tan(shear_x) + np.cos(angle)
        inverse = np.stack([np.stack([d, -b], 1), np.stack([-c, a], 1)], 1) / drawn[:, 3, None, None]
        return inverse, np.rint(drawn[:, 1:3] * size)  # torchvision shifts by whole pixels


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for the device, as a copy from pageable memory would."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Augmentation:
    """The random transforms of a pipeline in their order, the first of them a RandomResizedCrop.

    Args:
        pipeline: The config's, a list of dicts.

    Raises:
        InputError: Naming every transform that has no batched form (see ``unbatched``).
    """

    def __init__(self, pipeline: Sequence[dict]) -> None:
        self.transforms, unknown = _batched(pipeline)
        if unknown:
            raise InputError(
                f"can't augment whole batches with {', '.join(unknown)}",
                f"known are {', '.join(_KNOWN)}; a FlowersDataset runs others photo by photo",
            )

    @property
    def size(self) -> int:
        """Edge of the results in pixels."""
        return self.transforms[0].size

    @size.setter
    def size(self, size: int) -> None:
        self.transforms[0].size = size

    def draw(self, rng: np.random.Generator, shapes: np.ndarray) -> list[np.ndarray]:
        """Draw for photos of ``shapes`` (n, 2), height and width; for each transform an array with n rows."""
        return [transform.draw(rng, shapes) for transform in self.transforms]

    def __call__(self, images: Tensor, drawn: list[np.ndarray]) -> Tensor:
        """BGR uint8 of shape (n, 3, S, S) → (n, 3, size, size), 0…255, on the same device: uint8 on a CPU."""
        crop, *others = self.transforms
        images = crop.apply(images, drawn[0])
        if images.device.type != "cpu":
            for transform, values in zip(others, drawn[1:], strict=True):
                images = transform.apply(images, values)
            return images
        pixels = images.permute(0, 2, 3, 1).numpy()  # the same memory
        for number, image in enumerate(pixels):
            for transform, values in zip(others, drawn[1:], strict=True):
                image = transform.apply_one(image, values[number])
            pixels[number] = image
        return images


class Drawn:
    """An augmentation with the numbers drawn for a batch; it can be sliced like the batch's other parts."""

    def __init__(self, augmentation: Augmentation, drawn: list[np.ndarray]) -> None:
        self.augmentation, self.drawn = augmentation, drawn

    def __getitem__(self, part: slice) -> Drawn:
        return Drawn(self.augmentation, [values[part] for values in self.drawn])

    def __call__(self, images: Tensor) -> Tensor:
        """As ``Augmentation``."""
        return self.augmentation(images, self.drawn)


def is_still(pipeline: Sequence[dict]) -> bool:
    """Whether a pipeline is deterministic and returns uint8."""
    return all(
        _name(step) in STILL and not step.get("to_float32") and not step.get("ignore_empty") for step in pipeline
    )


def unbatched(pipeline: Sequence[dict]) -> list[str]:
    """Return the transforms of a pipeline that have no batched form, each with its reason.

    Empty if ``Augmentation`` accepts the pipeline, or if the pipeline is deterministic.
    """
    if is_still(pipeline):
        return []
    first = [] if _name(pipeline[0]) == LOAD else [f"a pipeline that doesn't begin with {LOAD}"]
    return first + _batched(pipeline)[1]


def _batched(pipeline: Sequence[dict]) -> tuple[list[Any], list[str]]:
    """Return the batched transforms of a pipeline, and the names of those without a batched form."""
    known, unknown = [], []
    for step in pipeline:
        name = _name(step)
        given = {key: value for key, value in step.items() if key not in ("type", "_scope_")}
        try:
            if name == LOAD:
                plain = dict(to_float32=("false",), ignore_empty=("false",), color_type=("color",))
                _plain(given, **plain, **dict.fromkeys(LOAD_OPTIONS, Any))
            elif name not in NEUTRAL:
                known.append(_KNOWN[name](given))
        except (KeyError, TypeError, ValueError) as error:
            unknown.append(f"{name} ({error})" if name in (LOAD, *_KNOWN) else name)
    if not unknown and not (known and isinstance(known[0], RandomResizedCrop)):
        unknown.append("a pipeline that doesn't begin with RandomResizedCrop")
    if sum(isinstance(transform, RandomResizedCrop) for transform in known) > 1:
        unknown.append("a second RandomResizedCrop")
    return known, unknown


def _name(step: dict) -> str:
    """Return a transform's name without its library (``torchvision/…``)."""
    return str(step.get("type")).rpartition("/")[2]


def _square(size: Any) -> int:
    edges = {size} if isinstance(size, int) else set(size)
    if len(edges) != 1:
        raise ValueError("squares only")
    return edges.pop()


def _plain(given: dict, **accepted: Any) -> None:
    """Refuse arguments with other values than ``accepted``: the batched form has only those."""
    for name, value in given.items():
        if name not in accepted or (accepted[name] is not Any and str(value).lower() not in accepted[name]):
            raise ValueError(f"{name}={value}")


def _crop(given: dict) -> RandomResizedCrop:
    is_torchvision = "size" in given
    size = given.pop("scale", None) if "size" not in given else given.pop("size")
    if not isinstance(size, (int, list, tuple)):  # torchvision calls the area scale
        raise ValueError("no size")
    area = given.pop("crop_ratio_range", given.pop("scale", (0.08, 1.0)))
    aspect = given.pop("aspect_ratio_range", given.pop("ratio", (3 / 4, 4 / 3)))
    attempts = given.pop("max_attempts", 10)
    mode = _mode(str(given.pop("interpolation", "bilinear")), RESAMPLED)
    backend = given.pop("backend", "pillow" if is_torchvision else "cv2")
    if mode == "bicubic" and backend != "pillow":  # OpenCV's has another kernel and no antialiasing
        raise ValueError(f"interpolation={mode}, backend={backend}")
    _plain(given, antialias=Any)
    return RandomResizedCrop(_square(size), tuple(area), tuple(aspect), attempts, mode)


def _flip(given: dict) -> RandomFlip:
    prob = given.pop("prob", given.pop("p", 0.5))
    _plain(given, direction=("horizontal",))
    return RandomFlip(float(prob))


def _jitter(given: dict) -> ColorJitter:
    def limits(value: Any, centre: float) -> tuple[float, float]:
        if isinstance(value, (int, float)):
            return (max(0.0, 1 - value), 1 + value) if centre else (-value, value)
        return tuple(value)

    names = ("brightness", "contrast", "saturation")
    brightness, contrast, saturation = (limits(given.pop(name, 0), 1.0) for name in names)
    hue = limits(given.pop("hue", 0), 0.0)
    _plain(given, backend=("pillow", "cv2"))
    return ColorJitter(brightness, contrast, saturation, hue)


def _pair(value: Any) -> tuple[float, float]:
    return (-value, value) if isinstance(value, (int, float)) else tuple(value)


def _rotation(given: dict) -> RandomAffine:
    degrees = _pair(given.pop("degrees"))
    mode = str(given.pop("interpolation", "nearest"))
    _plain(given, expand=("false",), fill=("0",), center=("none",))
    return RandomAffine(degrees, mode=_mode(mode), sign=-1)


def _affine(given: dict) -> RandomAffine:
    degrees = _pair(given.pop("degrees"))
    translate, scale = given.pop("translate", None) or (0.0, 0.0), given.pop("scale", None) or (1.0, 1.0)
    shear = _pair(given.pop("shear", None) or 0.0)
    mode = str(given.pop("interpolation", "nearest"))
    _plain(given, fill=("0",), center=("none",))
    return RandomAffine(degrees, translate, scale, (*shear, 0.0, 0.0)[:4], mode=_mode(mode))


def _mode(name: str, known: Sequence[str] = ("nearest", "bilinear")) -> str:
    if name not in known:
        raise ValueError(f"interpolation={name}")
    return name


_KNOWN = {
    "RandomResizedCrop": _crop,
    "RandomFlip": _flip,
    "RandomHorizontalFlip": _flip,
    "ColorJitter": _jitter,
    "RandomRotation": _rotation,
    "RandomAffine": _affine,
}

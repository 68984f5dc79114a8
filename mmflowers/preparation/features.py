"""Find photos that show the same pixels turned, mirrored, cropped or framed, by local features.

A feature is a small patch around a bright or dark blob, hashed to 64 bits: the signs of its lowest DCT coefficients, as
in a perceptual hash. The patch is first mirrored and turned so that its largest gradient points right and the other one
down. The hash therefore stays the same if the photo is mirrored or turned by 90°, and the way in which two patches had
to be turned says how the photos are turned. Two photos are copies if enough features match at consistent places and the
pixels, brought on top of each other, agree in their fine detail. Without the last step, any two dandelions match.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

# Features are looked for on a grey image with this long side in pixels, and on reduced ones.
LONG_SIDE = 96
STEP = 2 ** (1 / 3)  # between the sizes; a patch whose size is off by half a step keeps most of its bits
COUNTS = (36, 26, 18, 12, 8)  # of features, strongest first, for each size
PATCH = 21  # pixels; odd, so that mirroring keeps the centre
FAINT = 16  # sixteenths of a grey level: blobs below it are noise
MARGIN = PATCH // 2 + 2  # pixels: a patch, smoothed
THUMBNAIL_SIDE = 64  # long side in pixels of the image that confirms a match
KEYPOINT = np.dtype([("hash", "<u8"), ("x", "u1"), ("y", "u1"), ("level", "u1"), ("turn", "u1")])  # x, y in 256ths

# Search: each hash is compared with its neighbours in sorted order, for 8 orders that start at different bits.
NEIGHBOURS = 8
VOTE_BITS = 10  # of 64; such a pair of features is a vote for its pair of photos
VOTES = 3
CHUNK = 1 << 20  # features at once
# Check: looked at on the 2,848 photos of the five flowers. Above 0.94 are recoloured, retouched and cropped photos and
# series of one moment, all true; below 0.92 are dandelions that only have the same outline. Of their mirrored, turned,
# cropped and framed copies, 99 % are above 0.95.
MATCH_BITS = 12
MATCHES = 4
TOLERANCE = 2.0  # pixels between matched features
ROUGH_COARSE, ROUGH_FINE = 0.6, 0.5  # correlation before the alignment is refined
ALIKE = 0.94  # correlation of the fine detail
MIN_PIXELS = 100  # of the thumbnails that must lie on top of each other

_FREQUENCIES = 10
_DCT = np.cos(np.pi / (2 * PATCH) * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(PATCH) + 1)).astype(np.float32)
# The 64 lowest frequencies without the constant and the two gradients, whose signs are the same in every patch; they
# are shuffled, so that every run of bits holds low ones, which change least.
_LOW = sorted(
    ((row, column) for row in range(_FREQUENCIES) for column in range(_FREQUENCIES) if row + column > 1),
    key=lambda place: (place[0] ** 2 + place[1] ** 2, place),
)[:64]
_ROWS, _COLUMNS = np.array([_LOW[11 * bit % 64] for bit in range(64)]).T
_MIRROR = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.float32)  # odd frequencies change sign


class Features(NamedTuple):
    """The local features of one photo.

    Attributes:
        size: Width and height of the image that they were found on, float64 of shape (2,).
        points: ``KEYPOINT`` of shape (n,).
        thumbnail: A small grey JPEG.
    """

    size: Array
    points: Array
    thumbnail: bytes | memoryview

    @classmethod
    def from_bytes(cls, data: bytes) -> Features:
        """Read what ``describe`` returned; empty data have no feature."""
        if not data:
            return cls(np.zeros(2), np.empty(0, KEYPOINT), b"")
        points = np.frombuffer(data, KEYPOINT, count=data[2], offset=3)
        return cls(np.array([data[0], data[1]], dtype=float), points, memoryview(data)[3 + points.nbytes :])

    def places(self) -> Array:
        """Return the place of each feature in pixels, (n, 2)."""
        return np.stack([self.points["x"], self.points["y"]], axis=1) / 256 * self.size


def describe(image: Image.Image) -> bytes:
    """Return the local features of an image, about 2,000 bytes; none (b"") if one side is too short for a patch.

    Args:
        image: Any size; the features hardly depend on it above 96 pixels.
    """
    scale = LONG_SIDE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    if min(size) <= 2 * MARGIN + 2:
        return b""
    grey = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    sizes = [[round(side / STEP**level) for side in size] for level in range(len(COUNTS))]
    sizes = [sides for sides in sizes if min(sides) > 2 * MARGIN]
    # All sizes side by side in one array: a sixth of the calls.
    ends = np.cumsum([sides[0] for sides in sizes])
    canvas = np.zeros((size[1], ends[-1]), dtype=np.int16)
    allowed = np.zeros(canvas.shape, dtype=bool)
    for (width, height), end in zip(sizes, ends.tolist(), strict=True):
        layer = grey if end == width else grey.resize((width, height), Image.Resampling.BILINEAR)
        canvas[:height, end - width : end] = layer
        allowed[MARGIN : height - MARGIN, end - width + MARGIN : end - MARGIN] = True
    fine = _smooth(_smooth(canvas * 16, 1), 1)  # without 2 pixels at every edge
    response = np.abs(fine[2:-2, 2:-2] - _smooth(fine, 2))  # without 4
    strength = response[2:-2, 2:-2]  # without 6
    peaks = ((strength == _maximum(response)) & (strength >= FAINT) & allowed[6:-6, 6:-6]).ravel().nonzero()[0]
    rows, columns = np.divmod(peaks, strength.shape[1])
    levels = np.searchsorted(ends, columns + 6, side="right")
    order = np.lexsort((-strength.ravel()[peaks], levels))
    rank = np.arange(len(order)) - np.searchsorted(levels[order], levels[order])
    chosen = order[rank < np.array(COUNTS)[levels[order]]]
    rows, columns, levels = rows[chosen] + 6, columns[chosen] + 6, levels[chosen]
    half = PATCH // 2 + 2
    patches = np.lib.stride_tricks.sliding_window_view(fine, (PATCH, PATCH))[rows - half, columns - half]
    widths, heights = np.array(sizes)[levels].T
    points = np.empty(len(chosen), KEYPOINT)
    points["x"] = np.round((columns - ends[levels] + widths + 0.5) * 256 / widths)
    points["y"] = np.round((rows + 0.5) * 256 / heights)
    points["level"] = levels
    points["hash"], points["turn"] = _hash(patches)
    thumbnail = io.BytesIO()
    small = [max(1, side * THUMBNAIL_SIDE // LONG_SIDE) for side in size]
    grey.resize(small, Image.Resampling.BILINEAR).save(thumbnail, "JPEG", quality=85)
    return bytes([*size, len(points)]) + points.tobytes() + thumbnail.getvalue()


def copy_pairs(described: list[bytes], labels: Array) -> Array:
    """Find pairs of copies among photos, and join their groups.

    Time grows as n log n with the number of features, except for the final check of each pair of photos that has
    several similar features.

    Args:
        described: What ``describe`` returned for each of n photos.
        labels: (n,) int, equal for photos that are known to be copies; these aren't compared.

    Returns:
        (n,) int, equal for copies and copies of copies: the labels, joined.
    """
    features = [Features.from_bytes(data) for data in described]
    labels = labels.copy()
    for one, other, turn in _candidates(features, labels):
        if labels[one] != labels[other] and are_copies(features[one], features[other], turn):
            labels[labels == labels[other]] = labels[one]
    return labels


def are_copies(one: Features, other: Features, turn: int) -> bool:
    """Return whether two photos show the same pixels, at least where they overlap.

    Args:
        one: A photo.
        other: Another one.
        turn: How the other must be turned, an index of ``_MATRICES``.
    """
    placed = _align(one, other, turn)
    if placed is None:
        return False
    matrix, scale, shift = _MATRICES[turn], *placed
    if scale > 1:  # compared at the size of the coarser one
        one, other, matrix, scale, shift = other, one, matrix.T, 1 / scale, -(matrix.T @ shift) / scale
    compare = _Comparison(one, other, matrix)
    coarse, fine = compare(scale, shift, coarse=True)
    if coarse < ROUGH_COARSE or fine < ROUGH_FINE:
        return False
    nudges = [np.array([x, y]) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    fine, nudge = max(((compare(scale, shift + nudge)[1], nudge) for nudge in nudges), key=lambda found: found[0])
    if fine >= ALIKE:
        return True
    middle = one.size / 2
    return any(compare(scale * by, (shift + nudge - middle) * by + middle)[1] >= ALIKE for by in (0.98, 1.02))


def _smooth(values: Array, step: int) -> Array:
    """Convolve with (1, 2, 1) / 4 in both directions, without the ``step`` pixels at every edge."""
    for _ in range(2):
        doubled, ends = values[step:-step] * 2, values[: -2 * step] + values[2 * step :]
        values = (doubled + ends >> 2 if values.dtype == np.int16 else (doubled + ends) / 4).T
    return values


def _maximum(values: Array) -> Array:
    """Return the maximum of 5 × 5 pixels, without the 2 pixels at every edge."""
    for _ in range(2):
        pairs = np.maximum(values[:-1], values[1:])
        values = np.maximum(np.maximum(pairs[:-3], pairs[2:-1]), values[4:]).T
    return values


def _hash(patches: Array) -> tuple[Array, Array]:
    """Return for patches of shape (n, 21, 21) the hash of each, and how it was turned: an index of ``_MATRICES``."""
    # Patch by patch: a single large product starts BLAS threads in every worker process.
    low = _DCT @ (patches.astype(np.float32) @ _DCT.T)
    swapped = np.abs(low[:, 1, 0]) > np.abs(low[:, 0, 1])
    low = np.where(swapped[:, None, None], low.transpose(0, 2, 1), low)
    left, up = low[:, 0, 1] < 0, low[:, 1, 0] < 0
    low[left] *= _MIRROR
    low[up] *= _MIRROR[:, None]
    bits = np.ascontiguousarray(np.packbits(low[:, _ROWS, _COLUMNS] > 0, axis=1))
    return bits.view(">u8")[:, 0], 4 * swapped + 2 * up + left


def _matrix(turn: int) -> Array:
    swap = np.array([[0, 1], [1, 0]]) if turn & 4 else np.eye(2, dtype=int)
    return np.asarray(np.diag([-1 if turn & 1 else 1, -1 if turn & 2 else 1]) @ swap)


_MATRICES = np.stack([_matrix(turn) for turn in range(8)])
# How the second photo must be turned if a patch of the first was turned as the row says, and its match as the column.
_RELATION = np.array(
    [
        [next(turn for turn in range(8) if (_MATRICES[turn] == one.T @ other).all()) for other in _MATRICES]
        for one in _MATRICES
    ]
)


def _candidates(features: list[Features], labels: Array) -> list[tuple[int, int, int]]:
    """Return (one, other, turn) of the pairs of photos with several similar features, the best first."""
    points = np.concatenate([np.empty(0, KEYPOINT), *(photo.points for photo in features)])
    owner = np.repeat(np.arange(len(features)), [len(photo.points) for photo in features])
    hashes = points["hash"]
    votes = np.empty(0, dtype=np.int64)
    for shift in range(0, 64, 8):
        found = [votes]
        order = np.argsort(hashes << np.uint64(shift) | hashes >> np.uint64((64 - shift) % 64), kind="stable")
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK + NEIGHBOURS]
            for step in range(1, min(NEIGHBOURS + 1, len(part))):
                near = bit_count(hashes[part[:-step]] ^ hashes[part[step:]]) <= VOTE_BITS
                one, other = part[:-step][near], part[step:][near]
                apart = labels[owner[one]] != labels[owner[other]]
                one, other = one[apart], other[apart]
                found.append(np.minimum(one, other) * len(points) + np.maximum(one, other))
        votes = np.unique(np.concatenate(found))
    one, other = np.divmod(votes, max(1, len(points)))
    turn = _RELATION[points["turn"][one], points["turn"][other]]
    pairs, count = np.unique((owner[one] * len(features) + owner[other]) * 8 + turn, return_counts=True)
    best = np.argsort(-count, kind="stable")
    pairs = pairs[best[: np.count_nonzero(count >= VOTES)]]
    photos, turn = np.divmod(pairs, 8)
    one, other = np.divmod(photos, max(1, len(features)))
    return list(zip(one.tolist(), other.tolist(), turn.tolist(), strict=True))


def _align(one: Features, other: Features, turn: int) -> tuple[float, Array] | None:
    """Return scale and shift that place the other photo, once turned, on the first; None if too few features agree."""
    distances = bit_count(one.points["hash"][:, None] ^ other.points["hash"])
    turns = _RELATION[one.points["turn"][:, None], other.points["turn"]]
    first, second = ((distances <= MATCH_BITS) & (turns == turn)).nonzero()
    if len(first) < MATCHES:
        return None
    here, there = one.places()[first], other.places()[second] @ _MATRICES[turn].T
    scales = STEP ** (one.points["level"][first].astype(float) - other.points["level"][second])
    # Each match gives a scale and a shift; the one that most matches agree with is refined.
    shifts = here - scales[:, None] * there
    misses = np.abs(scales[:, None, None] * there + shifts[:, None] - here).max(axis=2)
    agreeing = (misses < 2 * TOLERANCE) & (np.abs(np.log(scales[:, None] / scales)) < 1.5 * np.log(STEP))
    agree = agreeing[agreeing.sum(axis=1).argmax()]
    for _ in range(2):
        if np.count_nonzero(agree) < MATCHES:
            return None
        mean_here, mean_there = here[agree].mean(axis=0), there[agree].mean(axis=0)
        spread = there[agree] - mean_there
        scale = float((spread * (here[agree] - mean_here)).sum() / max((spread * spread).sum(), 1e-6))
        if not 1 / 3 < scale < 3:
            return None
        shift = mean_here - scale * mean_there
        agree = np.abs(scale * there + shift - here).max(axis=1) < TOLERANCE
    # One blob is often found at several sizes.
    places = min(len(np.unique(points[agree].round(), axis=0)) for points in (here, there))
    return (scale, shift) if places >= MATCHES else None


class _Comparison:
    """Compares the thumbnails of two photos that are placed on top of each other.

    Args:
        one, other: The photos.
        matrix: Turns the other one.
    """

    def __init__(self, one: Features, other: Features, matrix: Array) -> None:
        self._here, self._there = (
            np.asarray(Image.open(io.BytesIO(photo.thumbnail)), dtype=np.float32) for photo in (one, other)
        )
        self._fine = _detail(self._here)
        height, width = self._here.shape
        x, y = (np.arange(width) + 0.5) / width * one.size[0], (np.arange(height) + 0.5) / height * one.size[1]
        self._places = np.stack(np.meshgrid(x, y), axis=-1)
        self._matrix = matrix
        self._pixels = np.array(self._there.shape[::-1]) / other.size

    def __call__(self, scale: float, shift: Array, *, coarse: bool = False) -> tuple[float, float]:
        """Return the correlation of the pixels (0 unless asked for) and of their fine detail; 0 without overlap."""
        at = ((self._places - shift) / scale) @ self._matrix * self._pixels - 0.5
        last = np.array(self._there.shape[::-1]) - 1
        inside = np.all((at >= 0) & (at <= last), axis=2)
        # The overlap is a rectangle: if both ends of a pixel's surroundings are in it, all of them are.
        edge = 2 * _DETAIL_EDGE
        whole = inside[:-edge, :-edge] & inside[edge:, edge:] if min(inside.shape) > edge else inside[:0]
        if np.count_nonzero(whole) < MIN_PIXELS:
            return 0.0, 0.0
        low = np.minimum(at.clip(0, last).astype(int), last - 1)
        right, down = np.moveaxis((at - low).clip(0, 1), 2, 0)
        column, row = np.moveaxis(low, 2, 0)
        there = self._there
        above = there[row, column] * (1 - right) + there[row, column + 1] * right
        below = there[row + 1, column] * (1 - right) + there[row + 1, column + 1] * right
        there = above * (1 - down) + below * down
        fine = _correlation(self._fine[whole], _detail(there)[whole])
        return _correlation(self._here[inside], there[inside]) if coarse else 0.0, fine


_DETAIL_EDGE = 4  # pixels that ``_detail`` leaves out at every edge


def _detail(values: Array) -> Array:
    fine = _smooth(values, 1)
    return np.asarray(fine[3:-3, 3:-3] - _smooth(_smooth(fine, 1), 2))


def _correlation(some: Array, others: Array) -> float:
    some, others = some - some.mean(), others - others.mean()
    norms = float((some * some).sum() * (others * others).sum())
    return float((some * others).sum()) / norms**0.5 if norms > 0 else 0.0


def bit_count(values: Array) -> Array:
    """Return the number of bits that are set in each of the uint64 values."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(values))
    counts = np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(1)  # numpy 1
    return np.asarray(counts.reshape(values.shape))

"""Create curved surfaces as quads in the flower's own space: petals, discs, florets, calyces."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from mmflowers.rendered.colours import mix

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class Surface(NamedTuple):
    """Quads in the flower's own space: axis +z, the flower's radius about 1.

    Attributes:
        quads: float (N, 4, 3), corners in order.
        colours: float (N, 3), RGB 0..255 before shading.
    """

    quads: np.ndarray
    colours: np.ndarray


def make_surface(vertices: np.ndarray, colours: np.ndarray) -> Surface:
    """Cut n grids of vertices (n, rows + 1, cols + 1, 3), with colours (n, rows, cols, 3), into quads."""
    quads = np.stack([vertices[:, :-1, :-1], vertices[:, 1:, :-1], vertices[:, 1:, 1:], vertices[:, :-1, 1:]], axis=3)
    return Surface(quads.reshape(-1, 4, 3), np.broadcast_to(colours, (*quads.shape[:3], 3)).reshape(-1, 3))


def join_surfaces(surfaces: list[Surface]) -> Surface:
    """Concatenate the quads of several surfaces."""
    return Surface(np.concatenate([s.quads for s in surfaces]), np.concatenate([s.colours for s in surfaces]))


def make_straps(
    angle: np.ndarray,
    *,
    inner,
    length,
    width,
    rise,
    curl,
    outline: np.ndarray,
    cols: int = 2,
    lift=0.0,
    bend=0.0,
    cup=0.0,
) -> np.ndarray:
    """Create petals that leave a ring outwards: vertices (n, rows + 1, cols + 1, 3) for n angles around the axis.

    ``rise`` is the elevation at the base and ``curl`` what is added to it up to the tip, both in radians; ``bend``
    turns the petal sideways, ``cup`` raises its edges. ``outline`` (rows + 1) is half its width along the petal, as a
    share of ``width``.
    """

    def column(x) -> np.ndarray:
        return np.broadcast_to(np.asarray(x, float), angle.shape)[:, None]

    rows = len(outline) - 1
    u, v = np.linspace(0, 1, rows + 1), np.linspace(-1, 1, cols + 1)
    elevation = column(rise) + column(curl) * u
    step = column(length) / rows
    along = np.cumsum(np.cos(elevation) * step, axis=1) - np.cos(elevation[:, :1]) * step
    up = np.cumsum(np.sin(elevation) * step, axis=1) - np.sin(elevation[:, :1]) * step
    radius = (column(inner) + along)[:, :, None]
    turned = (column(angle) + column(bend) * u**2)[:, :, None]
    half = (column(width) * outline)[:, :, None] * v
    z = (column(lift) + up)[:, :, None] + column(cup)[:, :, None] * np.abs(half) * np.abs(v)
    cos, sin = np.cos(turned), np.sin(turned)
    return np.stack([radius * cos - half * sin, radius * sin + half * cos, z], axis=-1)


def make_shells(
    angle: np.ndarray, radius: np.ndarray, z: np.ndarray, half_angle: np.ndarray, flare: np.ndarray, cols: int
):
    """Create petals that wrap around the axis: vertices (n, rows + 1, cols + 1, 3).

    ``radius``, ``z`` and ``half_angle`` are (n, rows + 1) along the petal; ``flare`` (n) widens the radius to the
    sides.
    """
    v = np.linspace(-1, 1, cols + 1)
    around = angle[:, None, None] + half_angle[:, :, None] * v
    r = radius[:, :, None] * (1 + flare[:, None, None] * v**2)
    return np.stack([r * np.cos(around), r * np.sin(around), np.broadcast_to(z[:, :, None], r.shape)], axis=-1)


def petal_colours(
    rng: Generator,
    shape: tuple[int, int, int],
    base,
    tip,
    *,
    at: float = 0.5,
    jitter: float = 0.06,
    veins: float = 0.05,
) -> np.ndarray:
    """Return colours (n, rows, cols, 3) from ``base`` to ``tip`` that vary from petal to petal and in streaks."""
    n, rows, cols = shape
    u = (np.arange(rows) + 0.5) / rows
    colours = mix(base, tip, np.clip(u / max(2 * at, 1e-3), 0, 1))[None, :, None, :]
    uneven = rng.normal(1, jitter, (n, 1, 1, 1)) * rng.normal(1, veins, (n, 1, cols, 1))
    return colours * uneven * rng.normal(1, veins * 0.25, (n, rows, cols, 1))


def make_florets(
    rng: Generator, count: int, radius: float, dome: float, size: float, centre, rim, *, lift=0.0, detail=1.0
) -> Surface:
    """Create the florets of a daisy's head: small diamonds on a dome, in Vogel's spiral (1979)."""
    count, size = round(count * detail**2), size / detail
    i = np.arange(count) + 0.5
    share = np.sqrt(i / count)
    angle = i * GOLDEN_ANGLE + rng.uniform(0, 6.28)
    r = radius * share
    z = lift + dome * (1 - share**2) + rng.normal(0, size * 0.15, count)
    side = size * rng.uniform(0.8, 1.2, count)
    centres = np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)
    out = np.stack([np.cos(angle), np.sin(angle), np.full(count, -dome / max(radius, 1e-6))], axis=1) * side[:, None]
    across = np.stack([-np.sin(angle), np.cos(angle), np.zeros(count)], axis=1) * side[:, None]
    quads = np.stack([centres - out, centres + across, centres + out, centres - across], axis=1)
    colours = mix(centre, rim, share) * rng.normal(1, 0.14, (count, 1))
    return Surface(quads, colours)


def make_dome(radius: float, height: float, colour, *, lift=0.0, depth: float = 0.0) -> Surface:
    """Create a closed cap, so that nothing is seen between florets; ``depth`` > 0 darkens its rim."""
    rows, cols = 3, 14
    share = np.linspace(0.02, 1, rows + 1)[:, None]
    angle = np.linspace(0, 2 * math.pi, cols + 1)[None, :]
    z = np.broadcast_to(lift + height * (1 - share**2), (rows + 1, cols + 1))
    vertices = np.stack([radius * share * np.cos(angle), radius * share * np.sin(angle), z], axis=-1)[None]
    fade = 1 - depth * np.linspace(0, 1, rows)[None, :, None, None]
    return make_surface(vertices, np.asarray(colour, float) * fade)


def make_calyx(
    rng: Generator, green, *, count: int, radius: float, length: float, width: float, rise: float, lift: float
):
    """Create the green leaves under a flower head, seen from the side or between the petals."""
    angle = np.arange(count) * 2 * math.pi / count + rng.normal(0, 0.1, count)
    outline = np.array([0.7, 1.0, 0.8, 0.45, 0.03])
    vertices = make_straps(
        angle,
        inner=radius,
        length=length * rng.uniform(0.8, 1.15, count),
        width=width,
        rise=rise,
        curl=rng.normal(-0.2, 0.3, count),
        outline=outline,
        lift=lift,
        cols=1,
    )
    return make_surface(vertices, petal_colours(rng, (count, 4, 1), green, mix(green, (150, 180, 90), 0.3), jitter=0.1))

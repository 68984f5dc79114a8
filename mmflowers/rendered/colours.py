"""Palettes of petals and leaves; random and mixed colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

Colour = np.ndarray  # float RGB, 0..255
Palette = Sequence[tuple[int, tuple[int, int, int]]]  # (weight, RGB)

# Roses and tulips share one palette; the yellows of the others overlap with it and with each other.
GARDEN = (
    (4, (188, 22, 38)),
    (2, (120, 12, 36)),
    (4, (228, 88, 138)),
    (3, (244, 178, 196)),
    (3, (243, 238, 226)),
    (4, (244, 202, 44)),
    (2, (240, 128, 48)),
    (2, (250, 190, 148)),
    (2, (150, 60, 140)),
)
DAISY = (
    (9, (246, 244, 240)),
    (3, (240, 168, 196)),
    (4, (244, 204, 50)),
    (2, (214, 60, 120)),
    (2, (236, 120, 50)),
    (1, (176, 136, 200)),
)
DANDELION = ((6, (248, 206, 24)), (3, (246, 186, 20)), (1, (244, 226, 110)))
SUNFLOWER = (
    (8, (248, 194, 20)),
    (4, (246, 212, 60)),
    (2, (238, 150, 24)),
    (2, (176, 62, 26)),
    (2, (246, 232, 176)),
)
GREENS = ((3, (74, 122, 44)), (3, (52, 96, 42)), (2, (104, 148, 62)), (1, (120, 140, 98)), (1, (60, 100, 76)))


def pick(rng: Generator, palette: Palette, jitter: float = 14.0) -> Colour:
    """Draw a colour from a palette by its weights, and vary it by ``jitter`` grey levels."""
    weights = np.array([weight for weight, _ in palette], float)
    colour = np.array(palette[rng.choice(len(palette), p=weights / weights.sum())][1], float)
    return np.clip(colour + rng.normal(0, jitter, 3) * 0.6 + rng.normal(0, jitter * 0.6), 0, 255)


def mix(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> np.ndarray:
    """Interpolate between the colours ``a`` (t = 0) and ``b`` (t = 1): (…, 3) for t of shape (…)."""
    t = np.asarray(t, float)[..., None]
    return np.asarray(a, float) * (1 - t) + np.asarray(b, float) * t


def rgb(colour: ArrayLike) -> tuple[int, int, int]:
    """Return a colour as three integers from 0 to 255."""
    r, g, b = (min(255, max(0, round(float(c)))) for c in np.asarray(colour))
    return r, g, b

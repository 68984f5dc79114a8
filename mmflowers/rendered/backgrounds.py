"""Draw the backgrounds: gradient, sky, soil, bokeh, meadow."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from mmflowers.rendered.colours import DAISY, DANDELION, GARDEN, SUNFLOWER, Colour, mix, pick, rgb


def draw_background(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Draw a background of a random kind, in RGB."""
    paints = (_gradient, _sky, _soil, _bokeh, _meadow)
    paint = paints[rng.choice(len(paints), p=[0.2, 0.17, 0.13, 0.25, 0.25])]
    return paint(rng, width, height, green)


def _clouds(rng: Generator, width: int, height: int, octaves: int = 3) -> np.ndarray:
    """Return smooth noise around 0, float (height, width): the sum of coarse random grids, enlarged."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 3 * 2**octave
        grid = rng.standard_normal((cells, cells + 1), dtype=np.float32) / 2**octave
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total


def _enlarge(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if width > 4 * small.width:  # the smooth filter for the shapes, the fast one for the rest of the way
        small = small.resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    return small.resize((width, height), Image.Resampling.BILINEAR)


def _defocus(small: Image.Image, blur: float, width: int, height: int) -> Image.Image:
    return small.filter(ImageFilter.GaussianBlur(blur)).resize((width, height), Image.Resampling.BILINEAR)


def _ramp(rng: Generator, a, b, width: int, height: int, noise: float) -> np.ndarray:
    """Return a gradient from ``a`` to ``b`` in a random direction with noise, float (height, width, 3), coarse."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    heading = rng.uniform(0, 2 * math.pi)
    t = 0.5 + 0.45 * (x * math.cos(heading) + y * math.sin(heading)) + noise * _clouds(rng, width, height)
    return mix(a, b, np.clip(t, 0, 1))


_BACKDROPS = (
    (34, 36, 32),
    (16, 18, 16),
    (196, 190, 176),
    (150, 164, 150),
    (92, 104, 84),
    (120, 96, 84),
    (214, 216, 214),
)


def _gradient(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Draw a wall, a studio's cloth or a garden far out of focus."""
    a = np.array(_BACKDROPS[rng.integers(len(_BACKDROPS))], float)
    b = green * rng.uniform(0.4, 1.1) if rng.random() < 0.5 else a * rng.uniform(0.5, 1.3)
    return _enlarge(_ramp(rng, a, b, 40, 32, 0.2), width, height)


def _sky(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    blue = np.array([rng.uniform(70, 150), rng.uniform(130, 185), rng.uniform(190, 240)])
    share = np.linspace(0, 1, 48)[:, None] * np.ones((1, 60))
    pixels = mix(blue, mix(blue, (235, 240, 245), 0.6), share)
    cloud = np.clip(_clouds(rng, 60, 48, 4) * 0.5 - rng.uniform(-0.3, 0.6), 0, 1)
    pixels = pixels * (1 - cloud[..., None]) + cloud[..., None] * 244
    horizon = rng.uniform(0.55, 1.4)
    ground = np.clip((share - horizon + 0.05 * _clouds(rng, 60, 48)) * 8, 0, 1)
    return _enlarge(pixels * (1 - ground[..., None]) + ground[..., None] * green * 0.7, width, height)


def _soil(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    earth = np.array([104, 78, 56.0]) * rng.uniform(0.5, 1.4) + rng.normal(0, 4, 3)
    coarse = _clouds(rng, width // 6, height // 6, 4)
    crumbs = rng.standard_normal(coarse.shape, dtype=np.float32)
    canvas = _enlarge(earth * (1 + 0.16 * coarse + 0.16 * crumbs)[..., None], width, height)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(20, 90))):  # stones and dead leaves
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        r = min(width, height) * rng.uniform(0.004, 0.022)
        tone = rng.uniform(0.5, 1.7)
        draw.ellipse([x - r, y - r * 0.7, x + r * rng.uniform(0.8, 1.8), y + r * 0.7], fill=rgb(earth * tone))
    return canvas


def _bokeh(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Draw discs of light out of focus over a dim green."""
    w, h = width // 5, height // 5
    canvas = _enlarge(_ramp(rng, green * 0.45, green * rng.uniform(0.6, 1.2), 24, 20, 0.3), w, h)
    draw = ImageDraw.Draw(canvas, "RGBA")
    accent = pick(rng, GARDEN + DAISY + SUNFLOWER)
    for _ in range(int(rng.integers(15, 60))):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        r = min(w, h) * rng.uniform(0.02, 0.14)
        colour = accent if rng.random() < 0.3 else mix(green, (226, 232, 170), rng.uniform(0, 0.7))
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(*rgb(colour), int(rng.integers(30, 150))))
    return _defocus(canvas, rng.uniform(0.6, 3), width, height)


def _meadow(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Draw grass, from sharp to out of focus, with small flowers in it."""
    scale = int(rng.choice([1, 2, 4], p=[0.3, 0.35, 0.35]))
    w, h = width // scale, height // scale
    canvas = _enlarge(_ramp(rng, green * 0.4, green * 0.9, 24, 20, 0.25), w, h)
    draw = ImageDraw.Draw(canvas)
    count = int(rng.integers(120, 320))
    x, y = rng.uniform(-0.05, 1.05, count) * w, rng.uniform(0, 1.25, count) * h
    length, slant = h * rng.uniform(0.15, 0.5, count), rng.normal(0, 0.35, count)
    half = np.maximum(w * rng.uniform(0.003, 0.011, count), 0.6)
    tone = rng.uniform(0.5, 1.5, (count, 1))
    colours = np.clip(mix(green, (176, 176, 84), rng.uniform(0, 0.45, count)) * tone, 0, 255).astype(int)
    blades = np.stack([x - half, y, x + np.sin(slant) * length, y - np.cos(slant) * length, x + half, y], axis=1)
    order = np.argsort(y)  # the far ones, whose foot is higher in the picture, first
    for blade, colour in zip(blades[order].tolist(), colours[order].tolist(), strict=True):
        draw.polygon(blade, fill=tuple(colour))
    if rng.random() < 0.6:
        accent = pick(rng, GARDEN + DAISY + DANDELION)
        for _ in range(int(rng.integers(3, 30))):
            cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), min(w, h) * rng.uniform(0.006, 0.025)
            draw.ellipse([cx - r, cy - r * 0.8, cx + r, cy + r * 0.8], fill=rgb(accent * rng.uniform(0.7, 1.1)))
    return canvas if scale == 1 else _defocus(canvas, rng.uniform(0.4, 2), width, height)

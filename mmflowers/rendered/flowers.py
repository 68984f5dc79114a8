"""Create the surfaces of the five flowers; the shape of their plants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from mmflowers.rendered.colours import DAISY, DANDELION, GARDEN, SUNFLOWER, Colour, mix, pick
from mmflowers.rendered.surfaces import (
    GOLDEN_ANGLE,
    Surface,
    join_surfaces,
    make_calyx,
    make_dome,
    make_florets,
    make_shells,
    make_straps,
    make_surface,
    petal_colours,
)

KINDS = ("daisy", "dandelion", "rose", "sunflower", "tulip")

# Each returns its surface with the outermost petals at about radius 1, and the place on the axis where the stem begins.
# ``detail``, 0.3 to 1, thins out what a small flower wouldn't show: most of the time goes into painting quads.


def _daisy(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    layers = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    count = int(rng.integers(11, 26))
    disc = rng.uniform(0.2, 0.36)
    rise, curl = rng.normal(0.12, 0.22), rng.normal(-0.2, 0.3)
    width = min(rng.uniform(0.8, 1.25) * math.pi * 0.62 / count, 0.17)
    bluntness = rng.uniform(0.3, 0.6)
    u, cols = np.linspace(0, 1, 4 + round(3 * detail)), 1 + round(2 * detail)
    outline = (0.35 + 0.65 * np.sin(np.minimum(u * 1.15, 1) * math.pi / 2)) * np.clip(1.02 - u**5, 0, 1) ** bluntness
    base = mix(colour, rng.choice([[250, 240, 190], [255, 255, 255], [150, 40, 80]]), rng.uniform(0, 0.45))
    surfaces = []
    for layer in range(layers):
        angle = (np.arange(count) + 0.5 * layer) * 2 * math.pi / count + rng.normal(0, 0.05, count)
        present = rng.random(count) > rng.choice([0, 0.05, 0.15])  # a petal or two is missing in many
        angle = angle[present]
        n = len(angle)
        vertices = make_straps(
            angle,
            inner=disc * 0.8,
            length=(1 - disc * 0.8) * (1 - 0.16 * layer) * rng.normal(1, 0.05, n),
            width=width * rng.normal(1, 0.08, n),
            rise=rise + 0.16 * layer + rng.normal(0, 0.07, n),
            curl=curl + rng.normal(0, 0.15, n),
            lift=0.03 * layer + rng.uniform(0, 0.03, n),
            bend=rng.normal(0, 0.08, n),
            cup=rng.normal(0.15, 0.2),
            outline=outline,
            cols=cols,
        )
        colours = petal_colours(rng, (n, len(u) - 1, cols), base, colour, at=rng.uniform(0.15, 0.5), veins=0.035)
        colours *= np.linspace(0.82, 1.04, len(u) - 1)[:, None, None]
        surfaces.append(make_surface(vertices, colours))
    yellow = rng.choice([[232, 180, 30], [220, 150, 24], [190, 170, 50], [92, 58, 34]], p=[0.5, 0.25, 0.15, 0.1])
    dome = disc * rng.uniform(0.1, 0.7)
    surfaces.append(make_dome(disc, dome, np.asarray(yellow) * 0.72, lift=0.02, depth=0.25))
    middle = mix(yellow, rng.choice([[150, 150, 40], [255, 220, 90]]), rng.uniform(0, 0.8))
    surfaces.append(make_florets(rng, 150, disc * 0.98, dome, disc * 0.07, middle, yellow, lift=0.05, detail=detail))
    surfaces.append(make_calyx(rng, green, count=12, radius=0.05, length=disc * 1.1, width=0.07, rise=0.3, lift=-0.12))
    return join_surfaces(surfaces), -0.12


def _dandelion(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    if rng.random() < 0.3:
        return _puffball(rng, green, detail)
    core = mix(colour, (226, 140, 10), rng.uniform(0.2, 0.8))
    count = round(rng.integers(190, 300) * detail)
    share = np.sqrt((np.arange(count) + 0.5) / count)  # 0 in the middle, 1 at the rim
    angle = np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.1, count)
    opened = rng.uniform(0.55, 1.15)  # how far the middle has opened
    rise = (1 - share**1.3) * 1.45 * opened + rng.normal(0, 0.1, count) + rng.uniform(-0.1, 0.35)
    vertices = make_straps(
        angle,
        inner=0.02 + 0.13 * share,
        length=(0.3 + 0.58 * share) * rng.normal(1, 0.08, count),
        width=0.033 * rng.uniform(0.8, 1.3) / detail,
        rise=rise,
        curl=rng.normal(-0.25, 0.25, count) - 0.2 * share,
        lift=0.12 * (1 - share),
        bend=rng.normal(0, 0.12, count),
        outline=np.array([0.5, 0.8, 1.0, 1.0, 0.85]),  # square tips: dandelion rays end in five teeth
        cols=1,
    )
    colours = petal_colours(rng, (count, 4, 1), core * 0.72, colour, at=0.35, jitter=0.09)
    colours *= (0.86 + 0.14 * share)[:, None, None, None]
    surfaces = [make_surface(vertices, colours)]
    if opened < 0.85:
        surfaces.append(make_florets(rng, 60, 0.14, 0.08, 0.03, core * 0.8, core, lift=0.3, detail=detail))
    surfaces.append(make_calyx(rng, green, count=14, radius=0.06, length=0.5, width=0.06, rise=0.5, lift=-0.2))
    surfaces.append(make_calyx(rng, green, count=9, radius=0.08, length=0.4, width=0.05, rise=-0.6, lift=-0.16))
    return join_surfaces(surfaces), -0.2


def _puffball(rng: Generator, green: Colour, detail: float) -> tuple[Surface, float]:
    """Create a seed head: achenes on a core, each with a stalk and an umbrella of hairs on the surface of a sphere."""
    count, hairs = round(rng.integers(90, 160) * detail), round(rng.integers(8, 12) * detail**0.5)
    colour = pick(rng, ((3, (236, 236, 232)), (1, (220, 212, 196))), jitter=8)
    i = np.arange(count) + 0.5
    cos = 1 - 2 * i / count
    sin = np.sqrt(1 - cos**2)
    out = np.stack([sin * np.cos(i * GOLDEN_ANGLE), sin * np.sin(i * GOLDEN_ANGLE), cos], axis=1)
    out += rng.normal(0, 0.06, out.shape)
    gone = out @ np.append(rng.normal(0, 1, 2), 0.3) > rng.choice([9, 1.1, 0.6], p=[0.6, 0.25, 0.15])  # blown away
    out = out[~gone & (cos > -0.93)]
    n = len(out)
    side = np.cross(out, rng.normal(0, 1, (n, 3)))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(out, side)
    reach = rng.normal(0.72, 0.03, (n, 1))

    def needles(start: np.ndarray, end: np.ndarray, across: np.ndarray, width: float) -> np.ndarray:
        width = width / detail
        return np.stack([start - across * width, end - across * width, end + across * width, start + across * width], 1)

    stalks = needles(out * 0.14, out * reach, side, 0.004)
    seeds = needles(out * 0.1, out * 0.24, side, 0.014)
    turn = (np.arange(hairs) / hairs * 2 * math.pi)[None, :, None] + rng.uniform(0, 6.28, (n, 1, 1))
    ray = np.cos(turn) * side[:, None] + np.sin(turn) * other[:, None]
    hub = np.repeat((out * reach)[:, None], hairs, axis=1)
    length = rng.uniform(0.16, 0.24, (n, hairs, 1))
    tips = hub + ray * length + out[:, None] * length * rng.uniform(0.5, 1.0, (n, 1, 1))
    umbrella = needles(hub.reshape(-1, 3), tips.reshape(-1, 3), np.repeat(other, hairs, axis=0), 0.005)
    umbrella_colours = np.repeat(colour[None], len(umbrella), 0) * rng.normal(0.98, 0.1, (len(umbrella), 1))
    brown = np.array([112, 84, 52.0])
    return join_surfaces(
        [
            make_dome(0.13, 0.12, mix(brown, green, 0.4), depth=0.3),
            Surface(seeds, np.repeat(brown[None], n, 0) * rng.normal(1, 0.15, (n, 1))),
            Surface(stalks, np.repeat(mix(colour, brown, 0.25)[None], n, 0)),
            Surface(umbrella, umbrella_colours),
            make_calyx(rng, green, count=9, radius=0.08, length=0.35, width=0.05, rise=-1.0, lift=-0.06),
        ]
    ), -0.08


def _sunflower(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    disc = rng.uniform(0.34, 0.55)
    layers = int(rng.choice([1, 2, 3], p=[0.15, 0.6, 0.25]))
    count = int(rng.integers(13, 24))
    rise, curl = rng.normal(0.2, 0.22), rng.normal(-0.1, 0.35)
    u, cols = np.linspace(0, 1, 5 + round(3 * detail)), 4 if detail > 0.6 else 2
    outline = np.sin(math.pi * np.clip(0.16 + 0.84 * u**0.85, 0, 1)) ** 0.85 + 0.02
    base = mix(colour, (150, 60, 10), rng.choice([0.1, 0.3, 0.7], p=[0.5, 0.35, 0.15]))
    surfaces = []
    for layer in reversed(range(layers)):
        angle = (np.arange(count) + layer * 0.5) * 2 * math.pi / count + rng.normal(0, 0.09, count)
        vertices = make_straps(
            angle,
            inner=disc * 0.86,
            length=(1 - disc * 0.86) * rng.normal(1, 0.09, count),
            width=rng.uniform(0.1, 0.15) * rng.normal(1, 0.1, count),
            rise=rise + 0.25 * (1 - layer) * (layers > 1) + rng.normal(0, 0.14, count),
            curl=curl + rng.normal(0, 0.25, count),
            lift=-0.05 * layer + rng.uniform(0, 0.04, count),
            bend=rng.normal(0, 0.16, count),
            cup=rng.normal(0.4, 0.2),
            outline=outline,
            cols=cols,
        )
        colours = petal_colours(rng, (count, len(u) - 1, cols), base, colour, at=rng.uniform(0.1, 0.3), veins=0.06)
        colours *= 0.82 if layer else 1.0
        colours[:, :, 1:-1] *= 0.95  # the fold along the middle
        surfaces.append(make_surface(vertices, colours))
    dark = rng.random() < 0.6
    centre, rim = ([58, 36, 22], [108, 66, 26]) if dark else ([148, 148, 60], [196, 148, 40])
    if rng.random() < 0.4:
        centre = [120, 124, 60]  # unopened florets in the middle
    dome = disc * rng.uniform(0.02, 0.4)
    surfaces.append(make_dome(disc, dome, np.asarray(rim, float) * 0.6, lift=0.03, depth=0.2))
    surfaces.append(make_florets(rng, 320, disc, dome, disc * 0.056, centre, rim, lift=0.06, detail=detail))
    ring = round(rng.integers(40, 70) * detail)  # the florets in bloom stand up around the disc
    angle = np.arange(ring) * GOLDEN_ANGLE
    stamens = make_straps(
        angle,
        inner=disc * rng.uniform(0.72, 0.98, ring),
        length=disc * 0.16,
        width=disc * 0.03,
        rise=rng.normal(1.1, 0.4, ring),
        curl=0.2,
        lift=0.07,
        outline=np.array([0.8, 1, 0.6]),
        cols=1,
    )
    surfaces.append(make_surface(stamens, petal_colours(rng, (ring, 2, 1), rim, mix(rim, (220, 160, 40), 0.5))))
    surfaces.append(
        make_calyx(rng, green, count=15, radius=disc * 0.5, length=disc * 0.9, width=0.09, rise=0.05, lift=-0.16)
    )
    surfaces.append(make_dome(disc * 0.95, -0.12, np.asarray(green) * 0.9, lift=-0.05))
    return join_surfaces(surfaces), -0.17


def _rose(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    count = int(rng.integers(13, 34))
    bud = rng.random() < 0.22  # a closed one, which from the side has much of a tulip
    if bud:
        count = int(rng.integers(7, 12))
    t = (np.arange(count) + 0.6) / count  # 0 innermost, 1 outermost
    rows, cols = 3 + round(5 * detail), 3 + round(6 * detail)
    u = np.linspace(0, 1, rows + 1)[None, :]
    spread = rng.uniform(0.25, 0.5) if bud else rng.uniform(0.75, 1.2)
    height = rng.uniform(0.75, 1.05)
    top = (0.07 + 0.75 * t**0.85)[:, None] * (0.75 if bud else 1.0)
    # outer petals lean out and roll their rim back, inner ones stand and lean over the middle
    lean = (spread * (t**1.6) * 0.55)[:, None]
    radius = (
        top * (0.3 + 0.7 * np.sin(np.minimum(u * 1.4, 1) * math.pi / 2)) + lean * u**2.2 - 0.06 * (1 - t)[:, None] * u
    )
    tall = (height * (1 - (0.05 if bud else 0.42) * t**1.5))[:, None] * rng.normal(1, 0.05, (count, 1))
    roll = (0.4 * spread * t**2)[:, None]
    z = tall * np.sin(u * (1.45 + roll)) - (0.12 * t)[:, None]
    half = (np.radians(np.interp(t, [0, 0.4, 1], [150, 85, 52])) * rng.normal(1, 0.1, count))[:, None]
    half_angle = half * (0.55 + 0.45 * np.minimum(u * 2, 1)) * np.clip(1.0 - 0.9 * u**6, 0, 1) ** 0.6
    angle = np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.18, count)
    flare = rng.normal(0.10, 0.06, count) * (0.4 + t)
    vertices = make_shells(angle, np.maximum(radius, 0.02), z, half_angle, flare, cols)
    wave = rng.normal(0, 0.028, (count, 1, cols + 1)) * u[..., None] ** 2
    vertices[..., 2] += wave
    deep = mix(colour * 0.5, (120, 10, 20), 0.1 if colour.min() > 120 else 0.35)
    heart = mix(colour, rng.choice([[250, 214, 120], [200, 60, 80], [250, 240, 230]]), rng.uniform(0, 0.4))
    colours = petal_colours(rng, (count, rows, cols), deep, colour, at=0.36, jitter=0.05, veins=0.025)
    inside = ((1 - t) ** 2)[:, None, None, None] * 0.6
    colours = colours * (1 - inside) + inside * mix(deep, heart, (np.arange(rows) + 0.5) / rows)[None, :, None, :]
    colours[:, -1] = mix(colours[:, -1], np.minimum(colour * 1.25 + 12, 255), np.full(colours[:, -1].shape[:-1], 0.55))
    surfaces = [make_surface(vertices, colours)]
    surfaces.append(
        make_calyx(rng, green, count=5, radius=0.1, length=0.75, width=0.12, rise=rng.normal(0.3, 0.6), lift=-0.16)
    )
    surfaces.append(make_dome(0.2, -0.16, green, lift=-0.1))
    return join_surfaces(surfaces), -0.24


def _tulip(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    rows, cols = 5 + round(10 * detail), 4 + round(6 * detail)
    u = np.linspace(0, 1, rows + 1)[None, :]
    open_ = rng.choice([rng.uniform(0.35, 0.75), rng.uniform(0.75, 1.1), rng.uniform(1.1, 1.75)], p=[0.45, 0.35, 0.2])
    count = 6 if rng.random() < 0.85 else int(rng.integers(9, 14))  # some are double
    ring = np.arange(count) % 2  # 0 outer, 1 inner
    angle = np.arange(count) * 2 * math.pi / count + rng.normal(0, 0.07, count)
    belly = rng.uniform(0.52, 0.72)
    tall = rng.uniform(1.25, 1.75) * rng.normal(1, 0.035, count) * (1 - 0.18 * max(open_ - 1, 0))
    opening = (open_ * rng.normal(1, 0.1, count))[:, None]
    swell = np.sin(np.minimum(u * 2.1, 1) * math.pi / 2) ** 0.8
    radius = belly * (0.12 + 0.88 * swell) * (1 + (opening - 1) * np.clip(u - 0.35, 0, 1) ** 1.5 * 1.9)
    radius *= (1 - 0.1 * ring)[:, None]
    z = tall[:, None] * (u - 0.12 * np.maximum(opening - 0.9, 0) * u**3) - 0.75
    pointed = rng.uniform(1.6, 3.6)
    half = np.radians(rng.uniform(46, 62)) * (6 / count) ** 0.4
    half_angle = half * np.clip(1 - u**pointed, 0.0, 1) ** 0.62 * np.ones((count, 1)) + 0.02
    flare = rng.normal(-0.06, 0.06, count)
    vertices = make_shells(angle, radius, z, half_angle, flare, cols)
    vertices[..., 2] += rng.normal(0, 0.02, (count, 1, cols + 1)) * u[..., None] ** 2
    second = rng.choice([0, 1, 2], p=[0.5, 0.25, 0.25])
    tip = [colour, mix(colour, (250, 236, 150), 0.75), mix(colour, pick(rng, GARDEN), 0.7)][second]
    base = mix(colour * 0.8, (170, 180, 90), rng.uniform(0, 0.6))
    colours = petal_colours(rng, (count, rows, cols), base, colour, at=0.22, jitter=0.05, veins=0.045)
    v = np.abs(np.linspace(-1, 1, cols))[None, None, :]
    edge = np.clip(((np.arange(rows) + 0.5) / rows)[None, :, None] ** 3 * 0.6 + v**3 * 0.6, 0, 1) * np.ones(
        (count, 1, 1)
    )
    colours = colours * (1 - edge[..., None]) + edge[..., None] * tip * rng.normal(1, 0.03, (*colours.shape[:-1], 1))
    surfaces = [make_surface(vertices, colours)]
    if open_ > 0.8:  # what is inside: a dark eye, six stamens, the pistil
        eye = rng.choice([[40, 30, 40], [230, 210, 90], [90, 100, 50]])
        surfaces.append(make_dome(belly * 0.5, 0.05, np.asarray(eye, float), lift=-0.6))
        stamens = np.arange(6) * math.pi / 3 + 0.3
        for width, start, dark in ((0.03, 0.12, eye), (0.05, 0.0, (190, 190, 110))):
            vertices = make_straps(
                stamens if start else stamens[:3],
                inner=start,
                length=0.5,
                width=width,
                rise=1.35,
                curl=-0.1,
                lift=-0.6,
                outline=np.array([0.5, 0.7, 1, 0.7]),
                cols=1,
            )
            surfaces.append(make_surface(vertices, np.asarray(dark, float) * np.ones((len(vertices), 3, 1, 1))))
    return join_surfaces(surfaces), -0.75


class Habit(NamedTuple):
    """How a kind usually looks: its form, the camera's angle, its leaves."""

    form: Callable[[Generator, Colour, Colour, float], tuple[Surface, float]]
    palette: tuple
    tilt: tuple[float, float]  # mean and deviation of the angle between the axis and the line of sight, radians
    leaf: str
    stem: float  # thickness as a share of the flower's radius


HABITS = {
    "daisy": Habit(_daisy, DAISY, (0.5, 0.35), "lobed", 0.05),
    "dandelion": Habit(_dandelion, DANDELION, (0.55, 0.4), "toothed", 0.08),
    "rose": Habit(_rose, GARDEN, (0.6, 0.4), "oval", 0.08),
    "sunflower": Habit(_sunflower, SUNFLOWER, (0.5, 0.35), "oval", 0.11),
    "tulip": Habit(_tulip, GARDEN, (1.2, 0.33), "long", 0.1),
}

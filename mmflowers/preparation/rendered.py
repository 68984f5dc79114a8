"""Flowers rendered by the project: a data set that needs no download and that anybody may pass on.

A flower is a handful of curved surfaces (petals, discs, florets) cut into small quads; they are turned in three
dimensions, shaded by the angle to the light and painted from back to front with Pillow at twice the final size. Around
it come a background, stems and leaves, other flowers out of focus, grass before the lens, and what a camera adds: blur,
colour of the light, exposure, vignette, noise, JPEG. Backgrounds, light and palettes are shared by the kinds so that
colour tells little; the shapes differ as those of the real flowers do, with their ambiguous views (rosebuds beside
closed tulips, double daisies beside dandelions).
"""

from __future__ import annotations

import io
import math
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from PIL import Image, ImageDraw, ImageFilter

from mmflowers.errors import InputError, Problem

KINDS = ("daisy", "dandelion", "rose", "sunflower", "tulip")

SUPERSAMPLING = 2  # Pillow's polygons have hard edges; drawing at twice the size and averaging smooths them
MIN_SIDE, MAX_SIDE = 32, 4096  # pixels; below it there is no flower to see, above it a typing error is likelier
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))

Colour = np.ndarray  # float RGB, 0..255


class Surface(NamedTuple):
    """Quads in the flower's own space: axis +z, the flower's radius about 1.

    Attributes:
        quads: float (N, 4, 3), corners in order.
        colours: float (N, 3), RGB 0..255 before shading.
    """

    quads: np.ndarray
    colours: np.ndarray


# -------------------------------------------------------------------------------------------------------------- public


def render_flower(kind: str, rng: Generator | int, size: tuple[int, int]) -> Image.Image:
    """Render one picture of a kind of flower.

    Args:
        kind: One of ``KINDS``.
        rng: Source of every choice; an int seeds a new one. The same state gives the same pixels with the same
            versions of numpy and Pillow.
        size: Width and height in pixels, each 32 to 4096.

    Returns:
        An RGB image of that size.

    Raises:
        InputError: For an unknown kind or a size out of range.
    """
    problems = _problems_of_kinds([kind])
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        problems.append(
            Problem(f"a picture of {size[0]} × {size[1]} pixels can't be rendered", f"{MIN_SIDE} to {MAX_SIDE} a side")
        )
    if problems:
        raise InputError(problems=problems)
    rng = default_rng(rng)
    width, height = size
    scene = _Scene(rng, width * SUPERSAMPLING, height * SUPERSAMPLING)
    scene.paint(kind)
    return _photograph(rng, scene.canvas.reduce(SUPERSAMPLING))


def render_flowers(
    folder: Path,
    count_per_class: int,
    *,
    seed: int = 0,
    short_side: int = 240,
    workers: int = 1,
    kinds: tuple[str, ...] = KINDS,
    progress: Callable[..., Iterable[Path]] | None = None,
) -> None:
    """Write ``folder/<kind>/<kind>_00001.jpg …``, ``count_per_class`` files a kind.

    Picture i of a kind depends on (seed, kind, i, short_side) alone: neither on the count, nor on the workers, nor on
    the other kinds. Files are written straight to their place; render into a staging folder where that matters.

    Args:
        folder: Made where it is missing; files of the same names are overwritten.
        count_per_class: Any number from 1.
        seed: A non-negative int.
        short_side: The typical short side in pixels, single pictures vary by a fifth around it; aspect ratios 1 to 1.6.
        workers: Processes; 1 renders in this one. They are spawned, so a script needs its ``__main__`` guard.
        kinds: Which to render.
        progress: Shows how far it is: ``mmflowers.commands.progress``, or whatever takes its arguments.

    Raises:
        InputError: For every argument that is out of range, all at once.
    """
    problems = _problems_of_kinds(kinds)
    if count_per_class < 1:
        problems.append(Problem(f"{count_per_class} pictures a class is no data set", "give a number from 1"))
    if seed < 0:
        problems.append(Problem(f"seed {seed} is negative", "give 0 or more"))
    if not 2 * MIN_SIDE <= short_side <= MAX_SIDE // 2:
        problems.append(
            Problem(f"a short side of {short_side} pixels is out of range", f"{2 * MIN_SIDE} to {MAX_SIDE // 2}")
        )
    if workers < 1:
        problems.append(Problem(f"{workers} workers can't render anything", "give a number from 1"))
    if problems:
        raise InputError(problems=problems)

    folder = Path(folder)
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    jobs = ((os.fspath(folder), kind, i, seed, short_side) for kind in kinds for i in range(1, count_per_class + 1))
    total = len(kinds) * count_per_class

    def show(paths: Iterable[Path]) -> Iterable[Path]:
        return progress(paths, total=total, what="rendering") if progress else paths

    if workers == 1:
        for _ in show(map(_render_file, jobs)):
            pass
        return
    # spawned on every system: a fork of a process that has threads (torch's, say) may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_parent) as pool:
        try:
            for _ in show(pool.map(_render_file, jobs, chunksize=16)):
                pass
        except BaseException:  # a signal included: without this the pool would finish everything that is queued
            pool.shutdown(cancel_futures=True)
            raise


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; one clean stop is enough


def _problems_of_kinds(kinds) -> list[Problem]:
    return [
        Problem(f"there is no rendered flower named {kind!r}", f"one of {', '.join(KINDS)}")
        for kind in kinds
        if kind not in KINDS
    ]


def _render_file(job: tuple[str, str, int, int, int]) -> Path:
    folder, kind, number, seed, short_side = job
    # spelled out, not hash(): Python's is salted in every process
    rng = default_rng(SeedSequence([seed, number, *kind.encode()]))
    short = round(short_side * rng.uniform(0.8, 1.2))
    long = round(short * rng.choice([1.0, 1.25, 4 / 3, 1.5, 1.6], p=[0.1, 0.1, 0.4, 0.35, 0.05]))
    image = render_flower(kind, rng, (long, short) if rng.random() < 0.7 else (short, long))
    path = Path(folder, kind, f"{kind}_{number:05d}.jpg")
    jpeg = io.BytesIO()  # Pillow's own errors don't say what the disk said
    image.save(jpeg, "JPEG", quality=int(rng.integers(50, 96)))
    path.write_bytes(jpeg.getbuffer())
    return path


# ------------------------------------------------------------------------------------------------------------- colours

# (weight, RGB). Roses and tulips share one palette; the yellows of the others overlap with it and with each other.
_GARDEN = (
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
_DAISY = (
    (9, (246, 244, 240)),
    (3, (240, 168, 196)),
    (4, (244, 204, 50)),
    (2, (214, 60, 120)),
    (2, (236, 120, 50)),
    (1, (176, 136, 200)),
)
_DANDELION = ((6, (248, 206, 24)), (3, (246, 186, 20)), (1, (244, 226, 110)))
_SUNFLOWER = (
    (8, (248, 194, 20)),
    (4, (246, 212, 60)),
    (2, (238, 150, 24)),
    (2, (176, 62, 26)),
    (2, (246, 232, 176)),
)
_GREENS = ((3, (74, 122, 44)), (3, (52, 96, 42)), (2, (104, 148, 62)), (1, (120, 140, 98)), (1, (60, 100, 76)))


def _pick(rng: Generator, palette, jitter: float = 14.0) -> Colour:
    weights = np.array([weight for weight, _ in palette], float)
    colour = np.array(palette[rng.choice(len(palette), p=weights / weights.sum())][1], float)
    return np.clip(colour + rng.normal(0, jitter, 3) * 0.6 + rng.normal(0, jitter * 0.6), 0, 255)


def _mix(a, b, t) -> np.ndarray:
    """Colours between ``a`` and ``b``: (…, 3) for t of shape (…)."""
    t = np.asarray(t, float)[..., None]
    return np.asarray(a, float) * (1 - t) + np.asarray(b, float) * t


def _rgb(colour) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, round(float(c)))) for c in colour)
    return r, g, b


# ------------------------------------------------------------------------------------------------------------ surfaces


def _surface(vertices: np.ndarray, colours: np.ndarray) -> Surface:
    """Cut n grids of vertices (n, rows + 1, cols + 1, 3), with colours (n, rows, cols, 3), into quads."""
    quads = np.stack([vertices[:, :-1, :-1], vertices[:, 1:, :-1], vertices[:, 1:, 1:], vertices[:, :-1, 1:]], axis=3)
    return Surface(quads.reshape(-1, 4, 3), np.broadcast_to(colours, (*quads.shape[:3], 3)).reshape(-1, 3))


def _join(surfaces: list[Surface]) -> Surface:
    return Surface(np.concatenate([s.quads for s in surfaces]), np.concatenate([s.colours for s in surfaces]))


def _straps(
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
    """Petals that leave a ring outwards: vertices (n, rows + 1, cols + 1, 3) for n angles around the axis.

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


def _shells(angle: np.ndarray, radius: np.ndarray, z: np.ndarray, half_angle: np.ndarray, flare: np.ndarray, cols: int):
    """Petals that wrap around the axis: vertices (n, rows + 1, cols + 1, 3).

    ``radius``, ``z`` and ``half_angle`` are (n, rows + 1) along the petal; ``flare`` (n) widens the radius to the
    sides.
    """
    v = np.linspace(-1, 1, cols + 1)
    around = angle[:, None, None] + half_angle[:, :, None] * v
    r = radius[:, :, None] * (1 + flare[:, None, None] * v**2)
    return np.stack([r * np.cos(around), r * np.sin(around), np.broadcast_to(z[:, :, None], r.shape)], axis=-1)


def _petal_colours(
    rng: Generator,
    shape: tuple[int, int, int],
    base,
    tip,
    *,
    at: float = 0.5,
    jitter: float = 0.06,
    veins: float = 0.05,
) -> np.ndarray:
    """Colours (n, rows, cols, 3) from ``base`` to ``tip``, uneven from petal to petal and in streaks along each."""
    n, rows, cols = shape
    u = (np.arange(rows) + 0.5) / rows
    colours = _mix(base, tip, np.clip(u / max(2 * at, 1e-3), 0, 1))[None, :, None, :]
    uneven = rng.normal(1, jitter, (n, 1, 1, 1)) * rng.normal(1, veins, (n, 1, cols, 1))
    return colours * uneven * rng.normal(1, veins * 0.25, (n, rows, cols, 1))


def _florets(
    rng: Generator, count: int, radius: float, dome: float, size: float, centre, rim, *, lift=0.0, detail=1.0
) -> Surface:
    """A disc of florets as in the head of a daisy: Vogel's spiral (1979) on a dome, every floret a small diamond."""
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
    colours = _mix(centre, rim, share) * rng.normal(1, 0.14, (count, 1))
    return Surface(quads, colours)


def _dome(radius: float, height: float, colour, *, lift=0.0, depth: float = 0.0) -> Surface:
    """A closed cap, so that nothing shines through between florets; ``depth`` > 0 darkens its rim."""
    rows, cols = 3, 14
    share = np.linspace(0.02, 1, rows + 1)[:, None]
    angle = np.linspace(0, 2 * math.pi, cols + 1)[None, :]
    z = np.broadcast_to(lift + height * (1 - share**2), (rows + 1, cols + 1))
    vertices = np.stack([radius * share * np.cos(angle), radius * share * np.sin(angle), z], axis=-1)[None]
    fade = 1 - depth * np.linspace(0, 1, rows)[None, :, None, None]
    return _surface(vertices, np.asarray(colour, float) * fade)


def _calyx(rng: Generator, green, *, count: int, radius: float, length: float, width: float, rise: float, lift: float):
    """The green leaves under a flower head, seen from the side or between the petals."""
    angle = np.arange(count) * 2 * math.pi / count + rng.normal(0, 0.1, count)
    outline = np.array([0.7, 1.0, 0.8, 0.45, 0.03])
    vertices = _straps(
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
    return _surface(vertices, _petal_colours(rng, (count, 4, 1), green, _mix(green, (150, 180, 90), 0.3), jitter=0.1))


# ------------------------------------------------------------------------------------------------------------- flowers
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
    base = _mix(colour, rng.choice([[250, 240, 190], [255, 255, 255], [150, 40, 80]]), rng.uniform(0, 0.45))
    surfaces = []
    for layer in range(layers):
        angle = (np.arange(count) + 0.5 * layer) * 2 * math.pi / count + rng.normal(0, 0.05, count)
        present = rng.random(count) > rng.choice([0, 0.05, 0.15])  # a petal or two is missing in many
        angle = angle[present]
        n = len(angle)
        vertices = _straps(
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
        colours = _petal_colours(rng, (n, len(u) - 1, cols), base, colour, at=rng.uniform(0.15, 0.5), veins=0.035)
        colours *= np.linspace(0.82, 1.04, len(u) - 1)[:, None, None]
        surfaces.append(_surface(vertices, colours))
    yellow = rng.choice([[232, 180, 30], [220, 150, 24], [190, 170, 50], [92, 58, 34]], p=[0.5, 0.25, 0.15, 0.1])
    dome = disc * rng.uniform(0.1, 0.7)
    surfaces.append(_dome(disc, dome, np.asarray(yellow) * 0.72, lift=0.02, depth=0.25))
    middle = _mix(yellow, rng.choice([[150, 150, 40], [255, 220, 90]]), rng.uniform(0, 0.8))
    surfaces.append(_florets(rng, 150, disc * 0.98, dome, disc * 0.07, middle, yellow, lift=0.05, detail=detail))
    surfaces.append(_calyx(rng, green, count=12, radius=0.05, length=disc * 1.1, width=0.07, rise=0.3, lift=-0.12))
    return _join(surfaces), -0.12


def _dandelion(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    if rng.random() < 0.3:
        return _puffball(rng, green, detail)
    core = _mix(colour, (226, 140, 10), rng.uniform(0.2, 0.8))
    count = round(rng.integers(190, 300) * detail)
    share = np.sqrt((np.arange(count) + 0.5) / count)  # 0 in the middle, 1 at the rim
    angle = np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.1, count)
    opened = rng.uniform(0.55, 1.15)  # how far the middle has opened
    rise = (1 - share**1.3) * 1.45 * opened + rng.normal(0, 0.1, count) + rng.uniform(-0.1, 0.35)
    vertices = _straps(
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
    colours = _petal_colours(rng, (count, 4, 1), core * 0.72, colour, at=0.35, jitter=0.09)
    colours *= (0.86 + 0.14 * share)[:, None, None, None]
    surfaces = [_surface(vertices, colours)]
    if opened < 0.85:
        surfaces.append(_florets(rng, 60, 0.14, 0.08, 0.03, core * 0.8, core, lift=0.3, detail=detail))
    surfaces.append(_calyx(rng, green, count=14, radius=0.06, length=0.5, width=0.06, rise=0.5, lift=-0.2))
    surfaces.append(_calyx(rng, green, count=9, radius=0.08, length=0.4, width=0.05, rise=-0.6, lift=-0.16))
    return _join(surfaces), -0.2


def _puffball(rng: Generator, green: Colour, detail: float) -> tuple[Surface, float]:
    """The seed head: achenes on a core, each with a stalk and an umbrella of hairs at the surface of a sphere."""
    count, hairs = round(rng.integers(90, 160) * detail), round(rng.integers(8, 12) * detail**0.5)
    colour = _pick(rng, ((3, (236, 236, 232)), (1, (220, 212, 196))), jitter=8)
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
    return _join(
        [
            _dome(0.13, 0.12, _mix(brown, green, 0.4), depth=0.3),
            Surface(seeds, np.repeat(brown[None], n, 0) * rng.normal(1, 0.15, (n, 1))),
            Surface(stalks, np.repeat(_mix(colour, brown, 0.25)[None], n, 0)),
            Surface(umbrella, umbrella_colours),
            _calyx(rng, green, count=9, radius=0.08, length=0.35, width=0.05, rise=-1.0, lift=-0.06),
        ]
    ), -0.08


def _sunflower(rng: Generator, colour: Colour, green: Colour, detail: float) -> tuple[Surface, float]:
    disc = rng.uniform(0.34, 0.55)
    layers = int(rng.choice([1, 2, 3], p=[0.15, 0.6, 0.25]))
    count = int(rng.integers(13, 24))
    rise, curl = rng.normal(0.2, 0.22), rng.normal(-0.1, 0.35)
    u, cols = np.linspace(0, 1, 5 + round(3 * detail)), 4 if detail > 0.6 else 2
    outline = np.sin(math.pi * np.clip(0.16 + 0.84 * u**0.85, 0, 1)) ** 0.85 + 0.02
    base = _mix(colour, (150, 60, 10), rng.choice([0.1, 0.3, 0.7], p=[0.5, 0.35, 0.15]))
    surfaces = []
    for layer in reversed(range(layers)):
        angle = (np.arange(count) + layer * 0.5) * 2 * math.pi / count + rng.normal(0, 0.09, count)
        vertices = _straps(
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
        colours = _petal_colours(rng, (count, len(u) - 1, cols), base, colour, at=rng.uniform(0.1, 0.3), veins=0.06)
        colours *= 0.82 if layer else 1.0
        colours[:, :, 1:-1] *= 0.95  # the fold along the middle
        surfaces.append(_surface(vertices, colours))
    dark = rng.random() < 0.6
    centre, rim = ([58, 36, 22], [108, 66, 26]) if dark else ([148, 148, 60], [196, 148, 40])
    if rng.random() < 0.4:
        centre = [120, 124, 60]  # unopened florets in the middle
    dome = disc * rng.uniform(0.02, 0.4)
    surfaces.append(_dome(disc, dome, np.asarray(rim, float) * 0.6, lift=0.03, depth=0.2))
    surfaces.append(_florets(rng, 320, disc, dome, disc * 0.056, centre, rim, lift=0.06, detail=detail))
    ring = round(rng.integers(40, 70) * detail)  # the florets in bloom stand up around the disc
    angle = np.arange(ring) * GOLDEN_ANGLE
    stamens = _straps(
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
    surfaces.append(_surface(stamens, _petal_colours(rng, (ring, 2, 1), rim, _mix(rim, (220, 160, 40), 0.5))))
    surfaces.append(
        _calyx(rng, green, count=15, radius=disc * 0.5, length=disc * 0.9, width=0.09, rise=0.05, lift=-0.16)
    )
    surfaces.append(_dome(disc * 0.95, -0.12, np.asarray(green) * 0.9, lift=-0.05))
    return _join(surfaces), -0.17


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
    vertices = _shells(angle, np.maximum(radius, 0.02), z, half_angle, flare, cols)
    wave = rng.normal(0, 0.028, (count, 1, cols + 1)) * u[..., None] ** 2
    vertices[..., 2] += wave
    deep = _mix(colour * 0.5, (120, 10, 20), 0.1 if colour.min() > 120 else 0.35)
    heart = _mix(colour, rng.choice([[250, 214, 120], [200, 60, 80], [250, 240, 230]]), rng.uniform(0, 0.4))
    colours = _petal_colours(rng, (count, rows, cols), deep, colour, at=0.36, jitter=0.05, veins=0.025)
    inside = ((1 - t) ** 2)[:, None, None, None] * 0.6
    colours = colours * (1 - inside) + inside * _mix(deep, heart, (np.arange(rows) + 0.5) / rows)[None, :, None, :]
    colours[:, -1] = _mix(colours[:, -1], np.minimum(colour * 1.25 + 12, 255), np.full(colours[:, -1].shape[:-1], 0.55))
    surfaces = [_surface(vertices, colours)]
    surfaces.append(
        _calyx(rng, green, count=5, radius=0.1, length=0.75, width=0.12, rise=rng.normal(0.3, 0.6), lift=-0.16)
    )
    surfaces.append(_dome(0.2, -0.16, green, lift=-0.1))
    return _join(surfaces), -0.24


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
    vertices = _shells(angle, radius, z, half_angle, flare, cols)
    vertices[..., 2] += rng.normal(0, 0.02, (count, 1, cols + 1)) * u[..., None] ** 2
    second = rng.choice([0, 1, 2], p=[0.5, 0.25, 0.25])
    tip = [colour, _mix(colour, (250, 236, 150), 0.75), _mix(colour, _pick(rng, _GARDEN), 0.7)][second]
    base = _mix(colour * 0.8, (170, 180, 90), rng.uniform(0, 0.6))
    colours = _petal_colours(rng, (count, rows, cols), base, colour, at=0.22, jitter=0.05, veins=0.045)
    v = np.abs(np.linspace(-1, 1, cols))[None, None, :]
    edge = np.clip(((np.arange(rows) + 0.5) / rows)[None, :, None] ** 3 * 0.6 + v**3 * 0.6, 0, 1) * np.ones(
        (count, 1, 1)
    )
    colours = colours * (1 - edge[..., None]) + edge[..., None] * tip * rng.normal(1, 0.03, (*colours.shape[:-1], 1))
    surfaces = [_surface(vertices, colours)]
    if open_ > 0.8:  # what is inside: a dark eye, six stamens, the pistil
        eye = rng.choice([[40, 30, 40], [230, 210, 90], [90, 100, 50]])
        surfaces.append(_dome(belly * 0.5, 0.05, np.asarray(eye, float), lift=-0.6))
        stamens = np.arange(6) * math.pi / 3 + 0.3
        for width, start, dark in ((0.03, 0.12, eye), (0.05, 0.0, (190, 190, 110))):
            vertices = _straps(
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
            surfaces.append(_surface(vertices, np.asarray(dark, float) * np.ones((len(vertices), 3, 1, 1))))
    return _join(surfaces), -0.75


class Habit(NamedTuple):
    """How a kind is met with: its form, the camera's usual angle, its leaves."""

    form: Callable[[Generator, Colour, Colour, float], tuple[Surface, float]]
    palette: tuple
    tilt: tuple[float, float]  # mean and deviation of the angle between the axis and the line of sight, radians
    leaf: str
    stem: float  # thickness as a share of the flower's radius


_HABITS = {
    "daisy": Habit(_daisy, _DAISY, (0.5, 0.35), "lobed", 0.05),
    "dandelion": Habit(_dandelion, _DANDELION, (0.55, 0.4), "toothed", 0.08),
    "rose": Habit(_rose, _GARDEN, (0.6, 0.4), "oval", 0.08),
    "sunflower": Habit(_sunflower, _SUNFLOWER, (0.5, 0.35), "oval", 0.11),
    "tulip": Habit(_tulip, _GARDEN, (1.2, 0.33), "long", 0.1),
}


# --------------------------------------------------------------------------------------------------------------- scene


class _Scene:
    """One picture in the making, at the supersampled size."""

    def __init__(self, rng: Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.short = min(width, height)
        light = np.array([rng.normal(0, 0.6), rng.normal(-0.5, 0.4), rng.uniform(0.5, 1.2)])
        self.light = light / np.linalg.norm(light)  # towards the light; x right, y down, z to the camera
        self.ambient = rng.uniform(0.42, 0.72)
        self.green = _pick(rng, _GREENS)
        self.colours: dict[str, Colour] = {}
        self.lean = rng.normal(0, 0.22)  # the way the stems go, or the camera is held
        self.canvas = _background(rng, width, height, self.green)
        self.draw = ImageDraw.Draw(self.canvas)

    def paint(self, kind: str) -> None:
        rng = self.rng
        arrangement = rng.choice(["one", "few", "bunch"], p=[0.55, 0.3, 0.15])
        if rng.random() < 0.6:
            self._foliage(int(rng.integers(2, 9)), _HABITS[kind].leaf)
        if rng.random() < 0.45:  # companions behind, mostly of the same kind as in a bed, sometimes of another
            for _ in range(int(rng.integers(1, 6))):
                other = kind if rng.random() < 0.7 else str(rng.choice(KINDS))
                self._flower(other, self._anywhere(0.1), self.short * rng.uniform(0.06, 0.2), most_detail=0.4)
            self._defocus(rng.uniform(2.5, 6))
        elif rng.random() < 0.4:
            self._defocus(rng.uniform(1, 4))
        if arrangement == "one":
            places = [(self._anywhere(0.34), self.short * rng.uniform(0.2, 0.5))]
        elif arrangement == "few":
            radius = self.short * rng.uniform(0.16, 0.3)
            places = [(self._anywhere(0.2), radius * rng.uniform(0.7, 1.15)) for _ in range(int(rng.integers(2, 4)))]
        else:
            radius = self.short * rng.uniform(0.1, 0.17)
            places = [(self._anywhere(0.1), radius * rng.uniform(0.7, 1.25)) for _ in range(int(rng.integers(4, 10)))]
        for place, radius in sorted(places, key=lambda item: item[1]):  # the near ones last
            self._flower(kind, place, radius)
        if rng.random() < 0.15:
            self._before_the_lens()

    def _anywhere(self, margin: float) -> np.ndarray:
        return self.rng.uniform(margin, 1 - margin, 2) * (self.width, self.height)

    def _defocus(self, times: float) -> None:
        """Blur everything painted so far, cheaply: average, smooth, enlarge."""
        factor = max(2, round(times * self.short / 480))
        small = self.canvas.reduce(factor).filter(ImageFilter.GaussianBlur(1.2))
        self.canvas = small.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self.draw = ImageDraw.Draw(self.canvas)

    def _flower(self, kind: str, place: np.ndarray, radius: float, most_detail: float = 1.0) -> None:
        rng, habit = self.rng, _HABITS[kind]
        if kind not in self.colours or rng.random() < 0.25:  # most beds are of one colour
            self.colours[kind] = _pick(rng, habit.palette)
        colour = _mix(self.colours[kind], rng.uniform(0, 255, 3), 0.04)
        form, stem_from = habit.form(rng, colour, self.green, min(most_detail, max(0.3, radius / 160)))
        tilt = float(np.clip(abs(rng.normal(*habit.tilt)), 0, 1.75))
        roll = self.lean + rng.normal(0, 0.35) + (rng.uniform(-math.pi, math.pi) if tilt < 0.35 else 0)
        pose = _turn_z(roll) @ _turn_x(tilt) @ _turn_z(rng.uniform(-math.pi, math.pi))
        distance = rng.uniform(3.2, 9)  # of the camera, in flower radii: near ones are distorted by the perspective
        squeeze = np.array([rng.normal(1, 0.06), rng.normal(1, 0.06)])

        def project(points: np.ndarray) -> np.ndarray:
            return points[..., :2] * (distance / (distance - points[..., 2:])) * squeeze * radius + place

        start = project(pose @ np.array([0, 0, stem_from]))
        self._stem(start, (pose @ np.array([0, 0, -1.0]))[:2], radius, habit)
        quads = (form.quads.reshape(-1, 3) @ pose.T).reshape(-1, 4, 3)
        normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        facing = np.abs(normals @ self.light) / (np.linalg.norm(normals, axis=1) + 1e-9)
        # thin petals are lit from both sides, and what lies low in the flower gets less light
        depth = np.clip(0.85 + 0.25 * form.quads[:, :, 2].mean(axis=1), 0.7, 1.1)
        shade = (self.ambient + (1.12 - self.ambient) * facing**0.8) * depth
        colours = np.clip(form.colours * shade[:, None], 0, 255).astype(np.int32)
        ink = colours @ np.array([1, 1 << 8, 1 << 16], np.int32)  # Pillow takes ABGR, quicker than a tuple
        order = np.argsort(quads[:, :, 2].mean(axis=1), kind="stable")
        corners = project(quads[order]).reshape(-1, 8)
        x, y = corners[:, ::2], corners[:, 1::2]
        inside = (x.max(1) > 0) & (x.min(1) < self.width) & (y.max(1) > 0) & (y.min(1) < self.height)
        polygon = self.draw.polygon
        for corner, fill in zip(corners[inside].tolist(), ink[order][inside].tolist(), strict=True):
            polygon(corner, fill=fill)

    def _stem(self, start: np.ndarray, away: np.ndarray, radius: float, habit: Habit) -> None:
        """From the flower's base down and out of the picture, bending from the flower's axis to the plant's."""
        rng = self.rng
        down = np.array([math.sin(-self.lean), math.cos(self.lean)])
        end = start + down * (self.height + radius - start[1]) + (rng.normal(0, radius * 0.3), radius)
        bend = start + away * radius * 1.2 + down * radius * 0.6
        t = np.linspace(0, 1, 14)[:, None]
        curve = start * (1 - t) ** 2 + bend * 2 * t * (1 - t) + end * t**2
        width = max(2, radius * habit.stem * rng.uniform(0.8, 1.2))
        colour = _mix(self.green, (150, 90, 70), rng.choice([0, 0.1, 0.35]))
        for offset, scale, tone in ((0.0, 1.0, 0.6), (-0.12, 0.66, 0.85), (-0.2, 0.25, 1.08)):
            line = [tuple(point) for point in (curve + np.array([offset * width, 0])).tolist()]
            self.draw.line(line, fill=_rgb(colour * tone), width=max(1, round(width * scale)), joint="curve")
        for _ in range(int(rng.integers(0, 4))):
            at = curve[int(rng.integers(4, 13))]
            side = rng.choice([-1, 1])
            heading = math.pi / 2 - side * rng.uniform(1.2, 2.6) if habit.leaf != "long" else -math.pi / 2 + side * 0.4
            self._leaf(at, heading, radius * rng.uniform(0.6, 1.5), habit.leaf)

    def _foliage(self, count: int, own: str) -> None:
        for _ in range(count):
            shape = own if self.rng.random() < 0.6 else str(self.rng.choice(list(_LEAVES)))
            heading = self.rng.normal(-math.pi / 2, 0.9)
            where = np.array([self.rng.uniform(0, self.width), self.rng.uniform(0.78, 1.1) * self.height])
            self._leaf(where, heading, self.short * self.rng.uniform(0.2, 0.65), shape)

    def _leaf(self, base: np.ndarray, heading: float, length: float, shape: str) -> None:
        """Two halves in two tones along a bent midrib: enough to read as a leaf."""
        rng = self.rng
        width, teeth, depth = _LEAVES[shape]
        u = np.linspace(0, 1, 26)
        outline = np.sin(math.pi * u**0.8) * width * rng.uniform(0.8, 1.2)
        outline *= 1 + depth * ((u * teeth) % 1 - 0.5)
        course = heading + rng.normal(0, 0.5) * u
        step = np.stack([np.cos(course), np.sin(course)], axis=1) * (length / 25)
        rib = base + np.cumsum(step, axis=0)
        across = np.stack([-np.sin(course), np.cos(course)], axis=1) * (outline * length)[:, None]
        colour = _mix(self.green, _pick(rng, _GREENS), 0.4) * rng.uniform(0.7, 1.15)
        for side, tone in ((1, rng.uniform(0.75, 1.0)), (-1, rng.uniform(0.95, 1.2))):
            half = np.concatenate([rib, (rib + side * across)[::-1]])
            self.draw.polygon(half.reshape(-1).tolist(), fill=_rgb(colour * tone))
        thin = max(1, round(length * 0.012))
        self.draw.line(rib.reshape(-1).tolist(), fill=_rgb(colour * 1.3), width=thin)
        for side in (-1, 1):
            tips = rib[7:25:4] + side * across[7:25:4] * 0.8
            for vein in np.concatenate([rib[4:22:4], tips], axis=1).tolist():
                self.draw.line(vein, fill=_rgb(colour * 1.12), width=1)

    def _before_the_lens(self) -> None:
        """Blades out of focus between the camera and the flower."""
        rng = self.rng
        scale = 8
        mask = Image.new("L", (self.width // scale, self.height // scale))
        draw = ImageDraw.Draw(mask)
        for _ in range(int(rng.integers(1, 4))):
            x = rng.uniform(0, mask.width)
            top = (x + rng.normal(0, mask.width * 0.2), rng.uniform(0, 0.7) * mask.height)
            broad = rng.uniform(0.02, 0.05) * mask.width
            draw.polygon([(x - broad, mask.height), top, (x + broad, mask.height)], fill=int(rng.integers(120, 220)))
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
        mask = mask.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self.canvas.paste(_rgb(self.green * rng.uniform(0.6, 1.2)), (0, 0), mask)
        self.draw = ImageDraw.Draw(self.canvas)


_LEAVES = {  # half width as a share of the length, number of teeth, their depth
    "oval": (0.28, 9, 0.12),
    "long": (0.11, 1, 0.0),
    "toothed": (0.17, 6, 0.9),
    "lobed": (0.14, 5, 0.5),
}


def _turn_x(angle: float) -> np.ndarray:
    """Tips the axis from the camera (+z) to the top of the picture (-y)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _turn_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


# --------------------------------------------------------------------------------------------------------- backgrounds


def _background(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    paint = rng.choice([_gradient, _sky, _soil, _bokeh, _meadow], p=[0.2, 0.17, 0.13, 0.25, 0.25])
    return paint(rng, width, height, green)


def _clouds(rng: Generator, width: int, height: int, octaves: int = 3) -> np.ndarray:
    """Smooth noise around 0, float (height, width): coarse random grids, enlarged and added."""
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


def _ramp(rng: Generator, a, b, width: int, height: int, noise: float) -> np.ndarray:
    """From ``a`` to ``b`` in a random direction with clouds on it, float (height, width, 3), coarse."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    heading = rng.uniform(0, 2 * math.pi)
    t = 0.5 + 0.45 * (x * math.cos(heading) + y * math.sin(heading)) + noise * _clouds(rng, width, height)
    return _mix(a, b, np.clip(t, 0, 1))


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
    """A wall, a studio's cloth, a garden far out of focus."""
    a = np.array(_BACKDROPS[rng.integers(len(_BACKDROPS))], float)
    b = green * rng.uniform(0.4, 1.1) if rng.random() < 0.5 else a * rng.uniform(0.5, 1.3)
    return _enlarge(_ramp(rng, a, b, 40, 32, 0.2), width, height)


def _sky(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    blue = np.array([rng.uniform(70, 150), rng.uniform(130, 185), rng.uniform(190, 240)])
    share = np.linspace(0, 1, 48)[:, None] * np.ones((1, 60))
    pixels = _mix(blue, _mix(blue, (235, 240, 245), 0.6), share)
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
        draw.ellipse([x - r, y - r * 0.7, x + r * rng.uniform(0.8, 1.8), y + r * 0.7], fill=_rgb(earth * tone))
    return canvas


def _bokeh(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Discs of light out of focus over a dim green."""
    w, h = width // 5, height // 5
    canvas = _enlarge(_ramp(rng, green * 0.45, green * rng.uniform(0.6, 1.2), 24, 20, 0.3), w, h)
    draw = ImageDraw.Draw(canvas, "RGBA")
    accent = _pick(rng, _GARDEN + _DAISY + _SUNFLOWER)
    for _ in range(int(rng.integers(15, 60))):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        r = min(w, h) * rng.uniform(0.02, 0.14)
        colour = accent if rng.random() < 0.3 else _mix(green, (226, 232, 170), rng.uniform(0, 0.7))
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(*_rgb(colour), int(rng.integers(30, 150))))
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 3))).resize(
        (width, height), Image.Resampling.BILINEAR
    )


def _meadow(rng: Generator, width: int, height: int, green: Colour) -> Image.Image:
    """Grass, from sharp to out of focus, with small flowers in it."""
    scale = int(rng.choice([1, 2, 4], p=[0.3, 0.35, 0.35]))
    w, h = width // scale, height // scale
    canvas = _enlarge(_ramp(rng, green * 0.4, green * 0.9, 24, 20, 0.25), w, h)
    draw = ImageDraw.Draw(canvas)
    count = int(rng.integers(120, 320))
    x, y = rng.uniform(-0.05, 1.05, count) * w, rng.uniform(0, 1.25, count) * h
    length, slant = h * rng.uniform(0.15, 0.5, count), rng.normal(0, 0.35, count)
    half = np.maximum(w * rng.uniform(0.003, 0.011, count), 0.6)
    tone = rng.uniform(0.5, 1.5, (count, 1))
    colours = np.clip(_mix(green, (176, 176, 84), rng.uniform(0, 0.45, count)) * tone, 0, 255).astype(int)
    blades = np.stack([x - half, y, x + np.sin(slant) * length, y - np.cos(slant) * length, x + half, y], axis=1)
    order = np.argsort(y)  # the far ones, whose foot is higher in the picture, first
    for blade, colour in zip(blades[order].tolist(), colours[order].tolist(), strict=True):
        draw.polygon(blade, fill=tuple(colour))
    if rng.random() < 0.6:
        accent = _pick(rng, _GARDEN + _DAISY + _DANDELION)
        for _ in range(int(rng.integers(3, 30))):
            cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), min(w, h) * rng.uniform(0.006, 0.025)
            draw.ellipse([cx - r, cy - r * 0.8, cx + r, cy + r * 0.8], fill=_rgb(accent * rng.uniform(0.7, 1.1)))
    if scale == 1:
        return canvas
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 2))).resize(
        (width, height), Image.Resampling.BILINEAR
    )


# -------------------------------------------------------------------------------------------------------------- camera


def _photograph(rng: Generator, image: Image.Image) -> Image.Image:
    """What light, lens and sensor do to a picture; returns RGB of the same size."""
    short = min(image.size)
    blur = rng.choice([0.0, rng.uniform(0.0, 0.003), rng.uniform(0.003, 0.007)], p=[0.4, 0.42, 0.18]) * short
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    warmth, tint = rng.normal(0, 0.08), rng.normal(0, 0.03)
    gains = np.array([1 + warmth, 1 + tint, 1 - warmth]) * math.exp(rng.normal(0, 0.17))
    contrast, saturation = rng.normal(1, 0.13), float(np.clip(rng.normal(0.95, 0.16), 0.45, 1.4))
    # all of it is linear in a pixel's colour: grey + (colour - grey) * saturation, then contrast around 118
    mixing = contrast * (saturation * np.eye(3) + (1 - saturation) / 3) * gains
    matrix = np.column_stack([mixing, np.full(3, 118 * (1 - contrast))])
    image = image.convert("RGB", tuple(matrix.ravel().tolist()))

    width, height = image.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = np.float32(max(0.0, rng.normal(0.12, 0.12)))
    shade = 1 - vignette * (x * x + y * y) + np.float32(rng.normal(0, 0.1)) * x + np.float32(rng.normal(0, 0.08)) * y
    pixels = np.asarray(image) * shade[..., None]
    # bytes are ten times cheaper to draw than normal deviates, and nobody sees the difference in a sensor's noise
    noise = min(rng.gamma(1.5, 2.0), 14.0) / 74  # 74: standard deviation of a byte
    colour_grain = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey_grain = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    # dtype said: older versions of numpy would take float16, which is slow
    pixels += np.multiply(colour_grain, 0.5 * noise, dtype=np.float32)
    pixels += np.multiply(grey_grain, noise, dtype=np.float32) - np.float32(1.5 * 127.5 * noise)
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))

"""Render flower photos: a dataset that needs no download and that anybody may redistribute.

A flower is a handful of curved surfaces (petals, discs, florets) cut into small quads; they are turned in three
dimensions, shaded by the angle to the light and painted from back to front with Pillow at twice the final size. Around
it come a background, stems and leaves, other flowers out of focus, grass before the lens, and what a camera adds: blur,
colour of the light, exposure, vignette, noise, JPEG. Backgrounds, light and palettes are shared by the kinds so that
colour tells little; the shapes differ as those of the real flowers do, with their ambiguous views (rosebuds beside
closed tulips, double daisies beside dandelions).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from numpy.random import Generator, SeedSequence, default_rng
from PIL import Image

from mmflowers.rendered.camera import photograph
from mmflowers.rendered.flowers import KINDS
from mmflowers.rendered.scene import Scene
from mmflowers.utils.errors import failing, raise_all

SUPERSAMPLING = 2  # Pillow's polygons have hard edges; drawing at twice the size and averaging smooths them
MIN_SIDE, MAX_SIDE = 32, 4096  # pixels; below it there is no flower to see, above it a typing error is likelier


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
    width, height = size
    is_wrong = not all(MIN_SIDE <= side <= MAX_SIDE for side in size)
    what = f"a picture of {width} × {height} pixels can't be rendered"
    raise_all(failing([*_checks_of([kind]), (is_wrong, what, f"give {MIN_SIDE} to {MAX_SIDE} pixels for each side")]))
    rng = default_rng(rng)
    scene = Scene(rng, width * SUPERSAMPLING, height * SUPERSAMPLING)
    scene.paint(kind)
    return photograph(rng, scene.canvas.reduce(SUPERSAMPLING))


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
        folder: Created if missing; files of the same names are overwritten.
        count_per_class: Any number from 1.
        seed: A non-negative int.
        short_side: The typical short side in pixels, single pictures vary by a fifth around it; aspect ratios 1 to 1.6.
        workers: Processes; 1 renders in this one. They are spawned, so a script needs its ``__main__`` guard.
        kinds: The kinds to render.
        progress: Shows the progress: ``mmflowers.utils.terminal.progress``, or a function with the same arguments.

    Raises:
        InputError: For every argument that is out of range, all at once.
    """
    smallest, largest = 2 * MIN_SIDE, MAX_SIDE // 2
    is_wrong = not smallest <= short_side <= largest
    checks = [
        *_checks_of(kinds),
        (count_per_class < 1, f"{count_per_class} pictures per class are too few", "give a number from 1"),
        (seed < 0, f"seed {seed} is negative", "give 0 or more"),
        (is_wrong, f"a short side of {short_side} pixels can't be rendered", f"give {smallest} to {largest} pixels"),
        (workers < 1, f"{workers} workers are too few", "give a number from 1"),
    ]
    raise_all(failing(checks))
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    jobs = ((os.fspath(folder), kind, i, seed, short_side) for kind in kinds for i in range(1, count_per_class + 1))
    total = len(kinds) * count_per_class

    with contextlib.ExitStack() as held:
        paths: Iterable[Path] = map(_render_file, jobs)
        if workers > 1:
            # Spawned on every system: a fork of a process that has threads (torch's, say) may hang.
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts_to_parent)
            held.callback(pool.shutdown, cancel_futures=True)  # after an exception too: what is queued isn't rendered
            paths = pool.map(_render_file, jobs, chunksize=16)
        for _ in progress(paths, total=total, what="rendering") if progress else paths:
            pass


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; one clean stop is enough


def _checks_of(kinds: Iterable[str]) -> list[tuple[object, str, str]]:
    known = ", ".join(KINDS)
    return [(kind not in KINDS, f"there is no rendered flower named {kind!r}", f"one of {known}") for kind in kinds]


def _render_file(job: tuple[str, str, int, int, int]) -> Path:
    folder, kind, number, seed, short_side = job
    # Spelled out, not hash(): Python's is salted in every process. No two flowers share a seed: no kind ends in another
    # one or in a zero, so the words that NumPy makes of a key are told apart from their end.
    rng = default_rng(SeedSequence([seed, number, *kind.encode()]))
    short = round(short_side * rng.uniform(0.8, 1.2))
    long = round(short * rng.choice([1.0, 1.25, 4 / 3, 1.5, 1.6], p=[0.1, 0.1, 0.4, 0.35, 0.05]))
    image = render_flower(kind, rng, (long, short) if rng.random() < 0.7 else (short, long))
    path = Path(folder, kind, f"{kind}_{number:05d}.jpg")
    jpeg = io.BytesIO()  # Pillow's own errors don't say what the disk said
    image.save(jpeg, "JPEG", quality=int(rng.integers(50, 96)))
    path.write_bytes(jpeg.getbuffer())
    return path

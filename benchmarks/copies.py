"""Measure how many changed copies of photos the preparation finds, how many wrong pairs, and in what time.

Copies are made in memory of a sample of the photos. A copy counts as found if it gets into the group of its original.
Prints a Markdown table and the pairs among the photos themselves: look at these, some are real copies.

examples:
  python benchmarks/copies.py --photos flower_photos
  python benchmarks/copies.py --rendered 400
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.cli.process import run
from mmflowers.preparation.duplicates import near_groups
from mmflowers.preparation.features import copy_pairs, describe
from mmflowers.preparation.inspection import examine
from mmflowers.preparation.journal import Inspection
from mmflowers.rendered.photos import render_flowers
from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import progress

Change = Callable[[Image.Image, random.Random], Image.Image]
TURN = Image.Transpose


def main() -> None:
    parser = Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--photos", type=existing_folder, metavar="DIR", help="folder with JPEGs, searched recursively")
    source.add_argument("--rendered", type=int, metavar="N", help="render N photos of each kind instead")
    parser.add_argument("--number", type=int, default=100, help="photos that copies are made of (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample and the crops (default: 0)")
    run(partial(benchmark, parser.parse_args()))


def benchmark(args: argparse.Namespace) -> None:
    """Make copies, search for them and print the results."""
    with tempfile.TemporaryDirectory(prefix="mmflowers-") as scratch:
        folder = args.photos or Path(scratch)
        if args.rendered:
            render_flowers(folder, args.rendered, seed=args.seed, workers=2, progress=progress)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not paths:
            raise InputError(f"{folder} has no JPEG", "give a folder with photos, in folders of any depth")
        _measure(folder, paths, args)


def _measure(folder: Path, paths: list[Path], args: argparse.Namespace) -> None:
    start = time.perf_counter()
    examined = (examine(path.read_bytes(), path.suffix)[0] for path in paths)
    found = list(progress(examined, total=len(paths), what="inspecting"))
    inspected = time.perf_counter() - start
    usable = [index for index, photo in enumerate(found) if photo.phash is not None]
    paths, originals = [paths[index] for index in usable], [found[index] for index in usable]
    described = _describing_seconds(paths)
    start = time.perf_counter()
    labels = _groups(originals)
    searched = time.perf_counter() - start
    print(f"{len(paths):,} photos of {folder if args.photos else 'rendered flowers'}, seed {args.seed}")
    print(f"inspection {inspected:.1f} s, of which local features {described:.1f} s; search {searched:.2f} s")
    groups = defaultdict(list)
    for path, label in zip(paths, labels.tolist(), strict=True):
        groups[label].append(path.relative_to(folder).as_posix())
    alike = sorted(group for group in groups.values() if len(group) > 1)
    print(f"{len(alike)} groups of similar photos among them")
    for group in alike:
        print("  " + " = ".join(group))

    rng = random.Random(args.seed)
    sample = rng.sample(range(len(paths)), min(args.number, len(paths)))
    print("\n| copies | found | by the perceptual hash alone | wrong pairs |\n|---|---|---|---|")
    known = len(np.unique(labels))
    for name, change in CHANGES.items():
        copies = [_changed(paths[index], change, rng) for index in sample]
        everything = [*originals, *copies]
        hits = []
        for groups_of in (_groups, _near_groups):
            grouped = groups_of(everything)
            hits.append(int((grouped[len(originals) :] == grouped[sample]).sum()))
            if groups_of is _groups:
                wrong = known + len(copies) - hits[0] - len(np.unique(grouped))
        print(f"| {name} | {hits[0]} of {len(sample)} | {hits[1]} | {wrong} |", flush=True)


def _groups(photos: list[Inspection]) -> np.ndarray:
    return np.asarray(copy_pairs([photo.features for photo in photos], _near_groups(photos)))


def _near_groups(photos: list[Inspection]) -> np.ndarray:
    hashes = np.array([photo.phash or 0 for photo in photos], dtype=np.uint64)
    thumbnails = np.frombuffer(b"".join(photo.thumbnail for photo in photos), dtype=np.uint8)
    return np.asarray(near_groups(hashes, thumbnails.reshape(len(photos), -1)))


def _describing_seconds(paths: list[Path]) -> float:
    seconds = 0.0
    for path in paths:
        with Image.open(path) as image:
            image.draft("L", (128, 128))
            image.load()
            start = time.perf_counter()
            describe(image)
            seconds += time.perf_counter() - start
    return seconds


def _changed(path: Path, change: Change, rng: random.Random) -> Inspection:
    with Image.open(path) as image:
        changed = change(image.convert("RGB"), rng)
    data = io.BytesIO()
    changed.save(data, "JPEG", quality=85)
    return examine(data.getvalue(), ".jpg")[0]


def _cropped(image: Image.Image, rng: random.Random, *, share: float) -> Image.Image:
    """Crop both sides to a share of them, anywhere."""
    width, height = (round(side * share) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _square(image: Image.Image, _: random.Random) -> Image.Image:
    return ImageOps.fit(image, (min(image.size),) * 2)


def _captioned(image: Image.Image, _: random.Random) -> Image.Image:
    bar = max(20, image.height // 8)
    framed = Image.new("RGB", (image.width, image.height + bar), "white")
    framed.paste(image)
    text = "A flower photographed in June"
    ImageDraw.Draw(framed).text((4, image.height + 2), text, fill="black", font_size=bar * 0.6)
    return framed


def _turned(image: Image.Image, _: random.Random, *, by: Image.Transpose) -> Image.Image:
    return image.transpose(by)


CHANGES: dict[str, Change] = {
    "resized to 2/3": lambda image, _: ImageOps.scale(image, 2 / 3),
    "mirrored": partial(_turned, by=TURN.FLIP_LEFT_RIGHT),
    "turned by 90°": partial(_turned, by=TURN.ROTATE_90),
    "turned by 180°": partial(_turned, by=TURN.ROTATE_180),
    "turned by 270°": partial(_turned, by=TURN.ROTATE_270),
    "cropped to 80 % of the sides": partial(_cropped, share=0.8),
    "cropped to 70 % of the sides": partial(_cropped, share=0.7),
    "cropped to a square": _square,
    "letterboxed to a square": lambda image, _: ImageOps.pad(image, (max(image.size),) * 2, color="black"),
    "with a border of 1/12": lambda image, _: ImageOps.expand(image, image.width // 12, "white"),
    "with a caption bar": _captioned,
    "mirrored, cropped to 80 %, resized": lambda image, rng: ImageOps.scale(
        ImageOps.mirror(_cropped(image, rng, share=0.8)), 0.9
    ),
}


if __name__ == "__main__":
    main()

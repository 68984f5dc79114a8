"""Identify photos by content, to know which ones a run trained and validated on under whatever name or format.

Imports no torch by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmflowers.datasets.card import prepared_photos
from mmflowers.preparation.duplicates import near_groups
from mmflowers.preparation.features import copy_pairs
from mmflowers.preparation.inspection import THUMBNAIL_SIDE, examine
from mmflowers.utils.files import open_regular, replacing
from mmflowers.utils.resources import processors

PHOTOS = "photos"  # in a checkpoint's meta: the photos of the run's own splits, see ``run_photos``
TRAINED_ON = "trained_on"  # in a checkpoint's meta: all photos that its weights were trained on, in earlier runs too
SIDE = 8  # pixels of the thumbnails that a checkpoint keeps: 64 bytes a photo
LOOK = np.dtype([("content", np.int64), ("hash", np.uint64), ("thumbnail", np.uint8, (SIDE * SIDE,))])


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Identity of n photos, in a fixed order.

    Attributes:
        labels: int64 of shape (n,).
        content: The first 63 bits of the sha256 of each file's bytes, int64 of shape (n,); -1 if it can't be read.
        hashes: Perceptual hashes (``preparation.inspection.perceptual_hash``), uint64 of shape (n,).
        thumbnails: Grey values, uint8 of shape (n, 64); all 0 for a photo without a perceptual hash.
    """

    labels: np.ndarray
    content: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray

    def __len__(self) -> int:
        return len(self.content)

    def state(self) -> dict[str, Any]:
        """Return this set as tensors, which a checkpoint can hold and ``weights_only`` loading accepts."""
        import torch

        # torch saves no uint64 before 2.3 and sorts none today: the bits are kept as int64.
        arrays = dict(vars(self), hashes=self.hashes.view(np.int64))
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def from_state(state: Any) -> PhotoSet | None:
    """Return the set that ``PhotoSet.state`` gave; None for anything else that a checkpoint may hold there."""
    try:
        arrays = {name: np.asarray(state[name]) for name in ("labels", "content", "hashes", "thumbnails")}
        count = len(arrays["content"])
        expected = {name: np.empty(count, np.int64) for name in arrays}
        expected["thumbnails"] = np.empty((count, SIDE * SIDE), np.uint8)
        if any((a.shape, a.dtype) != (expected[name].shape, expected[name].dtype) for name, a in arrays.items()):
            return None
        return PhotoSet(**dict(arrays, hashes=arrays["hashes"].view(np.uint64)))
    except (TypeError, LookupError, ValueError, AttributeError):
        return None


def joined(sets: Iterable[PhotoSet | None]) -> PhotoSet | None:
    """Return all photos of several sets, each content once; None without any set."""
    given = [photos for photos in sets if photos is not None]
    if not given:
        return None
    together = {name: np.concatenate([getattr(photos, name) for photos in given]) for name in vars(given[0])}
    _, first = np.unique(together["content"], return_index=True)
    return PhotoSet(**{name: values[np.sort(first)] for name, values in together.items()})


def content_digests(paths: Sequence[str | Path]) -> np.ndarray:
    """Return the first 63 bits of the sha256 of each file: int64 of shape (n,), -1 if a file can't be read."""
    return np.array(map_in_threads(lambda path: _digest(_read(path)), paths), dtype=np.int64)


class Match(NamedTuple):
    """The photos of a split, matched with those that it was prepared with.

    Attributes:
        prepared: Path in the dataset folder → digest, of all prepared photos (``card.prepared_photos``).
        renamed: New name → old name.
        missing: Photos that don't exist any more.
        added: Photos that the preparation didn't write.
    """

    prepared: Mapping[str, int | None]
    renamed: dict[str, str]
    missing: list[str]
    added: list[str]


def match_prepared(root: Path, split: str, names: Sequence[str], otherwise: Iterable[str] = ()) -> Match:
    """Match photos with those that a split was prepared with: by name, then by content.

    Args:
        root: The dataset folder.
        split: Name of the split.
        names: Of its photos, relative to the folder.
        otherwise: What counts as prepared if ``files.csv`` can't be read.
    """
    prepared = prepared_photos(root, split) or dict.fromkeys(otherwise)
    gone = prepared.keys() - set(names)
    contents = {prepared[name]: name for name in gone if prepared[name] is not None}
    unknown = sorted(set(names) - prepared.keys())
    digests = content_digests([root / name for name in unknown]).tolist() if contents else [-1] * len(unknown)
    renamed = {name: contents[digest] for name, digest in zip(unknown, digests, strict=True) if digest in contents}
    missing = sorted(gone - set(renamed.values()))
    return Match(prepared, renamed, missing, [name for name in unknown if name not in renamed])


def photos_digest(paths: Sequence[str | Path], labels: Sequence[int]) -> str:
    """Return the sha256, in hex, of the contents and labels of photos; names and order don't change it."""
    pairs = sorted(zip(content_digests(paths).tolist(), labels, strict=True))
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def read_photos(samples: Sequence[tuple[str | Path, int]]) -> PhotoSet:
    """Identify each photo of a list.

    Perceptual hashes are cached by content (``$MMFLOWERS_CACHE``), because they need a decoding.

    Args:
        samples: ``(path, label)`` of each photo.
    """
    paths = [Path(path) for path, _ in samples]
    content = content_digests(paths)
    looks = _looks(paths, content)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return PhotoSet(labels, content, looks["hash"], looks["thumbnail"])


def same_content(photos: PhotoSet, among: PhotoSet) -> np.ndarray:
    """Return which of ``photos`` have the bytes of a photo in ``among``: bool of shape (n,)."""
    return np.isin(photos.content, among.content) & (photos.content >= 0)


def copies(photos: PhotoSet, among: PhotoSet) -> np.ndarray:
    """Return which of ``photos`` have the bytes or the look of a photo in ``among``: bool of shape (n,)."""
    return np.asarray(same_content(photos, among) | near_copies(photos, among))


def read_features(paths: Sequence[str | Path]) -> list[bytes]:
    """Decode each photo and return its local features (``preparation.features``), b"" if it can't be decoded."""
    return map_in_threads(lambda path: _features(Path(path)), paths)


def near_copies(
    photos: PhotoSet, among: PhotoSet, features: tuple[list[bytes], list[bytes]] | None = None
) -> np.ndarray:
    """Return which of ``photos`` look like a photo in ``among`` (``duplicates.near_groups``): bool of shape (n,).

    Re-encoded, resized and slightly retouched copies do.

    Args:
        photos: Some photos.
        among: Others.
        features: Local features of the photos of both, to find turned, mirrored, cropped and framed copies too.
    """
    both = [np.concatenate(pair) for pair in ((photos.hashes, among.hashes), (photos.thumbnails, among.thumbnails))]
    known = np.flatnonzero(both[1].any(axis=1))
    groups = near_groups(both[0][known], both[1][known])
    if features is not None:
        described = [*features[0], *features[1]]
        groups = copy_pairs([described[index] for index in known.tolist()], groups)
    ours = known < len(photos)
    found = np.zeros(len(photos), dtype=bool)
    found[known[ours]] = np.isin(groups[ours], groups[~ours])
    return found


def map_in_threads(task: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return ``task`` of each item, in order, computed in as many threads as there are processors.

    For work that releases the GIL, such as reading, hashing and Pillow's decoding.
    """
    with ThreadPool(processors()) as pool:
        return pool.map(task, items, chunksize=8)


def _read(path: str | Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:
        return None


def _digest(data: bytes | None) -> int:
    return -1 if data is None else int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def _looks(paths: Sequence[Path], content: np.ndarray) -> np.ndarray:
    """Return perceptual hash and thumbnail of each photo, ``LOOK`` of shape (n,)."""
    cached = _cache_file(paths)
    known = _read_cache(cached)
    missing = {digest: path for digest, path in zip(content.tolist(), paths, strict=True) if digest not in known}
    known |= zip(missing, map_in_threads(lambda item: _look(*item), list(missing.items())), strict=True)
    looks = np.array([known[digest] for digest in content.tolist()], dtype=LOOK)
    if missing:
        with contextlib.suppress(OSError):  # without room or permission the next run decodes again
            cached.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cached, sync=False) as file:
                np.save(file, np.unique(looks))
    return looks


def _look(digest: int, path: Path) -> tuple[Any, ...]:
    data = _read(path)
    found = examine(data, path.suffix)[0] if data else None
    if found is None or found.phash is None:
        return digest, 0, np.zeros(SIDE * SIDE, np.uint8)
    step = THUMBNAIL_SIDE // SIDE
    thumbnail = np.frombuffer(found.thumbnail, np.uint8).reshape(SIDE, step, SIDE, step).mean(axis=(1, 3))
    return digest, found.phash, thumbnail.round().astype(np.uint8).ravel()


def _features(path: Path) -> bytes:
    data = _read(path)
    return examine(data, path.suffix)[0].features if data else b""


def _cache_file(paths: Sequence[Path]) -> Path:
    from mmflowers.datasets.cache import cache_folder

    place = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return cache_folder() / f"looks-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.npy"


def _read_cache(path: Path) -> dict[int, Any]:
    try:
        looks = np.load(path, allow_pickle=False)
        return {int(look["content"]): look for look in looks} if looks.dtype == LOOK else {}
    except (OSError, ValueError, EOFError):  # not there, or damaged: as good as none
        return {}

"""Find photos that are the same or nearly the same, and drop or group them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmflowers.preparation.features import bit_count, copy_pairs
from mmflowers.preparation.inspection import THUMBNAIL_SIDE
from mmflowers.preparation.records import SPLITS, Record

Array = NDArray[Any]

# Two photos are a near pair if their hashes differ in at most 6 of 64 bits and their thumbnails correlate. Looked at on
# the 2,848 photos of the five flowers: up to 6 bits there are the four identical pairs and seven others (recoloured,
# retouched, one moment later), all true and all correlated above 0.97; at 8 bits the first unrelated pairs appear (a
# daisy and a dandelion, both round and light on dark, 0.90). The correlation is there for larger sets, whose number of
# unrelated pairs within 6 bits grows with the square of their size.
NEAR_BITS = 6
ALIKE = 0.9
# Hashes within 6 bits of each other agree in at least one of 7 bands (pigeonhole): only such pairs are compared.
BANDS = ((0, 9), (9, 9), (18, 9), (27, 9), (36, 9), (45, 9), (54, 10))  # (lowest bit, width)
STAR_ROUNDS = 16
CONFIRM_AT_ONCE = 4096  # pairs; 256 bytes of thumbnail on either side, widened to float32: 8 MB

IDENTICAL = "identical copy"
CONFLICT = "identical copies in different classes"


@dataclass(slots=True)
class Duplicates:
    """The groups of similar photos, for people to read: paths, sorted.

    Attributes:
        identical: Files with the same bytes.
        conflicts: Those of them that are in different classes.
        near: Groups of photos that look nearly the same, or would if turned, mirrored, cropped or framed alike (one
            path for identical files).
        mixed: Those of them that are in different classes.
        spanning: Groups of any kind that span a given split and were left in.
    """

    identical: list[list[str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    mixed: list[list[str]] = field(default_factory=list)
    spanning: list[list[str]] = field(default_factory=list)


def resolve(records: list[Record], *, policy: str, has_split: bool = False) -> Duplicates:
    """Find copies, drop what the policy drops, and give the rest ``group`` and ``duplicate_of``. Changes the records.

    With "drop", identical files of one class are kept once (in a given split the copy in test or val, so that these
    stay comparable), those of several classes not at all, and of near pairs that span a given split the photos on the
    training side are dropped. With "keep", all stay.

    Args:
        records: Sorted by path.
        policy: "drop" or "keep".
        has_split: Whether the records carry a split that is to be kept.
    """
    found = Duplicates()
    copies: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.verdict != "dropped":
            copies[record.sha256].append(record)
    for same in copies.values():
        if len(same) > 1:
            _resolve_identical(same, policy, found)
            same[:] = [record for record in same if record.verdict != "dropped"]
    hashed = [same[0] for same in copies.values() if same and same[0].phash is not None]
    labels = near_groups(
        np.array([record.phash for record in hashed], dtype=np.uint64),
        np.frombuffer(b"".join(record.thumbnail for record in hashed), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE**2),
    )
    labels = copy_pairs([record.features for record in hashed], labels)
    groups: dict[object, list[Record]] = defaultdict(list)
    for record, label in zip(hashed, labels.tolist(), strict=True):
        groups[label].append(record)
    groups |= {same[0].sha256: same[:1] for same in copies.values() if same and same[0].phash is None}
    number = 0
    for group in sorted(groups.values(), key=lambda group: group[0].path):
        if len(group) > 1:
            found.near.append([record.path for record in group])
        members = sorted((copy for record in group for copy in copies[record.sha256]), key=lambda record: record.path)
        if len(members) == 1:
            continue
        number += 1
        for record in members:
            record.group = number
        if len(group) > 1 and len({record.class_name for record in members}) > 1:
            found.mixed.append([record.path for record in members])
        if has_split and len({record.split for record in members}) > 1:
            if policy == "drop":
                strongest = max(members, key=_side)
                for record in members:
                    if _side(record) < _side(strongest):
                        record.drop(f"near copy of a {strongest.split} photo", duplicate_of=strongest.path)
            else:
                found.spanning.append([f"{record.path} ({record.split})" for record in members])
    return found


def _resolve_identical(same: list[Record], policy: str, found: Duplicates) -> None:
    paths = [record.path for record in same]
    found.identical.append(paths)
    conflict = len({record.class_name for record in same}) > 1
    if conflict:
        found.conflicts.append(paths)
    if policy == "keep":
        for record in same[1:]:
            record.duplicate_of = same[0].path
    elif conflict:
        for record in same:
            other = next(copy for copy in same if copy.class_name != record.class_name)
            record.drop(CONFLICT, duplicate_of=other.path)
    else:
        kept = max(same, key=_side)  # the first of those in the strongest split
        for record in same:
            if record is not kept:
                record.drop(IDENTICAL, duplicate_of=kept.path)


def _side(record: Record) -> int:
    return SPLITS.index(record.split) if record.split else 0


def near_groups(hashes: Array, thumbnails: Array) -> Array:
    """Group what looks nearly the same, near pairs of near pairs included.

    Memory grows with the number of photos. Time grows with the number of pairs that share a band, but only with the
    number of photos if thousands are all alike.

    Args:
        hashes: (n,) uint64.
        thumbnails: (n, k) uint8.

    Returns:
        (n,) int, the same label within a group: the index of one of its members.
    """
    labels = np.arange(len(hashes))

    def join(left: Array, right: Array) -> None:
        """Join the groups of the pairs whose thumbnails are alike; those in one group needn't be compared any more."""
        while (apart := np.flatnonzero(labels[left] != labels[right])).size:
            left, right = left[apart], right[apart]
            alike = _alike(thumbnails[left[:CONFIRM_AT_ONCE]], thumbnails[right[:CONFIRM_AT_ONCE]]).nonzero()[0]
            # Not SciPy's connected_components: importing it takes longer than the preparation of hundreds of photos.
            for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                if labels[one] != labels[other]:
                    labels[labels == labels[other]] = labels[one]
            left, right = left[CONFIRM_AT_ONCE:], right[CONFIRM_AT_ONCE:]

    # First the equal hashes, each with the first photo of its hash: if thousands are alike, one represents all.
    rest, chosen = np.arange(len(hashes)), list[Array]()
    while rest.size and len(chosen) < STAR_ROUNDS:
        _, first, which = np.unique(hashes[rest], return_index=True, return_inverse=True)
        centers = rest[first][which]
        chosen.append(rest[first])
        join(centers, rest)
        rest = rest[labels[centers] != labels[rest]]
    representatives = np.sort(np.concatenate([*chosen, rest]))
    for shift, width in BANDS:
        keys = (hashes[representatives] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        keys, photos = keys[order], representatives[order]
        # The photos with the same bits in this band are neighbours now: compare each with the next, the next but one …
        at, step = np.arange(len(keys)), 0
        while at.size:
            step += 1
            at = at[: np.searchsorted(at, len(keys) - step)]
            at = at[keys[at] == keys[at + step]]
            one, other = photos[at], photos[at + step]
            near = bit_count(hashes[one] ^ hashes[other]) <= NEAR_BITS
            join(one[near], other[near])
    return labels


def _alike(some: Array, others: Array) -> Array:
    some, others = (values - values.mean(1, keepdims=True) for values in (some.astype("f4"), others.astype("f4")))
    product = np.einsum("ij,ij->i", some, others)
    norms = np.einsum("ij,ij->i", some, some) * np.einsum("ij,ij->i", others, others)
    return np.asarray(product >= ALIKE * np.sqrt(norms))

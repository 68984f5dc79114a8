"""Which photos are the same or nearly the same, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mmflowers.preparation.inspection import THUMBNAIL_SIDE
from mmflowers.preparation.records import SPLITS, Record

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
    """What was found, for people to read: groups of paths, sorted.

    Attributes:
        identical: Files with the same bytes.
        conflicts: Those of them that are in different classes.
        near: Groups of photos that look nearly the same (one path for identical files).
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
    training side go. With "keep", all stay.

    Args:
        records: Sorted by path.
        policy: "drop" or "keep".
        has_split: Whether the records carry a split that is to be kept.
    """
    found = Duplicates()
    copies: dict[str, list[Record]] = {}
    for record in records:
        if record.verdict != "dropped":
            copies.setdefault(record.sha256, []).append(record)
    for same in copies.values():
        if len(same) > 1:
            _resolve_identical(same, policy, found)
    stand_ins = []  # one photo for each content
    for digest, same in copies.items():
        copies[digest] = same = [record for record in same if record.verdict != "dropped"]
        stand_ins += same[:1]
    hashed = [record for record in stand_ins if record.phash is not None]
    labels = near_groups(
        np.array([record.phash for record in hashed], dtype=np.uint64),
        np.frombuffer(b"".join(record.thumbnail for record in hashed), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE**2),
    )
    groups: dict[object, list[Record]] = {}
    for record, label in zip(hashed, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(record)
    groups.update({record.sha256: [record] for record in stand_ins if record.phash is None})
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
                _drop_weaker_side(members)
            else:
                found.spanning.append([f"{record.path} ({record.split})" for record in members])
    return found


def near_groups(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Group what looks nearly the same, near pairs of near pairs included.

    Memory grows with the number of photos; time with the number of pairs that share a band, and only with the number
    of photos where thousands are all alike.

    Args:
        hashes: (n,) uint64.
        thumbnails: (n, k) uint8.

    Returns:
        (n,) int64, the same label within a group: the index of one of its members.
    """
    parent = np.arange(len(hashes))
    for left, right in _candidates(hashes, thumbnails, parent):
        while left.size:
            apart = roots(parent, left) != roots(parent, right)
            left, right = left[apart], right[apart]
            now, left = np.split(left, [CONFIRM_AT_ONCE])
            then, right = np.split(right, [CONFIRM_AT_ONCE])
            alike = _alike(thumbnails[now], thumbnails[then])
            for one, other in zip(now[alike].tolist(), then[alike].tolist(), strict=True):
                _join(parent, one, other)
    return roots(parent, np.arange(len(hashes)))


def roots(parent: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Follow the parents of several nodes of a union-find forest up to their roots."""
    above = parent[of]
    while True:
        higher = parent[above]
        if np.array_equal(higher, above):
            return above
        above = higher


def _candidates(
    hashes: np.ndarray, thumbnails: np.ndarray, parent: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of indices whose hashes are near, a part at a time; each pair at least once."""
    # First the equal hashes, in stars around the first photo of each: where thousands are alike one stands for all.
    rest = np.argsort(hashes, kind="stable")
    stand_ins = []
    for _ in range(STAR_ROUNDS):
        if not rest.size:
            break
        first = np.r_[True, hashes[rest[1:]] != hashes[rest[:-1]]]
        center = rest[np.maximum.accumulate(np.where(first, np.arange(len(rest)), 0))]
        stand_ins.append(rest[first])
        yield center[~first], rest[~first]
        rest = rest[~first][roots(parent, center[~first]) != roots(parent, rest[~first])]
    chosen = np.sort(np.concatenate([*stand_ins, rest])) if stand_ins else rest
    for shift, width in BANDS:
        keys = (hashes[chosen] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        keys, photos = keys[order], chosen[order]
        # All photos of a band's value stand in a row now: compare each with its next, its next but one, …
        at, step = np.arange(len(keys)), 0
        while at.size:
            step += 1
            at = at[: np.searchsorted(at, len(keys) - step)]
            at = at[keys[at] == keys[at + step]]
            one, other = photos[at], photos[at + step]
            near = _bit_count(hashes[one] ^ hashes[other]) <= NEAR_BITS
            yield one[near], other[near]


def _alike(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    some, others = (values - values.mean(1, keepdims=True) for values in (some.astype("f4"), others.astype("f4")))
    product = np.einsum("ij,ij->i", some, others)
    norms = np.einsum("ij,ij->i", some, some) * np.einsum("ij,ij->i", others, others)
    return product >= ALIKE * np.sqrt(norms)


def _bit_count(values: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(1)  # numpy 1


def _join(parent: np.ndarray, one: int, other: int) -> None:
    ends = []
    for node in (one, other):
        while (above := parent.item(node)) != node:
            parent[node] = node = parent.item(above)  # halves the path for the next one
        ends.append(node)
    parent[max(ends)] = min(ends)


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
            _drop(record, CONFLICT, other)
    else:
        kept = max(same, key=_side)  # the first of the strongest
        for record in same:
            if record is not kept:
                _drop(record, IDENTICAL, kept)


def _drop_weaker_side(members: list[Record]) -> None:
    strongest = max(members, key=_side)
    for record in members:
        if _side(record) < _side(strongest):
            _drop(record, f"near copy of a {strongest.split} photo", strongest)


def _side(record: Record) -> int:
    return SPLITS.index(record.split) if record.split else 0


def _drop(record: Record, reason: str, because_of: Record) -> None:
    record.verdict = "dropped"
    record.reason = f"{record.reason}; {reason}" if record.reason else reason
    record.duplicate_of = because_of.path

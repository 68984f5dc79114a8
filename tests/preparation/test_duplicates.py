import time
import tracemalloc

import numpy as np
import pytest

from mmflowers.preparation.duplicates import near_groups, resolve
from mmflowers.preparation.records import Record

RNG = np.random.default_rng(0)


def looks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails of photos that have nothing to do with each other."""
    return (
        RNG.integers(0, 2**64, count, dtype=np.uint64),
        RNG.integers(0, 256, (count, 256), dtype=np.uint8),
    )


def flipped(value: np.uint64, *bits: int) -> np.uint64:
    for bit in bits:
        value ^= np.uint64(1 << bit)
    return value


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def records(*rows: tuple[str, str] | tuple[str, str, str]) -> list[Record]:
    """One record for each (path, look, split): two "A" are the same bytes, "a1" and "a2" a near pair."""
    made = []
    for path, look, *split in sorted(rows):
        rng = np.random.default_rng(ord(look[0].lower()))
        phash, thumbnail = int(rng.integers(0, 2**63)), rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        phash ^= int(look[1:] or 0)
        record = Record(path, path.split("/")[0], split[0] if split else None, sha256=look)
        record.phash, record.thumbnail = phash, thumbnail
        made.append(record)
    return made


def fates(rows: list[Record]) -> dict[str, tuple[str, str]]:
    return {row.path: (row.verdict, row.duplicate_of) for row in rows}


def test_every_pair_up_to_six_bits_is_found_in_whichever_bits_it_differs():
    hashes, thumbnails = looks(400)
    for index in range(200):
        bits = RNG.choice(64, RNG.integers(0, 7), replace=False)
        hashes[index + 200] = flipped(hashes[index], *map(int, bits))
        thumbnails[index + 200] = thumbnails[index]
    assert partition(near_groups(hashes, thumbnails)) == {frozenset((i, i + 200)) for i in range(200)}


def test_seven_bits_are_too_many():
    hashes, thumbnails = looks(1)
    hashes = np.r_[hashes, flipped(hashes[0], 0, 9, 18, 27, 36, 45, 54)]
    assert len(partition(near_groups(hashes, np.r_[thumbnails, thumbnails]))) == 2


def test_a_near_hash_alone_is_not_enough_if_the_thumbnails_differ():
    hashes, thumbnails = looks(2)
    assert len(partition(near_groups(np.r_[hashes[:1], hashes[:1]], thumbnails))) == 2


def test_brightness_and_contrast_do_not_separate_a_pair():
    hashes, thumbnails = looks(1)
    darker = (thumbnails // 2 + 20).astype(np.uint8)
    assert len(partition(near_groups(np.r_[hashes, hashes], np.r_[thumbnails, darker]))) == 1


def test_a_chain_of_near_pairs_is_one_group():
    hashes, thumbnails = looks(1)
    chain = [hashes[0]]
    for step in range(5):
        chain.append(flipped(chain[-1], *range(6 * step, 6 * step + 6)))
    assert len(partition(near_groups(np.array(chain), np.repeat(thumbnails, 6, axis=0)))) == 1


def test_the_groups_are_those_of_a_comparison_of_all_with_all():
    centers, thumbs = looks(30)
    which = RNG.integers(0, 30, 600)
    hashes = np.array([flipped(centers[c], *map(int, RNG.choice(64, 3, replace=False))) for c in which])
    thumbnails = thumbs[which]
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 6 if hasattr(np, "bitwise_count") else None
    if near is None:
        pytest.skip("the plain way needs numpy 2")
    labels = np.arange(600)
    for _ in range(600):
        lower = np.where(near, labels[None], 600).min(1)
        if np.array_equal(lower, labels):
            break
        labels = lower
    assert partition(near_groups(hashes, thumbnails)) == partition(labels)


@pytest.mark.parametrize("alike", ["none", "all the same", "all nearly the same"])
def test_ten_thousand_photos_take_seconds_and_little_memory(alike):
    hashes, thumbnails = looks(10_000)
    if alike != "none":
        hashes[:], thumbnails[:] = hashes[0], thumbnails[0]
    if alike == "all nearly the same":
        for bit in range(10):  # 1,024 different hashes
            hashes ^= RNG.integers(0, 2, len(hashes), dtype=np.uint64) << np.uint64(6 * bit)
    start = time.process_time()
    tracemalloc.start()
    groups = len(np.unique(near_groups(hashes, thumbnails)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups == (10_000 if alike == "none" else 1)
    assert peak < 40e6  # 10,000 × 10,000 distances alone are 100 MB
    assert time.process_time() - start < 30


def test_of_identical_files_in_one_class_the_first_stays():
    rows = records(("rose/b.jpg", "A"), ("rose/a.jpg", "A"), ("rose/c.jpg", "A"), ("tulip/d.jpg", "B"))
    found = resolve(rows, policy="drop")
    assert fates(rows) == {
        "rose/a.jpg": ("kept", ""),
        "rose/b.jpg": ("dropped", "rose/a.jpg"),
        "rose/c.jpg": ("dropped", "rose/a.jpg"),
        "tulip/d.jpg": ("kept", ""),
    }
    assert found.identical == [["rose/a.jpg", "rose/b.jpg", "rose/c.jpg"]]
    assert found.conflicts == []
    assert rows[0].group is None


def test_identical_files_in_different_classes_are_all_dropped():
    rows = records(("rose/a.jpg", "A"), ("rose/b.jpg", "A"), ("tulip/a.jpg", "A"))
    found = resolve(rows, policy="drop")
    assert {row.verdict for row in rows} == {"dropped"}
    assert fates(rows)["rose/b.jpg"][1] == "tulip/a.jpg"
    assert found.conflicts == [["rose/a.jpg", "rose/b.jpg", "tulip/a.jpg"]]


def test_near_pairs_stay_and_form_a_group_even_across_classes():
    rows = records(("rose/a.jpg", "a1"), ("rose/b.jpg", "a2"), ("tulip/c.jpg", "a3"), ("tulip/d.jpg", "b"))
    found = resolve(rows, policy="drop")
    assert [row.verdict for row in rows] == ["kept"] * 4
    assert [row.group for row in rows] == [1, 1, 1, None]
    assert found.mixed == [["rose/a.jpg", "rose/b.jpg", "tulip/c.jpg"]]


def test_keep_leaves_every_photo_in_and_groups_the_identical_ones():
    rows = records(("rose/a.jpg", "A"), ("tulip/a.jpg", "A"), ("tulip/b.jpg", "a1"), ("tulip/c.jpg", "c"))
    found = resolve(rows, policy="keep")
    assert [row.verdict for row in rows] == ["kept"] * 4
    assert [row.group for row in rows] == [1, 1, 1, None]
    assert rows[1].duplicate_of == "rose/a.jpg"
    assert found.conflicts == [["rose/a.jpg", "tulip/a.jpg"]]


def test_identical_photos_without_a_hash_are_grouped_too():
    rows = records(("rose/a.jpg", "A"), ("rose/b.jpg", "A"), ("rose/c.jpg", "c"))
    for row in rows:
        row.phash, row.thumbnail = None, b""
    resolve(rows, policy="keep")
    assert [row.group for row in rows] == [1, 1, None]


def test_in_a_given_split_the_copy_to_be_measured_on_stays():
    rows = records(("rose/a.jpg", "A", "train"), ("rose/b.jpg", "A", "val"), ("rose/c.jpg", "c", "train"))
    resolve(rows, policy="drop", has_split=True)
    assert fates(rows)["rose/a.jpg"] == ("dropped", "rose/b.jpg")
    assert fates(rows)["rose/b.jpg"] == ("kept", "")


def test_in_a_given_split_near_copies_on_the_training_side_go():
    rows = records(
        ("rose/a.jpg", "a1", "train"),
        ("rose/b.jpg", "a2", "val"),
        ("rose/c.jpg", "a3", "val"),
        ("tulip/d.jpg", "d", "train"),
    )
    resolve(rows, policy="drop", has_split=True)
    assert [row.verdict for row in rows] == ["dropped", "kept", "kept", "kept"]
    assert (rows[0].reason, rows[0].duplicate_of) == ("near copy of a val photo", "rose/b.jpg")


def test_a_given_split_is_left_alone_with_keep_and_what_spans_it_is_said():
    rows = records(("rose/a.jpg", "a1", "train"), ("rose/b.jpg", "a2", "val"))
    found = resolve(rows, policy="keep", has_split=True)
    assert [row.verdict for row in rows] == ["kept", "kept"]
    assert found.spanning == [["rose/a.jpg (train)", "rose/b.jpg (val)"]]


def test_a_dropped_file_makes_no_copies():
    rows = records(("rose/a.jpg", "A"), ("tulip/a.jpg", "A"))
    rows[0].verdict = "dropped"
    found = resolve(rows, policy="drop")
    assert (rows[1].verdict, found.identical) == ("kept", [])


def test_no_photo_at_all_is_no_trouble():
    assert resolve([], policy="drop").near == []

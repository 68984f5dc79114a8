import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflowers.preparation.records import Record
from mmflowers.preparation.splitting import check_given, clean, name_targets, sizes, split
from mmflowers.utils.errors import InputError

FIFTH = Fraction("0.2")


def photos(**counts: int) -> list[Record]:
    made = []
    for name, count in counts.items():
        for index in range(count):
            made.append(Record(f"{name}/{index}.jpg", name, sha256=f"{name}{index}", extension=".jpg"))
    return made


def count(records: list[Record]) -> dict[tuple[str, str], int]:
    return dict(Counter((record.class_name, record.split) for record in records if record.verdict != "dropped"))


def membership(records: list[Record]) -> dict[str, str | None]:
    return {record.sha256: record.split for record in records}


@given(n=st.integers(0, 100_000), val=st.integers(1, 98), test=st.integers(0, 98))
def test_sizes_are_exact_in_hundredths(n, val, test):
    if val + test >= 100:
        return
    got = sizes(n, val=Fraction(val, 100), test=Fraction(test, 100))
    assert got["train"] == (100 - val - test) * n // 100
    assert got["test"] == test * n // 100
    assert sum(got.values()) == n


def test_the_reports_split_has_its_sizes():
    rows = photos(daisy=588, dandelion=556, rose=583, sunflower=536, tulip=585)
    split(rows, val=FIFTH)
    names = ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert [count(rows)[name, "train"] for name in names] == [470, 444, 466, 428, 468]
    assert [count(rows)[name, "val"] for name in names] == [118, 112, 117, 108, 117]


def test_the_split_depends_on_contents_alone_not_on_order_or_file_names():
    one = photos(rose=50, tulip=40)
    other = photos(rose=50, tulip=40)
    for index, record in enumerate(other):
        record.path = f"{record.class_name}/renamed {1000 - index}.jpg"
    random.Random(0).shuffle(other)
    split(one, val=FIFTH)
    split(other, val=FIFTH)
    assert membership(one) == membership(other)


def test_another_seed_draws_another_split_and_the_same_seed_the_same():
    drawn = []
    for seed in (1, 1, 2):
        rows = photos(rose=50, tulip=40)
        split(rows, val=FIFTH, seed=seed)
        drawn.append(membership(rows))
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_groups_never_span_and_the_sizes_are_exact_while_groups_are_small(data):
    rows = photos(a=data.draw(st.integers(30, 60)), b=data.draw(st.integers(30, 60)), c=data.draw(st.integers(30, 60)))
    test = data.draw(st.sampled_from([Fraction(0), Fraction("0.1")]))
    members = data.draw(st.permutations(rows))
    for number in range(data.draw(st.integers(0, 8))):
        for _ in range(data.draw(st.integers(2, 3))):
            members.pop().group = number
    notes = split(rows, val=FIFTH, test=test, seed=data.draw(st.integers(0, 5)))
    for number in {row.group for row in rows} - {None}:
        assert len({row.split for row in rows if row.group == number}) == 1
    for name in "abc":
        n = sum(row.class_name == name for row in rows)
        wanted = {key: value for key, value in sizes(n, val=FIFTH, test=test).items() if value}
        got = Counter(row.split for row in rows if row.class_name == name)
        assert got == wanted or any(repr(name) in note for note in notes)
        if not notes:
            assert got == wanted


def test_groups_land_on_both_sides():
    rows = photos(rose=200, tulip=200)
    for index, row in enumerate(rows):
        row.group = index // 2
    assert split(rows, val=FIFTH) == []
    assert count(rows) == {("rose", "train"): 160, ("rose", "val"): 40, ("tulip", "train"): 160, ("tulip", "val"): 40}


@pytest.mark.parametrize("size", [2, 3, 6])
def test_few_groups_among_many_single_photos_land_in_each_split_by_its_share(size):
    got = Counter()
    for seed in range(60):
        rows = photos(rose=200, tulip=200)
        groups = [rows[start : start + size] for start in (*range(0, 30, size), *range(200, 230, size))]
        for number, group in enumerate(groups):
            for row in group:
                row.group = number
        assert split(rows, val=FIFTH, test=Fraction("0.1"), seed=seed) == []
        got.update(group[0].split for group in groups)
    n = got.total()
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(got[name] / n - share) < 4 * (share * (1 - share) / n) ** 0.5, (name, got)


def test_a_groups_draw_is_kept_when_other_photos_and_copies_of_its_own_come():
    def drawn(extra: int, copies: int) -> list[str]:
        rows = photos(rose=100, tulip=100 + extra)
        for index, row in enumerate(rows[:40]):
            row.group = index // 2
        copied = [Record(f"rose/copy {index}.jpg", "rose", sha256="rose0", extension=".jpg") for index in range(copies)]
        for row in copied:
            row.group = rows[0].group
        split([*rows, *copied], val=FIFTH)
        return [row.split for row in rows[:40]]

    assert {*drawn(0, 0)} == {"train", "val"}
    assert drawn(0, 0) == drawn(50, 0) == drawn(0, 3)


def test_a_group_too_large_for_exact_sizes_stays_whole_and_is_said():
    rows = photos(rose=20, tulip=20)
    for row in rows[:18]:
        row.group = 1
    notes = split(rows, val=FIFTH)
    assert len({row.split for row in rows[:18]}) == 1
    assert count(rows) == {("rose", "train"): 18, ("rose", "val"): 2, ("tulip", "train"): 16, ("tulip", "val"): 4}
    assert len(notes) == 1
    assert "18/2, not 16/4" in notes[0]


def test_a_class_of_one_group_can_not_be_split():
    rows = photos(rose=20, tulip=20)
    for row in rows[:20]:
        row.group = 1
    with pytest.raises(InputError, match="'rose'"):
        split(rows, val=FIFTH)


def test_every_class_with_too_few_photos_is_named_at_once():
    with pytest.raises(InputError) as caught:
        split(photos(rose=1, tulip=9, daisy=20, lily=3), val=FIFTH, test=Fraction("0.1"))
    assert [problem.what.split("'")[1] for problem in caught.value.problems] == ["lily", "rose", "tulip"]
    assert "need at least 10" in caught.value.problems[0].hint


def test_two_photos_a_class_are_enough():
    rows = photos(rose=2, tulip=2)
    split(rows, val=FIFTH)
    assert set(count(rows).values()) == {1}


@pytest.mark.parametrize("rows", [[], photos(rose=10)])
def test_fewer_than_two_classes_are_refused(rows):
    with pytest.raises(InputError):
        split(rows, val=FIFTH)


def test_dropped_photos_neither_count_nor_get_a_split():
    rows = photos(rose=11, tulip=10)
    rows[0].verdict = "dropped"
    split(rows, val=FIFTH)
    assert rows[0].split is None
    assert count(rows)["rose", "train"] == 8


def test_a_given_split_without_photos_to_validate_a_class_on_is_refused():
    rows = photos(rose=4, tulip=4)
    for index, row in enumerate(rows):
        row.split = "val" if index == 0 else "train"
    with pytest.raises(InputError, match=r"'tulip' has no usable photo in the given val"):
        check_given(rows)
    rows[-1].split = "val"
    check_given(rows)


def test_a_new_split_is_suggested_only_if_it_pools_no_test_photos():
    rows = photos(daisy=3, rose=3)
    for row, name in zip(rows, ("train", "val", "val", "train", "train", "train"), strict=True):
        row.split = name
    with pytest.raises(InputError, match="or draw a new split with --split redo"):
        check_given(rows)
    rows[2].split = "test"
    with pytest.raises(
        InputError, match=r"'rose' has no usable photo in the given val · hint: add some, or remove the class$"
    ):
        check_given(rows)


def targets(*paths: str, extension: str | None = None) -> list[str]:
    rows = []
    for path in paths:
        rows.append(Record(path, path.split("/")[0], "train", sha256=path))
        rows[-1].extension = extension or "." + path.rpartition(".")[2]
    name_targets(rows)
    return [row.target for row in rows]


def test_plain_names_stay_as_they_are():
    assert targets("daisy/x y.JPG", "rosé/ü 花.jpeg") == ["train/daisy/x y.JPG", "train/rosé/ü 花.jpeg"]


def test_names_that_lists_and_disks_can_not_hold_are_cleaned():
    assert targets("a\n b /\tx\ny .jpg", "b/c:d?.jpg") == ["train/a_ b/_x_y.jpg", "train/b/c_d_.jpg"]
    assert clean("\udcff.") == "_"
    assert len(clean("花" * 300).encode()) <= 200


def test_names_that_differ_only_in_case_or_folder_do_not_collide():
    got = targets("daisy/X.jpg", "daisy/a/x.jpg", "daisy/x.jpg", "daisy/x_2.jpg", "tulip/x.jpg")
    assert got == [f"train/{name}.jpg" for name in ("daisy/X", "daisy/x_2", "daisy/x_3", "daisy/x_2_2", "tulip/x")]


def test_targets_do_not_depend_on_the_split():
    rows = [Record(f"a/{name}.jpg", "a", part, extension=".jpg") for name, part in (("x", "train"), ("X", "val"))]
    name_targets(rows)
    assert [row.target for row in rows] == ["train/a/x_2.jpg", "val/a/X.jpg"]


def test_a_record_without_a_class_is_no_photo_of_the_set():
    with pytest.raises(ValueError, match=r"notes\.txt has no class"):
        _ = Record("notes.txt", None).photo_class


def test_a_wrong_extension_is_replaced_and_a_missing_one_added():
    assert targets("a/x.png", "b/no. 7", "b/y.tar", extension=".jpg") == [
        *("train/a/x.jpg", "train/b/no. 7.jpg", "train/b/y.tar.jpg"),
    ]


def test_classes_that_would_become_one_are_refused_all_at_once():
    with pytest.raises(InputError) as caught:
        targets("Rose/x.jpg", "rose/y.jpg", "tulip/x.jpg", " tulip/x.jpg", "caf\u00e9/x.jpg", "cafe\u0301/x.jpg")
    assert len(caught.value.problems) == 3


def test_class_names_come_back_sorted_and_clean():
    rows = [Record(f"{name}/x.jpg", name, "train", extension=".jpg") for name in ("b", " a", "C")]
    assert name_targets(rows) == ["C", "a", "b"]

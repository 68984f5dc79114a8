import hashlib
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmflowers.preparation.lists import NOT_LISTED, Line, Lists, assign_splits, find_lists, parse_line
from mmflowers.preparation.records import SourceFile
from mmflowers.utils.errors import InputError

CLASSES = ("daisy", "rose", "tulip")


def photos(prefix: str = "", per_class: int = 4) -> list[SourceFile]:
    return [
        SourceFile(f"{prefix}{name}/{number} of {name}.jpg", name) for name in CLASSES for number in range(per_class)
    ]


def write(folder, classes=None, **lists) -> Lists:
    folder.mkdir(exist_ok=True)
    for name, lines in lists.items():
        text = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        (folder / f"{name}.txt").write_bytes(text)
    if classes is not None:
        (folder / "classes.txt").write_text("\n".join(classes))
    found = find_lists(folder)
    assert found is not None
    return found


def halves(files, form="{path} {label}") -> dict[str, list[str]]:
    """Lists with photos 0 and 1 of each class in train, 2 and 3 in val."""
    lines = [form.format(path=file.path, label=CLASSES.index(file.class_name)) for file in files]
    return {
        "train": [line for number, line in enumerate(lines) if number % 4 < 2],
        "val": [line for number, line in enumerate(lines) if number % 4 >= 2],
    }


def problems(files, lists, **kwargs) -> list[str]:
    before = [(file.split, file.refusal) for file in files]
    with pytest.raises(InputError) as caught:
        assign_splits(files, lists, **kwargs)
    assert [(file.split, file.refusal) for file in files] == before
    return [str(problem) for problem in caught.value.problems]


def as_halves(files) -> bool:
    return [file.split for file in files] == ["train", "train", "val", "val"] * len(CLASSES)


@pytest.mark.parametrize(
    "form",
    [
        "{path} {label}",
        "{path}\t{label}",
        "{path}\t {label}  ",
        "{path},{label}",
        "{path}, {label}",
        "{path};{label}",
        '"{path}",{label}',
        "{path}",
        "./{path} {label}",
        "photos/{path} {label}",
        "train/{path} {label}",
        "../data//{path} {label}",
        "/home/someone/flowers/{path} {label}",
        "C:\\flowers\\{path} {label}",
    ],
)
def test_lists_in_any_common_form_are_read(tmp_path, form):
    files = photos()
    assign_splits(files, write(tmp_path, **halves(files, form)))
    assert as_halves(files)


def test_a_path_with_backslashes_finds_its_file(tmp_path):
    files = photos()
    lists = {name: [line.replace("/", "\\") for line in lines] for name, lines in halves(files).items()}
    assign_splits(files, write(tmp_path, **lists))
    assert as_halves(files)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace("\n", "\n\n  \n").encode(),
        lambda text: text.rstrip("\n").encode(),
    ],
)
def test_line_ends_byte_order_marks_and_blank_lines_do_not_matter(tmp_path, encode):
    files = photos()
    lists = {name: encode("".join(f"{line}\n" for line in lines)) for name, lines in halves(files).items()}
    assign_splits(files, write(tmp_path, **lists))
    assert as_halves(files)


def test_paths_relative_to_the_folder_of_their_split_find_their_files(tmp_path):
    files = [*photos("train/"), *photos("val/")]  # the same names in both
    lines = [file.path.split("/", 1)[1] for file in photos("train/")]
    assign_splits(files, write(tmp_path, train=lines, val=lines))
    assert {file.path.split("/")[0] == file.split for file in files} == {True}


@pytest.mark.parametrize("name", ["noext 7", "noext", "x 3.jpg", "a,1", "  b.jpg", "caf\udce9.jpg", "\u2028.jpg"])
def test_a_file_whose_name_looks_like_something_else_is_found_without_a_label(tmp_path, name):
    files = [SourceFile(f"daisy/{name}", "daisy"), SourceFile("daisy/val.jpg", "daisy")]
    lists = write(tmp_path, train=f"daisy/{name}\n".encode("utf-8", "surrogateescape"), val=["daisy/val.jpg"])
    assign_splits(files, lists)
    assert [file.split for file in files] == ["train", "val"]


def test_composed_and_decomposed_letters_are_the_same(tmp_path):
    files = [SourceFile("Gänse/a\u0308.jpg", "Gänse"), SourceFile("Gänse/b.jpg", "Gänse")]
    assign_splits(files, write(tmp_path, train=["Ga\u0308nse/ä.jpg 0"], val=["Ga\u0308nse/b.jpg 0"]))
    assert [file.split for file in files] == ["train", "val"]


def test_photos_that_no_list_names_are_refused_and_other_refusals_stay(tmp_path):
    files = [*photos(), SourceFile("daisy/new.jpg", "daisy"), SourceFile("x.txt", None, refusal="outside")]
    assign_splits(files, write(tmp_path, **halves(photos())))
    assert [(file.split, file.refusal) for file in files[-2:]] == [(None, NOT_LISTED), (None, "outside")]
    assert as_halves(files[:-2])


@pytest.mark.parametrize("place", [".", "meta"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_lists_are_found_beside_the_photos_or_in_meta_under_any_name(tmp_path, place, val):
    (tmp_path / place).mkdir(exist_ok=True)
    for name in ("train", val, "test", "classes"):
        (tmp_path / place / f"{name}.txt").touch()
    found = find_lists(tmp_path)
    assert set(found.files) == {"train", "val", "test"}
    assert found.classes == tmp_path / place / "classes.txt"


def test_train_alone_is_no_split_and_two_lists_of_val_are_a_contradiction(tmp_path):
    (tmp_path / "train.txt").touch()
    assert find_lists(tmp_path) is None
    (tmp_path / "val.txt").touch()
    (tmp_path / "valid.txt").touch()
    with pytest.raises(InputError, match=r"both lists of val"):
        find_lists(tmp_path)


def test_the_digest_depends_on_who_is_where_and_on_nothing_else(tmp_path):
    lists, files = halves(photos()), photos()
    first = assign_splits(files, write(tmp_path / "a", **lists))
    again = {name: [f"photos/{line}" for line in reversed(lines)] for name, lines in lists.items()}
    assert assign_splits(photos(), write(tmp_path / "b", classes=CLASSES, **again)) == first
    assert first == hashlib.sha256("".join(f"{file.split} {file.path}\n" for file in files).encode()).hexdigest()
    lists["val"].append(lists["train"].pop())
    assert assign_splits(photos(), write(tmp_path / "c", **lists)) != first


def test_every_problem_is_said_at_once(tmp_path):
    lists = halves(photos())
    lists["train"] += ["daisy/gone.jpg 0", "('daisy/x.jpg', 0)", lists["train"][0]]
    lists["val"] += [lists["train"][1], "rose/gone.jpg 1", "daisy/0 of daisy.jpg"]
    lists["val"][0] = lists["val"][0][:-1] + "2"
    said = problems(photos(), write(tmp_path, classes=CLASSES, test=[], **lists))
    assert len(said) == 7
    for expected in (
        "train.txt:8 ('daisy/x.jpg', 0): neither",
        "train.txt: 1 of 9 lines name no file of the source: daisy/gone.jpg (train.txt:7)",
        "val.txt: 1 of 9 lines name no file of the source: rose/gone.jpg (val.txt:8)",
        "test.txt is empty",
        "1 file is listed twice: daisy/0 of daisy.jpg (train.txt:1, train.txt:9)",
        "2 files are in two splits: daisy/1 of daisy.jpg (train.txt:2, val.txt:7), daisy/0 of daisy.jpg",
        "label 2 is tulip in classes.txt, but is given to 1 photo of daisy/ (val.txt:1)",
    ):
        assert any(expected in line for line in said), expected


def test_many_alike_problems_are_counted_and_the_first_few_named(tmp_path):
    lists = {name: [f"{line} x" for line in lines] for name, lines in halves(photos()).items()}
    said = problems(photos(), write(tmp_path, train=lists["train"], val=[f"no/{n}.jpg 0" for n in range(2000)]))
    assert len(said) == 5
    assert "3 more lines are neither" in said[3]
    assert "2,000 of 2,000 lines" in said[4]
    assert "no/2.jpg (val.txt:3) and 1,997 more" in said[4]


@pytest.mark.parametrize(
    "line",
    ["daisy/a.jpg -1", "daisy/a.jpg daisy", "('daisy/a.jpg', 0)", "7", " 0", "filename,label", "daisy/a.jpg\0 0"],
)
def test_a_line_that_is_neither_path_nor_path_and_label_is_malformed(line):
    assert parse_line(line) is None


def test_without_classes_folders_and_labels_must_be_one_to_one(tmp_path):
    lists = halves(photos())
    lists["train"][0] = lists["train"][0][:-1] + "1"
    said = problems(photos(), write(tmp_path, **lists))
    assert len(said) == 2
    assert "photos of daisy/ have several labels: 0 (3 photos, train.txt:2), 1 (1 photo, train.txt:1)" in said[0]
    assert "label 1 is given to several class folders: daisy/ (1 photo, train.txt:1), rose/ (4 photos" in said[1]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["rose", "daisy", "tulip"], ["label 0 is rose", "label 1 is daisy"]),
        (["daisies", "rose", "tulip"], ["label 0 is daisies in classes.txt, but is given to 4 photos of daisy/"]),
        (["daisy", "rose"], ["label 2 is given to 4 photos of tulip/", "has 2 names"]),
        (["daisy", "rose", "rose", "tulip"], ["names a class twice: rose"]),
    ],
)
def test_labels_that_contradict_classes_txt_are_named(tmp_path, classes, expected):
    said = "\n".join(problems(photos(), write(tmp_path, classes=classes, **halves(photos()))))
    assert all(text in said for text in expected)


def test_labels_on_some_lines_only_are_a_problem(tmp_path):
    lists = halves(photos())
    lists["train"][2] = lists["train"][2][:-2]
    assert "1 line has no label while others have one: train.txt:3" in problems(photos(), write(tmp_path, **lists))[0]


def test_lists_without_val_are_a_problem(tmp_path):
    lists = halves(photos())
    assert "has no val.txt" in problems(photos(), write(tmp_path, train=lists["train"], test=lists["val"]))[0]


def test_a_list_that_contradicts_the_split_folders_is_a_problem_when_both_are_the_sources_own(tmp_path):
    files = [SourceFile("train/daisy/a.jpg", "daisy", "train"), SourceFile("val/daisy/b.jpg", "daisy", "val")]
    lists = write(tmp_path, train=["val/daisy/b.jpg 0"], val=["train/daisy/a.jpg 0"])
    assert "2 files lie in the folder of another split" in problems(files, lists, against_folders=True)[0]
    assign_splits(files, lists)
    assert [file.split for file in files] == ["val", "train"]


def test_hostile_lines_take_no_time(tmp_path):
    started = time.monotonic()
    for line in ("a" + " " * 200_000 + "x", "/" * 200_000, "1" * 200_000, "a," * 100_000 + "1", "a/" * 1_000 + "b.c 1"):
        parse_line(line)
        problems(photos(), write(tmp_path, train=[line], val=[line]))
    assert time.monotonic() - started < 5


NAMES = st.text(st.sampled_from(string.ascii_letters + string.digits + " .,;-_()äß\u4e2d\u2028'"), min_size=1).filter(
    lambda name: name not in (".", "..") and name == name.strip(" ,;'") and name.strip()
)


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["jpg", "JPEG", "png"]), st.integers(0, 999_999_999))
def test_a_path_and_its_label_come_back_from_a_line(folders, extension, label):
    path = f"{'/'.join(folders)}.{extension}"
    path = path.strip()
    for between in (" ", "\t", ",", "; ", "   "):
        assert parse_line(f"{path}{between}{label}") == Line(path, label)
    assert parse_line(f"{path}\r") == Line(path, None)


@given(st.text())
def test_any_text_is_a_line_or_malformed(text):
    line = parse_line(text)
    assert line is None or (line.path and line.path in text and (line.label is None or str(line.label)[-1] in text))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_lists_or_bad_input(tmp_path_factory, train, val):
    folder = tmp_path_factory.mktemp("lists")
    (folder / "train.txt").write_bytes(train)
    (folder / "val.txt").write_bytes(val)
    files = photos()
    try:
        assign_splits(files, find_lists(folder))
    except InputError as error:
        assert all(str(problem).isprintable() for problem in error.problems)
        assert {file.split for file in files} == {None}

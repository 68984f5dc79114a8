import csv
import functools
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode, photo
from pyarrow import parquet
from scipy.io import savemat

from mmflowers.preparation import sources
from mmflowers.preparation.labels import LabelOptions, label_photos
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.preparation.records import Source
from mmflowers.utils.errors import InputError

CLASSES = ("daisy", "rose", "tulip")
NUMBERS = range(12)  # of the photos; photo n is one of CLASSES[n % 3], in val if n >= 9


def label(number: int) -> str:
    return CLASSES[number % 3]


def split(number: int) -> str:
    return "val" if number >= 9 else "train"


@functools.cache
def rendered(number: int) -> bytes:
    return encode(photo(number))


def draw(folder: Path, form: str = "images/photo_{:03}.jpg", numbers=NUMBERS) -> Path:
    for number in numbers:
        path = folder / form.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rendered(number))
    return folder


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(rows, delimiter=",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


@pytest.fixture
def opened(tmp_path):
    def open_source(source: Path, split=None, layout=None, follow_links=False, **columns) -> Source:
        options = dict(split=split, layout=layout, follow_links=follow_links, labels=LabelOptions(**columns))
        return sources.open_source(source, staging=tmp_path / "staging", **options)

    return open_source


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw(tmp_path / "source")


def labels_of(source: Source) -> dict[int, str | None]:
    """Number of each photo → its class; the number is found by the bytes, so no wrong file passes."""
    by_bytes = {rendered(number): number for number in NUMBERS}
    used = [file for file in source.files if file.refusal is None]
    return {by_bytes[(source.root / file.path).read_bytes()]: file.class_name for file in used}


def splits_of(source: Source) -> dict[int, str | None]:
    by_bytes = {rendered(number): number for number in NUMBERS}
    used = [file for file in source.files if file.refusal is None]
    return {by_bytes[(source.root / file.path).read_bytes()]: file.split for file in used}


def refusals(source: Source) -> dict[str, str]:
    return {file.path: file.refusal for file in source.files if file.refusal}


def problems(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return "\n".join(str(problem) for problem in caught.value.problems)


ALL = {number: label(number) for number in NUMBERS}
SPLITS = {number: split(number) for number in NUMBERS}


@pytest.mark.parametrize(
    "form",
    [
        "images/photo_{:03}.jpg",
        "./images/photo_{:03}.jpg",
        "/home/someone/flowers/images/photo_{:03}.jpg",
        "C:\\flowers\\images\\photo_{:03}.jpg",
        "photo_{:03}.jpg",
        "PHOTO_{:03}.JPG",
        "photo_{:03}",
        "images/photo_{:03}",
        "photo_{:03}.png",  # converted since
    ],
)
def test_photos_are_found_by_path_name_or_id(folder, opened, form):
    rows = [("image", "species"), *((form.format(number), label(number)) for number in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    source = opened(folder)
    assert labels_of(source) == ALL
    assert refusals(source) == {"labels.csv": "a table, not a photo"}
    assert source.notes == ["labels: labels.csv, images in column image, classes in column species"]


def test_numbers_that_lost_their_zeros_find_their_photos(tmp_path, opened):
    folder = draw(tmp_path / "source", "{:05}.jpg")
    write(folder / "labels.csv", table([("", "id", "y"), *((n + 50, n, label(n)) for n in NUMBERS)]))
    assert labels_of(opened(folder)) == ALL


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("header", [True, False])
def test_separators_encodings_and_headers(folder, opened, delimiter, encoding, header):
    names = {"daisy": "Gänseblümchen", "rose": "Rose, rot", "tulip": "tulip"}
    rows = [("file", "class")] * header + [(f"photo_{n:03}.jpg", names[label(n)]) for n in NUMBERS]
    extension = "tsv" if delimiter == "\t" else "csv"
    write(folder / f"data.{extension}", table(rows, delimiter).encode(encoding))
    source = opened(folder)
    assert labels_of(source) == {number: names[label(number)] for number in NUMBERS}
    assert ["Windows-1252" in note for note in source.notes] == [False, *[True] * (encoding == "cp1252")]


def test_the_line_that_excel_writes_names_the_separator(folder, opened):
    rows = [("file", "class"), *((f"photo_{n:03}.jpg", label(n)) for n in NUMBERS)]
    write(folder / "labels.csv", "sep=;\r\n" + table(rows, ";"))
    assert labels_of(opened(folder)) == ALL


@pytest.mark.parametrize(
    "name, text",
    [
        ("labels.jsonl", "".join(json.dumps({"f": f"photo_{n:03}.jpg", "label": label(n)}) + "\n" for n in NUMBERS)),
        ("labels.json", json.dumps([{"f": f"photo_{n:03}.jpg", "label": label(n)} for n in NUMBERS])),
        ("labels.json", json.dumps({f"photo_{n:03}.jpg": label(n) for n in NUMBERS})),
        ("labels.json", json.dumps({f"photo_{n:03}.jpg": {"label": label(n), "w": 3} for n in NUMBERS})),
        (
            "coco.json",
            json.dumps(
                {
                    "images": [{"id": 7 * n, "file_name": f"photo_{n:03}.jpg"} for n in NUMBERS],
                    "categories": [{"id": 5 + n, "name": name} for n, name in enumerate(CLASSES)],
                    "annotations": [{"image_id": 7 * n, "category_id": 5 + n % 3} for n in [*NUMBERS, 4]],
                }
            ),
        ),
    ],
)
def test_forms_of_json(folder, opened, name, text):
    write(folder / name, text)
    assert labels_of(opened(folder)) == ALL


def test_parquet_with_paths(folder, opened):
    columns = {"image_path": [f"images/photo_{n:03}.jpg" for n in NUMBERS], "label": [label(n) for n in NUMBERS]}
    columns["embedding"] = [[0.5, 1.5]] * len(NUMBERS)
    parquet.write_table(pyarrow.table(columns), folder / "labels.parquet")
    assert labels_of(opened(folder)) == ALL


def test_a_split_column_is_a_split_that_is_asked_about(folder, opened):
    named = {"train": "Training", "val": "validation"}
    rows = [("file", "split", "label"), *((f"photo_{n:03}.jpg", named[split(n)], label(n)) for n in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    said = problems(opened, folder)
    assert "is split already: column split: train 9, val 3" in said
    assert "--split keep uses that split" in said
    source = opened(folder, "keep")
    assert source.has_split
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)
    source = opened(folder, "redo")
    assert not source.has_split
    assert set(splits_of(source).values()) == {None}


def test_of_a_table_with_train_and_test_alone_val_is_drawn_out_of_train(folder, opened):
    rows = [(f"photo_{number:03}", label(number), "test" if number >= 9 else "train") for number in NUMBERS]
    write(folder / "labels.csv", table([("id", "label", "split"), *rows]))
    assert "--split keep keeps test as it is and draws val out of train" in problems(opened, folder)
    found = opened(folder, split="keep")
    assert found.draws_val and found.description["split"] == "its table, val drawn out of train"
    assert {number for number, split in splits_of(found).items() if split == "test"} == {9, 10, 11}


def test_options_about_folders_and_links_count_beside_a_table(folder, tmp_path, opened):
    rows = [(f"photo_{number:03}.jpg", label(number)) for number in NUMBERS]
    write(folder / "labels.csv", table([("file", "label"), *rows]))
    assert set(labels_of(opened(folder, layout="classes")).values()) == {"images"}
    assert "give one of them" in problems(opened, folder, layout="classes", labels="labels.csv")
    elsewhere = (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(elsewhere)
    assert "--follow-links" in problems(opened, folder)
    assert labels_of(opened(folder, follow_links=True)) == ALL


def test_a_column_that_is_called_split_but_has_none_can_be_ignored(folder, opened):
    rows = [("file", "split", "label"), *((f"photo_{n:03}.jpg", f"part {n % 4}", label(n)) for n in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    assert "unknown splits: part 0 (3), part 1 (3), part 2 (3) and 1 more" in problems(opened, folder)
    assert labels_of(opened(folder, labels="labels.csv", label_column="label", split_column="none")) == ALL


def test_fastai_marks_the_photos_of_val(folder, opened):
    rows = [("fname", "labels", "is_valid"), *((f"photo_{n:03}.jpg", label(n), split(n) == "val") for n in NUMBERS)]
    write(folder / "train.csv", table(rows))
    source = opened(folder, "keep")
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)


def test_one_hot_columns_of_roboflow(tmp_path, opened):
    folder = tmp_path / "source"
    for part, name in (("train", "train"), ("val", "valid")):
        numbers = [number for number in NUMBERS if split(number) == part]
        draw(folder, f"{name}/{{:03}}_jpg.rf.0a1b2c.jpg", numbers)
        rows = [[f"{n:03}_jpg.rf.0a1b2c.jpg", *(f" {int(label(n) == c)}" for c in CLASSES)] for n in numbers]
        write(folder / name / "_classes.csv", table([["filename", *(f" {c}" for c in CLASSES)], *rows]))
    source = opened(folder, "keep")
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)
    assert "3 one-hot columns" in source.notes[0]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("validation", ["val", "validation"])
def test_hugging_faces_image_folder(tmp_path, opened, name, validation):
    folder = tmp_path / "source"
    for part, subfolder in (("train", "train"), ("val", validation)):
        numbers = [number for number in NUMBERS if split(number) == part]
        for number in numbers:  # the same names in both
            draw(folder, f"{subfolder}/{numbers.index(number)}.jpg", [number])
        rows = [{"file_name": f"{i}.jpg", "label": label(n), "text": f"a photo, {n}"} for i, n in enumerate(numbers)]
        text = table([list(rows[0]), *(list(row.values()) for row in rows)])
        text = text if name.endswith("csv") else "".join(json.dumps(row) + "\n" for row in rows)
        write(folder / subfolder / name, text)
    source = opened(folder, "keep")
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)


@pytest.mark.parametrize("names", [("train-00000-of-00001", "validation-00000-of-00001"), ("train/0000", "val/0000")])
def test_hugging_faces_parquet_with_the_images_in_it(tmp_path, opened, names):
    folder = tmp_path / "source"
    features = {"image": {"_type": "Image"}, "label": {"names": ["rose", "tulip", "daisy"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, name in zip(("train", "val"), names, strict=True):
        numbers = [number for number in NUMBERS if split(number) == part]
        images = [{"bytes": rendered(n), "path": "../../x.jpg" if n % 2 else None} for n in numbers]
        data = pyarrow.table({"image": images, "label": [["rose", "tulip", "daisy"].index(label(n)) for n in numbers]})
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(data.replace_schema_metadata(metadata), path)
    write(folder / "README.md", "a card")
    for _ in range(2):  # the second time the images are there already
        source = opened(folder, "keep")
        assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        *(f"{Path(name).name}.parquet" for name in names),
    }


@pytest.mark.parametrize("is_struct", [True, False])
def test_parts_of_one_parquet_are_one_set(tmp_path, opened, is_struct):
    (tmp_path / "source").mkdir()
    for part in range(2):
        numbers = NUMBERS[part * 6 : part * 6 + 6]
        images = [{"bytes": rendered(n), "path": "a.jpg"} if is_struct else rendered(n) for n in numbers]
        columns = {"image": images, "label": list(map(label, numbers))}
        parquet.write_table(pyarrow.table(columns), tmp_path / "source" / f"000{part}.parquet")
    assert labels_of(opened(tmp_path / "source")) == ALL


def test_kaggles_dog_breeds(tmp_path, opened):
    folder = draw(tmp_path / "source", "train/{:03}abc.jpg")
    for number in range(20, 25):
        write(folder / f"test/{number:03}abc.jpg", encode(photo(number)))
    write(folder / "labels.csv", table([("id", "breed"), *((f"{n:03}abc", label(n)) for n in NUMBERS)]))
    rows = [["id", *CLASSES], *([f"{n:03}abc", 0.1, 0.2, 0.7] for n in range(20, 25))]
    write(folder / "sample_submission.csv", table(rows))
    source = opened(folder)
    assert labels_of(source) == ALL
    assert not source.has_split
    assert source.notes == [
        "labels: labels.csv, images in column id, classes in column breed",
        "5 photos in test/ without labels: not used",
    ]
    assert refusals(source)["test/020abc.jpg"] == "no row in labels.csv"


def test_of_photos_with_one_name_that_in_the_folder_of_the_tables_split_is_meant(tmp_path, opened):
    folder = draw(draw(tmp_path / "source", "train/{}.jpg"), "test/{}.jpg")
    rows = [("id", "label"), *((n, n % 3) for n in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    assert "12 rows of labels.csv could mean several photos" in problems(opened, folder)
    (folder / "labels.csv").rename(folder / "train_labels.csv")
    write(folder / "test.csv", table([("id",), *((n,) for n in NUMBERS)]))
    found = {file.path: file.class_name for file in opened(folder).files if not file.refusal}
    assert found == {f"train/{number}.jpg": str(number % 3) for number in NUMBERS}


def test_a_row_of_a_missing_photo_does_not_take_that_of_another_folder(tmp_path, opened):
    folder = draw(tmp_path / "source", "images/{}/1.jpg")
    (folder / "images/5/1.jpg").unlink()
    (folder / "images/5").rmdir()
    write(folder / "images/5/2.jpg", rendered(5))
    rows = [("path", "label"), *((f"{n}/1.jpg", label(n)) for n in NUMBERS if n != 4)]
    write(folder / "labels.csv", table(rows))
    source = opened(folder, labels="labels.csv")
    assert labels_of(source) == {number: name for number, name in ALL.items() if number not in (4, 5)}
    assert "1 row of labels.csv without a photo: 5/1.jpg" in source.notes


def test_a_table_and_its_photos_are_found_within_an_archive_and_its_folder(tmp_path, opened):
    folder = draw(tmp_path / "packed" / "flowers", "all/{}.jpg")
    write(folder / "docs" / "labels.csv", table([("id", "label"), *((n, label(n)) for n in NUMBERS)]))
    source = opened(Path(shutil.make_archive(str(tmp_path / "flowers"), "zip", tmp_path / "packed")))
    assert labels_of(source) == ALL
    assert source.description["labels"]["tables"] == ["flowers/docs/labels.csv"]


def test_classes_of_boxes_are_classes_of_photos_where_these_have_one_each(folder, opened):
    rows = [(f"photo_{n:03}.jpg", 64, 48, label(n), x, x, x + 9, x + 9) for n in NUMBERS for x in range(n % 4 + 1)]
    head = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
    write(folder / "boxes.csv", table([head, *rows]))
    assert labels_of(opened(folder)) == ALL
    write(folder / "boxes.csv", table([head, *rows, (*rows[0][:3], "rose", 0, 0, 9, 9)]))
    assert "different labels to 1 photo: images/photo_000.jpg (daisy, rose)" in problems(opened, folder)


@pytest.mark.parametrize("quote", ["", '"', "'"])
@pytest.mark.parametrize("header", ["", "path label\n"])
@pytest.mark.parametrize("by", ["index", "name"])
def test_mmpretrains_flat_form(tmp_path, opened, quote, header, by):
    folder = draw(tmp_path / "source", "imgs/a photo {:03}.jpg")
    write(folder / "classes.txt", "tulip\nrose\ndaisy\n")
    for part in ("train", "val"):
        lines = [
            f"{quote}a photo {n:03}.jpg{quote} {2 - n % 3 if by == 'index' else label(n)}\n"
            for n in NUMBERS
            if split(n) == part
        ]
        write(folder / "meta" / f"{part}.txt", header + "".join(lines))
    source = opened(folder, "keep")
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)


def test_imagenet_has_folders_for_train_and_a_list_for_val(tmp_path, opened):
    folder = tmp_path / "source"
    for number in NUMBERS:
        draw(folder, f"train/{label(number)}/{{}}.JPEG" if split(number) == "train" else "val/val_{:08}.JPEG", [number])
    draw(folder, "test/test_{:08}.JPEG", [4])
    lines = [f"{label(n)}/{n}.JPEG {n % 3}\n" for n in NUMBERS if split(n) == "train"]
    write(folder / "meta" / "train.txt", "".join(lines))
    lines = [f"val_{n:08}.JPEG {n % 3}\n" for n in NUMBERS if split(n) == "val"]
    write(folder / "meta" / "val.txt", "".join(lines))
    write(folder / "meta" / "test.txt", "test_00000004.JPEG\n")
    source = opened(folder, "keep")
    assert (labels_of(source), splits_of(source)) == (ALL, SPLITS)
    assert "their names from the folders" in source.notes[0]
    write(folder / "meta" / "val.txt", "".join(lines)[:-2] + "7\n")
    assert "labels without a class folder: 7" in problems(opened, folder)


def test_oxford_102_flowers(tmp_path, opened):
    folder = draw(tmp_path / "source", "jpg/image_{:05}.jpg", [])
    for number in NUMBERS:
        write(folder / f"jpg/image_{number + 1:05}.jpg", rendered(number))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[n % 3 + 1 for n in NUMBERS]], np.uint8)})
    numbers = {part: [n + 1 for n in NUMBERS if split(n) == part] for part in ("train", "val")}
    ids = {"trnid": numbers["train"], "valid": numbers["val"][:2], "tstid": numbers["val"][2:]}
    savemat(folder / "setid.mat", {name: np.array([values], np.uint16) for name, values in ids.items()})
    source = opened(folder, "keep")
    assert labels_of(source) == {number: str(number % 3 + 1) for number in NUMBERS}
    assert splits_of(source) == {**SPLITS, 11: "test"}
    assert "no classes.txt" in source.notes[0]
    write(folder / "cat_to_name.json", json.dumps({"3": "tulip", "1": "daisy", "2": "rose"}))
    assert labels_of(opened(folder, "keep")) == ALL


@pytest.mark.parametrize(
    "start, name, text",
    [
        (0, "classes.txt", "daisy\nrose\ntulip\n"),
        (1, "labels.txt", "daisy\nrose\ntulip\n"),
        (5, "classes.txt", "6 rose\n5 daisy\n7 tulip\n"),
        (5, "classes.txt", "rose 6\ndaisy 5\ntulip 7\n"),
        (0, "label_map.json", '["daisy", "rose", "tulip"]'),
        (3, "label_map.json", '{"daisy": 3, "tulip": 5, "rose": 4}'),
        (3, "label_map.json", '{"3": "daisy", "5": "tulip", "4": "rose"}'),
        (0, "imagenet_class_index.json", '{"0": ["n1", "daisy"], "1": ["n2", "rose"], "2": ["n3", "tulip"]}'),
    ],
)
@pytest.mark.parametrize("decimal", ["", ".0"])
def test_names_of_indices(folder, opened, start, name, text, decimal):
    rows = [("file", "label"), *((f"photo_{n:03}.jpg", f"{n % 3 + start}{decimal}") for n in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    write(folder / name, text)
    source = opened(folder)
    assert labels_of(source) == ALL
    assert f"their names in {name}" in source.notes[0]


def test_of_a_number_and_a_name_that_say_the_same_the_name_is_taken(folder, opened):
    rows = [("file", "label", "class_name"), *((f"photo_{n:03}.jpg", n % 3, label(n)) for n in NUMBERS)]
    write(folder / "labels.csv", table(rows))
    assert labels_of(opened(folder)) == ALL


def test_several_columns_that_can_be_the_classes_are_a_question_that_the_options_answer(folder, opened):
    rows = [("file", "color", "plant"), *((f"photo_{n:03}.jpg", n % 2, label(n)) for n in NUMBERS)]
    path = write(folder / "labels.csv", table(rows))
    said = problems(opened, folder)
    assert "Its columns are file, color, plant" in said
    assert "--labels labels.csv --image-column file --label-column NAME" in said
    for options in (
        {"label_column": "plant"},
        {"label_column": "3"},
        {"labels": "labels.csv", "image_column": "file", "label_column": "plant"},
        {"labels": path, "image_column": "1", "label_column": "plant"},
    ):
        assert labels_of(opened(folder, **options)) == ALL
    assert "--label-column plants: labels.csv has no such column" in problems(opened, folder, label_column="plants")
    assert "no such file" in problems(opened, folder, labels="gone.csv")


def test_two_tables_are_a_question(folder, opened):
    write(folder / "a.csv", table([("file", "label"), *((f"photo_{n:03}.jpg", label(n)) for n in NUMBERS)]))
    write(folder / "b.csv", table([("file", "label"), *((f"photo_{n:03}.jpg", label(n + 1)) for n in NUMBERS)]))
    said = problems(opened, folder)
    assert "2 tables can label the photos: a.csv (columns file, label); b.csv" in said
    assert labels_of(opened(folder, labels="a.csv")) == ALL
    write(folder / "b.csv", table([("file", "label"), *((f"photo_{n:03}.jpg", label(n)) for n in NUMBERS)]))
    assert labels_of(opened(folder)) == ALL  # they say the same


def test_folders_of_classes_decide_unless_a_table_contradicts_them(tmp_path, opened):
    folder = tmp_path / "source"
    for number in NUMBERS:
        draw(folder, f"{label(number)}/{{}}.jpg", [number])
    write(folder / "photographers.csv", table([("file", "who"), *((f"{n}.jpg", n % 4) for n in NUMBERS)]))
    write(folder / "same.csv", table([("file", "label"), *((f"{n}.jpg", label(n)) for n in NUMBERS)]))
    source = opened(folder)
    assert (labels_of(source), source.notes) == (ALL, [])
    write(folder / "other.csv", table([("file", "species"), *((f"{n}.jpg", f"s{n % 4}") for n in NUMBERS)]))
    said = problems(opened, folder)
    assert "the photos lie in folders (daisy, rose, tulip), but column species of other.csv has other classes" in said
    assert labels_of(opened(folder, labels="none")) == ALL
    assert labels_of(opened(folder, labels="other.csv")) == {number: f"s{number % 4}" for number in NUMBERS}


PAGE = (Path(__file__).parents[2] / "docs" / "your-own-photos.md").read_text()
EXAMPLES = re.findall(r", `([^`]+)`:\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("name, text", EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_examples_of_the_page_are_read(tmp_path, opened, name, text):
    place = "train" if name.startswith("train/") else "photos"
    folder = draw(tmp_path / "source", f"{place}/IMG_{{}}.jpg", [1, 2, 3])
    write(folder / name, text)
    write(folder / "classes.txt", "daisy\nrose\n")
    source = opened(folder, "keep" if "validation" in text else None)
    assert labels_of(source) == {1: "daisy", 2: "rose", 3: "daisy"}
    if "validation" in text:
        assert splits_of(source) == {1: "train", 2: "train", 3: "val"}


def test_the_page_has_its_examples():
    assert len(EXAMPLES) == 8


def test_a_table_outside_the_source_labels_it(folder, opened, tmp_path):
    path = write(tmp_path / "elsewhere" / "mine.csv", table([("f", "y"), *((f"photo_{n:03}", n % 3) for n in NUMBERS)]))
    write(tmp_path / "elsewhere" / "classes.txt", "\n".join(CLASSES))
    assert labels_of(opened(folder, labels=path)) == ALL


def test_rows_without_photos_and_photos_without_rows_or_labels_are_counted(folder, opened):
    rows = [(f"photo_{n:03}.jpg", "" if n == 5 else label(n)) for n in NUMBERS if n != 3]
    write(folder / "labels.csv", table([("file", "label"), *rows, ("gone.jpg", "rose")]))
    said = problems(opened, folder)
    assert "names 11 of 12 photos" in said
    assert "--labels labels.csv --image-column file --label-column label uses it" in said
    source = opened(folder, labels="labels.csv")
    assert labels_of(source) == {number: name for number, name in ALL.items() if number not in (3, 5)}
    assert refusals(source) == {
        "images/photo_003.jpg": "no row in labels.csv",
        "images/photo_005.jpg": "no label in labels.csv",
        "labels.csv": "a table, not a photo",
    }
    assert source.notes[1:] == [
        "1 row of labels.csv without a photo: gone.jpg",
        "1 photo without a row in labels.csv: images/photo_003.jpg",
    ]


def test_every_problem_is_said_at_once(folder, opened):
    draw(folder, "more/photo_{:03}.jpg", [2])
    rows = [(f"images/photo_{n:03}.jpg", "", "odd" if n == 1 else split(n)) for n in NUMBERS[:8]]
    rows += [
        ("photo_002.jpg", "rose", "train"),
        ("images/photo_000.jpg", "rose", "val"),
        ("photo_001", "rose", "train"),
    ]
    rows += [(f"gone_{n}.jpg", "tulip", "train") for n in range(30)]
    write(folder / "labels.csv", table([("file", "label", "split"), *rows]))
    said = problems(opened, folder, labels="labels.csv", image_column="file", label_column="label")
    for expected in (
        "different labels to 2 photos: images/photo_000.jpg (, rose), images/photo_001.jpg (, rose)",
        "different splits to 2 photos: images/photo_000.jpg (train, val), images/photo_001.jpg (odd, train)",
        "1 row of labels.csv could mean several photos: photo_002.jpg",
        "column split of labels.csv has unknown splits: odd (1)",
        "30 of 41 rows name no photo: gone_0.jpg, gone_1.jpg, gone_2.jpg and 27 more",
        "8 of 8 photos have no label",
    ):
        assert expected in said, expected
    assert len(said.splitlines()) == 6


def test_labels_without_a_name_are_a_problem(folder, opened):
    write(folder / "labels.csv", table([("file", "label"), *((f"photo_{n:03}.jpg", n % 3) for n in NUMBERS)]))
    write(folder / "classes.txt", "daisy\nrose\n")
    assert "classes.txt, counted from 0 has no name for label 2 of labels.csv" in problems(opened, folder)


def test_a_table_that_names_no_photo_or_is_damaged_is_said_if_it_is_given(folder, opened):
    write(folder / "a.csv", table([("x", "y"), *((f"other_{n}", label(n)) for n in NUMBERS)]))
    assert "no column of a.csv names the photos (columns: x, y)" in problems(opened, folder, labels="a.csv")
    write(folder / "b.json", "{")
    assert "b.json is not JSON" in problems(opened, folder, labels="b.json")
    write(folder / "e.xlsx", b"PK")
    assert "save it as CSV" in problems(opened, folder, labels="e.xlsx")
    write(folder / "c.parquet", b"PAR1")
    assert "c.parquet is damaged" in problems(opened, folder, labels="c.parquet")
    write(folder / "d.csv", "file,label\na.jpg,rose,red\n")
    assert "1 row has more cells than the first row's 2: row 2" in problems(opened, folder, labels="d.csv")


def test_parquet_without_pyarrow_says_what_to_install(folder, opened, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    write(folder / "labels.parquet", b"PAR1")
    assert "pip install pyarrow" in problems(opened, folder, labels="labels.parquet")


def test_a_dataset_is_made_and_made_again_when_the_table_changes(folder, tmp_path):
    rows = [(f"photo_{n:03}.jpg", label(n)) for n in NUMBERS]
    write(folder / "labels.csv", table([("file", "label"), *rows]))
    make = functools.partial(prepare, PrepareOptions(out=tmp_path / "out", source=folder, val_ratio=0.25, workers=1))
    summary = make()
    assert summary.counts == {"train": dict.fromkeys(CLASSES, 3), "val": dict.fromkeys(CLASSES, 1)}
    assert "note: labels: labels.csv, images in column file, classes in column label" in str(summary)
    kept = json.loads((tmp_path / "out" / "dataset.json").read_text())["source"]["labels"]
    assert kept == {"tables": ["labels.csv"], "image_column": "file", "label_column": "label", "split_column": None}
    assert make().state == "up to date"
    write(
        folder / "labels.csv",
        table([("file", "label"), *((name, by if by != "tulip" else "lily") for name, by in rows)]),
    )
    assert make().classes == ["daisy", "lily", "rose"]


def test_a_dataset_is_made_of_images_within_parquet_and_is_then_up_to_date(tmp_path):
    (tmp_path / "source").mkdir()
    columns = {"image": [{"bytes": rendered(n), "path": "a.jpg"} for n in NUMBERS], "label": list(map(label, NUMBERS))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "source" / "train.parquet")
    options = PrepareOptions(out=tmp_path / "out", source=tmp_path / "source", val_ratio=0.25, workers=1)
    assert prepare(options).counts == {"train": dict.fromkeys(CLASSES, 3), "val": dict.fromkeys(CLASSES, 1)}
    assert prepare(options).state == "up to date"
    written = {path.read_bytes(): path.parent.name for path in (tmp_path / "out").glob("*/*/*")}
    assert written == {rendered(number): label(number) for number in NUMBERS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_columns_without_a_table_are_a_contradiction(tmp_path):
    said = problems(PrepareOptions, out=tmp_path, labels="none", label_column="x")
    assert "--labels none has no columns" in said
    assert "remove" in problems(PrepareOptions, out=tmp_path, rendered=3, label_column="x")


@given(st.binary(max_size=400), st.sampled_from(["csv", "tsv", "txt", "json", "jsonl", "parquet", "mat"]))
def test_any_bytes_are_a_table_or_bad_input(tmp_path_factory, data, extension):
    folder = tmp_path_factory.mktemp("source")
    (folder / "a.jpg").touch()
    name = "imagelabels.mat" if extension == "mat" else f"labels.{extension}"
    (folder / name).write_bytes(data)
    for options in (LabelOptions(), LabelOptions(labels=os.fspath(folder / name))):
        try:
            label_photos(folder, options, staging=folder / "staging")
        except InputError as error:
            assert all(str(problem).isprintable() for problem in error.problems)


CELLS = st.text(st.sampled_from("abcXYZ 0159,;\"'\t|äß.-_/\\"), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=8), st.sampled_from(",;\t|"))
def test_any_table_is_read_or_bad_input(tmp_path_factory, rows, delimiter):
    folder = tmp_path_factory.mktemp("source")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).touch()
    (folder / "labels.csv").write_text(table([*rows, *zip("abc", "xyx", strict=True)], delimiter))
    for options in (LabelOptions(), LabelOptions("labels.csv"), LabelOptions("labels.csv", "1", "2")):
        try:
            label_photos(folder, options, staging=folder / "staging")
        except InputError as error:
            assert all(str(problem).isprintable() for problem in error.problems)

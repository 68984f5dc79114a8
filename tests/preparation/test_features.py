import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from mmflowers.preparation import features
from mmflowers.preparation.duplicates import resolve
from mmflowers.preparation.features import Features, are_copies, bit_count, copy_pairs, describe
from mmflowers.preparation.inspection import examine
from mmflowers.preparation.journal import Inspection
from mmflowers.preparation.records import Record
from mmflowers.rendered.flowers import KINDS
from mmflowers.rendered.photos import render_flower

PHOTOS = 60
SAMPLE = 37


def cut(image: Image.Image, width: float, height: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """Crop to ``width`` × ``height`` pixels; x and y from 0 (left, top) to 1."""
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + round(width), top + round(height)))


def letterboxed(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (max(image.size),) * 2, color="black")


def captioned(image: Image.Image) -> Image.Image:
    bar = image.height // 8
    framed = Image.new("RGB", (image.width, image.height + bar), "white")
    framed.paste(image)
    text = "A flower photographed in June"
    ImageDraw.Draw(framed).text((4, image.height + 2), text, fill="black", font_size=bar * 0.6)
    return framed


VERSIONS = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down and mirrored": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270°": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "cropped to 80 %": lambda image: cut(image, 0.8 * image.width, 0.8 * image.height),
    "cropped to 80 % at a corner": lambda image: cut(image, 0.8 * image.width, 0.8 * image.height, 0, 1),
    "cropped to a square": lambda image: cut(image, min(image.size), min(image.size)),
    "letterboxed": letterboxed,
    "with a border": lambda image: ImageOps.expand(image, image.width // 12, "white"),
    "with a caption bar": captioned,
    "mirrored, cropped and resized": lambda image: ImageOps.scale(
        ImageOps.mirror(cut(image, 0.8 * image.width, 0.8 * image.height, 0.2, 0.7)), 0.9
    ),
}


def described(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return examine(data.getvalue(), ".jpg")[0].features


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    sizes = ((320, 240), (240, 320), (300, 240))
    return [render_flower(KINDS[index % len(KINDS)], 1000 + index, sizes[index % 3]) for index in range(PHOTOS)]


@pytest.fixture(scope="module")
def originals(photos) -> list[bytes]:
    return [described(photo) for photo in photos]


def test_no_two_different_photos_are_a_pair(originals):
    assert copy_pairs(originals, np.arange(PHOTOS)).tolist() == list(range(PHOTOS))


@pytest.mark.parametrize("version", VERSIONS)
def test_changed_copies_are_found_and_joined_to_nothing_else(version, photos, originals):
    copies = [described(VERSIONS[version](photo)) for photo in photos[:SAMPLE]]
    labels = copy_pairs([*originals, *copies], np.arange(PHOTOS + SAMPLE))
    found = labels[PHOTOS:] == labels[:SAMPLE]
    assert found.sum() >= 35, f"not found: {np.flatnonzero(~found).tolist()}"
    assert len(np.unique(labels)) == PHOTOS + (~found).sum()


def test_copies_of_copies_are_in_one_group_whatever_the_order(photos):
    versions = [photos[0], *(change(photos[0]) for change in VERSIONS.values())]
    data = [described(image) for image in (*versions, photos[1])]
    for order in (np.arange(len(data)), np.arange(len(data))[::-1]):
        labels = copy_pairs([data[index] for index in order], np.arange(len(data)))[np.argsort(order)]
        assert len(set(labels[:-1].tolist())) == 1
        assert labels[-1] != labels[0]


def test_known_groups_are_kept_and_their_photos_bring_in_copies_of_their_own(photos, originals):
    mirrored = described(VERSIONS["mirrored"](photos[1]))
    labels = copy_pairs([*originals[:3], mirrored], np.array([0, 0, 2, 3]))
    assert labels[0] == labels[1] == labels[3] != labels[2]


def test_matching_places_are_not_enough_if_the_pixels_differ(photos, originals):
    """A photo whose features are those of another, but not its pixels, as of flowers with the same outline."""
    one, other = Features.from_bytes(originals[0]), Features.from_bytes(originals[3])
    assert are_copies(one, one, 0)
    assert not are_copies(one, one._replace(thumbnail=other.thumbnail), 0)


def test_the_hash_of_a_patch_is_that_of_the_mirrored_and_turned_patch():
    patches = np.random.default_rng(0).integers(0, 4080, (50, features.PATCH, features.PATCH)).astype(np.int16)
    expected, turns = features._hash(patches)
    for index, matrix in enumerate(features._MATRICES):
        turned = patches.transpose(0, 2, 1) if matrix[0, 0] == 0 else patches
        turned = turned[:, :: matrix[1].sum(), :: matrix[0].sum()]
        hashes, others = features._hash(turned)
        assert np.mean(bit_count(hashes ^ expected)) < 0.1, index  # a coefficient that rounds to 0 has no sign
        placed = features._MATRICES[features._RELATION[others, turns]]
        assert (placed == matrix).all(), index


@pytest.mark.parametrize(
    ("size", "has_some"),
    [((16, 16), True), ((64, 64), True), ((2000, 600), True), ((400, 100), False), ((100, 400), False)],
)
def test_images_of_any_size_have_features_unless_they_are_too_narrow_for_a_patch(size, has_some):
    assert bool(describe(Image.effect_noise(size, 60))) == has_some


def test_photos_too_small_for_detail_have_no_features():
    for side, has_some in ((32, False), (95, False), (96, True), (2000, True)):
        data = io.BytesIO()
        Image.effect_noise((side, side // 2), 60).save(data, "PNG")
        found, _ = examine(data.getvalue(), ".png")
        assert bool(found.features) == has_some, side


def test_a_flat_image_has_no_feature_and_no_copy():
    flat = describe(Image.new("RGB", (200, 150), "red"))
    assert len(Features.from_bytes(flat).points) == 0
    assert copy_pairs([flat, flat, b""], np.arange(3)).tolist() == [0, 1, 2]
    assert copy_pairs([], np.arange(0)).tolist() == []


def test_thousands_of_photos_with_the_same_watermark_stay_apart_and_take_linear_work(monkeypatch):
    """Neighbours in sorted order alone are compared, however many features are equal."""
    checked = []
    monkeypatch.setattr(features, "are_copies", lambda *pair: checked.append(pair))
    points = np.zeros(5, features.KEYPOINT)
    points["hash"] = np.random.default_rng(0).integers(0, 2**64, 5, dtype=np.uint64)
    same = bytes([96, 72, 5]) + points.tobytes()
    counts = []
    for number in (500, 1000):
        checked.clear()
        copy_pairs([same] * number, np.arange(number))
        counts.append(len(checked))
    assert 0 < counts[1] <= 2.2 * counts[0]


def test_numpy_1_counts_bits_too(monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**64, (10, 10), dtype=np.uint64)
    expected = [[bin(value).count("1") for value in row] for row in values.tolist()]
    assert bit_count(values).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert bit_count(values).tolist() == expected


def test_the_journal_keeps_features(originals):
    found = Inspection(size=3, thumbnail=b"abc", features=originals[0])
    assert Inspection.from_line(found.as_line("a.jpg")) == found


def test_a_mirrored_copy_in_the_other_split_is_dropped_from_train(photos):
    rows = []
    for path, image, split in (
        ("rose/a.jpg", photos[0], "train"),
        ("rose/b.jpg", VERSIONS["mirrored"](photos[0]), "val"),
        ("rose/c.jpg", photos[1], "train"),
    ):
        data = io.BytesIO()
        image.save(data, "PNG")
        found = examine(data.getvalue(), ".png")[0]
        record = Record(path, "rose", split, sha256=path)
        record.phash, record.thumbnail, record.features = found.phash, found.thumbnail, found.features
        rows.append(record)
    assert resolve(rows, policy="drop", has_split=True).near == [["rose/a.jpg", "rose/b.jpg"]]
    assert [row.verdict for row in rows] == ["dropped", "kept", "kept"]
    assert rows[0].reason == "near copy of a val photo"

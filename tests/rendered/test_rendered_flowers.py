"""The rendered flowers: made again to the byte, told apart by shape rather than colour, no two alike."""

from itertools import count, islice
from multiprocessing import active_children

import imagehash
import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from mmflowers.rendered.photos import KINDS, render_flower, render_flowers
from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import progress

PER_CLASS, TRAIN_PER_CLASS = 90, 60


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Pictures by kind, small so that they render fast."""
    folder = tmp_path_factory.mktemp("flowers")
    render_flowers(folder, PER_CLASS, seed=1, short_side=112, workers=2)
    return {kind: [Image.open(path).convert("RGB") for path in sorted((folder / kind).iterdir())] for kind in KINDS}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_picture_every_time_and_another_seed_another(kind):
    first, again, other = (np.asarray(render_flower(kind, seed, (96, 64))) for seed in (5, 5, 6))
    assert first.shape == (64, 96, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_shows_something(kind):
    for seed in range(12):
        pixels = np.asarray(render_flower(kind, seed, (120, 90)), float)
        assert pixels.std() > 6, f"seed {seed} is nearly one colour"


def test_a_generator_is_drawn_from_so_that_one_after_another_differs():
    rng = np.random.default_rng(0)
    assert render_flower("rose", rng, (64, 64)) != render_flower("rose", rng, (64, 64))


def test_a_file_depends_neither_on_the_count_nor_on_the_workers_nor_on_the_other_kinds(tmp_path):
    render_flowers(tmp_path / "many", 5, seed=3, short_side=80, workers=1)
    render_flowers(tmp_path / "few", 3, seed=3, short_side=80, workers=2)
    render_flowers(tmp_path / "roses", 5, seed=3, short_side=80, kinds=("rose",))
    many, few, roses = (contents(tmp_path / name) for name in ("many", "few", "roses"))
    assert sorted(many) == [f"{kind}/{kind}_{i:05d}.jpg" for kind in KINDS for i in range(1, 6)]
    assert len(few) == 15 and few.items() <= many.items()
    assert len(roses) == 5 and roses.items() <= many.items()
    assert len(set(many.values())) == len(many)


def test_another_seed_gives_other_files(tmp_path):
    for seed in (0, 1):
        render_flowers(tmp_path / str(seed), 2, seed=seed, short_side=80, kinds=("tulip",))
    assert not set(contents(tmp_path / "0").values()) & set(contents(tmp_path / "1").values())


@pytest.mark.slow
def test_sizes_vary_as_those_of_photos_do(flowers):
    sizes = [image.size for images in flowers.values() for image in images]
    short = np.array([min(size) for size in sizes])
    aspect = np.array([max(size) / min(size) for size in sizes])
    upright = np.mean([height > width for width, height in sizes])
    assert short.min() >= 0.79 * 112 and short.max() <= 1.21 * 112
    assert abs(short.mean() - 112) < 5 and len(set(short)) > 20
    assert aspect.min() == 1 and aspect.max() <= 1.62 and 1.25 < aspect.mean() < 1.45
    assert 0.15 < upright < 0.4


def test_the_jpeg_quality_varies(tmp_path):
    render_flowers(tmp_path, 12, short_side=64, kinds=("daisy",))
    images = [Image.open(path) for path in tmp_path.rglob("*.jpg")]
    assert {(image.format, image.mode) for image in images} == {("JPEG", "RGB")}
    assert len({tuple(image.quantization[0]) for image in images}) > 6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "HSV"])
def test_colour_alone_tells_less_than_seventy_percent(flowers, mode):
    def histogram(image):
        pixels = np.asarray(image.convert(mode)).reshape(-1, 3)
        counts, _ = np.histogramdd(pixels, bins=(8, 8, 8), range=[(0, 256)] * 3)
        return np.sqrt(counts.ravel() / len(pixels))

    def part(of):
        pairs = [(histogram(image), kind) for kind in KINDS for image in flowers[kind][of]]
        return [features for features, _ in pairs], [kind for _, kind in pairs]

    forest = RandomForestClassifier(300, random_state=0).fit(*part(slice(TRAIN_PER_CLASS)))
    accuracy = forest.score(*part(slice(TRAIN_PER_CLASS, None)))
    # the lower bound shows that the measurement works: yellow does hint at a dandelion
    assert 0.3 < accuracy < 0.7, f"{mode} histograms reach {accuracy:.1%}"


@pytest.mark.slow
def test_no_two_pictures_are_near_duplicates(flowers):
    hashes = np.array([imagehash.phash(image).hash.ravel() for images in flowers.values() for image in images])
    distances = (hashes[:, None] != hashes[None]).sum(axis=-1)[np.triu_indices(len(hashes), 1)]
    assert (distances <= 6).sum() == 0, f"the nearest are {distances.min()} bits of 64 apart"


def test_progress_counts_every_file(tmp_path, capsys):
    seen = []

    def show(paths, *, total, what):
        for path in progress(paths, total=total, what=what, every_seconds=0):
            seen.append((path, total))
            yield path

    render_flowers(tmp_path, 2, short_side=64, kinds=("daisy", "rose"), progress=show)
    assert [total for _, total in seen] == [4] * 4
    assert {path for path, _ in seen} == set(tmp_path.rglob("*.jpg"))
    assert "rendering: 4/4" in capsys.readouterr().err


def test_a_stop_halfway_leaves_the_rest_unrendered_and_no_worker_behind(tmp_path):
    def stop_early(paths, **_):
        yield from islice(paths, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_flowers(tmp_path, 400, short_side=64, workers=2, progress=stop_early)
    assert 3 <= len(contents(tmp_path)) < 400
    assert not active_children()


def test_all_that_is_wrong_with_the_arguments_is_said_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        render_flowers(tmp_path / "new", 0, seed=-1, short_side=8, workers=0, kinds=("rose", "orchid"))
    said = str(caught.value).splitlines()
    assert len(said) == 5
    for fragment, line in zip(("'orchid'", "0 pictures", "seed -1", "short side of 8", "0 workers"), said, strict=True):
        assert fragment in line and "hint" in line
    assert not (tmp_path / "new").exists()


def test_a_picture_of_impossible_size_or_kind_is_refused():
    with pytest.raises(InputError, match="10 × 64") as caught:
        render_flower("moss", 0, (10, 64))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (801, 600)])
def test_odd_sizes_come_out_exactly(size):
    assert {render_flower(kind, seed, size).size for kind, seed in zip(KINDS, count())} == {size}
